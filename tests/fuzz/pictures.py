"""Picture files that are damaged, thousands of them: the client and the server show the same picture, or give the same
reason why it is none, in time and within a bound of memory.

    python -m tests.fuzz.pictures --cases 1000 --seed 1
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clients.video.frames import SourceError
from clients.video.sources import open_source
from ensemble.preprocess.cpu import CpuPreprocessor, attempt, plain_jpeg, to_pixel_values
from ensemble.request import FrameRequest, RequestError
from tests.fuzz import account, files
from tests.fuzz.files import File
from tests.fuzz.picture_files import KINDS, WHOLE

RESOLUTION = 28
MOST_MB = 1600.0
"""A picture of 50 megapixels, 200 MB as Pillow holds it, is converted and turned, which takes several of it at a
time."""


@cache
def preprocessor() -> CpuPreprocessor:
    """The server's."""
    return CpuPreprocessor(RESOLUTION, ThreadPoolExecutor(1))


def by_client(file: File) -> np.ndarray | str:
    """The pixels [H,W,3] that a camera would get of it, or why it gets none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"picture{file.suffix}")
        path.write_bytes(file.data)
        try:
            with open_source(path) as source:
                (frame,) = source
        except SourceError as error:
            return str(error)
    return frame.rgb


def by_server(file: File) -> np.ndarray | str:
    """The vision encoder's input [3,R,R], or why it is refused. Raises AssertionError where the header, by which a GPU
    would decode it, tells another picture."""
    batch, (size,) = preprocessor()([FrameRequest(("x",), image=file.data)])
    header = attempt(plain_jpeg, file.data)
    if isinstance(header, Exception):
        assert str(header) == str(size), f"{header}, expected {size}"
    elif header is not None and not isinstance(size, Exception):
        assert header.size == size, f"{header.size}, expected {size}"
    if isinstance(size, RequestError):
        return str(size).removeprefix("image: ")
    if isinstance(size, Exception):
        raise size
    return np.asarray(batch[0])


def judge(file: File) -> tuple[str, str]:
    """`answered` where both show the same picture, `refused` where both give the same reason."""
    here, there = by_client(file), by_server(file)
    if isinstance(here, str):
        same = isinstance(there, str) and there in here
        return "refused" if same or file.suffix == ".bmp" else "differs", f"{here} | {there}"
    if file.suffix == ".bmp":  # clients take them from folders and send them as JPEG
        return "answered", ""
    same = not isinstance(there, str) and np.array_equal(to_pixel_values(Image.fromarray(here), RESOLUTION), there)
    return "answered" if same else "differs", "" if same else f"{here.shape} | {there}"


def run(cases: int, seed: int) -> dict[str, Any]:
    """Tries the cases; what came of them, and `problems`, of which there should be none."""
    return files.run(KINDS, judge, cases, seed, MOST_MB, WHOLE)


def main(argv: Sequence[str] | None = None) -> int:
    """0: no problems; the last line of stdout is the account."""
    return account.tried("pictures", __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
