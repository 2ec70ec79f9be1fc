"""Requests as strangers send them: a good one, of which a seed decides what is spoilt.

A case is known by its seed and its number alone, so that one that shows something can be sent again.
"""

from __future__ import annotations

import base64
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.fuzz import picture_files
from tests.fuzz.files import spoilt

WORDS = ("red circle", "blue square", "green star", "object")
NAMES = (
    *("image", "frame", "classes", "boxes", "box_labels", "box_classes"),
    *("threshold", "mask_format", "max_detections"),
)
DTYPES = ("UINT8", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64", "BOOL", "BYTES", "", "NONE", "fp32", "X" * 300)
SIZES = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 7, 255, 10_000, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1)
NUMBERS = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-45, 0.5, 1.0, 1.0001, 2.0, 1e38, -1e38)
INTEGERS = (-(2**31), -1, 0, 1, 2, 7, 100, 10_000, 10_001, 2**31 - 1)
MOST_BYTES = 8 * 1024 * 1024
"""Of a tensor that is sent again and again."""
TEXTS = (
    b"",
    b" ",
    b"\0",
    b"\xff\xfe\xfd",
    b"\xed\xa0\x80",
    b"a\nb\tc\r",
    "赤い丸".encode(),
    "🦊".encode() * 80,
    "é".encode("latin-1"),
    b"<|endoftext|><|startoftext|>",
    b"'; DROP TABLE cameras; --",
    b"%s%n%x{}{0}\\",
    b"\x1b[31m",
    b"../../../../etc/passwd",
    b"none",
    b"rle",
    b"bits",
)


@dataclass(slots=True)
class Tensor:
    """One input. `raw` are its bytes as the binary protocols carry them, `values` the same for JSON."""

    name: str
    dtype: str
    shape: list[int]
    raw: bytes
    values: Any


@dataclass(slots=True)
class Case:
    """One request. `spoilt` names what is wrong with it."""

    number: int
    rng: random.Random
    model: str
    version: str = ""
    tensors: list[Tensor] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    spoilt: list[str] = field(default_factory=list)

    def tensor(self, name: str) -> Tensor | None:
        return next((t for t in self.tensors if t.name == name), None)


def bytes_tensor(name: str, items: list[bytes]) -> Tensor:
    raw = b"".join(struct.pack("<I", len(item)) + item for item in items)
    values = [item.decode("utf-8", "replace") for item in items]
    return Tensor(name, "BYTES", [1, len(items)], raw, values)


def picture_tensor(items: list[bytes]) -> Tensor:
    """`image`; JSON carries a file as base64 text."""
    tensor = bytes_tensor("image", items)
    tensor.values = [base64.b64encode(item).decode() for item in items]
    return tensor


def array_tensor(name: str, dtype: str, array: np.ndarray) -> Tensor:
    return Tensor(name, dtype, list(array.shape), array.tobytes(), array.ravel().tolist())


def good(number: int, rng: random.Random, model: str) -> Case:
    """A request with nothing wrong."""
    case = Case(number, rng, model)
    if rng.random() < 0.5:
        _, maker = picture_files.KINDS[rng.choice(("JPEG", "PNG", "WebP"))]
        case.tensors.append(picture_tensor([maker(rng)]))
    else:
        frame = np.frombuffer(rng.randbytes(8 * 9 * 3), np.uint8).reshape(1, 8, 9, 3)
        case.tensors.append(array_tensor("frame", "UINT8", frame))
    case.tensors.append(bytes_tensor("classes", [w.encode() for w in rng.sample(WORDS, rng.randint(1, 3))]))
    whole = rng.random() < 0.5  # as our own clients send it, so that it gets into one batch with theirs
    if rng.random() < 0.4 or whole:
        boxes = np.array([[[0.1, 0.1, 0.6, 0.7]]], np.float32)
        case.tensors += [
            array_tensor("boxes", "FP32", boxes),
            array_tensor("box_labels", "INT32", np.ones((1, 1), np.int32)),
            array_tensor("box_classes", "INT32", np.zeros((1, 1), np.int32)),
        ]
    if rng.random() < 0.5 or whole:
        case.tensors.append(array_tensor("threshold", "FP32", np.array([[rng.random()]], np.float32)))
        case.tensors.append(bytes_tensor("mask_format", [rng.choice((b"none", b"bits", b"rle"))]))
        case.tensors.append(array_tensor("max_detections", "INT32", np.array([[rng.randint(1, 200)]], np.int32)))
    if whole:
        empty = array_tensor("frame", "UINT8", np.zeros((1, 0, 0, 3), np.uint8))
        case.tensors.insert(0, bytes_tensor("image", [b""]) if case.tensor("frame") else empty)
        case.tensors.sort(key=lambda tensor: NAMES.index(tensor.name))
    return case


# ---- what is spoilt
def _shape(case: Case) -> None:
    tensor, rng = case.rng.choice(case.tensors), case.rng
    way = rng.randrange(4)
    if way == 0:
        tensor.shape[rng.randrange(len(tensor.shape))] = rng.choice(SIZES)
    elif way == 1:
        tensor.shape = [rng.choice(SIZES) for _ in range(rng.randint(0, 6))]
    elif way == 2:
        tensor.shape = tensor.shape[1:]
    else:
        tensor.shape = [1, *tensor.shape] if rng.random() < 0.8 else [1] * 3000


def _dtype(case: Case) -> None:
    case.rng.choice(case.tensors).dtype = case.rng.choice(DTYPES)


def _name(case: Case) -> None:
    case.rng.choice(case.tensors).name = case.rng.choice((*NAMES, "", "x", "IMAGE", "n" * 100_000, "\0", "../frame"))


def _missing(case: Case) -> None:
    case.tensors.remove(case.rng.choice(case.tensors))
    if not case.tensors or case.rng.random() < 0.1:
        case.tensors = []


def _twice(case: Case) -> None:
    tensor = case.rng.choice(case.tensors)
    room = MOST_BYTES // (len(tensor.raw) + 1)  # as numbers in JSON or typed fields they take this many times over
    case.tensors += [tensor] * max(1, min(case.rng.choice((1, 2, 500)), room))


def _picture(case: Case) -> None:
    rng = case.rng
    kinds = {name: made for name, made in picture_files.KINDS.items() if name not in picture_files.SLOW}
    file = rng.choice(TEXTS) if rng.random() < 0.1 else spoilt(rng, kinds).data
    case.tensors = [t for t in case.tensors if t.name not in ("image", "frame")]
    case.tensors.append(picture_tensor([file] * rng.choice((1, 1, 1, 1, 0, 2))))


def _words(case: Case) -> None:
    rng = case.rng
    many: list[Callable[[], list[bytes]]] = [
        lambda: [rng.choice(TEXTS) for _ in range(rng.randint(1, 4))],
        lambda: [b"word %d" % i for i in range(10_000)],
        lambda: [b"w" * rng.choice((301, 100_000, 1_000_000))],
        lambda: [rng.randbytes(rng.randint(0, 60))],
        lambda: [b"cat"] * rng.choice((0, 2, 100, 101)),
        lambda: [b"qzx " * 60],
    ]
    case.tensors = [t for t in case.tensors if t.name != "classes"] + [bytes_tensor("classes", rng.choice(many)())]


def _boxes(case: Case) -> None:
    rng = case.rng
    count = rng.choice((0, 1, 1, 2, 8, 9, 3000))
    boxes = np.array([[rng.choice(NUMBERS) for _ in range(4)] for _ in range(count)], np.float32).reshape(1, count, 4)
    others = [rng.choice((count, count, 0, 1, count + 1)) for _ in range(2)]
    labels, owners = (np.array([[rng.choice(INTEGERS) for _ in range(n)]], np.int32).reshape(1, n) for n in others)
    case.tensors = [t for t in case.tensors if not t.name.startswith("box")]
    case.tensors += [
        array_tensor("boxes", "FP32", boxes),
        array_tensor("box_labels", "INT32", labels),
        array_tensor("box_classes", "INT32", owners),
    ]


def _options(case: Case) -> None:
    rng = case.rng
    case.tensors = [t for t in case.tensors if t.name not in ("threshold", "mask_format", "max_detections")]
    case.tensors += [
        array_tensor("threshold", "FP32", np.array([[rng.choice(NUMBERS)] * rng.choice((1, 1, 0, 2))], np.float32)),
        bytes_tensor("mask_format", [rng.choice(TEXTS)] * rng.choice((1, 1, 0, 2))),
        array_tensor("max_detections", "INT32", np.array([[rng.choice(INTEGERS)]], np.int32)),
    ]


def _raw(case: Case) -> None:
    """Bytes that do not fit the shape, or lengths of strings that do not fit the bytes."""
    tensor, rng = case.rng.choice(case.tensors), case.rng
    way = rng.randrange(4)
    if way == 0:
        tensor.raw = tensor.raw[: rng.randrange(len(tensor.raw) + 1)]
        tensor.values = tensor.values[: rng.randrange(len(tensor.values) + 1)]
    elif way == 1:
        tensor.raw += rng.randbytes(rng.randint(1, 40))
        tensor.values = [*tensor.values, rng.choice((1, "x", None, True, [], {}, 1e300, -1))]
    elif way == 2:
        tensor.raw = struct.pack("<I", rng.choice((0, 1, 2**31, 2**32 - 1))) + tensor.raw[4:]
    else:
        tensor.values = rng.choice((None, {}, "text", [[[]]], [None], 7))


def _parameters(case: Case) -> None:
    rng = case.rng
    for name in rng.sample(PARAMETERS, rng.randint(1, 3)):
        case.parameters[name] = rng.choice((-1, 0, 2**63 - 1, -(2**63), "", "x", "9" * 500, True, 1.5))


PARAMETERS = (
    *("timeout", "priority", "sequence_id", "sequence_start", "sequence_end", "binary_data_output", "headers"),
    *("triton_enable_empty_final_response", "", "x" * 5000, "shared_memory_region", "classification"),
)


def _outputs(case: Case) -> None:
    rng = case.rng
    names = ("boxes", "scores", "mask_bits", "mask_rle", "nothing", "", "o" * 10_000)
    given = ({}, {"classification": rng.choice((-1, 0, 3, 2**40))}, {"binary_data": rng.choice((True, "x", 1))})
    shared = {"shared_memory_region": "none", "shared_memory_byte_size": rng.choice(SIZES[4:])}
    case.outputs = [
        {"name": rng.choice(names), "parameters": rng.choice((*given, shared))} for _ in range(rng.choice((1, 2, 300)))
    ]


def _model(case: Case) -> None:
    rng = case.rng
    if rng.random() < 0.5:
        case.version = rng.choice(("0", "2", "99", "-1", "abc", "1.0", str(2**64), "1" * 3000, "\0"))
    else:
        case.model = rng.choice(("sam3_r14", "sam3_engine", "", "m" * 5000, "..%2f..%2fetc", "sam3 r140", "模型"))


SPOIL = (
    _shape,
    _dtype,
    _name,
    _missing,
    _twice,
    _picture,
    _picture,
    _words,
    _boxes,
    _options,
    _raw,
    _parameters,
    _outputs,
    _model,
)


def make(seed: int, number: int, model: str) -> Case:
    """The case of that number: one in twenty is good, the others have one to three things spoilt."""
    rng = random.Random(f"{seed}/{number}")
    case = good(number, rng, model)
    for spoil in rng.sample(SPOIL, rng.choice((1, 1, 1, 2, 3))) if rng.random() > 0.05 else ():
        if case.tensors or spoil not in (_shape, _dtype, _name, _missing, _twice, _raw):
            spoil(case)
            case.spoilt.append(spoil.__name__.strip("_"))
    return case
