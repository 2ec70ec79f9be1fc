"""The flow of a batch between the sub-models, from pixels and prompts to detections, without Triton and without torch.

`call(model, inputs, outputs)` is handed in. It runs one sub-model and returns the outputs by name: NumPy arrays of
those that this module reads (`TensorSpec.host`), of the others whatever the next sub-model takes. So features stay
where they were made, and the flow is tested without a server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ensemble.limits import Limit
from ensemble.nvtx_ranges import Annotate, unmarked
from ensemble.postprocess import Detections, best_first, scores, select, sigmoid
from ensemble.prompts import Prompt, PromptCache, Tokens
from ensemble.records import NUMPY_DTYPES, ModelSpec
from ensemble.request import FrameRequest
from ensemble.spec import FLOAT_DTYPES, Variant

Call = Callable[[ModelSpec, Mapping[str, Any], Sequence[str]], dict[str, Any]]
MASK_ROWS = 16
"""Rows of one mask-head call, whose maps would otherwise be most of a server's memory."""
FEATURES = ("fpn_0", "fpn_1", "fpn_2")
"""What the vision encoder makes for the detector."""
PADDING_LABEL = -10
"""SAM3's label of an unused box slot."""


@dataclass(slots=True)
class Job:
    """One frame of a batch: its request, the ids and masks of its class names, the size of the upright frame, and the
    milliseconds that each stage took."""

    request: FrameRequest
    tokens: list[Tokens]
    frame_size: tuple[int, int] | None = None  # height, width; None until the frame is read
    prompts: list[Prompt] | None = None  # of the names, once they are encoded
    stage_ms: dict[str, float] = field(default_factory=dict)

    def add_ms(self, stage: str, milliseconds: float) -> None:
        self.stage_ms[stage] = self.stage_ms.get(stage, 0.0) + milliseconds


@dataclass(slots=True)
class Pair:
    """One (image, class) pair: indices into the batch and into that frame's classes, and the prompt."""

    image: int
    class_id: int
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Begun:
    """A batch between the two halves of `Pipeline.run`."""

    jobs: Sequence[Job]
    pairs: list[Pair]
    features: dict[str, Any]
    times: dict[str, float]


class Pipeline:
    """One variant's flow; not for two threads at once, but for `encode`. `prompts` is shared by all pipelines of one
    text encoder; one of its own is made where none is given."""

    def __init__(
        self, variant: Variant, call: Call, prompts: PromptCache | None = None, annotate: Annotate = unmarked
    ) -> None:
        self.variant, self._call, self._annotate = variant, call, annotate
        self.prompts = prompts or PromptCache(self._encode_text)
        self.pairs = Limit(variant.max_pairs, "decoder calls now take at most %d of its classes")
        self.limits = (self.pairs,)
        self.calls: dict[str, int] = {}
        """Calls of each sub-model so far, by part."""
        self.hits = self.misses = 0
        """Class names that were and that were not in the cache so far."""
        self._counting = threading.Lock()
        self._float = NUMPY_DTYPES[FLOAT_DTYPES[variant.precision]]

    def run(self, jobs: Sequence[Job], pixel_values: Any) -> list[Detections]:
        """Detections of each job, in order. At most `variant.max_batch` jobs. Whatever `call` raises passes through.

        `pixel_values` is the batch of all jobs, uint8 [B,3,R,R]: an array, or whatever `call` takes for one on a GPU.
        """
        return self.complete(self.begin(jobs, pixel_values))

    def begin(self, jobs: Sequence[Job], pixel_values: Any) -> Begun:
        """The first half of `run`: prompts and features. A `call` that only launches its work lets the caller do
        something else meanwhile; `complete` of the same batch comes before the next batch's."""
        begun = self.begin_with(jobs, {}, {})
        with self.timed(begun.times, "vision"):
            inputs = {"pixel_values": pixel_values}
            begun.features.update(self.run_sub_model(self.variant.vision_encoder, inputs, FEATURES))
        return begun

    def begin_with(self, jobs: Sequence[Job], features: dict[str, Any], times: dict[str, float]) -> Begun:
        """`begin`, of frames whose FEATURES are there; `times` are those of the batch so far."""
        with self.timed(times, "text"):
            return Begun(jobs, self._pairs(jobs), features, times)

    def complete(self, begun: Begun) -> list[Detections]:
        """The second half of `run`: from features to detections."""
        jobs, pairs, features, times = begun.jobs, begun.pairs, begun.features, begun.times
        with self.timed(times, "geometry"):
            self._add_exemplars(jobs, pairs, features)
        found: list[list[Detections]] = [[] for _ in jobs]
        presence = [np.zeros(len(job.tokens), np.float32) for job in jobs]
        for chunk in _chunks(sorted(pairs, key=lambda pair: len(pair.prompt.mask)), self.pairs.most):
            self._decode(jobs, chunk, features, found, presence, times)
        with self.timed(times, "pack"):
            results = [self._finish(job, f, p) for job, f, p in zip(jobs, found, presence, strict=True)]
        for job in jobs:
            for stage, milliseconds in times.items():
                job.add_ms(stage, milliseconds)
        return results

    def no_room(self, job: Job) -> str:
        return f"there is no memory for one frame at {self.variant.resolution}; serve a lower resolution"

    # ---- prompts
    def encode(self, jobs: Sequence[Job]) -> None:
        """Finds or makes the prompts of these jobs, also ahead of `begin` in another thread than the other calls'."""
        tokens = [name for job in jobs for name in job.tokens]
        found, encoded = self.prompts.lookup(tokens)
        with self._counting:
            self.misses += encoded
            self.hits += len(tokens) - encoded
        for job in jobs:
            job.prompts, found = found[: len(job.tokens)], found[len(job.tokens) :]

    def _pairs(self, jobs: Sequence[Job]) -> list[Pair]:
        self.encode([job for job in jobs if job.prompts is None])
        return [Pair(i, *found) for i, job in enumerate(jobs) for found in enumerate(job.prompts or ())]

    def _encode_text(self, input_ids: np.ndarray) -> np.ndarray:
        model, parts = self.variant.text_encoder, _chunks(input_ids, self.variant.max_pairs)
        encoded = [self.run_sub_model(model, {"input_ids": part}, ("text_features",)) for part in parts]
        return np.concatenate([made["text_features"] for made in encoded])

    def _add_exemplars(self, jobs: Sequence[Job], pairs: list[Pair], features: Mapping[str, Any]) -> None:
        """Appends the geometry features of exemplar boxes to the prompts of the pairs that have any."""
        boxed = [pair for pair in pairs if pair.class_id in jobs[pair.image].request.exemplars]
        for chunk in _chunks(boxed, self.variant.max_pairs):
            boxes = np.full((len(chunk), self.variant.max_boxes, 4), 0.5, np.float32)
            labels = np.full((len(chunk), self.variant.max_boxes), PADDING_LABEL, np.int32)
            for row, pair in enumerate(chunk):
                shown = jobs[pair.image].request.exemplars[pair.class_id]
                boxes[row, : len(shown.boxes)], labels[row, : len(shown.boxes)] = shown.boxes, shown.labels
            inputs = {"fpn_2": features["fpn_2"], "image_index": _images(chunk), "boxes": boxes, "box_labels": labels}
            encoded = self.run_sub_model(self.variant.geometry_encoder, inputs, ("geometry_features",)).popitem()[1]
            for row, pair in enumerate(chunk):
                real = np.concatenate([[1], labels[row] != PADDING_LABEL]).astype(np.int32)  # the class token leads
                pair.prompt = Prompt(
                    np.concatenate([pair.prompt.features, encoded[row]]), np.concatenate([pair.prompt.mask, real])
                )

    # ---- decoder and masks
    def _decode(
        self,
        jobs: Sequence[Job],
        chunk: Sequence[Pair],
        features: Mapping[str, Any],
        found: list[list[Detections]],
        presence: list[np.ndarray],
        times: dict[str, float],
    ) -> None:
        """Decodes one chunk of pairs, and its masks while the decoder's memory is at hand; it is released before the
        next chunk."""
        with self.timed(times, "decoder"):
            length = max(len(pair.prompt.mask) for pair in chunk)
            prompt_features = np.zeros((len(chunk), length, self.variant.checkpoint.hidden_size), self._float)
            prompt_mask = np.zeros((len(chunk), length), np.int32)
            for row, pair in enumerate(chunk):
                tokens = len(pair.prompt.mask)
                prompt_features[row, :tokens], prompt_mask[row, :tokens] = pair.prompt.features, pair.prompt.mask
            prompt = {"prompt_features": prompt_features, "prompt_mask": prompt_mask}
            with_masks = any(jobs[pair.image].request.mask_format != "none" for pair in chunk)
            outputs = self.run_sub_model(
                self.variant.decoder,
                {"fpn_2": features["fpn_2"], "image_index": _images(chunk), **prompt},
                tuple(tensor.name for tensor in self.variant.decoder.outputs if tensor.host or with_masks),
            )
            values = scores(outputs["pred_logits"], outputs["presence_logits"])
            picks = [
                select(values[row], jobs[p.image].request.threshold, jobs[p.image].request.max_detections)
                for row, p in enumerate(chunk)
            ]
            self._drop_surplus(jobs, chunk, values, picks, found)
        with self.timed(times, "masks"):
            masks = self._masks(jobs, chunk, picks, features, {**prompt, **outputs})
        present = sigmoid(outputs["presence_logits"][:, 0])
        for row, pair in enumerate(chunk):
            presence[pair.image][pair.class_id] = present[row]
            if len(picks[row]):
                class_ids = np.full(len(picks[row]), pair.class_id, np.int32)
                boxes = outputs["pred_boxes"][row, picks[row]].astype(np.float32)
                found[pair.image].append(
                    Detections(boxes, values[row, picks[row]], class_ids, presence[pair.image], masks[row])
                )

    @staticmethod
    def _drop_surplus(
        jobs: Sequence[Job],
        chunk: Sequence[Pair],
        values: np.ndarray,
        picks: list[np.ndarray],
        found: Sequence[Sequence[Detections]],
    ) -> None:
        """Takes from `picks` what cannot be among the best `max_detections` of its frame: no mask is made that nobody
        gets. Ties stay."""
        rows: dict[int, list[int]] = {}
        for row, pair in enumerate(chunk):
            rows.setdefault(pair.image, []).append(row)
        for image, own in rows.items():
            known = np.concatenate([*(part.scores for part in found[image]), *(values[row, picks[row]] for row in own)])
            most = jobs[image].request.max_detections
            if len(known) > most:
                least = np.partition(known, -most)[-most]
                for row in own:
                    picks[row] = picks[row][values[row, picks[row]] >= least]

    def _masks(
        self,
        jobs: Sequence[Job],
        chunk: Sequence[Pair],
        picks: Sequence[np.ndarray],
        features: Mapping[str, Any],
        decoded: Mapping[str, Any],
    ) -> list[np.ndarray]:
        """Packed masks of each pair's picks, empty for frames that want none. A row of the mask head is up to
        `max_picks` queries of one pair."""
        variant = self.variant
        empty = np.zeros((0, variant.mask_size, variant.mask_row_bytes), np.uint8)
        masks: list[list[np.ndarray]] = [[empty] for _ in chunk]
        rows = [
            (pair_row, queries)
            for pair_row, pair in enumerate(chunk)
            if jobs[pair.image].request.mask_format != "none"
            for queries in _chunks(picks[pair_row], variant.max_picks)
        ]
        for part in _chunks(rows, min(MASK_ROWS, self.pairs.most)):
            width = max(len(queries) for _, queries in part)
            query_index = np.zeros((len(part), width), np.int32)
            for i, (_, queries) in enumerate(part):
                query_index[i, : len(queries)] = queries
            pair_index = np.array([pair_row for pair_row, _ in part], np.int32)
            inputs = {
                "fpn_0": features["fpn_0"],
                "fpn_1": features["fpn_1"],
                **{name: decoded[name] for name in ("memory", "query_features", "prompt_features", "prompt_mask")},
                "image_index": _images(chunk)[pair_index],
                "pair_index": pair_index,
                "query_index": query_index,
            }
            bits = self.run_sub_model(variant.mask_head, inputs, ("mask_bits",))["mask_bits"]
            for i, (pair_row, queries) in enumerate(part):
                masks[pair_row].append(bits[i, : len(queries)])
        return [np.concatenate(parts) for parts in masks]

    def _finish(self, job: Job, found: list[Detections], presence: np.ndarray) -> Detections:
        empty = np.zeros((0, self.variant.mask_size, self.variant.mask_row_bytes), np.uint8)
        found.sort(key=lambda part: part.class_ids[0])
        return best_first(found, presence, job.request.max_detections, empty)

    @contextmanager
    def timed(self, times: dict[str, float], stage: str) -> Iterator[None]:
        """Adds the milliseconds of the block to those of `stage`."""
        start = time.perf_counter()
        try:
            with self._annotate(stage):
                yield
        finally:
            times[stage] = times.get(stage, 0.0) + (time.perf_counter() - start) * 1e3

    def run_sub_model(self, model: ModelSpec, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """One call, which is counted."""
        self.calls[model.part] = self.calls.get(model.part, 0) + 1
        return self._call(model, inputs, outputs)


def _images(chunk: Sequence[Pair]) -> np.ndarray:
    return np.array([pair.image for pair in chunk], np.int32)


def _chunks(items: Any, size: int) -> Iterator[Any]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
