"""Films that are damaged, thousands of them: the cameras' reader gives frames, or says in a sentence why there are
none, in time and within a bound of memory.

    python -m tests.fuzz.videos --cases 1000 --seed 1
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clients.video.reader import Reader
from tests.fuzz import account, files
from tests.fuzz.files import File
from tests.fuzz.films import KINDS, WHOLE

MOST_MB = 1600.0


async def watched(path: Path) -> Reader:
    """The reader of that film, at its end."""
    reader = Reader(str(path)).start()
    last = -1.0
    while (frame := await reader.next()) is not None:
        assert frame.time_s >= last, f"{frame.time_s} s after {last} s"
        assert frame.rgb.ndim == 3, frame.rgb.shape
        last = frame.time_s
    assert await asyncio.to_thread(reader.join, 10.0), "the thread goes on"
    return reader


def judge(file: File) -> tuple[str, str]:
    """`answered` where there are frames, `refused` where there are none and a sentence says why."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"film{file.suffix}")
        path.write_bytes(file.data)
        reader = asyncio.run(watched(path))
    told = [*([reader.error] if reader.error else []), *reader.skipped.why]
    if strange := [sentence for sentence in told if not sentence.startswith(repr(str(path)))]:
        return "raised", strange[0]
    kind = "answered" if reader.read else "refused" if reader.state == "failed" and reader.error else "nothing said"
    return kind, "; ".join(told)


def run(cases: int, seed: int) -> dict[str, Any]:
    """Tries the cases; what came of them, and `problems`, of which there should be none."""
    return files.run(KINDS, judge, cases, seed, MOST_MB, WHOLE)


def main(argv: Sequence[str] | None = None) -> int:
    """0: no problems; the last line of stdout is the account."""
    return account.tried("videos", __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
