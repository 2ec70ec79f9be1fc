"""The callers' side of a model that clients call: requests to jobs, and detections to responses."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ensemble import request, triton_io
from ensemble.detector import Prepared
from ensemble.ending import Ending, ServerEnding
from ensemble.interfaces import STAGES
from ensemble.metrics import FrontMetrics
from ensemble.pipeline import Job
from ensemble.postprocess import Detections, to_rle
from ensemble.preprocess.cpu import attempt
from ensemble.prompts import PromptTokenizer
from ensemble.spec import Variant

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Callers:
    """What a model of one variant needs to understand its callers and to answer them."""

    variant: Variant
    tokenizer: PromptTokenizer
    metrics: FrontMetrics
    stages: Sequence[str] = STAGES
    ending: Ending = field(default_factory=Ending.of_environment)

    @classmethod
    def of(cls, variant: Variant, args: Mapping[str, str]) -> Callers:
        """`args` are those of Triton's `initialize`."""
        return cls(variant, tokenizer_of(variant, args), FrontMetrics.of(args, variant.max_batch))

    def parse(self, arrays: Mapping[str, np.ndarray]) -> Job:
        """The job that a request's arrays ask for. Raises RequestError; ServerEnding where no frame is taken any
        more."""
        self.ending.check()
        wanted = request.parse(arrays, self.variant.max_boxes)
        return Job(wanted, [self.tokenizer(name) for name in wanted.classes])

    def respond(self, item: Prepared, answer: Detections | Exception, start: float, frames: int) -> Any:
        """The response to one caller, whose request came at `start` (`time.perf_counter`) and shared its batch with
        `frames` frames, itself among them. An answer that cannot be packed is a failure like others: nothing is
        raised."""
        if not isinstance(answer, Exception):
            assert isinstance(item, Job), "only jobs have detections"
            packed = attempt(self._packed, item, answer, start, frames)
            if not isinstance(packed, Exception):
                self.metrics.frame("ok", start, len(answer.scores), item.stage_ms)
                return packed
            log.error("an answer could not be packed", exc_info=packed)
            answer = packed
        outcomes = {request.RequestError: "rejected", ServerEnding: "refused"}
        self.metrics.frame(outcomes.get(type(answer), "failed"), start)
        return triton_io.refusal(answer)

    def _packed(self, item: Job, answer: Detections, start: float, frames: int) -> Any:
        begun = time.perf_counter()
        masks, rle = answer.mask_bits, []
        if item.request.mask_format == "rle":
            masks, rle = masks[:0], to_rle(masks, masks.shape[1])
        now = time.perf_counter()
        item.add_ms("pack", (now - begun) * 1e3)
        item.stage_ms["total"] = (now - start) * 1e3
        arrays = {
            "boxes": answer.boxes,
            "scores": answer.scores,
            "class_ids": answer.class_ids,
            "presence": answer.presence,
            "mask_bits": masks,
            "mask_rle": np.array(rle, dtype=object),
            "frame_size": np.array(item.frame_size, np.int32),
            "stage_ms": np.array([item.stage_ms.get(stage, 0.0) for stage in self.stages], np.float32),
            "batch": np.array([frames], np.int32),
            **self.more(answer),
        }
        return triton_io.response({name: array[None] for name, array in arrays.items()})

    def more(self, answer: Detections) -> dict[str, np.ndarray]:
        """Outputs that only some models have."""
        return {}


def tokenizer_of(variant: Variant, args: Mapping[str, str]) -> PromptTokenizer:
    """The tokenizer lies beside the model where the server was laid out for an engine model, with the text encoder
    otherwise. `args` are those of Triton's `initialize`."""
    folder = Path(args["model_repository"])
    own = folder / args["model_version"] / "tokenizer.json"
    shared = folder.parent / variant.text_encoder.name / "1" / "tokenizer.json"
    return PromptTokenizer(own if own.exists() else shared, variant.checkpoint.context_length)
