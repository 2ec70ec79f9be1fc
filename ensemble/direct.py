"""The engine model that clients call themselves: what a server of one resolution on a GPU is.

Without front models in between a frame of one camera is answered three milliseconds sooner; a server of several
resolutions needs them, since each is a Triton model with a process of its own, and the sub-models shall be in one. What
comes is parsed in `execute`, and a third thread packs and sends the answers: masks as run lengths, which take Python's
lock longest, are the callers' wish.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

from ensemble import engine, triton_io
from ensemble.callers import Callers
from ensemble.pipeline import Job
from ensemble.postprocess import Detections
from ensemble.preprocess.cpu import attempt

log = logging.getLogger(__name__)
Answers = Sequence[Detections | Exception] | Exception


class TritonPythonModel(engine.TritonPythonModel):
    """The engine model, with callers in the place of front models."""

    def initialize(self, args: dict[str, str]) -> None:
        self._answers: SimpleQueue[tuple[Sequence[Any], Answers] | None] = SimpleQueue()
        super().initialize(args)
        self._answers_late = False  # there is a thread that packs
        (self._front,) = self.fronts.values()
        self._callers = Callers.of(self._front.variant, args)
        self._sending = threading.Thread(target=self._send, name="send")
        self._sending.start()

    def execute(self, requests: list[Any]) -> None:
        """Leaves the frames to the threads, which answer."""
        start = time.perf_counter()
        self._callers.metrics.taken(start, len(requests))
        for request in requests:
            sender, job = request.get_response_sender(), attempt(self._job, request)
            if isinstance(job, Exception):
                triton_io.send(sender, self._callers.respond(job, job, start, 1))
            else:
                self._hand_over(engine.Part(self._front, [job], sender, start))
        self._taken.wait()

    def finalize(self) -> None:
        super().finalize()
        self._answers.put(None)
        self._sending.join()

    def _job(self, request: Any) -> Job:
        # Copied: the memory is Triton's again as soon as `execute` returns.
        return self._callers.parse({name: array.copy() for name, array in triton_io.request_arrays(request).items()})

    def _refuse(self, parts: Sequence[Any], error: Exception) -> None:
        self._answers.put((parts, error))

    def _answer(self, parts: Sequence[Any], answers: Answers) -> None:
        self._answers.put((parts, answers))

    def _send(self) -> None:
        """The thread that answers every caller exactly once, whatever happens."""
        while (batch := self._answers.get()) is not None:
            parts, answers = batch
            if isinstance(answers, Exception):
                log.error("a batch failed", exc_info=answers)
                answers = [answers] * len(parts)
            self._callers.metrics.batch(len(parts))
            for part, answer in zip(parts, answers, strict=True):
                triton_io.send(part.sender, self._callers.respond(part.jobs[0], answer, part.start, len(parts)))
            attempt(self._front.metrics.update, self._front.detector.pipeline)
