"""The front model, which clients call: one frame a request, one response each.

Triton's python backend runs this class in a process of its own for every instance. It parses requests, decodes where no
GPU will, and packs the answers. The sub-models are called by the engine model (`ensemble/engine.py`), one process a
GPU; or, where Triton runs them itself, by the pipeline in this process.
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ensemble import nvtx_ranges, triton_io
from ensemble.callers import Callers
from ensemble.detector import Detector, Prepared
from ensemble.engine_client import EngineClient
from ensemble.metrics import PipelineMetrics
from ensemble.pipeline import Job, Pipeline
from ensemble.postprocess import Detections
from ensemble.preprocess.cpu import attempt
from ensemble.preprocess.gpu import open_preprocessor
from ensemble.spec import Variant


class TritonPythonModel:
    """Triton calls `initialize` once, `execute` for each batch, `finalize` at the end."""

    def initialize(self, args: dict[str, str]) -> None:
        name, parameters = args["model_name"], json.loads(args["model_config"])["parameters"]
        triton_io.LogHandler.install(name)
        self.variant = Variant.from_dict(json.loads(parameters["variant"]["string_value"]))
        self.callers = Callers.of(self.variant, args)
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
        self.callers.metrics.taken(start, len(requests))
        self.callers.metrics.batch(len(requests))
        with self.callers.ending.under_way():
            batch: list[Prepared] = [attempt(self._job, request) for request in requests]
            answers = self.engine.detect(batch) if self.engine else self._detect(batch)
        frames = len(requests)
        return [self.callers.respond(item, answer, start, frames) for item, answer in zip(batch, answers, strict=True)]

    def finalize(self) -> None:
        self.decoders.shutdown(wait=False, cancel_futures=True)

    def _job(self, request: Any) -> Job:
        return self.callers.parse(triton_io.request_arrays(request))

    def _detect(self, batch: list[Prepared]) -> list[Detections | Exception]:
        try:
            pixel_values = self.detector.read(batch)
        except Exception as error:  # the GPU failed: say so to the frames that were in the call, keep serving
            return [error if isinstance(item, Job) else item for item in batch]
        answers = self.detector.detect(batch, pixel_values)
        self.pipeline_metrics.update(self.detector.pipeline)
        return answers
