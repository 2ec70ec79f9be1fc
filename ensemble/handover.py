"""The message between a front model and the engine model: a batch's jobs and answers as arrays, and back.

The arrays are those of `interfaces.engine()`. They are typed and checked, and not pickled objects: the engine model is
a model of the server like any other, and whoever reaches the server can call it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ensemble.interfaces import STAGES
from ensemble.pipeline import Job
from ensemble.postprocess import Detections
from ensemble.request import Exemplars, FrameRequest, RequestError, sentence
from ensemble.spec import MAX_CLASSES, Variant

ANSWERED, REJECTED, FAILED = range(3)
Arrays = Mapping[str, np.ndarray]


class EngineError(RuntimeError):
    """The engine model could not answer a frame; the message is its own."""


def pack_jobs(front: str, jobs: Sequence[Job], resolution: int) -> dict[str, np.ndarray]:
    """The engine model's inputs; there may be no jobs. A job's frame is a JPEG file, or RGB that is scaled to
    `resolution` already."""
    files = [np.frombuffer(job.request.image or b"", np.uint8) for job in jobs]
    scaled = [job.request.frame for job in jobs if job.request.frame is not None]
    tokens = [token for job in jobs for token in job.tokens]
    boxes, labels, owners, first = [], [], [], 0
    for job in jobs:
        for class_id, shown in sorted(job.request.exemplars.items()):
            boxes.append(shown.boxes)
            labels.append(shown.labels)
            owners.append(np.full(len(shown.labels), first + class_id, np.int32))
        first += len(job.tokens)
    return {
        "front": np.array([front.encode()], object),
        "files": np.concatenate([np.zeros(0, np.uint8), *files]),
        "file_bytes": np.array([len(file) for file in files], np.int32),
        "scaled": np.stack(scaled) if scaled else np.zeros((0, resolution, resolution, 3), np.uint8),
        "frame_sizes": np.array([job.frame_size or (0, 0) for job in jobs], np.int32).reshape(-1, 2),
        "names_per_frame": np.array([len(job.tokens) for job in jobs], np.int32),
        "input_ids": np.stack([ids for ids, _ in tokens]) if tokens else np.zeros((0, 0), np.int32),
        "token_mask": np.stack([mask for _, mask in tokens]) if tokens else np.zeros((0, 0), np.int32),
        "threshold": np.array([job.request.threshold for job in jobs], np.float32),
        "max_detections": np.array([job.request.max_detections for job in jobs], np.int32),
        "wants_masks": np.array([job.request.mask_format != "none" for job in jobs], np.uint8),
        "boxes": np.concatenate([np.zeros((0, 4), np.float32), *boxes]).astype(np.float32),
        "box_labels": np.concatenate([np.zeros(0, np.int32), *labels]).astype(np.int32),
        "box_names": np.concatenate([np.zeros(0, np.int32), *owners]),
    }


def unpack_jobs(arrays: Arrays, variant: Variant) -> list[Job]:
    """The jobs again. Raises RequestError where the arrays do not fit together, exceed the variant's limits, or hold
    values that a sub-model must not see: a GPU's kernels do not look before they read."""
    _check(arrays, variant)
    names, sizes = arrays["names_per_frame"], arrays["file_bytes"]
    boxes, labels, owners = (arrays[name] for name in ("boxes", "box_labels", "box_names"))
    frames, files = iter(arrays["scaled"]), split(arrays["files"], sizes)
    ids, masks = split(arrays["input_ids"], names), split(arrays["token_mask"], names)
    jobs, first = [], 0
    for i, (file, own_ids, own_masks) in enumerate(zip(files, ids, masks, strict=True)):
        exemplars = {}
        for class_id in range(len(own_ids)):
            mine = owners == first + class_id
            if mine.any():
                expect(mine.sum() <= variant.max_boxes, f"at most {variant.max_boxes} boxes a name", int(mine.sum()))
                exemplars[class_id] = Exemplars(boxes[mine], labels[mine])
        first += len(own_ids)
        request = FrameRequest(
            classes=(),  # the engine model knows their tokens alone
            image=file.tobytes() or None,
            frame=next(frames) if not len(file) else None,
            exemplars=exemplars,
            threshold=float(arrays["threshold"][i]),
            mask_format="bits" if arrays["wants_masks"][i] else "none",
            max_detections=max(1, int(arrays["max_detections"][i])),
        )
        height, width = map(int, arrays["frame_sizes"][i])
        jobs.append(Job(request, list(zip(own_ids, own_masks, strict=True)), (height, width) if height else None))
    return jobs


def pack_answers(
    jobs: Sequence[Job],
    answers: Sequence[Detections | Exception],
    empty_masks: np.ndarray,
    stages: Sequence[str] = STAGES,
) -> dict:
    """The engine model's outputs; `empty_masks` [0,4p,ceil(4p/8)] gives the masks' shape where there are none."""
    found = [answer for answer in answers if isinstance(answer, Detections)]

    def status(answer: Detections | Exception) -> int:
        if isinstance(answer, Detections):
            return ANSWERED
        return REJECTED if isinstance(answer, RequestError) else FAILED

    def message(answer: Detections | Exception) -> bytes:
        if isinstance(answer, Detections):
            return b""
        return sentence(answer).encode()

    def joined(name: str, start: np.ndarray) -> np.ndarray:
        return np.concatenate([start, *(getattr(answer, name) for answer in found)])

    return {
        "status": np.array([status(answer) for answer in answers], np.int32),
        "messages": np.array([message(answer) for answer in answers], object),
        "found": np.array([len(a.scores) if isinstance(a, Detections) else 0 for a in answers], np.int32),
        "boxes": joined("boxes", np.zeros((0, 4), np.float32)),
        "scores": joined("scores", np.zeros(0, np.float32)),
        "class_ids": joined("class_ids", np.zeros(0, np.int32)),
        "presence": np.concatenate(
            [
                a.presence if isinstance(a, Detections) else np.zeros(len(job.tokens), np.float32)
                for job, a in zip(jobs, answers, strict=True)
            ]
        ),
        "mask_bits": joined("mask_bits", empty_masks),
        "frame_sizes": np.array([job.frame_size or (0, 0) for job in jobs], np.int32),
        "stage_ms": np.array([[job.stage_ms.get(s, 0.0) for s in stages] for job in jobs], np.float32),
    }


def unpack_answers(arrays: Arrays, jobs: Sequence[Job], stages: Sequence[str] = STAGES) -> list[Detections | Exception]:
    """The answer to each job, whose size and stage times are set."""
    found, names = arrays["found"], [len(job.tokens) for job in jobs]
    masked = [int(n) if job.request.mask_format != "none" else 0 for n, job in zip(found, jobs, strict=True)]
    parts = zip(
        *(split(arrays[name], found) for name in ("boxes", "scores", "class_ids")),
        split(arrays["presence"], names),
        split(arrays["mask_bits"], masked),
        strict=True,
    )
    answers: list[Detections | Exception] = []
    for i, (job, part) in enumerate(zip(jobs, parts, strict=True)):
        job.frame_size = (int(arrays["frame_sizes"][i, 0]), int(arrays["frame_sizes"][i, 1]))
        for stage, milliseconds in zip(stages, arrays["stage_ms"][i].tolist(), strict=True):
            job.add_ms(stage, milliseconds)
        text = arrays["messages"][i].decode(errors="replace")
        error = {REJECTED: RequestError, FAILED: EngineError}.get(int(arrays["status"][i]))
        answers.append(error(text) if error else Detections(*part))
    return answers


def _check(arrays: Arrays, variant: Variant) -> None:
    count, names = len(arrays["file_bytes"]), arrays["names_per_frame"]
    expect(1 <= count <= variant.max_batch, f"1 to {variant.max_batch} frames", count)
    for name in ("frame_sizes", "names_per_frame", "threshold", "max_detections", "wants_masks"):
        expect(len(arrays[name]) == count, f"{name} of {count} frames", len(arrays[name]))
    expect(((names > 0) & (names <= MAX_CLASSES)).all(), f"1 to {MAX_CLASSES} names a frame", names.tolist())
    tokens, vocabulary = arrays["input_ids"], variant.checkpoint.vocabulary_size
    shape = (int(names.sum()), variant.checkpoint.context_length)
    expect(tokens.shape == shape, f"input_ids {shape}", tokens.shape)
    expect(within(tokens, 0, vocabulary - 1), f"input_ids of 0 to {vocabulary - 1}", "others")
    expect(arrays["token_mask"].shape == shape, f"token_mask {shape}", arrays["token_mask"].shape)
    expect(within(arrays["token_mask"], 0, 1), "token_mask of 0 and 1", "others")
    sizes, scaled = arrays["file_bytes"], arrays["scaled"]
    expect((sizes >= 0).all() and sizes.sum() == len(arrays["files"]), "the bytes of all files", sizes.tolist())
    frames = (int((sizes == 0).sum()), variant.resolution, variant.resolution, 3)
    expect(scaled.shape == frames, f"scaled frames {frames}", scaled.shape)
    boxes, labels, owners = (arrays[name] for name in ("boxes", "box_labels", "box_names"))
    expect(len(boxes) == len(labels) == len(owners), "a label and a name of each box", (len(labels), len(owners)))
    expect(within(boxes, 0, 1), "boxes of 0 to 1", boxes.tolist())
    expect(within(labels, 0, 1), "box_labels of 0 and 1", labels.tolist())
    expect(within(owners, 0, len(tokens) - 1), f"box_names of 0 to {len(tokens) - 1}", owners.tolist())


def within(values: np.ndarray, low: float, high: float) -> np.bool_:
    return ((values >= low) & (values <= high)).all()  # NaN is not


def split(array: np.ndarray, counts: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
    start = 0
    for count in counts:
        yield array[start : start + count]
        start += count


def expect(fits: bool | np.bool_, expected: str, got: object) -> None:
    if not fits:
        shown = str(got)[:80]
        raise RequestError(f"sam3_engine: expected {expected}, got {shown}; front models call it, send frames to those")
