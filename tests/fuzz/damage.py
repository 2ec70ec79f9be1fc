"""Damage that a seed decides: bytes that are lost, wrong or too many, and parts of a file that are lost, doubled,
swapped, or lie about their size."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.fuzz.parts import Part, parts, with_right_sums

SIZES = (0, 1, 2, 3, 7, 8, 255, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**56 - 2)
MANY = 60


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _beginning(rng: random.Random, data: bytearray) -> None:
    del data[: rng.randrange(min(len(data), rng.choice((4, 300, 10_000))))]


def _bits(rng: random.Random, data: bytearray) -> None:
    early = rng.random() < 0.5  # where the headers are
    for _ in range(rng.choice((1, 1, 3, 20, 200))):
        data[rng.randrange(min(len(data), 600) if early else len(data))] ^= 1 << rng.randrange(8)


def _bytes(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    noise = rng.randbytes(rng.choice((1, 2, 4, 30, 2000)))
    data[at : at + len(noise)] = noise


def _zeros(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    data[at : at + rng.choice((1, 4, 100, 5000))] = bytes(rng.choice((4, 100, 5000)))


def _removed(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 3, 50, 1000))]


def _inserted(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.choice((1, 2, 3, 50, 1000)))


def _trailer(rng: random.Random, data: bytearray) -> None:
    data += rng.choice((bytes(300), rng.randbytes(300), b"\xff" * 300, bytes(data)))


WHOLE: tuple[Callable[[random.Random, bytearray], None], ...] = (
    *(_cut, _cut, _beginning, _bits, _bits, _bytes, _zeros, _removed, _inserted, _trailer),
)


def _part_lost(rng: random.Random, data: bytearray, part: Part, other: Part) -> None:
    del data[part.start : part.end]


def _part_doubled(rng: random.Random, data: bytearray, part: Part, other: Part) -> None:
    data[part.start : part.start] = data[part.start : part.end] * rng.choice((1, 1, 2, MANY))


def _parts_swapped(rng: random.Random, data: bytearray, part: Part, other: Part) -> None:
    first, second = sorted((part, other), key=lambda p: p.start)
    if first.end <= second.start:
        a, b = data[first.start : first.end], data[second.start : second.end]
        data[second.start : second.end], data[first.start : first.end] = a, b


def _part_moved(rng: random.Random, data: bytearray, part: Part, other: Part) -> None:
    data[other.body : other.body] = data[part.start : part.end]


def _part_size(rng: random.Random, data: bytearray, part: Part, other: Part) -> None:
    size = rng.choice((*SIZES, part.end - part.start, part.end - part.body, (part.end - part.start) // 2))
    size = max(0, size + rng.choice((0, 0, 0, 1, -1, 4)))
    size &= (1 << 8 * part.size_bytes) - 1
    data[part.size_at : part.size_at + part.size_bytes] = size.to_bytes(
        part.size_bytes, "little" if part.little else "big"
    )


def _part_filled(rng: random.Random, data: bytearray, part: Part, other: Part) -> None:
    length = part.end - part.body
    data[part.body : part.end] = rng.choice((rng.randbytes(length), bytes(length), b"\xff" * length))


def _part_touched(rng: random.Random, data: bytearray, part: Part, other: Part) -> None:
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(part.body, part.end)
        value = rng.choice((0, 1, 127, 128, 255, rng.randrange(256))).to_bytes(1, "big") * rng.choice((1, 1, 2, 4))
        data[at : min(at + len(value), part.end)] = value[: part.end - at]


def _name(rng: random.Random, data: bytearray, part: Part, other: Part) -> None:
    data[part.start : part.body] = data[other.start : other.body]


PARTS: tuple[Callable[[random.Random, bytearray, Part, Part], None], ...] = (
    *(_part_lost, _part_doubled, _parts_swapped, _part_moved, _part_size, _part_size, _part_filled),
    *(_part_touched, _part_touched, _part_touched, _name),
)


def damaged(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """The file with one thing wrong, and its name."""
    spoilt, known = bytearray(data), parts(data)
    if not data:
        return data, "empty"
    if known and rng.random() < 0.6:
        how = rng.choice(PARTS)
        part, other = rng.choice(known), rng.choice(known)
        if part.end > part.body:
            how(rng, spoilt, part, other)
        made = bytes(spoilt)
        return (with_right_sums(made) if rng.random() < 0.7 else made), how.__name__.strip("_")
    change = rng.choice(WHOLE)
    change(rng, spoilt)
    return bytes(spoilt), change.__name__.strip("_")
