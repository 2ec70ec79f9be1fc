"""The engine model: every sub-model of a server in one process, one such process a GPU, or one for the CPU.

Front models hand over batches (`ensemble/handover.py`). `execute` returns at once: while one thread computes a batch,
the calling thread already reads the next one's pixels, and no more than `UNDER_WAY` batches are held, so that what
waits longer waits in the dynamic batcher, where it becomes fuller batches. Python's lock is the reason for just one
computing thread and for fronts in processes of their own: a thread that launches kernels waits whenever another one
runs Python.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ensemble import handover, nvtx_ranges, triton_io
from ensemble.detector import Detector, Prepared
from ensemble.engines import SubModel, open_sub_model
from ensemble.metrics import PipelineMetrics
from ensemble.pipeline import Call, Job, Pipeline
from ensemble.preprocess.gpu import open_preprocessor
from ensemble.prompts import PromptCache
from ensemble.request import RequestError
from ensemble.spec import Variant, find_engine

UNDER_WAY = 2
"""Batches that an engine model holds: one that is computed and one that is ready."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Front:
    """What belongs to one front model: its detector, and what an answer without masks looks like."""

    detector: Detector
    metrics: PipelineMetrics
    empty_masks: np.ndarray

    @property
    def variant(self) -> Variant:
        return self.detector.pipeline.variant


@dataclass(frozen=True, slots=True)
class Batch:
    """One request under way: whose it is, its frames, and where the answer goes."""

    front: Front
    jobs: list[Job]
    prepared: list[Prepared]
    pixel_values: Any
    ready: float
    sender: Any


class TritonPythonModel:
    """Triton calls `initialize` once, `execute` for each batch of a front model, `finalize` at the end."""

    def initialize(self, args: dict[str, str]) -> None:
        triton_io.LogHandler.install(args["model_name"])
        parameters = json.loads(args["model_config"])["parameters"]
        fronts = json.loads(parameters["fronts"]["string_value"])
        device_id = int(args["model_instance_device_id"] or 0) if args["model_instance_kind"] == "GPU" else None
        folder = Path(args["model_repository"]) / args["model_version"]
        self._readers = ThreadPoolExecutor(os.cpu_count() or 1, "decode")
        mode = parameters["preprocess"]["string_value"]
        self.fronts = open_fronts(folder, fronts, device_id, mode, self._readers)
        self._slots = threading.Semaphore(UNDER_WAY)
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._computing = threading.Thread(target=self._compute, name="compute")
        self._computing.start()

    def execute(self, requests: list[Any]) -> None:
        """Reads the batches' pixels and leaves the rest to the computing thread, which answers."""
        for request in requests:
            self._slots.acquire()
            sender = request.get_response_sender()
            try:
                self._batches.put(self._read(request, sender))
            except Exception as error:
                self._slots.release()
                invalid = isinstance(error, RequestError)
                message = str(error) if invalid else f"{type(error).__name__}: {error}"
                triton_io.send(sender, triton_io.error_response(message, invalid))

    def finalize(self) -> None:
        """Waits for the batches under way."""
        self._batches.put(None)
        self._computing.join()
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _read(self, request: Any, sender: Any) -> Batch:
        # Copied: the memory is Triton's again as soon as `execute` returns.
        arrays = {name: array.copy() for name, array in triton_io.request_arrays(request).items()}
        name = bytes(arrays["front"].item(0)).decode(errors="replace")
        if name not in self.fronts:
            raise RequestError(f"front: expected one of {', '.join(self.fronts)}, got {name!r}")
        front = self.fronts[name]
        jobs = handover.unpack_jobs(arrays, front.variant)
        prepared: list[Prepared] = list(jobs)
        pixel_values = front.detector.read(prepared)
        return Batch(front, jobs, prepared, pixel_values, time.perf_counter(), sender)

    def _compute(self) -> None:
        """The thread that runs the sub-models; ends at a None."""
        while (batch := self._batches.get()) is not None:
            try:
                waited = (time.perf_counter() - batch.ready) * 1e3
                for job in batch.jobs:
                    job.add_ms("queue", waited)
                answers = batch.front.detector.detect(batch.prepared, batch.pixel_values)
                packed = handover.pack_answers(batch.jobs, answers, batch.front.empty_masks)
                response = triton_io.response(packed)
                batch.front.metrics.update(batch.front.detector.pipeline)
            except Exception as error:
                log.exception("a batch failed")
                response = triton_io.error_response(f"{type(error).__name__}: {error}")
            self._slots.release()
            triton_io.send(batch.sender, response)


def open_fronts(
    folder: Path, fronts: dict[str, Any], device_id: int | None, mode: str, readers: ThreadPoolExecutor
) -> dict[str, Front]:
    """The front models of a server by name, on one device: their sub-models are opened from the links in `folder`.

    `fronts` holds of each its variant and the engine of each of its sub-models, by part. Sub-models that several share,
    as the text encoder, are opened once.
    """
    opened: dict[str, SubModel] = {}

    def call_of(variant: Variant, engines: dict[str, str]) -> Call:
        for model in variant.sub_models:
            if model.name not in opened:
                log.info("opening %s (%s)", model.name, engines[model.part])
                path = folder / model.name / "1" / find_engine(engines[model.part]).artifact
                opened[model.name] = open_sub_model(engines[model.part], path, device_id)
        return lambda model, inputs, outputs: opened[model.name](inputs, outputs)

    annotate = nvtx_ranges.from_environment()
    prompts: dict[str, PromptCache] = {}
    made = {}
    for name, front in fronts.items():
        variant = Variant.from_dict(front["variant"])
        text_encoder = variant.text_encoder.name
        pipeline = Pipeline(variant, call_of(variant, front["engines"]), prompts.get(text_encoder), annotate)
        prompts[text_encoder] = pipeline.prompts
        preprocess = open_preprocessor(mode, variant.resolution, readers, device_id or 0)
        empty = np.zeros((0, variant.mask_size, variant.mask_row_bytes), np.uint8)
        made[name] = Front(Detector(pipeline, preprocess), PipelineMetrics(name), empty)
    return made
