"""The front model, which clients call: one frame a request, one response each.

Triton's python backend runs this class in a process of its own for every instance. It parses requests, decodes where no
GPU will, and packs the answers. The sub-models are called by the engine model
(`ensemble/engine.py`), one process a GPU; or, where Triton runs them itself, by the pipeline in this process.
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ensemble import nvtx_ranges, request, triton_io
from ensemble.detector import Detector, Prepared
from ensemble.engine_client import EngineClient
from ensemble.interfaces import STAGES
from ensemble.metrics import FrontMetrics, PipelineMetrics
from ensemble.pipeline import Job, Pipeline
from ensemble.postprocess import Detections, to_rle
from ensemble.preprocess.cpu import attempt
from ensemble.preprocess.gpu import open_preprocessor
from ensemble.prompts import PromptTokenizer
from ensemble.spec import Variant


class TritonPythonModel:
    """Triton calls `initialize` once, `execute` for each batch, `finalize` at the end."""

    def initialize(self, args: dict[str, str]) -> None:
        name, parameters = args["model_name"], json.loads(args["model_config"])["parameters"]
        triton_io.LogHandler.install(name)
        self.variant = Variant.from_dict(json.loads(parameters["variant"]["string_value"]))
        self.tokenizer = PromptTokenizer(self._tokenizer_path(args), self.variant.checkpoint.context_length)
        self.metrics = FrontMetrics(name, self.variant.max_batch)
        self.decoders = ThreadPoolExecutor(min(self.variant.max_batch, os.cpu_count() or 1), "decode")
        decoding = parameters["preprocess"]["string_value"]
        if "engine_model" in parameters:
            self.engine: EngineClient | None = EngineClient(name, self.variant, self.decoders, decoding)
        else:
            from ensemble.engines.bls import call_sub_model

            self.engine = None
            # An instance of the CPU, for which Triton says 0: the first GPU.
            device_id = int(args["model_instance_device_id"] or 0)
            preprocess = open_preprocessor(decoding, self.variant.resolution, self.decoders, device_id)
            pipeline = Pipeline(self.variant, call_sub_model, annotate=nvtx_ranges.from_environment())
            self.detector = Detector(pipeline, preprocess)
            self.pipeline_metrics = PipelineMetrics(name)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request, in order. Nothing is raised here: that would fail the whole batch."""
        start = time.perf_counter()
        self.metrics.batch(len(requests))
        batch: list[Prepared] = [attempt(self._parse, r) for r in requests]
        answers = self.engine.detect(batch) if self.engine else self._detect(batch)
        return [self._respond(item, answer, start, len(requests)) for item, answer in zip(batch, answers, strict=True)]

    def finalize(self) -> None:
        self.decoders.shutdown(wait=False, cancel_futures=True)

    def _tokenizer_path(self, args: dict[str, str]) -> Path:
        """Beside this model where the server was laid out for an engine model, with the text encoder otherwise."""
        folder = Path(args["model_repository"])
        own = folder / args["model_version"] / "tokenizer.json"
        shared = folder.parent / self.variant.text_encoder.name / "1" / "tokenizer.json"
        return own if own.exists() else shared

    def _parse(self, inference_request: Any) -> Job:
        wanted = request.parse(triton_io.request_arrays(inference_request), self.variant.max_boxes)
        return Job(wanted, [self.tokenizer(name) for name in wanted.classes])

    def _detect(self, batch: list[Prepared]) -> list[Detections | Exception]:
        try:
            pixel_values = self.detector.read(batch)
        except Exception as error:  # the GPU failed: say so to the frames that were in the call, keep serving
            return [error if isinstance(item, Job) else item for item in batch]
        answers = self.detector.detect(batch, pixel_values)
        self.pipeline_metrics.update(self.detector.pipeline)
        return answers

    def _respond(self, item: Prepared, answer: Detections | Exception, start: float, frames: int) -> Any:
        if isinstance(answer, Exception):
            invalid = isinstance(answer, request.RequestError)
            self.metrics.frame("rejected" if invalid else "failed")
            return triton_io.error_response(str(answer) if invalid else f"{type(answer).__name__}: {answer}", invalid)
        assert isinstance(item, Job), "only jobs have detections"
        begun = time.perf_counter()
        masks, rle = answer.mask_bits, []
        if item.request.mask_format == "rle":
            masks, rle = masks[:0], to_rle(masks, self.variant.mask_size)
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
            "stage_ms": np.array([item.stage_ms.get(stage, 0.0) for stage in STAGES], np.float32),
            "batch": np.array([frames], np.int32),
        }
        self.metrics.frame("ok", len(answer.scores), item.stage_ms)
        return triton_io.response({name: array[None] for name, array in arrays.items()})
