"""The front model: requests of many cameras in, one response each out. Triton's python backend runs this class in every
instance's own process.

It only adapts: `request` checks, `preprocess` decodes, `pipeline` does the work, `triton_io` talks to Triton. A frame
that cannot be answered gets its own error; the others of its batch go on without it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ensemble import nvtx_ranges, request, triton_io
from ensemble.metrics import Metrics
from ensemble.pipeline import Job, Pipeline
from ensemble.preprocess.cpu import attempt
from ensemble.preprocess.gpu import open_preprocessor
from ensemble.prompts import PromptTokenizer
from ensemble.spec import Variant


class TritonPythonModel:
    """Triton calls `initialize` once, `execute` for each batch, `finalize` at the end."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.variant = Variant.from_dict(json.loads(parameters["variant"]["string_value"]))
        repository = Path(args["model_repository"]).parent
        tokenizer = PromptTokenizer(
            repository / self.variant.text_encoder.name / "1" / "tokenizer.json", self.variant.checkpoint.context_length
        )
        self.annotate = nvtx_ranges.from_environment()
        self.pipeline = Pipeline(self.variant, tokenizer, triton_io.call_sub_model, annotate=self.annotate)
        self.metrics = Metrics(args["model_name"], self.variant.max_batch)
        self.decoders = ThreadPoolExecutor(min(self.variant.max_batch, os.cpu_count() or 1), "decode")
        self.preprocess = open_preprocessor(
            parameters["preprocess"]["string_value"],
            self.variant.resolution,
            self.decoders,
            int(
                args["model_instance_device_id"] or 0
            ),  # the instance is one of the CPU, for which Triton says 0: the first GPU
            lambda message: triton_io.log_info(f"{args['model_name']}: {message}"),
            lambda message: triton_io.log_warning(f"{args['model_name']}: {message}"),
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request, in order. Nothing raised here: that would fail the whole batch."""
        start = time.perf_counter()
        self.metrics.batch(len(requests))
        prepared: list[Job | Exception] = [attempt(self._parse, r) for r in requests]
        try:
            with self.annotate("decode"):
                pixel_values = self._read_frames(prepared)
            decoded = time.perf_counter()
            jobs = [p for p in prepared if isinstance(p, Job)]
            found = iter(self.pipeline.run(jobs, pixel_values) if jobs else [])
        except (
            Exception
        ) as error:  # the GPU or a sub-model failed: say so to the frames that were in the call, keep serving
            return [self._refuse(p) if not isinstance(p, Job) else self._refuse(error) for p in prepared]
        responses = []
        for item in prepared:
            if not isinstance(item, Job):
                responses.append(self._refuse(item))
                continue
            item.stage_ms |= {"decode": (decoded - start) * 1e3, "total": (time.perf_counter() - start) * 1e3}
            detections = next(found)
            responses.append(triton_io.response(detections, item.frame_size, item.stage_ms, len(requests)))
            self.metrics.frame("ok", len(detections.scores), item.stage_ms)
        self.metrics.totals(self.pipeline.prompts.hits, self.pipeline.prompts.misses, self.pipeline.calls)
        return responses

    def finalize(self) -> None:
        self.decoders.shutdown(wait=False, cancel_futures=True)

    def _parse(self, inference_request: Any) -> Job:
        wanted = request.parse(triton_io.request_arrays(inference_request), self.variant.max_boxes)
        return self.pipeline.prepare(wanted)

    def _read_frames(self, prepared: list[Job | Exception]) -> Any:
        """The batch of all frames that could be read; a job whose frame could not gives its place to the reason."""
        places = [i for i, item in enumerate(prepared) if isinstance(item, Job)]
        jobs: Sequence[Any] = [prepared[i] for i in places]
        pixel_values, sizes = self.preprocess([job.request for job in jobs])
        for place, job, size in zip(places, jobs, sizes, strict=True):
            if isinstance(size, Exception):
                prepared[place] = size
            else:
                job.frame_size = size
        return pixel_values

    def _refuse(self, error: Exception) -> Any:
        invalid = isinstance(error, request.RequestError)
        self.metrics.frame("rejected" if invalid else "failed")
        return triton_io.error_response(str(error) if invalid else f"{type(error).__name__}: {error}", invalid)
