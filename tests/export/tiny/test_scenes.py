"""Scenes: the same seed gives the same bytes, and masks, boxes, labels and questions agree with one another and with
the picture."""

from itertools import islice

import numpy as np
import pytest

from export.tiny.prompts import Prompt, absent_text, answer, exemplar_question, named_by, present_text, text_question
from export.tiny.random_scene import FIRST_TRAINING_SEED, random_scene, training_seeds, validation_seeds
from export.tiny.scenes import Instance, Light, Scene, SceneObject, at_time, frame_size, render


def plain_scene(*objects: SceneObject, aspect: float = 16 / 9) -> Scene:
    grid = np.full((1, 1, 3), 40, np.uint8)
    return Scene(0, aspect, grid, (0.1, 0.0, 0.0), Light(), 0.0, 0.0, objects)


RED_SQUARE = SceneObject("red", "square", (220, 40, 40), 0.3, 0.3, 0.5, 0.0)
BLUE_CIRCLE = SceneObject("blue", "circle", (50, 80, 220), 0.2, 0.7, 0.5, 0.0, vx=0.1, vy=0.05)


@pytest.mark.parametrize(
    ("seed", "moving", "t"),
    [
        (0, False, 0.0),  # a still
        (7, True, 0.0),  # a video's first frame
        (7, True, 3.2),  # and a later one
        (FIRST_TRAINING_SEED, False, 0.0),  # a training scene
    ],
)
def test_a_seed_gives_the_same_picture_every_time(seed: int, moving: bool, t: float) -> None:
    one, two = (render(random_scene(seed, moving=moving), 180, 320, t) for _ in range(2))
    assert np.array_equal(one.frame, two.frame)
    assert np.array_equal(one.index_map, two.index_map)
    assert one.instances == two.instances


@pytest.mark.parametrize("supersample", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_boxes_are_the_tight_boxes_of_the_masks(seed: int, supersample: int) -> None:
    scene = random_scene(seed)
    height, width = frame_size(scene.aspect, 300 * 200)
    drawn = render(scene, height, width, supersample=supersample)
    assert drawn.frame.shape == (height, width, 3)
    assert drawn.frame.dtype == np.uint8
    for instance in drawn.instances:
        rows, columns = np.nonzero(drawn.mask(instance))
        tight = (columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height)
        assert instance.box == pytest.approx(tight)
        assert instance.area == len(rows)
        assert 0.2 <= instance.visible <= 1
        assert (instance.colour, instance.shape) == (
            scene.objects[instance.index - 1].colour,
            scene.objects[instance.index - 1].shape,
        )


def test_masks_lie_on_the_pixels_of_their_colour() -> None:
    drawn = render(plain_scene(RED_SQUARE, BLUE_CIRCLE), 180, 320)
    red, blue = drawn.instances
    assert (drawn.frame[drawn.mask(red)].mean(0) - (220, 40, 40)).max() < 4
    assert (drawn.frame[drawn.mask(blue)].mean(0) - (50, 80, 220)).max() < 4
    assert drawn.frame[drawn.index_map == 0].max() <= 41


def test_what_lies_in_front_hides_what_lies_behind() -> None:
    front = SceneObject("blue", "circle", (50, 80, 220), 0.2, 0.36, 0.5, 0.0)
    alone, both = (render(plain_scene(*objects), 180, 320) for objects in [(RED_SQUARE,), (RED_SQUARE, front)])
    assert both.instances[0].area < alone.instances[0].area
    assert both.instances[0].visible < 0.95
    hidden = SceneObject("green", "circle", (40, 175, 60), 0.1, 0.3, 0.5, 0.0)
    assert len(render(plain_scene(hidden, RED_SQUARE), 180, 320).instances) == 1  # nothing of it can be seen


def test_objects_move_and_stay_inside() -> None:
    scene = plain_scene(BLUE_CIRCLE)
    assert at_time(scene, 1.0).objects[0].x == pytest.approx(0.8)
    for t in (5.0, 17.0, 100.0):
        moved = at_time(scene, t).objects[0]
        assert 0 <= moved.x <= 1
        assert 0 <= moved.y <= 1
        assert len(render(scene, 180, 320, t).instances) == 1


def test_shapes_keep_their_proportions_in_any_frame() -> None:
    for size in ((180, 320), (320, 180), (252, 252)):
        x0, y0, x1, y1 = render(plain_scene(BLUE_CIRCLE), *size).instances[0].box
        assert (x1 - x0) * size[1] == pytest.approx((y1 - y0) * size[0], abs=2)


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2x2"):
        render(plain_scene(), 0, 320)


def test_training_and_validation_never_share_a_seed() -> None:
    training = {seed for worker in range(3) for seed in islice(training_seeds(worker, 3), 500)}
    assert len(training) == 1500  # nor do the workers
    assert min(training) >= FIRST_TRAINING_SEED > max(validation_seeds(FIRST_TRAINING_SEED))
    with pytest.raises(ValueError, match="ask for fewer"):
        validation_seeds(FIRST_TRAINING_SEED + 1)


def thing(colour: str, shape: str, left: float) -> Instance:
    return Instance(colour, shape, (left, 0.1, left + 0.1, 0.2), 100, 1.0, 1)


THINGS = (
    thing("red", "circle", 0.1),
    thing("red", "square", 0.3),
    thing("blue", "circle", 0.5),
    thing("red", "circle", 0.7),
)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("red circle", (0, 3)),
        ("A RED CIRCLE", (0, 3)),  # case and article
        ("circles", (0, 2, 3)),  # plural
        ("red object", (0, 1, 3)),  # any shape
        ("things", (0, 1, 2, 3)),
        ("green circle", ()),  # absent
        ("red dog", ()),  # a word that names nothing
        ("visual", ()),  # means boxes, not words
    ],
)
def test_words_name_what_they_say(text: str, named: tuple[int, ...]) -> None:
    assert named_by(text, THINGS) == named


@pytest.mark.parametrize(
    ("text", "boxed", "labels", "named"),
    [
        ("visual", (0,), (1,), (0, 3)),  # all of one kind
        ("visual", (0, 2), (1, 0), (0, 3)),  # a counter-example of another kind
        ("circle", (2,), (0,), (0, 3)),  # circles, but none like this one
        ("circle", (0, 2), (0, 0), ()),  # nothing is left
        ("circle", (0,), (1,), (0, 2, 3)),  # the words decide
    ],
)
def test_boxes_include_and_exclude(
    text: str, boxed: tuple[int, ...], labels: tuple[int, ...], named: tuple[int, ...]
) -> None:
    prompt = Prompt(text, tuple(THINGS[k].box for k in boxed), labels)
    assert answer(prompt, THINGS, tuple(THINGS[k] for k in boxed)) == named


def test_questions_are_present_and_absent_as_they_claim() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert named_by(present_text(rng, THINGS), THINGS)
        assert not named_by(absent_text(rng, THINGS), THINGS)
        question = exemplar_question(rng, THINGS)
        assert len(question.prompt.boxes) == len(question.prompt.labels) > 0
    shares = np.mean([bool(text_question(rng, THINGS).answer) for _ in range(1000)])
    assert 0.55 < shares < 0.7
    assert not text_question(rng, ()).answer  # nothing is there
