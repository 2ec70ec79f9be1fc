"""Configurations that are spoilt, thousands of them: each is a configuration, or a ConfigError with its line, at once.

python -m tests.fuzz.configs --cases 20000 --seed 1
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import clients
from clients.fleet.config import FleetConfig, read_config
from clients.fleet.yaml_lines import ConfigError
from tests.fuzz import account

SEEDS = (
    Path(clients.__file__).with_name("cameras.example.yaml").read_text(),
    """\
servers: [gpu-1, gpu-2:9001]
defaults: &usual {threshold: 0.4, fps: 5, output: "out/{name}.jsonl"}
cameras:
  - &first
    name: gate
    source: rtsp://192.0.2.10/1
    classes: &things [person, car]
    zones: [{name: z, polygon: [[0, 0], [1, 0], [0.5, 1]], seconds: 5, classes: [car]}]
  - name: yard
    source: films/yard.mp4
    classes: {forklift: 0.7, pallet: ~}
    zoom: {resolution: 1008, crops: 2}
  - <<: [*first]
    name: roof
    classes: *things
    webhook: http://192.0.2.1/events
    realtime: true
""",
)
WORDS = (
    "<<: *first", "*things", "&a", "*a", "!!int", "!!binary", "!!bool x", "!x", "? ", ": ", "- ", "\t", "\ufeff",
    "\x00", "\ud7ff", "é", "---\n", "...\n", "%YAML 2.0\n", "[", "]", "{", "}", "'", '"', "|", ">", "#", "\r", "\x85",
    "~", ".nan", ".inf", "-.inf", "1e999", "-0", "0x", "1:30", "2024-13-45", "yes", "null", "9" * 5000, "[" * 300,
    "{a: " * 300,
    "<<: ", "<<: [*first, *first]", "=: 1", "name: gate", "\n\n", "  ", "://", "rtsp://u:p@h/", "[[0, 0]]", "{}", "[]",
)  # fmt: skip
SLOW_S = 20.0
"""Of the processor, so that a busy machine changes nothing; far beyond what any file takes: what takes longer hangs."""


def make(seed: int, number: int) -> bytes:
    """The case of that seed and number."""
    random = Random(f"{seed}/{number}")
    text = random.choice(SEEDS)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        lines = text.splitlines(keepends=True) or [""]
        at, line = random.randrange(len(text) + 1), random.randrange(len(lines))
        kind = random.randrange(7)
        if kind == 0:
            text = text[:at] + random.choice(WORDS) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + random.randrange(1, 30) :]
        elif kind == 2:
            text = "".join(lines[:line] + lines[line + 1 :])
        elif kind == 3:
            text = "".join([*lines[:line], random.choice(lines), *lines[line:]])
        elif kind == 4:  # a value in the place of another
            text = re.sub(r"(?<=: ).*", lambda _: random.choice(WORDS), text, count=random.randrange(1, 4))
        elif kind == 5:
            lines[line] = " " * random.randrange(5) + lines[line].lstrip(" ")
            text = "".join(lines)
        else:
            text = text[:at]
    data = text.encode("utf-8", "surrogatepass")
    if random.random() < 0.15 and data:
        at = random.randrange(len(data))
        data = data[:at] + random.randbytes(random.randrange(1, 4)) + data[at + 1 :]
    return data


def run(cases: int, seed: int, folder: Path) -> dict[str, Any]:
    """Reads the cases; what came of them, and `problems`, of which there should be none."""
    path, problems, read, refused, slowest = folder / "cameras.yaml", [], 0, 0, 0.0
    for number in range(cases):
        path.write_bytes(make(seed, number))
        start = time.process_time()
        try:
            assert isinstance(read_config(path), FleetConfig)
            read += 1
        except ConfigError as error:
            refused += 1
            if not re.match(re.escape(str(path)) + r":\d+: \S", str(error)) or len(str(error)) > 20_000:
                problems.append(f"{seed}/{number}: no line, or too much: {str(error)[:200]}")
        except BaseException as error:
            problems.append(f"{seed}/{number}: {type(error).__name__}: {str(error)[:200]}")
        took = time.process_time() - start
        slowest = max(slowest, took)
        if took > SLOW_S:
            problems.append(f"{seed}/{number}: took {took:.0f} s")
    return {
        "cases": cases,
        "seed": seed,
        "read": read,
        "refused": refused,
        "slowest_s": round(slowest, 3),
        "problems": problems,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """0: no problems; the last line of stdout is the account."""
    parser = account.options_of("configs", __doc__)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        told = run(options.cases, options.seed, Path(folder))
    return account.end(parser, argv, told)


if __name__ == "__main__":
    sys.exit(main())
