"""Which resolution for your cameras and your GPU, the best first, and why the others will not do.

Each figure says whether it was measured here, measured elsewhere or modelled; each rejected resolution says by what it
fails. Without a sweep of your own the figures are those of a published table (an RTX 5090 and another pipeline): enough
to choose, not to promise. With `--calibration h200` times are this server's, measured there when each sub-model was a
process of its own, and memory is what its start check reckons with for compiled packages.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ensemble.server.memory import parse_mb
from ensemble.spec import ENGINES, RESOLUTIONS
from perf import record, results
from perf.capacity import videos, videos_answer
from perf.capacity.advice import (
    ANOTHER,
    ELSEWHERE,
    HERE,
    MODELLED,
    PRECISIONS,
    Recommendation,
    Requirements,
    delay_us,
    recommend,
    what_next,
)
from perf.capacity.evidence import Evidence, committed, gather, usual
from perf.capacity.published import TABLES
from perf.console import make_parser, refuse, size, wide_console

EXAMPLES = """examples:
  sam3-perf capacity --cameras 8 --memory 8GB --classes 4 --fps 4 --object-pixels 40
  sam3-perf capacity --cameras 3 --classes 2 --fps 10 --sweep build/perf/sweep.json    the GPU here, your own figures
  sam3-perf capacity --cameras 8 --memory 8GB --classes 4 --fps 4 --video --objects 10
  sam3-perf capacity --cameras 16 --memory 24GB --fps 2 --frame 3840x2160 --object-pixels 80 --prefer speed"""


def memory_of(given: str | None) -> float:
    """The given memory, else that of the GPU that is here, in MB. Raises ValueError where there is neither."""
    if given:
        return parse_mb(given)
    found = record.card()
    if "gpu_memory_mb" not in found:
        raise ValueError("NVML shows no GPU on this machine; say how much memory the GPU has, for example --memory 8GB")
    return float(found["gpu_memory_mb"])


def parser() -> argparse.ArgumentParser:
    p = make_parser("capacity", __doc__, EXAMPLES)
    p.add_argument("--cameras", type=int, required=True)
    p.add_argument("--memory", help="of the GPU, for example 8GB; default: of the GPU that is here")
    p.add_argument("--classes", type=int, default=4, help="names each camera looks for; default %(default)s")
    p.add_argument("--fps", type=float, default=1.0, help="frames a second of each camera; default %(default)s")
    p.add_argument(
        "--object-pixels", type=float, default=0.0, help="narrower side of the smallest object, in the source frame"
    )
    p.add_argument("--frame", default="1920x1080", help="size of the cameras' frames; default %(default)s")
    help_ = "objects are followed by the server's tracker: resolutions of detector and tracker, and how often to detect"
    p.add_argument("--video", action="store_true", help=help_)
    help_ = "that each camera follows at a time, with --video; default %(default)s"
    p.add_argument("--objects", type=int, default=10, help=help_)
    help_ = "with --video: frames between detections; default: the fewest of 1 2 4 8 16 that reach --fps"
    p.add_argument("--detect-every", type=int, nargs="+", default=list(videos.EVERY), help=help_)
    p.add_argument("--resolution", type=int, nargs="+", help="candidates; default: the sweeps', or 1008 840 672 560")
    p.add_argument(
        "--prefer", choices=("quality", "speed"), default="quality", help="what to rank by; default %(default)s"
    )
    shared = [engine.name for engine in ENGINES.values() if engine.shares_gpu]
    p.add_argument(
        "--engine",
        choices=shared,
        default="",
        help="reckon with this engine's memory in sam3-serve, modelled; default: as the measurements say",
    )
    p.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp16",
        help="fp8: on Ada, Hopper and Blackwell, modelled beside fp16's measurements; default %(default)s",
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
    """0: there is a recommendation; 1: no resolution will do, and the answer says what would; 2: the request makes no
    sense."""
    p = parser()
    options = p.parse_args(argv)
    try:
        evidence = gather(options.calibration, options.sweep)
        swept = tuple(sorted({s.resolution for e in evidence[: len(options.sweep)] for s in e.samples}, reverse=True))
        wanted = Requirements(
            cameras=options.cameras,
            classes=options.classes,
            fps=options.fps,
            object_pixels=options.object_pixels,
            frame=size(options.frame),
            resolutions=tuple(options.resolution or swept or RESOLUTIONS),
            prefer=options.prefer,
            engine=options.engine,
            precision=options.precision,
            memory_mb=memory_of(options.memory),
        )
        if options.video:
            rows = results.load(videos.MEASURED)["rows"]
            return videos_answer.answer(
                videos.recommend(wanted, options.objects, options.detect_every, evidence[0], rows)
            )
        found = recommend(wanted, evidence)
    except ValueError as error:
        return refuse(p.prog, error)
    return answer(wanted, found, evidence)


def answer(wanted: Requirements, found: Sequence[Recommendation], evidence: Sequence[Evidence]) -> int:
    """Prints the table, the reasons and the JSON line; returns the exit status."""
    console = wide_console()
    console.print(table(found))
    rejected = [choice for choice in found if choice.reasons]
    for choice in rejected:
        for reason in choice.reasons:
            console.print(f"rejected: {reason}", markup=False, highlight=False)
    lost = [{"resolution": o.resolution, "reasons": o.reasons, **figures(o)} for o in rejected]
    if len(rejected) == len(found):
        sentence = f"no resolution will do: {what_next(wanted, rejected, evidence[0].calibration())}"
        console.print(sentence, style="bold red", markup=False)
        print(json.dumps({"error": sentence, "rejected": lost}))
        return 1
    best = found[0]
    for note in best.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    where = sorted({figure.where for figure in (best.fps_per_camera, best.memory_mb) if figure.where})
    console.print(f"{best.resolution}: {best.basis} ({'; '.join(where)})", style="bold", markup=False, highlight=False)
    instances = 1 if wanted.cameras == 1 else 2
    answered: dict[str, Any] = {"resolution": best.resolution, **figures(best), "instances": instances}
    answered |= {"queue_delay_us": delay_us(wanted, best), "notes": best.notes, "rejected": lost}
    answered["alternatives"] = [{"resolution": o.resolution, **figures(o)} for o in found[1:] if not o.reasons]
    print(json.dumps(answered))
    return 0


def figures(choice: Recommendation) -> dict[str, Any]:
    """A recommendation as plain data; "figures" says where each comes from."""
    known = {name: getattr(choice, name) for name in ("fps_per_camera", "memory_mb", "p95_ms")}
    return {
        "batch": choice.batch,
        "fps_per_camera": round(choice.fps_per_camera.value, 2),
        "memory_mb": round(choice.memory_mb.value),
        "p95_ms": round(choice.p95_ms.value),
        "object_patches": round(choice.object_patches, 2),
        "basis": choice.basis,
        "figures": {name: {"basis": figure.basis, "where": figure.where} for name, figure in known.items()},
    }


def table(found: Sequence[Recommendation]) -> Table:
    sheet = Table(title="best first")
    for column in ("resolution", "batch", "fps per camera", "p95 ms", "memory MB", "object, patches", "will do"):
        sheet.add_column(column, justify="right")
    marks = {HERE: "", ELSEWHERE: " °", ANOTHER: " †", MODELLED: " *"}
    for o in found:
        shown = ((o.fps_per_camera, ".2f"), (o.p95_ms, ".0f"), (o.memory_mb, ",.0f"))
        cells = [f"{figure.value:{style}}{marks[figure.basis]}" for figure, style in shown]
        patches = f"{o.object_patches:.2f}" if o.object_patches else "-"
        sheet.add_row(str(o.resolution), str(o.batch), *cells, patches, "no" if o.reasons else "yes")
    sheet.caption = "° measured elsewhere   † measured with another pipeline   * modelled   unmarked: measured here"
    return sheet


if __name__ == "__main__":
    raise SystemExit(main())
