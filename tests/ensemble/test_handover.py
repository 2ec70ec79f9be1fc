"""Batches on their way between a front model and the engine model: what comes out is what went in, and nonsense gets a
sentence."""

import numpy as np
import pytest

from ensemble.handover import EngineError, pack_answers, pack_jobs, unpack_answers, unpack_jobs
from ensemble.interfaces import STAGES, VIDEO_OUTPUTS, engine
from ensemble.pipeline import Job
from ensemble.postprocess import Detections
from ensemble.records import NUMPY_DTYPES
from ensemble.request import Exemplars, FrameRequest, RequestError
from ensemble.spec import MAX_CLASSES, Checkpoint, Variant

VARIANT = Variant(
    resolution=28,
    queries=6,
    max_batch=4,
    max_boxes=2,
    checkpoint=Checkpoint("test", 28, 14, 4, 6, context_length=5, vocabulary_size=50),
)
EMPTY = np.zeros((0, 8, 1), np.uint8)
BOX = np.array([[0.5, 0.5, 0.25, 0.25]], np.float32)
TWO = Exemplars(np.concatenate([BOX, BOX / 2]), np.array([1, 0], np.int32))
ONE = Exemplars(BOX, np.array([1], np.int32))


def tokens(*lengths):
    """One name for each length."""
    made = []
    for length in lengths:
        mask = (np.arange(5) < length).astype(np.int32)
        made.append((mask * (10 + length), mask))
    return made


def file_job(data, *lengths, size=None, **request):
    return Job(FrameRequest(classes=(), image=data, **request), tokens(*lengths), size)


def scaled_job(value, *lengths, size=(90, 160), **request):
    frame = np.full((28, 28, 3), value, np.uint8)
    return Job(FrameRequest(classes=(), frame=frame, **request), tokens(*lengths), size)


BATCHES = {
    "one file": [file_job(b"jpeg", 1)],
    "one scaled frame": [scaled_job(7, 1)],
    "files and scaled frames": [file_job(b"a", 1), scaled_job(1, 2), file_job(b"bcd", 3), scaled_job(2, 4)],
    "names of different number": [scaled_job(1, 1, 2, 3), scaled_job(2, 4), file_job(b"x", 5, 1)],
    "as many names as can be": [scaled_job(1, *[2] * MAX_CLASSES)],
    "exemplars of some names": [
        scaled_job(1, 1, 2, exemplars={1: TWO}),
        file_job(b"x", 3),
        scaled_job(2, 4, 5, 1, exemplars={0: ONE, 2: TWO}),
    ],
    "settings": [
        scaled_job(1, 1, threshold=0.25, max_detections=3, mask_format="bits"),
        scaled_job(2, 1, threshold=1.0, max_detections=10_000),
        scaled_job(3, 1, threshold=0.0, mask_format="rle"),
    ],
}


def told(job):
    """All that the engine model knows of a job, in values that compare."""
    request = job.request
    return {
        "image": request.image,
        "frame": None if request.frame is None else request.frame.tolist(),
        "tokens": [(ids.tolist(), mask.tolist()) for ids, mask in job.tokens],
        "exemplars": {k: (e.boxes.tolist(), e.labels.tolist()) for k, e in request.exemplars.items()},
        "settings": (request.threshold, request.max_detections, request.mask_format != "none"),
        "size": job.frame_size,
    }


@pytest.mark.parametrize("jobs", BATCHES.values(), ids=BATCHES)
def test_jobs_come_out_as_they_went_in(jobs):
    arrays = pack_jobs("sam3_r28", jobs, 28)
    assert arrays["front"].tolist() == [b"sam3_r28"]
    found = unpack_jobs(arrays, VARIANT)
    assert [told(job) for job in found] == [told(job) for job in jobs]


def same_as_the_interface(arrays, tensors):
    assert list(arrays) == [tensor.name for tensor in tensors]
    for tensor in tensors:
        array = arrays[tensor.name]
        assert array.dtype == (object if tensor.dtype == "BYTES" else NUMPY_DTYPES[tensor.dtype]), tensor.name
        assert array.ndim == len(tensor.dims), tensor.name
        fixed = {i: size for i, size in enumerate(tensor.dims) if isinstance(size, int)}
        assert {i: array.shape[i] for i in fixed} == fixed, tensor.name


@pytest.mark.parametrize("jobs", BATCHES.values(), ids=BATCHES)
def test_arrays_are_what_the_engine_models_interface_says(jobs):
    same_as_the_interface(pack_jobs("sam3_r28", jobs, 28), [t for t in engine().inputs if not t.optional])
    for answers in ([detections(job, 2, masks=2) for job in jobs], [RuntimeError("out of memory")] * len(jobs)):
        outputs = [t for t in engine().outputs if t.name not in VIDEO_OUTPUTS]
        same_as_the_interface(pack_answers(jobs, answers, EMPTY), outputs)


# ---- what does not fit together
def changed(**arrays):
    """A batch of a file, a scaled frame with an exemplar, and another file, with some arrays in another form."""
    jobs = [file_job(b"abc", 1), scaled_job(1, 2, 3, exemplars={1: ONE}), file_job(b"de", 4)]
    packed = pack_jobs("sam3_r28", jobs, 28)
    return packed | {name: np.array(array, packed[name].dtype) for name, array in arrays.items()}


NONSENSE = {
    "no frame": (
        {"file_bytes": [], "frame_sizes": np.zeros((0, 2))},
        "1 to 4 frames, got 0",
    ),
    "more frames than a batch has": ({"file_bytes": [1] * 5}, "1 to 4 frames, got 5"),
    "sizes of other frames": ({"frame_sizes": [[1, 1]]}, "frame_sizes of 3 frames, got 1"),
    "names of other frames": ({"names_per_frame": [4]}, "names_per_frame of 3 frames, got 1"),
    "thresholds of other frames": ({"threshold": [0.5] * 4}, "threshold of 3 frames, got 4"),
    "limits of other frames": ({"max_detections": []}, "max_detections of 3 frames, got 0"),
    "masks of other frames": ({"wants_masks": [1, 1]}, "wants_masks of 3 frames, got 2"),
    "a frame without names": ({"names_per_frame": [0, 2, 2]}, r"1 to 100 names a frame, got \[0, 2, 2\]"),
    "less than no names": ({"names_per_frame": [-1, 4, 1]}, "1 to 100 names a frame"),
    "too many names": (
        {"names_per_frame": [1, 1, 101], "input_ids": np.zeros((103, 5))},
        "1 to 100 names a frame",
    ),
    "names that nobody has": ({"names_per_frame": [1, 2, 2]}, r"input_ids \(5, 5\), got \(4, 5\)"),
    "tokens of another length": ({"input_ids": np.zeros((4, 6))}, r"input_ids \(4, 5\), got \(4, 6\)"),
    "a token below the vocabulary": ({"input_ids": np.full((4, 5), -1)}, "input_ids of 0 to 49"),
    "a token beyond the vocabulary": ({"input_ids": np.full((4, 5), 50)}, "input_ids of 0 to 49"),
    "a mask of other tokens": ({"token_mask": np.zeros((4, 4))}, r"token_mask \(4, 5\), got \(4, 4\)"),
    "a mask that is none": ({"token_mask": np.full((4, 5), 2)}, "token_mask of 0 and 1"),
    "bytes that nobody has": ({"files": [1, 2, 3]}, r"the bytes of all files, got \[3, 0, 2\]"),
    "less than no bytes": ({"file_bytes": [-1, 3, 3]}, "the bytes of all files"),
    "scaled frames that nobody has": ({"scaled": np.zeros((2, 28, 28, 3))}, r"scaled frames \(1, 28, 28, 3\), got \(2"),
    "scaled frames of another size": ({"scaled": np.zeros((1, 14, 14, 3))}, r"scaled frames \(1, 28, 28, 3\)"),
    "grey scaled frames": ({"scaled": np.zeros((1, 28, 28, 1))}, r"scaled frames \(1, 28, 28, 3\)"),
    "boxes without labels": ({"box_labels": []}, r"a label and a name of each box, got \(0, 1\)"),
    "boxes of nobody": ({"box_names": []}, "a label and a name of each box"),
    "NaN box": ({"boxes": [[np.nan] * 4]}, "boxes of 0 to 1"),
    "a box in pixels": ({"boxes": [[100, 100, 20, 20]]}, r"boxes of 0 to 1, got \[\[100.0"),
    "a label that is none": ({"box_labels": [-10]}, r"box_labels of 0 and 1, got \[-10\]"),
    "a box of a name before the first": ({"box_names": [-1]}, "box_names of 0 to 3"),
    "a box of a name after the last": ({"box_names": [4]}, r"box_names of 0 to 3, got \[4\]"),
    "too many boxes of one name": (
        {"boxes": [[0.5] * 4] * 3, "box_labels": [1] * 3, "box_names": [2] * 3},
        "at most 2 boxes a name, got 3",
    ),
}


def test_what_is_changed_below_is_a_batch_to_begin_with():
    assert len(unpack_jobs(changed(), VARIANT)) == 3


@pytest.mark.parametrize(("arrays", "sentence"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_gets_a_sentence(arrays, sentence):
    with pytest.raises(RequestError, match=f"sam3_engine: expected {sentence}") as caught:
        unpack_jobs(changed(**arrays), VARIANT)
    assert "send frames to those" in str(caught.value)
    assert len(str(caught.value)) < 250


def test_limits_below_one_mean_one():
    (job, *_) = unpack_jobs(changed(max_detections=[-3, 1, 1]), VARIANT)
    assert job.request.max_detections == 1


# ---- answers
def detections(job, count, masks=0, start=0.0):
    values = (start + np.arange(count)).astype(np.float32)
    return Detections(
        np.repeat(values[:, None], 4, axis=1),
        values,
        np.arange(count, dtype=np.int32) % len(job.tokens),
        np.linspace(0, 1, len(job.tokens)).astype(np.float32),
        np.arange(masks * 8, dtype=np.uint8).reshape(masks, 8, 1),
    )


def timed(job):
    """As the engine model leaves it: it has the time of some stages."""
    job.stage_ms = {"queue": 1.5, "vision": 20.0}
    return job


def test_answers_come_out_as_they_went_in():
    """With masks and without, with nothing found, a frame that could not be read, and a failure."""
    jobs = [
        scaled_job(1, 1, 2, mask_format="bits"),
        scaled_job(2, 3),
        scaled_job(3, 1, 2, 3, mask_format="rle"),
        file_job(b"junk", 1, mask_format="bits"),
        scaled_job(4, 1),
        scaled_job(5, 2, mask_format="bits"),
    ]
    answers = [
        detections(jobs[0], 3, masks=3),
        detections(jobs[1], 2, start=10.0),
        detections(jobs[2], 0),
        RequestError("image: the file cannot be decoded"),
        RuntimeError("out of memory"),
        detections(jobs[5], 1, masks=1, start=20.0),
    ]
    packed = pack_answers([timed(job) for job in jobs], answers, EMPTY)
    for job in jobs:
        job.frame_size, job.stage_ms = None, {"decode": 2.0}
    found = unpack_answers(packed, jobs)
    for answer, wanted in zip(found, answers, strict=True):
        if isinstance(wanted, Detections):
            for name in ("boxes", "scores", "class_ids", "presence", "mask_bits"):
                np.testing.assert_array_equal(getattr(answer, name), getattr(wanted, name), err_msg=name)
    assert isinstance(found[3], RequestError)
    assert str(found[3]) == "image: the file cannot be decoded"
    assert isinstance(found[4], EngineError)
    assert str(found[4]) == "RuntimeError: out of memory"
    assert [job.frame_size for job in jobs] == [(90, 160)] * 3 + [(0, 0)] + [(90, 160)] * 2
    assert [job.stage_ms["decode"] for job in jobs] == [2.0] * 6, "the front model's own time stays"
    assert [(job.stage_ms["queue"], job.stage_ms["vision"]) for job in jobs] == [(1.5, 20.0)] * 6
    assert set(jobs[0].stage_ms) == set(STAGES)


def test_a_batch_in_which_nothing_can_be_answered():
    jobs = [file_job(b"junk", 1, mask_format="bits"), scaled_job(1, 2)]
    found = unpack_answers(pack_answers(jobs, [RequestError("no picture")] * 2, EMPTY), jobs)
    assert [str(answer) for answer in found] == ["no picture"] * 2


def test_masks_that_were_not_asked_for_are_nobodys():
    """The engine model makes none for a frame that wants none, so each mask belongs to the next frame that does."""
    jobs = [scaled_job(1, 1), scaled_job(2, 1, mask_format="bits")]
    answers = [detections(jobs[0], 2), detections(jobs[1], 1, masks=1)]
    none, one = unpack_answers(pack_answers(jobs, answers, EMPTY), jobs)
    assert (len(none.mask_bits), len(one.mask_bits)) == (0, 1)
