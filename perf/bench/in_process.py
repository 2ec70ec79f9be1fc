"""A front model of an exported repository, opened in this process to answer held-out scenes and their questions.

The artifacts are run by their own engines, and between them runs what runs in the server: requests are parsed, frames
scaled and pairs, picks and masks handled by the modules of `ensemble/`. Only Triton is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ensemble import postprocess, request
from ensemble.pipeline import Job, Pipeline
from ensemble.preprocess.cpu import CpuPreprocessor
from ensemble.prompts import PromptTokenizer
from ensemble.records import ModelSpec
from ensemble.server.repository import Served
from ensemble.spec import Variant
from export.engines.engine import EngineError
from export.engines.registry import ready
from export.gate.verify import Run
from export.tiny.evaluate import Case
from export.tiny.predictor import FLOOR, TOP, Detections

Answers = Iterator[list[Detections]]
"""One list a case, of one `Detections` a question."""


def opener(engine: str) -> Callable[[Path], Run]:
    """What opens artifacts of that engine. Raises EngineError where this machine cannot run them."""
    tool = ready(engine)
    if tool.open is None:
        raise EngineError(f"engine {engine} builds on this machine, but runs on a GPU that it builds for")
    return tool.open


@contextmanager
def opened(served: Served) -> Iterator[Callable[[Iterable[Case]], Answers]]:
    """The artifacts in the server's pipeline: a function from cases to answers, `variant.max_batch` frames a call,
    while the block runs."""
    variant = served.variant
    path = served.folder.parent / variant.text_encoder.name / "1" / "tokenizer.json"
    with ExitStack() as stack:
        runs = {}
        for model, artifact in zip(variant.sub_models, served.artifacts, strict=True):
            runs[model.part] = opener(artifact.engine)(artifact.path)
            stack.callback(getattr(runs[model.part], "close", lambda: None))
        yield stack.enter_context(answering(variant, runs, path))


@contextmanager
def answering(
    variant: Variant, runs: Mapping[str, Run], tokenizer_file: Path
) -> Iterator[Callable[[Iterable[Case]], Answers]]:
    """`opened` of sub-models by part that run already."""
    with ThreadPoolExecutor(variant.max_batch) as pool:

        def call(model: ModelSpec, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
            made = runs[model.part]({tensor.name: inputs[tensor.name] for tensor in model.inputs})
            return {name: made[name] for name in outputs}

        tokenizer, pipeline = (
            PromptTokenizer(tokenizer_file, variant.checkpoint.context_length),
            Pipeline(variant, call),
        )
        preprocess = CpuPreprocessor(variant.resolution, pool)

        def answer(cases: Iterable[Case]) -> Answers:
            for batch in batches(cases, variant.max_batch):
                requests = [request.parse(arrays(case, variant), variant.max_boxes) for case in batch]
                pixel_values, _ = preprocess(requests)
                found = pipeline.run([Job(r, [tokenizer(name) for name in r.classes]) for r in requests], pixel_values)
                for case, detections in zip(batch, found, strict=True):
                    yield by_question(case, detections, variant.mask_size)

        yield answer


def arrays(case: Case, variant: Variant) -> dict[str, np.ndarray]:
    """The request for all of a scene's questions, as it comes over the wire; nothing above `FLOOR` is cut off."""
    prompts = [question.prompt for question in case.questions]
    boxes = [box for prompt in prompts for box in prompt.boxes]
    return {
        "frame": case.rendering.frame[None],
        "classes": np.array([[prompt.text.encode() for prompt in prompts]], object),
        "boxes": np.array([boxes], np.float32),
        "box_labels": np.array([[label for prompt in prompts for label in prompt.labels]], np.int32),
        "box_classes": np.array([[k for k, prompt in enumerate(prompts) for _ in prompt.boxes]], np.int32),
        "threshold": np.array([[FLOOR]], np.float32),
        "mask_format": np.array([[b"bits"]], object),
        "max_detections": np.array([[variant.queries * len(prompts)]], np.int32),
    }


def by_question(case: Case, found: postprocess.Detections, mask_size: int) -> list[Detections]:
    """A frame's detections, best first, as the best `TOP` of each question."""
    masks = postprocess.unpack(found.mask_bits, mask_size)
    chosen = [np.flatnonzero(found.class_ids == k)[:TOP] for k in range(len(case.questions))]
    return [
        Detections(found.scores[c], found.boxes[c], masks[c], float(found.presence[k])) for k, c in enumerate(chosen)
    ]


def batches(cases: Iterable[Case], size: int) -> Iterator[list[Case]]:
    batch: list[Case] = []
    for case in cases:
        batch.append(case)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
