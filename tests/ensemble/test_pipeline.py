"""The flow between the sub-models, with stand-ins for them."""

import numpy as np
import pytest

from ensemble.pipeline import Job, Pipeline
from ensemble.request import Exemplars, FrameRequest
from tests.ensemble.stand_ins import VARIANT, WORDS, SubModels, job


@pytest.fixture
def sub_models():
    return SubModels()


@pytest.fixture
def pipeline(sub_models):
    return Pipeline(VARIANT, sub_models)


def run(pipeline, jobs):
    return pipeline.run(jobs, np.stack([job.request.frame.transpose(2, 0, 1) for job in jobs]))


def parts(sub_models):
    return [part for part, _, _ in sub_models.calls]


def test_frames_with_different_classes_get_their_own_answers(pipeline, sub_models):
    jobs = [job(1, ("aa", "bbb")), job(2, ("bbb",)), job(3, ("c", "bbb", "aa"))]
    found = run(pipeline, jobs)
    assert [f.class_ids.tolist() for f in found] == [[0, 1, 1], [], [1, 2, 1]]
    np.testing.assert_allclose(found[0].boxes[:, :3], [[0.1, 0.2, 0.0], [0.1, 0.3, 0.0], [0.1, 0.3, 0.1]], rtol=1e-6)
    np.testing.assert_allclose(found[2].boxes[:, :3], [[0.3, 0.3, 0.0], [0.3, 0.2, 0.0], [0.3, 0.3, 0.1]], rtol=1e-6)
    assert [np.round(f.presence).tolist() for f in found] == [[1, 1], [0], [0, 1, 1]]
    assert (np.diff(found[0].scores) <= 0).all()


def test_one_vision_call_few_decoder_calls_and_no_masks_unless_asked(pipeline, sub_models):
    run(pipeline, [job(i, ("aa", "bbb")) for i in range(4)])
    assert parts(sub_models) == [
        "text_encoder",
        "vision_encoder",
        "decoder",
        "decoder",
        "decoder",
    ]  # 8 pairs in chunks of 3
    assert all("memory" not in outputs for part, _, outputs in sub_models.calls if part == "decoder")
    sub_models.calls.clear()
    run(pipeline, [job(1, ("bbb",))])
    assert parts(sub_models) == ["vision_encoder", "decoder"]  # the text is in the cache


def test_mask_head_is_not_called_where_nothing_was_found(pipeline, sub_models):
    found = run(pipeline, [job(2, ("aa", "bbb"), mask_format="bits")])
    assert "mask_head" not in parts(sub_models)
    assert found[0].mask_bits.shape == (0, 8, 1)


def test_masks_belong_to_their_image_class_and_query(pipeline, sub_models):
    """Five queries a pair at two picks a row: rows of one pair are split over mask-head calls and put together
    again."""
    jobs = [
        job(1, ("aa", "bbbbbb"), mask_format="bits"),
        job(1, ("bbb",)),
        job(1, ("bbb",), mask_format="bits"),
    ]
    found = run(pipeline, jobs)
    queries = np.round(found[0].boxes[:, 2] * 10).astype(int)
    letters = np.array([2, 6])[found[0].class_ids]
    assert len(queries) == 6
    np.testing.assert_array_equal(found[0].mask_bits[:, 0, 0], (100 + letters * 10 + queries).astype(np.uint8))
    assert found[1].mask_bits.shape == (0, 8, 1)
    assert len(found[1].scores) == 2
    assert found[2].mask_bits[:, 0, 0].tolist() == [130, 131]
    assert parts(sub_models).count("mask_head") == 3  # one call for the first chunk's masks is over the row limit


def test_exemplars_lengthen_the_prompt_of_their_pair_only(pipeline, sub_models):
    shown = Exemplars(np.array([[0.5, 0.5, 0.2, 0.2]], np.float32), np.array([1], np.int32))
    jobs = [job(1, ("aa", "bbb"), exemplars={1: shown}), job(3, ("aa", "bbb"))]
    found = run(pipeline, jobs)
    assert parts(sub_models) == ["text_encoder", "vision_encoder", "geometry_encoder", "decoder", "decoder"]
    lengths = [shapes["prompt_mask"] for part, shapes, _ in sub_models.calls if part == "decoder"]
    assert lengths == [(3, 5), (1, 8)]  # boxes come last, so that the others stay short
    assert found[0].class_ids.tolist() == found[1].class_ids.tolist() == [0, 1, 1]


def test_limits_and_thresholds_are_per_frame(pipeline):
    jobs = [
        job(1, ("bbb",), max_detections=1),
        job(1, ("bbb",), threshold=0.99),
        job(1, ("bbb",)),
    ]
    assert [len(f.scores) for f in run(pipeline, jobs)] == [1, 0, 2]


@pytest.mark.parametrize(
    ("limit", "masks"),
    [
        pytest.param(1, 2, id="a tie: which one it is the order of classes decides later"),
        pytest.param(2, 2, id="the best of each class"),
        pytest.param(3, 4, id="a tie for the last place"),
        pytest.param(5, 5, id="room for all"),
    ],
)
def test_masks_are_made_for_what_can_be_among_the_answers_only(pipeline, sub_models, limit, masks):
    """bbb is found twice and cccc three times, their queries with the same scores."""
    wanted = {"classes": ("bbb", "cccc"), "mask_format": "bits"}
    (found,) = run(pipeline, [job(1, max_detections=limit, **wanted)])
    shapes = [shapes["query_index"] for part, shapes, _ in sub_models.calls if part == "mask_head"]
    assert sum(rows * width for rows, width in shapes) - masks in (
        0,
        1,
    )  # a row narrower than its call's widest is filled up
    (everything,) = run(pipeline, [job(1, **wanted)])
    order = np.argsort(-everything.scores, kind="stable")[:limit]
    np.testing.assert_array_equal(found.mask_bits, everything.mask_bits[order])
    np.testing.assert_array_equal(found.class_ids, everything.class_ids[order])


def test_masks_of_a_later_call_count_those_of_an_earlier_one(pipeline, sub_models):
    """Two classes fill one call; the third's answers are worth no mask where the first two have given better ones."""
    names = ("bbb", "cccc", "ddd", "ee")
    (found,) = run(pipeline, [job(1, names, max_detections=2, mask_format="bits", threshold=0.9)])
    assert len(found.mask_bits) == 2
    rows = [shapes["query_index"] for part, shapes, _ in sub_models.calls if part == "mask_head"]
    assert sum(count * width for count, width in rows) == 4  # the best of each: they are level


def test_more_new_names_than_one_text_call_takes(pipeline, sub_models):
    names = tuple("x" * n for n in range(1, 6))
    run(pipeline, [job(1, names)])
    assert [shapes["input_ids"] for part, shapes, _ in sub_models.calls if part == "text_encoder"] == [(3, 5), (2, 5)]


def test_a_batch_made_elsewhere_is_handed_on_as_it_is(pipeline, sub_models):
    """A handle of pixels on a GPU: the pipeline neither opens nor copies it."""
    jobs = [Job(FrameRequest(classes=("bbb",), image=b"file"), [WORDS("bbb")]) for _ in range(2)]
    batch = np.full((2, 3, 28, 28), 1, np.uint8)
    seen = []
    encode = sub_models.vision_encoder
    sub_models.vision_encoder = lambda model, pixel_values: (seen.append(pixel_values), encode(model, pixel_values))[1]
    assert [len(found.scores) for found in pipeline.run(jobs, batch)] == [2, 2]
    assert seen[0] is batch


def test_stage_times_are_recorded(pipeline):
    jobs = [job(1, ("bbb",), mask_format="bits")]
    run(pipeline, jobs)
    assert set(jobs[0].stage_ms) == {"text", "vision", "geometry", "decoder", "masks", "pack"}
    assert all(t >= 0 for t in jobs[0].stage_ms.values())


def test_a_failing_sub_model_is_not_hidden(pipeline, sub_models):
    def decoder(*_, **__):
        raise RuntimeError("out of memory")

    sub_models.decoder = decoder
    with pytest.raises(RuntimeError, match="out of memory"):
        run(pipeline, [job(1, ("bbb",))])
    sub_models.decoder = SubModels().decoder
    assert len(run(pipeline, [job(1, ("bbb",))])[0].scores) == 2
