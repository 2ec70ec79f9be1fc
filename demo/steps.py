"""Preparation of a run: films with their ground truth, and a model repository made from the small checkpoint.

Films and models that exist and match the request are used again. Drawing and exporting run as processes of their own,
so that the process that measures never loads torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DETECT_EVERY = 4
"""Where objects are followed, the detector looks at every so many frames; the tracker carries masks on between them."""


class DemoError(RuntimeError):
    """A step that failed; the message contains the command and the end of its output."""


@dataclass(frozen=True, slots=True)
class Film:
    """One camera's encoded video and its ground truth (`camera_<n>.mp4`, `camera_<n>.json`, counted from 1)."""

    name: str
    video: Path
    truth: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        """The names that this camera looks for."""
        return list(self.truth["classes"])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.truth["width"], self.truth["height"]

    @property
    def count(self) -> int:
        """The number of frames."""
        return len(self.truth["frames"])

    def objects(self, index: int) -> list[dict[str, Any]]:
        """The objects in one frame: `class`, `bbox` (xyxy, fractions of the frame), `area` (pixels), `mask` (COCO
        RLE)."""
        return list(self.truth["frames"][index])


def films(folder: Path, cameras: int, frames: int, size: str, seed: int) -> list[Film]:
    """The films in `folder`, drawn and encoded first unless they exist with that many frames of that size."""
    request = {"cameras": cameras, "frames": frames, "size": size, "seed": seed}
    _draw("export.tiny.videos", folder, "request.json", request)
    return [_film(f"camera {i + 1}", folder / f"camera_{i + 1}.mp4") for i in range(cameras)]


def occluded_film(folder: Path, size: str, seed: int) -> Film:
    """The film in which something is hidden for a time, drawn likewise. Its ground truth says more:
    `demo.occlusion.record`."""
    _draw("demo.occlusion", folder, "request_followed.json", {"size": size, "seed": seed})
    return _film("followed", folder / "followed.mp4")


def _draw(module: str, folder: Path, stamp: str, request: dict[str, Any]) -> None:
    """Lets a module draw what is asked for, unless the stamp says that it is there."""
    if (folder / stamp).is_file() and json.loads((folder / stamp).read_text()) == request:
        return
    options = [word for name, value in request.items() for word in (f"--{name}", str(value))]
    run(module, "--output", str(folder), *options)
    (folder / stamp).write_text(json.dumps(request))


def _film(name: str, path: Path) -> Film:
    return Film(name, path, json.loads(path.with_suffix(".json").read_text()))


def configuration(
    films: Sequence[Film], model: str | None, folder: Path, followed: Film | None = None, video_model: str | None = None
) -> Path:
    """Writes `cameras.yaml`, with which `sam3-camera` and `sam3-dashboard` play the films in a loop; returns its
    path. The objects of the film `followed` are followed by the server's `video_model`."""
    defaults = {"fps": 2, "realtime": True, "loop": True, "track": True, "masks": "bits"} | (
        {"model": model} if model else {}
    )
    cameras = [_camera(film) for film in films]
    if followed is not None:
        # faster than the others: who is who is easier to tell from frames that are close to each other
        cameras.append(
            _camera(followed) | {"fps": 5, "track": "masks", "detect_every": DETECT_EVERY, "model": video_model}
        )
    path = folder / "cameras.yaml"
    path.write_text(json.dumps({"defaults": defaults, "cameras": cameras}, indent=1) + "\n")  # JSON is YAML
    return path


def _camera(film: Film) -> dict[str, Any]:
    return {"name": film.name, "source": str(film.video.resolve()), "classes": film.classes}


def has_tracker(checkpoint: Path) -> bool:
    """Whether a checkpoint's folder is a video model's."""
    config = checkpoint / "config.json"
    return config.is_file() and json.loads(config.read_text()).get("model_type") == "sam3_video"


def repository(folder: Path, checkpoint: Path, resolution: int, queries: int, video: bool = False) -> str:
    """Exports the checkpoint for ONNX Runtime into `folder`, with `video` its tracker too, except what is up to date;
    returns the front model's name. Raises DemoError."""
    if not checkpoint.is_dir():
        raise DemoError(
            f"there is no checkpoint in {checkpoint}; expected a folder with model.safetensors and config.json"
        )
    result = run(
        *("export.cli", "--checkpoint", str(checkpoint), "--engine", "onnxruntime", "--repository", str(folder)),
        *("--resolution", str(resolution), "--queries", str(queries), "--precision", "fp32"),
        *(["--video"] if video else []),
    )
    return str(result["front"][0])


def run(module: str, *arguments: str) -> Any:
    """Runs `python -m module ...` and returns the JSON object of its last line (an empty one if it is no JSON). Its
    progress, on stderr, is shown. Raises DemoError.
    """
    command: Sequence[str] = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        end = "\n".join(lines[-15:])
        raise DemoError(
            f"this command failed (exit code {done.returncode}): python -m {module} {' '.join(arguments)}\n{end}"
        )
    try:
        return json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        return {}
