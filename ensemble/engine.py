"""The engine model: every sub-model of a server in one process, one such process a GPU, or one for the CPU.

Front models hand over batches (`ensemble/handover.py`), and `execute` returns at once. One thread reads pixels and one
computes, each taking whatever has come meanwhile: no frame waits for others while there is nothing to do, and batches
are as full as the load makes them. Answers are packed and sent while the next batch's features are under way on the
GPU. No more threads than these, and fronts in processes of their own, because of Python's lock: a thread that launches
kernels waits for it whenever another one runs Python. Where the text encoder is on the CPU, a third thread waits for
it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ensemble import nvtx_ranges, triton_io
from ensemble.detector import Begun, Detector, Prepared
from ensemble.engine_front import Front
from ensemble.engines import SubModel, open_sub_model
from ensemble.engines.device import limit_memory, release_memory, use_gpu
from ensemble.metrics import PipelineMetrics
from ensemble.pipeline import Call, Job, Pipeline
from ensemble.postprocess import Detections
from ensemble.preprocess.cpu import Preprocessor, attempt, joined
from ensemble.preprocess.gpu import open_preprocessor
from ensemble.prompts import PromptCache
from ensemble.records import ModelSpec
from ensemble.request import RequestError
from ensemble.server import gpu
from ensemble.server.memory import TRITON_CONTEXT_MB
from ensemble.spec import Variant, find_engine
from ensemble.video.serving import open_video_front
from ensemble.video.variant import VideoVariant
from ensemble.waiting import Taken, Waiting

WAITING_BATCHES = 1
"""Largest batches of frames that may wait for each thread: enough for a GPU to stay busy; more stay in Triton's
queue."""
SHARED_BATCHES = 0.5
"""Largest batches that wait in one of several instances before Triton gives the next frames to another. More of them
would wait behind a full batch here while another instance computes a small one; fewer would make all batches small."""
NOTHING = np.zeros(0, np.int64)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """One front model's batch, or one caller's frame: whose it is, its frames, where the answer goes, and since when
    (`time.perf_counter`) it is here."""

    front: Front
    jobs: list[Job]
    sender: Any
    start: float


@dataclass(frozen=True, slots=True)
class Read:
    """Parts of one front model whose pixels have been read together: their items, and the pixels of those that could be
    read."""

    front: Front
    parts: list[Part]
    jobs: list[Job]
    prepared: list[Prepared]
    pixel_values: Any


class TritonPythonModel:
    """Triton calls `initialize` once, `execute` for each batch of a front model, `finalize` at the end."""

    def initialize(self, args: dict[str, str]) -> None:
        triton_io.LogHandler.install(args["model_name"])
        config = json.loads(args["model_config"])
        parameters = config["parameters"]
        fronts = json.loads(parameters["fronts"]["string_value"])
        device_id = int(args["model_instance_device_id"] or 0) if args["model_instance_kind"] == "GPU" else None
        folder = Path(args["model_repository"]) / args["model_version"]
        before_mb = gpu.used_mb(device_id) if device_id is not None else 0.0
        self._decoders = ThreadPoolExecutor(os.cpu_count() or 1, "decode")
        mode = parameters["preprocess"]["string_value"]
        self.fronts = open_fronts(folder, fronts, device_id, mode, self._decoders)
        if device_id is not None and "gpu_memory_mb" in parameters:
            stated_mb = float(parameters["gpu_memory_mb"]["string_value"])
            limit_memory(device_id, stated_mb - (gpu.used_mb(device_id) - before_mb) - TRITON_CONTEXT_MB)
        self._answers_late = device_id is not None  # on the CPU, features are there when the call returns
        largest = max(front.variant.max_batch for front in self.fronts.values())
        self._taken = Taken(SHARED_BATCHES * largest if instances(config) > 1 else math.inf)
        most = WAITING_BATCHES * largest
        self._unknown: Waiting[Part] = Waiting(most)
        self._handed_over: Waiting[Part] = Waiting(most)
        self._read: Waiting[Read] = Waiting(most)
        work = self._encoding, self._reading, self._computing
        self._threads = [threading.Thread(target=on_gpu, args=(device_id, each), name=each.__name__) for each in work]
        for thread in self._threads:
            thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Leaves the batches to the threads, which answer."""
        start = time.perf_counter()
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._hand_over(self._part(request, sender, start))
            except Exception as error:
                triton_io.send(sender, triton_io.refusal(error))
        self._taken.wait()

    def finalize(self) -> None:
        """Waits for the batches under way."""
        queues: tuple[Waiting[Any], ...] = (self._unknown, self._handed_over, self._read)
        for waiting, thread in zip(queues, self._threads, strict=True):
            waiting.close()
            thread.join()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _part(self, request: Any, sender: Any, start: float) -> Part:
        # Copied: the memory is Triton's again as soon as `execute` returns.
        arrays = {name: array.copy() for name, array in triton_io.request_arrays(request).items()}
        name = bytes(arrays["front"].item(0)).decode(errors="replace")
        if name not in self.fronts:
            raise RequestError(f"front: expected one of {', '.join(self.fronts)}, got {name!r}")
        front = self.fronts[name]
        closed = arrays.get("closed", NOTHING)
        front.close(closed)
        jobs = [] if closed.size and not arrays["file_bytes"].size else front.unpack(arrays)
        return Part(front, jobs, sender, start)

    def _hand_over(self, part: Part) -> None:
        front = part.front
        if not part.jobs:  # sessions that end without a frame
            triton_io.send(part.sender, triton_io.response({"status": np.zeros(0, np.int32)}))
            return
        self._taken.add(len(part.jobs))
        ahead = front.encodes_ahead and not front.detector.knows(part.jobs)
        (self._unknown if ahead else self._handed_over).put(part)

    def _encoding(self) -> None:
        """The thread that has new names encoded where the CPU does it, which takes long: frames without any do not wait
        for it. It leaves Python's lock to the others meanwhile."""
        while parts := self._unknown.take():
            error = attempt(parts[0].front.detector.encode, [job for part in parts for job in part.jobs])
            if error:
                self._give_up(parts, error)
                continue
            for part in parts:
                self._handed_over.put(part)

    def _reading(self) -> None:
        """The thread that reads pixels, of all waiting parts together: decoding eight files at once takes a GPU a third
        of the time."""
        while parts := self._handed_over.take():
            jobs = [job for part in parts for job in part.jobs]
            prepared: list[Prepared] = list(jobs)
            front = parts[0].front
            try:
                pixel_values = front.detector.read(prepared)
            except Exception as error:
                self._give_up(parts, error)
                continue
            self._read.put(Read(front, parts, jobs, prepared, pixel_values))

    def _computing(self) -> None:
        """The thread that runs the sub-models. A batch is answered when the next one's features are under way, or at
        once where none is waiting."""
        answered: Callable[[], None] = lambda: None  # noqa: E731
        while batch := self._read.take():
            parts = [part for read in batch for part in read.parts]
            self._taken.remove(sum(len(part.jobs) for part in parts))
            begun = attempt(begin, batch)
            answered()
            complete = batch[0].front.detector.complete
            found = begun if isinstance(begun, Exception) else attempt(complete, begun)
            answered = partial(self._answer, parts, found)
            if not self._answers_late or self._read.empty:
                answered()
                answered = lambda: None  # noqa: E731
        answered()

    def _give_up(self, parts: Sequence[Any], error: Exception) -> None:
        self._taken.remove(sum(len(part.jobs) for part in parts))
        self._refuse(parts, error)

    def _refuse(self, parts: Sequence[Any], error: Exception) -> None:
        for part in parts:
            triton_io.send(part.sender, triton_io.refusal(error))

    def _answer(self, parts: Sequence[Any], answers: Sequence[Detections | Exception] | Exception) -> None:
        answer(parts, answers)


def on_gpu(device_id: int | None, work: Callable[[], None]) -> None:
    """What a thread does, which touches no GPU but its own."""
    if device_id is not None:
        use_gpu(device_id)
    work()


def begin(batch: Sequence[Read]) -> Begun:
    """Starts what is read, of one front model, as one batch. Whatever a frame was not worked on since it came, it
    waited."""
    now = time.perf_counter()
    for part in (part for read in batch for part in read.parts):
        for job in part.jobs:
            job.add_ms("queue", max(0.0, (now - part.start) * 1e3 - sum(job.stage_ms.values())))
    pixel_values = [read.pixel_values for read in batch if len(read.pixel_values)] or [batch[0].pixel_values]
    return batch[0].front.detector.begin([item for read in batch for item in read.prepared], joined(pixel_values))


def answer(parts: Sequence[Part], answers: Sequence[Detections | Exception] | Exception) -> None:
    """Sends every part its share of the answers, or what failed for all, each exactly once whatever happens."""
    if isinstance(answers, Exception):
        log.error("a batch failed", exc_info=answers)
        answers = [answers] * sum(len(part.jobs) for part in parts)
    rest = iter(answers)
    for part in parts:
        own = [next(rest) for _ in part.jobs]
        try:
            response = triton_io.response(part.front.pack(part.jobs, own))
        except Exception as error:
            log.exception("an answer could not be packed")
            response = triton_io.refusal(error)
        triton_io.send(part.sender, response)
    front = parts[0].front
    front.metrics.update(front.detector.pipeline)


def open_fronts(
    folder: Path, fronts: dict[str, Any], device_id: int | None, mode: str, readers: ThreadPoolExecutor
) -> dict[str, Front]:
    """The front models of a server by name, on one device: their sub-models are opened from the links in `folder`.

    `fronts` holds of each its variant and the engine of each of its sub-models, by part. What several share, as
    the text encoder, or the pre-processor of a resolution, is opened once.
    """
    opened: dict[str, SubModel] = {}

    def call_of(models: Sequence[ModelSpec], engines: dict[str, str]) -> Call:
        for model in models:
            if model.name not in opened:
                engine = find_engine(engines[model.part])
                log.info("opening %s (%s)", model.name, engine.name)
                path = folder / model.name / "1" / engine.artifact
                opened[model.name] = open_sub_model(engine.name, path, device_id if engine.on_gpu else None)
        return lambda model, inputs, outputs: opened[model.name](inputs, outputs)

    annotate = nvtx_ranges.from_environment()
    prompts: dict[str, PromptCache] = {}
    preprocessors: dict[int, Preprocessor] = {}
    made: dict[str, Front] = {}
    for name, front in fronts.items():
        variant, video = Variant.from_dict(front["variant"]), front.get("video")
        text_encoder, models = variant.text_encoder.name, variant.sub_models
        if video:
            models = VideoVariant.from_dict(video["variant"]).sub_models
        pipeline = Pipeline(variant, call_of(models, front["engines"]), prompts.get(text_encoder), annotate)
        prompts[text_encoder] = pipeline.prompts
        resolution = variant.resolution
        if resolution not in preprocessors:
            preprocessors[resolution] = open_preprocessor(mode, resolution, readers, device_id or 0)
        empty = np.zeros((0, variant.mask_size, variant.mask_row_bytes), np.uint8)
        detector = Detector(pipeline, preprocessors[resolution], release_memory)
        encodes_ahead = device_id is not None and not find_engine(front["engines"]["text_encoder"]).on_gpu
        if video:
            made[name] = open_video_front(name, video, detector, front["engines"], device_id, encodes_ahead)
        else:
            made[name] = Front(detector, PipelineMetrics(name), empty, encodes_ahead)
    return made


def instances(config: Mapping[str, Any]) -> int:
    """How many instances of a model there are, by its configuration as Triton hands it over."""
    groups = config.get("instance_group", [])
    return sum(int(group["count"]) * max(1, len(group.get("gpus", []))) for group in groups)
