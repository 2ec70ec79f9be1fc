"""The video front model, which clients call: frames of many sessions, batched together by Triton's sequence batcher.

It parses and decodes, and packs the answers; the engine model follows the objects and remembers them. Triton hands over
a session's frames one after the other, each when the one before is answered, and never two in a batch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np

from ensemble import triton_io
from ensemble.callers import Callers, tokenizer_of
from ensemble.engine_client import EngineClient
from ensemble.interfaces import VIDEO_OUTPUTS
from ensemble.metrics import FrontMetrics
from ensemble.postprocess import Detections
from ensemble.preprocess.cpu import attempt
from ensemble.records import NUMPY_DTYPES, Axis, ModelSpec
from ensemble.video import handover, request
from ensemble.video.request import VideoRequest
from ensemble.video.turns import Tracks, VideoJob
from ensemble.video.variant import STAGES, VideoVariant


class VideoCallers(Callers):
    """As `Callers`, of a video front model."""

    def more(self, answer: Detections) -> dict[str, np.ndarray]:
        assert isinstance(answer, Tracks), "a video front model answers with tracks"
        return {
            "track_ids": answer.track_ids,
            "track_scores": answer.track_scores,
            "track_states": answer.track_states,
            "hidden_ids": answer.hidden_ids,
            "frame_index": np.array([answer.frame_index], np.int32),
            "dropped_objects": np.array([answer.dropped_objects], np.int32),
            "session_bytes": np.array([answer.session_bytes], np.int64),
        }


class VideoEngineClient(EngineClient):
    """As `EngineClient`, of a video front model."""

    def __init__(self, front: str, variant: VideoVariant, pool: Executor, decoding: str) -> None:
        super().__init__(front, variant.detector, pool, decoding)
        self._video = variant
        self._outputs = [*self._outputs, *VIDEO_OUTPUTS]

    def _pack(self, jobs: Sequence[Any]) -> dict[str, np.ndarray]:
        return handover.pack_jobs(self._front, jobs, self._video)

    def _unpack(self, arrays: dict[str, np.ndarray], jobs: Sequence[Any]) -> list[Detections | Exception]:
        return handover.unpack_answers(arrays, jobs)

    def close(self, sessions: Sequence[int]) -> None:
        """Ends sessions without a frame."""
        told = handover.pack_closed(self._front, sessions, self._video)
        self._call(told, ["status"])


class TritonPythonModel:
    """Triton calls `initialize` once, `execute` for each batch, `finalize` at the end."""

    def initialize(self, args: dict[str, str]) -> None:
        name, parameters = args["model_name"], json.loads(args["model_config"])["parameters"]
        triton_io.LogHandler.install(name)
        self.variant = variant = VideoVariant.from_dict(json.loads(parameters["video"]["string_value"]))
        detector = variant.detector
        metrics = FrontMetrics.of(args, variant.max_batch, STAGES)
        self.callers = VideoCallers(detector, tokenizer_of(detector, args), metrics, STAGES)
        self.decoders = ThreadPoolExecutor(min(variant.max_batch, os.cpu_count() or 1), "decode")
        self.engine = VideoEngineClient(name, variant, self.decoders, parameters["preprocess"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request, in order. Nothing is raised here: that would fail the whole batch."""
        start = time.perf_counter()
        with self.callers.ending.under_way():
            return self._answers(requests, start)

    def _answers(self, requests: list[Any], start: float) -> list[Any]:
        asked = [attempt(self._parsed, triton_io.request_arrays(each)) for each in requests]
        frames = [each for each in asked if not isinstance(each, int)]
        if frames:
            self.callers.metrics.taken(start, len(frames))
        self.callers.metrics.batch(len(frames))
        answers = iter(self.engine.detect(frames)) if frames else iter(())
        ended = [each for each in asked if isinstance(each, int)]
        failed = attempt(self.engine.close, ended) if ended else None
        responses = []
        for each in asked:
            if isinstance(each, int):
                responses.append(triton_io.refusal(failed) if failed else nothing(self.variant.front))
            else:
                responses.append(self.callers.respond(each, next(answers), start, len(frames)))
        return responses

    def finalize(self) -> None:
        self.decoders.shutdown(wait=False, cancel_futures=True)

    def _parsed(self, arrays: Mapping[str, np.ndarray]) -> VideoJob | int:
        """The job that a request asks for; the session's id where it asks for its end alone. Raises RequestError;
        ServerEnding where no frame is taken any more."""
        wanted: VideoRequest = request.parse(arrays, self.variant)
        if wanted.frame is None:
            return wanted.asked.session
        self.callers.ending.check()
        return VideoJob(wanted.frame, [self.callers.tokenizer(n) for n in wanted.frame.classes], asked=wanted.asked)


def nothing(front: ModelSpec) -> Any:
    """The answer to a session's end: all outputs, without anything in them."""
    arrays = {}
    for tensor in front.outputs:
        shape = (1, *(0 if isinstance(d, Axis) else d for d in tensor.dims))
        arrays[tensor.name] = np.zeros(shape, NUMPY_DTYPES.get(tensor.dtype, object))
    return triton_io.response(arrays)
