"""Pictures as text: base64 of a picture is decoded, any other text gets a sentence, and no file is taken for text."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from ensemble.base64_image import file_of

RGB = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)


def encoded(kind):
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, kind)
    return stream.getvalue()


FILES = {kind: encoded(kind) for kind in ("JPEG", "PNG", "WEBP")}
WAYS = {
    "as it is": lambda file: file,
    "base64": base64.b64encode,
    "base64 in lines": base64.encodebytes,
    "base64 for URLs": base64.urlsafe_b64encode,
    "without padding": lambda file: base64.b64encode(file).rstrip(b"="),
    "data URL": lambda file: b"data:image/jpeg;base64," + base64.b64encode(file),
    "data URL in lines": lambda file: b"\r\n data:image/png;base64,\r\n" + base64.encodebytes(file),
}
REFUSED = {
    "an address": (b"http://camera/snapshot.jpg", "got text that starts with 'http://camera/snapshot.j'"),
    "a path": (b"/data/frame.jpg", "base64 text of one"),
    "base64 of something else": (base64.b64encode(b"GIF89a" + bytes(100)), "binary tensor data extension"),
    "damaged": (base64.b64encode(FILES["PNG"])[:60] + b"$$$$", "cannot be decoded"),
    "broken off": (base64.b64encode(FILES["PNG"])[:61], "cannot be decoded"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_file_comes_out(way, kind):
    assert file_of(way(FILES[kind])) == FILES[kind]


@pytest.mark.parametrize(("text", "sentence"), REFUSED.values(), ids=REFUSED)
def test_other_text_gets_a_sentence(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        file_of(text)


@pytest.mark.parametrize("data", [b"\x89PNG", b"RIFF\x01\x02\x03\x00WEBP"], ids=["a start", "binary"])
def test_what_is_no_text_is_left_to_the_decoder(data):
    assert file_of(data) == data
