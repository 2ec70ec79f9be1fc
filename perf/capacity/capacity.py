"""`sam3-perf capacity`: cameras, frames a second, classes, memory and the smallest object go in, a ranked
recommendation comes out.

Each figure says whether it was measured here, measured elsewhere or modelled; each rejected resolution says by what it
fails. Without a sweep of your own the figures are those of a published table (an RTX 5090 and another pipeline): enough
to choose, not to promise.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ensemble.spec import RESOLUTIONS
from perf import results
from perf.capacity.advice import Recommendation, Requirements, delay_us, offers, what_next
from perf.capacity.evidence import Evidence, committed, gather, usual
from perf.capacity.published import TABLES
from perf.console import size, wide_console

EXAMPLES = """examples:
  sam3-perf capacity --cameras 8 --memory 8GB --classes 4 --fps 4 --object-pixels 40
  sam3-perf capacity --cameras 3 --classes 2 --fps 10 --sweep build/perf/sweep.json      the GPU that is here, your own measurements
  sam3-perf capacity --cameras 16 --memory 24GB --fps 2 --source 3840x2160 --object-pixels 80 --prefer speed"""
UNITS = {"": 1.0, "MB": 1.0, "M": 1.0, "MIB": 1.0, "GB": 1e3, "G": 1e3, "GIB": 1024.0}


def megabytes(text: str) -> float:
    """`8GB`, `8000MB`, `8 GiB` or `8000` in MB. Raises ValueError."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in UNITS or match[1].count(".") > 1 or match[1] == ".":
        raise ValueError(f"memory must be a number with GB or MB, got {text!r}; write for example 8GB")
    return float(match[1]) * UNITS[match[2].upper()]


def memory_of(given: str | None) -> float:
    """The given memory, else that of the GPU that is here, in MB. Raises ValueError where there is neither."""
    if given:
        return megabytes(given)
    found = results.gpu()
    if "gpu_memory_mb" not in found:
        raise ValueError("NVML shows no GPU on this machine; say how much memory the GPU has, for example --memory 8GB")
    return float(found["gpu_memory_mb"])


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="sam3-perf capacity",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--cameras", type=int, required=True)
    p.add_argument("--memory", help="of the GPU, for example 8GB; default: of the GPU that is here")
    p.add_argument("--classes", type=int, default=4, help="names each camera looks for; default %(default)s")
    p.add_argument("--fps", type=float, default=1.0, help="frames a second of each camera; default %(default)s")
    p.add_argument(
        "--object-pixels", type=float, default=0.0, help="narrower side of the smallest object, in the source frame"
    )
    p.add_argument("--source", default="1920x1080", help="size of the cameras' frames; default %(default)s")
    p.add_argument("--resolutions", type=int, nargs="+", help="candidates; default: the sweeps', or 1008 840 672 560")
    p.add_argument(
        "--prefer", choices=("quality", "speed"), default="quality", help="what to rank by; default %(default)s"
    )
    p.add_argument(
        "--sweep", type=Path, nargs="*", default=[], help="files of sam3-perf sweep: used before published tables"
    )
    p.add_argument(
        "--calibration",
        nargs="+",
        choices=(*TABLES, *committed()),
        default=usual(),
        help=(
            "measurements elsewhere: published tables, and this server's own sweeps that come with it; default"
            " %(default)s"
        ),
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: there is a recommendation; 1: nothing grants the wish, and the answer says what would; 2: the request cannot
    be."""
    options = parser().parse_args(argv)
    try:
        evidence = gather(options.calibration, options.sweep)
        swept = tuple(sorted({s.resolution for e in evidence[: len(options.sweep)] for s in e.samples}, reverse=True))
        wish = Requirements(
            cameras=options.cameras,
            classes=options.classes,
            fps=options.fps,
            object_pixels=options.object_pixels,
            source=size(options.source),
            resolutions=tuple(options.resolutions or swept or RESOLUTIONS),
            prefer=options.prefer,
            memory_mb=memory_of(options.memory),
        )
        found = offers(wish, evidence)
    except ValueError as error:
        print(f"sam3-perf capacity: {error}", file=sys.stderr)
        print(json.dumps({"error": str(error)}))
        return 2
    return answer(wish, found, evidence)


def answer(wish: Requirements, found: Sequence[Recommendation], evidence: Sequence[Evidence]) -> int:
    """Prints the table, the reasons and the JSON line; returns the exit status."""
    console = wide_console()
    console.print(table(found))
    rejected = [offer for offer in found if offer.reasons]
    for offer in rejected:
        for reason in offer.reasons:
            console.print(f"rejected: {reason}", markup=False, highlight=False)
    lost = [{"resolution": o.resolution, "reasons": o.reasons, **record(o)} for o in rejected]
    if len(rejected) == len(found):
        sentence = f"no resolution will do: {what_next(wish, rejected, evidence[0].calibration())}"
        console.print(sentence, style="bold red", markup=False)
        print(json.dumps({"error": sentence, "rejected": lost}))
        return 1
    best = found[0]
    for note in best.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    where = sorted({figure.where for figure in (best.fps_per_camera, best.memory_mb) if figure.where})
    console.print(f"{best.resolution}: {best.basis} ({'; '.join(where)})", style="bold", markup=False, highlight=False)
    instances = 1 if wish.cameras == 1 else 2
    choice: dict[str, Any] = {"resolution": best.resolution, **record(best), "instances": instances}
    choice |= {"queue_delay_us": delay_us(wish, best), "notes": best.notes, "rejected": lost}
    choice["alternatives"] = [{"resolution": o.resolution, **record(o)} for o in found[1:] if not o.reasons]
    print(json.dumps(choice))
    return 0


def record(offer: Recommendation) -> dict[str, Any]:
    """An offer's figures as plain data; `figures` says where each comes from."""
    figures = {name: getattr(offer, name) for name in ("fps_per_camera", "memory_mb", "p95_ms")}
    return {
        "batch": offer.batch,
        "fps_per_camera": round(offer.fps_per_camera.value, 2),
        "memory_mb": round(offer.memory_mb.value),
        "p95_ms": round(offer.p95_ms.value),
        "object_patches": round(offer.object_patches, 2),
        "basis": offer.basis,
        "figures": {name: {"basis": figure.basis, "where": figure.where} for name, figure in figures.items()},
    }


def table(found: Sequence[Recommendation]) -> Table:
    sheet = Table(title="best first")
    for column in ("resolution", "batch", "fps per camera", "p95 ms", "memory MB", "object, patches", "will do"):
        sheet.add_column(column, justify="right")
    marks = {"measured here": "", "measured elsewhere": " °", "modelled": " *"}
    for o in found:
        cells = [
            f"{o.fps_per_camera.value:.2f}{marks[o.fps_per_camera.basis]}",
            f"{o.p95_ms.value:.0f}{marks[o.p95_ms.basis]}",
        ]
        cells += [
            f"{o.memory_mb.value:,.0f}{marks[o.memory_mb.basis]}",
            f"{o.object_patches:.2f}" if o.object_patches else "-",
        ]
        sheet.add_row(str(o.resolution), str(o.batch), *cells, "no" if o.reasons else "yes")
    sheet.caption = "° measured elsewhere   * modelled   unmarked: measured here"
    return sheet


if __name__ == "__main__":
    sys.exit(main())
