"""What must exist before the cameras can start: the films with their ground truth, and a model repository made from the
small checkpoint.

Folders flow in, filled folders flow out; what is there already and fits is used again. Drawing and exporting run as
processes of their own, so that torch never lives in the process that measures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class DemoError(RuntimeError):
    """A step that could not be done; the message holds the command and the end of what it said."""


@dataclass(frozen=True, slots=True)
class Film:
    """One camera's encoded video and what is truly in it (`camera_<n>.mp4`, `camera_<n>.json`, counted from 1)."""

    name: str
    video: Path
    truth: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        return list(self.truth["classes"])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.truth["width"], self.truth["height"]

    def objects(self, index: int) -> list[dict[str, Any]]:
        """What can be seen in one frame: `class`, `bbox` (xyxy, fractions of the frame), `area` (pixels), `mask` (COCO
        RLE)."""
        return list(self.truth["frames"][index])


def films(folder: Path, cameras: int, frames: int, size: str, seed: int) -> list[Film]:
    """The films in `folder`, drawn and encoded first unless they are there with that many frames of that size."""
    request = {"cameras": cameras, "frames": frames, "size": size, "seed": seed}
    stamp = folder / "request.json"
    if not stamp.is_file() or json.loads(stamp.read_text()) != request:
        options = [word for name, value in request.items() for word in (f"--{name}", str(value))]
        run("export.tiny.videos", "--out", str(folder), *options)
        stamp.write_text(json.dumps(request))
    paths = [folder / f"camera_{i + 1}.mp4" for i in range(cameras)]
    return [
        Film(f"camera {i + 1}", path, json.loads(path.with_suffix(".json").read_text())) for i, path in enumerate(paths)
    ]


def configuration(films: Sequence[Film], model: str | None, folder: Path) -> Path:
    """Writes `cameras.yaml`, with which `sam3-camera` and `sam3-dashboard` play the films as cameras for ever; returns
    its path."""
    defaults = {"fps": 2, "realtime": True, "loop": True, "track": True, "masks": "bits"} | (
        {"model": model} if model else {}
    )
    cameras = [{"name": film.name, "source": str(film.video.resolve()), "classes": film.classes} for film in films]
    path = folder / "cameras.yaml"
    path.write_text(json.dumps({"defaults": defaults, "cameras": cameras}, indent=1) + "\n")  # JSON is YAML
    return path


def repository(folder: Path, checkpoint: Path, resolution: int, queries: int) -> str:
    """Exports the checkpoint with ONNX Runtime into `folder` and returns the front model's name; the export itself
    keeps what is up to date."""
    if not checkpoint.is_dir():
        raise DemoError(
            f"there is no checkpoint in {checkpoint}; expected a folder with model.safetensors and config.json"
        )
    result = run(
        *("export.cli", "--checkpoint", str(checkpoint), "--engine", "onnxruntime", "--repository", str(folder)),
        *("--resolution", str(resolution), "--queries", str(queries), "--precision", "fp32"),
    )
    return str(result["front"][0])


def run(module: str, *arguments: str) -> Any:
    """Runs `python -m module ...` and returns the JSON object of its last line. Its progress, on stderr, is shown.
    Raises DemoError.
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
