"""The evaluation on held-out scenes: COCO's average precision of boxes and masks by object size, and how often presence
was predicted rightly.

The command evaluates a checkpoint in PyTorch; `evaluate` takes any engine. A (scene, prompt) pair counts as one COCO
image with one category, so that detections for absent prompts cost precision. Areas are in pixels of the original's
scale (4 x 252 = 1008).
"""

import argparse
import contextlib
import datetime
import io
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from export.slim.fp8_predictor import Fp8Predictor
from export.tiny import CHECKPOINT
from export.tiny.configuration import RESOLUTIONS
from export.tiny.predictor import Detections, TorchPredictor, load_model
from export.tiny.prompts import Prompt, Question, exemplar_question, text_question
from export.tiny.random_scene import random_scene, validation_seeds
from export.tiny.scenes import Rendering, frame_size, render

Predict = Callable[[np.ndarray, Sequence[Prompt]], list[Detections]]  # frame uint8 RGB [H, W, 3]
FRAME_PIXELS = 640 * 360
FULL_SIDE = 1008
SMALL, LARGE = 64, 128  # sides in pixels at 1008; with COCO's own 32 and 96 no drawn object would be small
TEXT_QUESTIONS = 4
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True, slots=True)
class Case:
    """One held-out scene: its frame with ground truth, and the questions asked of it; the last one has example
    boxes."""

    seed: int
    rendering: Rendering
    questions: tuple[Question, ...]


def held_out(scenes: int) -> Iterator[Case]:
    """The first `scenes` held-out scenes as frames of about 640 x 360 pixels: TEXT_QUESTIONS different questions in
    words each, and one with example boxes."""
    return cases_of(validation_seeds(scenes))


def cases_of(seeds: Iterable[int]) -> Iterator[Case]:
    """The cases of these seeds, see `held_out`."""
    for seed in seeds:
        rng = np.random.default_rng((3, seed))
        scene = random_scene(seed)
        rendering = render(scene, *frame_size(scene.aspect, FRAME_PIXELS), supersample=2)
        questions: dict[str, Question] = {}
        while len(questions) < TEXT_QUESTIONS:
            question = text_question(rng, rendering.instances)
            questions.setdefault(question.prompt.text, question)
        yield Case(seed, rendering, (*questions.values(), exemplar_question(rng, rendering.instances)))


def full_masks(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Masks [n, h, w], logits or bool, at frame size, bool [n, H, W]: enlarged bilinearly, then thresholded in the
    middle."""
    edge = 0.5 if masks.dtype == bool else 0.0
    images = (Image.fromarray(mask.astype(np.float32)) for mask in masks)
    enlarged = [np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)) > edge for image in images]
    return np.array(enlarged, bool).reshape(-1, height, width)


def _encoded(mask: np.ndarray) -> dict:
    return rle.encode(np.asfortranarray(mask, np.uint8))


def _annotation(number: int, image: int, box: Sequence[float], mask: np.ndarray, **more: float) -> dict:
    x0, y0, x1, y1 = (float(v) * FULL_SIDE for v in box)
    area = float(mask.mean()) * FULL_SIDE**2
    shape = dict(bbox=[x0, y0, x1 - x0, y1 - y0], segmentation=_encoded(mask), area=area)
    return dict(id=number, image_id=image, category_id=1, iscrowd=0, **shape, **more)


class Evaluation:
    """Questions with their answers and detections, and COCO's figures of them."""

    def __init__(self) -> None:
        self.pairs, self.right = 0, 0
        self.images: list[dict] = []
        self.truth: list[dict] = []
        self.found: list[dict] = []

    def add(self, question: Question, detections: Detections, rendering: Rendering) -> None:
        """One question about one frame."""
        self.pairs += 1
        height, width = rendering.index_map.shape
        self.images.append(dict(id=self.pairs, height=height, width=width))
        self.right += int((detections.presence > 0.5) == bool(question.answer))
        for k in question.answer:
            instance = rendering.instances[k]
            entry = _annotation(len(self.truth) + 1, self.pairs, instance.box, rendering.mask(instance))
            self.truth.append(entry)
        masks = full_masks(detections.masks, height, width)
        for score, box, mask in zip(detections.scores, detections.boxes, masks, strict=True):
            entry = _annotation(len(self.found) + 1, self.pairs, box, mask, score=float(score))
            self.found.append(entry)

    def figures(self) -> dict:
        """{"pairs", "objects", "presence_accuracy", "box": {AP, AP50, AP75, APs, APm, APl}, "mask": {...}}, APs in
        0..1, -1 where there is no such object."""
        result: dict = {
            "pairs": self.pairs,
            "objects": len(self.truth),
            "presence_accuracy": self.right / max(1, self.pairs),
        }
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
            truth = self._coco(self.truth)
            for kind, name in (("bbox", "box"), ("segm", "mask")):
                if not self.found or not self.truth:
                    result[name] = dict.fromkeys(FIGURES, 0.0)
                    continue
                judge = COCOeval(truth, self._coco(self.found, kind), kind)
                judge.params.areaRng = [[0, 1e10], [0, SMALL**2], [SMALL**2, LARGE**2], [LARGE**2, 1e10]]
                judge.evaluate()
                judge.accumulate()
                judge.summarize()
                result[name] = {figure: round(float(v), 4) for figure, v in zip(FIGURES, judge.stats, strict=False)}
        return result

    def _coco(self, annotations: list[dict], kind: str = "") -> COCO:
        coco = COCO()
        if kind == "bbox":  # what COCO does with boxes that come without a mask
            annotations = [{**a, "area": a["bbox"][2] * a["bbox"][3]} for a in annotations]
        coco.dataset = dict(images=self.images, categories=[dict(id=1, name="named")], annotations=annotations)
        coco.createIndex()
        return coco


class Judge:
    """The evaluations of held-out scenes, of questions in words and of questions with example boxes."""

    def __init__(self) -> None:
        self.evaluations = {"text": Evaluation(), "exemplar": Evaluation()}

    def add(self, case: Case, answers: Sequence[Detections]) -> None:
        """One scene, with one `Detections` for each question."""
        for question, detections in zip(case.questions, answers, strict=True):
            self.evaluations["exemplar" if question.prompt.boxes else "text"].add(question, detections, case.rendering)

    def figures(self) -> dict:
        """{"text": figures, "exemplar": figures}, see `Evaluation.figures`."""
        return {name: evaluation.figures() for name, evaluation in self.evaluations.items()}


def judge(answered: Iterable[tuple[Case, Sequence[Detections]]]) -> dict:
    """`Judge.figures` of held-out scenes, with one `Detections` for each question."""
    one = Judge()
    for case, answers in answered:
        one.add(case, answers)
    return one.figures()


def evaluate(predict: Predict, scenes: int = 500, progress: Callable[[int], None] | None = None) -> dict:
    """Evaluates `predict` on held-out scenes.

    Args:
        predict: called once for each scene with its frame, uint8 RGB [H, W, 3], and its prompts; returns one
            `Detections` for each prompt, with low scores too (from 0.01: average precision needs the whole curve).
        scenes: how many; the same number means the same scenes and questions.
        progress: called with the number of scenes done, for a progress line.

    Returns {"scenes", "text": figures, "exemplar": figures}; see `Evaluation.figures`.
    """

    def answered() -> Iterator[tuple[Case, Sequence[Detections]]]:
        for done, case in enumerate(held_out(scenes), 1):
            yield case, predict(case.rendering.frame, [q.prompt for q in case.questions])
            if progress:
                progress(done)

    return {"scenes": scenes, **judge(answered())}


def table(results: dict[int, dict]) -> str:
    """The figures of `evaluate` by resolution, as text."""
    lines = [f"{'R':>4} {'prompts':>9} {'of':>5} " + " ".join(f"{f:>6}" for f in FIGURES) + "  presence"]
    for resolution, result in results.items():
        for prompts in ("text", "exemplar"):
            for kind in ("box", "mask"):
                row = " ".join(f"{result[prompts][kind][figure]:6.3f}" for figure in FIGURES)
                accuracy = f"{result[prompts]['presence_accuracy']:9.4f}"
                lines.append(f"{resolution:>4} {prompts:>9} {kind:>5} {row} {accuracy}")
    return "\n".join(lines)


def circumstances(options: argparse.Namespace) -> dict:
    """What repeating the measurement takes: command, machine, date, versions."""
    checkpoint, resolutions = os.path.relpath(options.checkpoint), " ".join(map(str, options.resolution))
    command = f"python -m export.tiny.evaluate --checkpoint {checkpoint} --scenes {options.scenes}"
    command += f" --resolution {resolutions} --precision {options.precision} --device {options.device}"
    machine = f"one {torch.cuda.get_device_name()}" if options.device == "cuda" else f"{os.cpu_count()} CPU cores"
    names = ("torch", "torchvision", "transformers", "numpy", "pillow", "pycocotools")
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
    return {"command": command, "machine": machine, "date": datetime.date.today().isoformat(), "versions": versions}


def main(argv: Sequence[str] | None = None) -> dict:
    """The command line. The last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m export.tiny.evaluate",
        description="Evaluate a checkpoint on held-out scenes.",
        epilog="example: python -m export.tiny.evaluate --checkpoint build/tiny --scenes 100 --resolution 252",
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, default=CHECKPOINT, help="default: the small one")
    add("--scenes", type=int, default=500, help="held-out scenes, always the same; default %(default)s")
    add("--resolution", type=int, nargs="+", default=list(RESOLUTIONS), help="pixels a side; default %(default)s")
    add(
        "--precision",
        choices=("fp32", "fp8"),
        default="fp32",
        help="fp8: the vision encoder's linear layers in E4M3, calibrated on drawn frames; default %(default)s",
    )
    add("--device", default="cpu", help="cpu or cuda; default %(default)s")
    add("--output", type=Path, help="also write figures, command, machine, date and versions to this JSON file")
    options = parser.parse_args(argv)
    results = {}
    for resolution in options.resolution:
        loaded = load_model(options.checkpoint, resolution, options.device)
        predict = (TorchPredictor if options.precision == "fp32" else Fp8Predictor)(*loaded, resolution)
        show = lambda done, r=resolution: print(f"\r{r}: {done}/{options.scenes}", end="", file=sys.stderr)  # noqa: E731
        results[resolution] = evaluate(predict, options.scenes, show)
        print(file=sys.stderr)
    print(table(results))
    summary = {
        "checkpoint": os.path.relpath(options.checkpoint),
        "results": {str(r): result for r, result in results.items()},
    }
    if options.output:
        options.output.write_text(json.dumps({**circumstances(options), **summary}, indent=1) + "\n")
    print(json.dumps(summary))
    return summary


if __name__ == "__main__":
    main()
