"""The questions that are asked of a scene, and the right answers.

A prompt is words ("red circle", "triangle", "blue object"), words for things that are not there, example boxes to
include, or example boxes to exclude. Training, evaluation and the videos' ground truth share these rules:

- words name every instance that has the named colour and shape; "object" and "thing" mean any shape, a colour may be
  missing;
- a positive box alone (text "visual") names every instance of the boxed one's colour and shape;
- with words as well, the words decide and positive boxes are examples of what they mean;
- a negative box takes away every instance of the boxed one's colour and shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from export.tiny.scenes import Box, Instance
from export.tiny.shapes import COLOURS, SHAPES

VISUAL = "visual"  # the text that stands beside boxes without words, as in the original model
MAX_BOXES = 3
ANY_SHAPE = ("object", "thing")
# Words that never name anything drawn here: the model must learn to answer "absent" to what it does not know.
FOREIGN_COLOURS = ("black", "brown", "orange", "pink", "grey", "golden")
FOREIGN_NOUNS = (
    *("person", "car", "dog", "cat", "bus", "bottle", "chair", "forklift", "helmet"),
    *("pallet", "tree", "bicycle", "hexagon", "arrow", "heart", "moon", "leaf", "house", "truck", "bird"),
)
T = TypeVar("T")
_ALPHABET = np.array(list("abcdefghijklmnopqrstuvwxyz"))


@dataclass(frozen=True, slots=True)
class Prompt:
    """`text`, and example boxes: `boxes` xyxy as fractions of the frame, `labels` 1 include, 0 exclude, equally
    long."""

    text: str
    boxes: tuple[Box, ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and `answer`: the positions in the list of instances that it names."""

    prompt: Prompt
    answer: tuple[int, ...]


def plural(noun: str) -> str:
    """English plural of the nouns used here."""
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


_NOUNS = {form: noun for noun in (*SHAPES, *ANY_SHAPE) for form in (noun, plural(noun))}


def named_by(text: str, instances: tuple[Instance, ...]) -> tuple[int, ...]:
    """Positions of the instances that `text` names; empty where a word is unknown. "visual" names nothing by itself."""
    colour = shape = None
    for word in text.lower().split():
        if word in ("a", "the"):
            continue
        if word in COLOURS:
            colour = word
        elif word in _NOUNS:
            shape = _NOUNS[word]
        else:
            return ()
    if shape is None:
        return ()
    return tuple(
        k for k, i in enumerate(instances) if colour in (None, i.colour) and (shape in ANY_SHAPE or shape == i.shape)
    )


def _alike(one: Instance, other: Instance) -> bool:
    return (one.colour, one.shape) == (other.colour, other.shape)


def answer(prompt: Prompt, instances: tuple[Instance, ...], boxed: tuple[Instance, ...] = ()) -> tuple[int, ...]:
    """Positions of the instances that the prompt names; its boxes were drawn around the instances `boxed`."""
    examples = list(zip(boxed, prompt.labels, strict=True))
    if prompt.text == VISUAL:
        hits = [k for k, i in enumerate(instances) if any(_alike(i, b) for b, label in examples if label == 1)]
    else:
        hits = list(named_by(prompt.text, instances))
    return tuple(k for k in hits if not any(_alike(instances[k], b) for b, label in examples if label == 0))


def phrase(rng: np.random.Generator, colour: str | None, noun: str, plain: bool = False) -> str:
    """Words for a colour and a noun; mostly the bare words, sometimes an article, a plural, or "thing" for "object"."""
    if not plain:
        noun = "thing" if noun == "object" and rng.random() < 0.15 else noun
        style = rng.random()
        if style < 0.10:
            noun = plural(noun)
        words = f"{colour} {noun}" if colour else noun
        return f"a {words}" if 0.10 <= style < 0.18 else f"the {words}" if 0.18 <= style < 0.22 else words
    return f"{colour} {noun}" if colour else noun


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def present_text(rng: np.random.Generator, instances: tuple[Instance, ...], plain: bool = False) -> str:
    """A text that names at least one of the instances (which must not be empty)."""
    target = _pick(rng, instances)
    kind = rng.random()
    if kind < 0.5:
        return phrase(rng, target.colour, target.shape, plain)
    if kind < 0.72:
        return phrase(rng, None, target.shape, plain)
    return phrase(rng, target.colour if kind < 0.95 else None, "object", plain)


def absent_text(rng: np.random.Generator, instances: tuple[Instance, ...], plain: bool = False) -> str:
    """A text that names none of the instances: mostly near misses (right colour, wrong shape), sometimes a foreign
    word."""
    for _ in range(20):
        kind = rng.random()
        colour: str | None = _pick(rng, list(COLOURS))
        shape = _pick(rng, list(SHAPES))
        if instances and kind < 0.5:  # a near miss shares one word with something that is there
            target = _pick(rng, instances)
            colour, shape = (target.colour, shape) if rng.random() < 0.5 else (colour, target.shape)
        elif 0.60 <= kind < 0.72:
            colour = None
        elif 0.72 <= kind < 0.84:
            shape = "object"
        elif kind >= 0.84:
            colour, shape = _foreign(rng, colour, shape)
        text = phrase(rng, colour, shape, plain)
        if not named_by(text, instances):
            return text
    return _pick(rng, FOREIGN_NOUNS)


def _foreign(rng: np.random.Generator, colour: str | None, shape: str) -> tuple[str | None, str]:
    kind = rng.random()
    if kind < 0.35:
        return _pick(rng, FOREIGN_COLOURS), shape
    if kind < 0.75:
        return (colour if rng.random() < 0.4 else None), _pick(rng, FOREIGN_NOUNS)
    return None, "".join(rng.choice(_ALPHABET, int(rng.integers(3, 9))))


def text_question(rng: np.random.Generator, instances: tuple[Instance, ...], present: float = 0.62) -> Question:
    """A question in words; with probability `present` about something that is there."""
    draw = present_text if instances and rng.random() < present else absent_text
    prompt = Prompt(draw(rng, instances))
    return Question(prompt, answer(prompt, instances))


def _hand_drawn(rng: np.random.Generator, box: Box, jitter: float) -> Box:
    x0, y0, x1, y1 = box
    dx0, dy0, dx1, dy1 = rng.uniform(-jitter, jitter, 4)
    w, h = x1 - x0, y1 - y0
    moved = np.clip([x0 + dx0 * w, y0 + dy0 * h, x1 + dx1 * w, y1 + dy1 * h], 0, 1)
    left, top, right, bottom = moved.tolist()
    return left, top, right, bottom


def exemplar_question(rng: np.random.Generator, instances: tuple[Instance, ...], jitter: float = 0.06) -> Question:
    """A question with example boxes, as inexact as drawn by hand; in words where there is nothing to draw around."""
    if not instances:
        return text_question(rng, instances)
    target = _pick(rng, instances)
    kind, text, boxed, labels = rng.random(), VISUAL, [target], [1]
    others = [i for i in instances if not _alike(i, target)]
    if kind < 0.75:  # boxes alone: one or two examples, sometimes a counter-example
        twins = [i for i in instances if _alike(i, target) and i is not target]
        if twins and rng.random() < 0.3:
            boxed, labels = [*boxed, _pick(rng, twins)], [1, 1]
        if others and rng.random() < 0.2:
            boxed, labels = [*boxed, _pick(rng, others)], [*labels, 0]
    elif kind < 0.92:  # words, less what a negative box shows
        text = phrase(rng, *((target.colour, "object") if rng.random() < 0.5 else (None, target.shape)))
        named = [instances[k] for k in named_by(text, instances)]
        boxed, labels = [_pick(rng, named)], [0]
    else:  # words and a fitting example
        text = phrase(rng, target.colour if rng.random() < 0.7 else None, target.shape)
    prompt = Prompt(text, tuple(_hand_drawn(rng, i.box, jitter) for i in boxed), tuple(labels))
    return Question(prompt, answer(prompt, instances, tuple(boxed)))
