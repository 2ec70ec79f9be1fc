"""The front model on the real server: bad frames among good ones, both protocols, equal answers for equal pictures."""

import asyncio
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from clients.connection import AsyncClient, Client
from clients.errors import InvalidRequest, ModelNotFound
from tests.ensemble.drawn import CLASSES, FRAME
from tests.ensemble.real_server import infer

pytestmark = pytest.mark.server

MODEL = "sam3_r252"


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def bomb(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def text(*values):
    return np.array([[v.encode() if isinstance(v, str) else v for v in values]], dtype=object)


def arrays(**changes):
    """A whole request as arrays; `changes` replaces some of them."""
    return {
        "image": text(b""),
        "frame": FRAME[None],
        "classes": text(*CLASSES),
        "boxes": np.zeros((1, 0, 4), np.float32),
        "box_labels": np.zeros((1, 0), np.int32),
        "box_classes": np.zeros((1, 0), np.int32),
        "threshold": np.array([[0.5]], np.float32),
        "mask_format": text("none"),
        "max_detections": np.array([[100]], np.int32),
    } | changes


def picture(data):
    return {"image": text(data), "frame": np.zeros((1, 0, 0, 3), np.uint8)}


JPEG = encoded(FRAME, "JPEG", quality=90)
BAD = {
    "not an image": (picture(b"hello there, camera"), "expected a JPEG, PNG or WebP file"),
    "truncated JPEG": (picture(JPEG[: len(JPEG) // 2]), "cannot be decoded"),
    "0x0": (picture(bomb(0, 0)), "image: "),
    "40,000 x 40,000": (picture(bomb(40_000, 40_000)), "at most 50,000,000 pixels"),
    "no picture": ({"frame": np.zeros((1, 0, 0, 3), np.uint8)}, "expected exactly one of image"),
    "grey raw frame": ({"frame": np.zeros((1, 8, 8, 1), np.uint8)}, "frame"),
    "no classes": ({"classes": np.zeros((1, 0), dtype=object)}, "at least one class name"),
    "1,000 classes": ({"classes": text(*["dog"] * 1000)}, "at most 100 names"),
    "empty string": ({"classes": text("")}, "got an empty string"),
    "10 kB of text": ({"classes": text("x" * 10_000)}, "at most 300 characters"),
    "too many tokens": ({"classes": text("qzx " * 60)}, "tokens long"),
    "NaN box": ({"boxes": np.full((1, 1, 4), np.nan, np.float32)}, r"boxes[0]: expected x0 < x1"),
    "reversed box": ({"boxes": np.array([[[0.9, 0.1, 0.2, 0.4]]], np.float32)}, r"boxes[0]: expected x0 < x1"),
    "threshold": ({"threshold": np.array([[7]], np.float32)}, "threshold: expected 0 to 1"),
    "wrong dtype": ({"frame": FRAME[None].astype(np.float32)}, "frame"),
    "wrong shape": ({"frame": np.zeros((1, 8, 8), np.uint8)}, "frame"),
    "two frames in one request": ({"frame": np.stack([FRAME, FRAME])}, ""),
}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize(("changes", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_clear_error(server, protocol, changes, sentence):
    with pytest.raises(InferenceServerException) as caught:
        infer(server, protocol, arrays(**changes), MODEL)
    message = caught.value.message()
    assert sentence in message
    assert "Traceback" not in message
    assert len(message) < 500
    assert infer(server, protocol, arrays(), MODEL).as_numpy("scores").shape[0] == 1  # the server goes on


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_unknown_model(server, protocol):
    url = server.grpc_url if protocol == "grpc" else server.http_url
    with Client(url, protocol=protocol, model="sam3_r1000") as client, pytest.raises(ModelNotFound, match=r"sam3_r252"):
        client.detect(FRAME, CLASSES)


async def test_bad_frames_do_not_touch_the_good_ones_of_their_batch(server):
    """Thirty-two requests at once, every second one bad: each good one gets the answer it gets alone."""
    with Client(server.grpc_url, model=MODEL) as client:
        alone = client.detect(FRAME, CLASSES, mask_format="bits")
    assert len(alone) > 0
    broken = [JPEG[:500], b"junk", bomb(40_000, 40_000), b"\x89PNG"]
    async with AsyncClient(server.grpc_url, model=MODEL) as client:
        sent = [client.detect(FRAME if i % 2 else broken[i // 2 % 4], CLASSES, mask_format="bits") for i in range(32)]
        answers = await asyncio.gather(*sent, return_exceptions=True)
    good = answers[1::2]
    assert all(isinstance(a, InvalidRequest) for a in answers[0::2])
    assert max(a.batch for a in good) > 1
    for answer in good:
        assert answer.labels == alone.labels
        np.testing.assert_allclose(answer.scores, alone.scores, atol=1e-4)
        np.testing.assert_allclose(answer.boxes, alone.boxes, atol=1e-4)
        assert (answer.masks != alone.masks).mean() < 1e-3


SIXTEEN_BIT = Image.fromarray(np.asarray(Image.fromarray(FRAME).convert("L")).astype(np.uint16) * 257)
VALID = {
    "PNG": encoded(FRAME),
    "WebP": encoded(FRAME, "WEBP", lossless=True),
    "RGBA": encoded(Image.fromarray(FRAME).convert("RGBA")),
    "EXIF-rotated": encoded(
        np.ascontiguousarray(np.rot90(FRAME)), "PNG", exif=(lambda e: (e.__setitem__(0x0112, 6), e)[1])(Image.Exif())
    ),
}


@pytest.mark.parametrize("data", VALID.values(), ids=VALID)
def test_the_same_picture_in_any_wrapping_gets_the_same_answer(server, data):
    with Client(server.grpc_url, model=MODEL) as client:
        raw, wrapped = client.detect(FRAME, CLASSES), client.detect(data, CLASSES)
    assert len(raw) > 0
    assert wrapped.labels == raw.labels
    np.testing.assert_array_equal(wrapped.boxes, raw.boxes)
    assert wrapped.frame_size == (252, 252)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(FRAME).convert("L")),
        encoded(SIXTEEN_BIT),
        encoded(Image.fromarray(FRAME).convert("CMYK"), "JPEG", quality=95),
    ],
    ids=["grey", "16-bit grey", "CMYK"],
)
def test_pictures_without_rgb_are_answered(server, data):
    with Client(server.grpc_url, model=MODEL) as client:
        assert client.detect(data, ("object",)).frame_size == (252, 252)


def test_grey_and_sixteen_bit_grey_are_the_same_picture(server):
    with Client(server.grpc_url, model=MODEL) as client:
        eight, sixteen = (
            client.detect(encoded(Image.fromarray(FRAME).convert("L")), ("object",)),
            client.detect(encoded(SIXTEEN_BIT), ("object",)),
        )
    np.testing.assert_array_equal(eight.boxes, sixteen.boxes)


def test_emoji_and_other_scripts_are_words_like_any_other(server):
    with Client(server.grpc_url, model=MODEL) as client:
        found = client.detect(FRAME, (*CLASSES, "🦊", "赤い丸", "Größe"))
    assert set(found.labels) <= set(CLASSES)
    assert len(found.presence) == len(CLASSES) + 3


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_mask_formats_agree(server, protocol):
    with Client(server.grpc_url if protocol == "grpc" else server.http_url, protocol=protocol, model=MODEL) as client:
        none, bits, rle = (client.detect(FRAME, CLASSES, mask_format=f) for f in ("none", "bits", "rle"))
    assert len(bits) > 0
    assert none.mask_bits.shape[0] == 0
    np.testing.assert_array_equal(bits.scores, rle.scores)
    np.testing.assert_allclose(none.scores, bits.scores, atol=1e-6)
    np.testing.assert_array_equal(bits.masks, rle.masks)
    assert bits.masks.shape[1:] == (72, 72)


def test_both_resolutions_are_served(server):
    with Client(server.grpc_url, model="sam3_r140") as client:
        assert set(client.models()) == {"sam3_r140", "sam3_r252"}
        assert client.detect(FRAME, CLASSES, mask_format="bits").masks.shape[1:] == (40, 40)


def test_limits(server):
    with Client(server.grpc_url, model=MODEL) as client:
        everything = client.detect(FRAME, ("object",), threshold=0.0, max_detections=10_000)
        few = client.detect(FRAME, ("object",), threshold=0.0, max_detections=7)
    assert len(everything) == 50  # every query
    assert len(few) == 7
    np.testing.assert_allclose(few.scores, everything.scores[:7], atol=1e-6)


def test_many_classes_are_decoded_in_chunks(server):
    """Sixty classes are more than one decoder call takes; each gets the answer that it gets alone."""
    with Client(server.grpc_url, model=MODEL) as client:
        many = client.detect(FRAME, (*(f"thing {i}" for i in range(58 - len(CLASSES))), *CLASSES), mask_format="bits")
        alone = client.detect(FRAME, CLASSES, mask_format="bits")
    chosen = [i for i, label in enumerate(many.labels) if label in CLASSES]
    assert [many.labels[i] for i in chosen] == list(alone.labels)
    np.testing.assert_allclose(many.boxes[chosen], alone.boxes, atol=1e-4)


def test_stage_times_add_up(server):
    with Client(server.grpc_url, model=MODEL) as client:
        found = client.detect(FRAME, CLASSES, mask_format="bits")
    parts = sum(ms for stage, ms in found.stage_ms.items() if stage != "total")
    assert 0 < found.stage_ms["vision"] < found.stage_ms["total"] <= found.latency_ms
    assert parts <= found.stage_ms["total"] + 0.5
