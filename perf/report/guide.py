"""The numbers of docs/resolution.md, written again from the model of cost and the published measurements.

What stands between the two markers of a table is replaced, everything else is left as it is: judgement is written by
hand, numbers are not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ensemble.server.architecture import SAM3
from ensemble.server.memory import MB, feature_bytes, score_bytes
from ensemble.spec import RESOLUTIONS
from perf import results, tables
from perf.capacity import evidence
from perf.capacity.calibrate import fit, leave_one_out
from perf.capacity.model import decoder_flops, mask_head_flops, vision_flops
from perf.capacity.published import RTX_5090, TABLES, Measurement
from perf.console import make_parser, refuse
from perf.tables import Sheet, repeatability

PAGE = Path(__file__).parents[2] / "docs" / "resolution.md"
SWEEP = Path(__file__).parents[1] / "results" / "cpu" / "sweep.json"
EXAMPLES = """examples:
  sam3-perf guide            after a change of the model or of a published measurement
  sam3-perf guide --check    what the tests ask"""
WIDER = (1008, 952, 896, 840, 784, 728, 672, 616, 560, 504, 448, 336)


def windows() -> Sheet:
    """Patches, windows and what padding costs."""
    rows = []
    for r in WIDER:
        n, padded = SAM3.patches(r), SAM3.padded(r)
        flops, honest = vision_flops(r), vision_flops(r, pad_linears=False)
        share = f"{flops / vision_flops(1008):.0%}"
        cells = [str(r), str(r // 14), f"{n:,}", f"{(padded - n) / padded:.0%}"]
        rows.append((*cells, f"{flops / 1e9:,.0f}", share, f"{honest / 1e9:,.0f}", f"{flops / n / 1e6:.0f}"))
    columns = ("resolution", "p", "patches", "padding", "GFLOP", "of 1008", "GFLOP, linears unpadded", "MFLOP a patch")
    return Sheet("Vision encoder, one frame (computed)", columns, tuple(rows))


def parts() -> Sheet:
    """Operations and features by resolution."""
    rows = []
    for r in RESOLUTIONS:
        vision, decoder, masks = (f(r) / 1e9 for f in (vision_flops, decoder_flops, mask_head_flops))
        share = (4 * (decoder + masks)) / (vision + 4 * (decoder + masks))
        cells = (f"{vision:,.0f}", f"{decoder:.0f}", f"{masks:.0f}", f"{share:.0%}", f"{feature_bytes(r, 8) / MB:.0f}")
        rows.append((str(r), *cells, f"{score_bytes(r, 8, fused=False) / MB:,.0f}"))
    columns = (
        "resolution",
        "vision GFLOP",
        "decoder, a class",
        "masks, a class",
        "4 classes' share",
        "features MB",
        "unfused scores MB",
    )
    return Sheet("Parts; megabytes for 8 frames in fp16 (computed)", columns, tuple(rows))


def objects() -> Sheet:
    """Source pixels that one patch covers, across and down."""
    rows = []
    for r in RESOLUTIONS:
        cells = [str(r)]
        for width, height in ((1920, 1080), (3840, 2160)):
            across, down = width * 14 / r, height * 14 / r
            cells += [f"{across:.0f} × {down:.0f}", f"{across:.0f}", f"{2 * across:.0f}"]
        rows.append(tuple(cells))
    columns = ("resolution", "1080p: patch", "1 patch", "2 patches", "4K: patch", "1 patch", "2 patches")
    return Sheet(
        "Pixels of the source in one patch, and the object width that covers one and two (computed)",
        columns,
        tuple(rows),
    )


def published() -> Sheet:
    """The published tables, and this server's own on a GPU beside them: what one round of all cameras takes, and what
    each camera gets."""
    own = [evidence.published(name) for name in evidence.committed()]
    sources = [("RTX 5090, published", RTX_5090), *((own_name(e), e.samples) for e in own)]
    names = ("ms a round", "fps per camera", "p95 ms", "memory MB")
    columns = ["resolution", "cameras", *(f"{source}: {name}" for source, _ in sources for name in names)]
    points = {(m.resolution, m.cameras_served) for _, samples in sources for m in samples if m.classes == 4}
    rows = []
    for resolution, cameras in sorted(points, key=lambda point: (point[1], -point[0])):
        cells = [str(resolution), str(cameras)]
        for _, samples in sources:
            found = [m for m in samples if (m.resolution, m.cameras_served, m.classes) == (resolution, cameras, 4)]
            cells += _served(found[0], cameras) if found else ["-"] * len(names)
        rows.append(tuple(cells))
    return Sheet(
        "Measured, 4 classes; the published pipeline keeps 50 queries, in TensorRT FP16", tuple(columns), tuple(rows)
    )


def own_name(source: evidence.Evidence) -> str:
    return f"this server on {source.samples[0].where.removeprefix('one ').split(',')[0]}"


def _served(m: Measurement, cameras: int) -> list[str]:
    round_ms = m.ms_per_frame * cameras
    memory = f"{m.memory_mb:,.0f}" if m.memory_mb else "-"
    return [f"{round_ms:.1f}", f"{1e3 / round_ms:.1f}", f"{m.p95_ms:.0f}" if m.p95_ms else "-", memory]


def predicted() -> Sheet:
    """The published table beside what the model, fitted without the point, says."""
    rows = []
    for point in leave_one_out(RTX_5090):
        m = point.measured
        cells = (f"{m.ms_per_frame:.1f}", f"{point.ms_per_frame:.1f}", f"{m.memory_mb:,.0f}", f"{point.memory_mb:,.0f}")
        rows.append((str(m.resolution), str(m.cameras_served), *cells))
    columns = ("resolution", "cameras", "ms a frame", "predicted", "memory MB", "predicted")
    return Sheet("The published points, each predicted from the others", columns, tuple(rows))


def gpu() -> str:
    """This server on GPUs: the sweeps that the repository carries."""
    found = [results.read(path) for path in evidence.committed().values()]
    if not found:
        return "No sweep of this server on a GPU is in this repository yet.\n"
    pages = []
    for sweep in found:
        sheets = [sheet.markdown() for sheet in tables.guide(sweep.rows)]
        what = (
            f"{sweep.setting.get('engine', '')}, {sweep.setting.get('precision', '')}, checkpoint"
            f" {sweep.setting.get('checkpoint', '')}"
        )
        frames = f"frames: {sweep.setting.get('frames', '')}"
        said = (
            f"Measured on one {sweep.where} ({what}; {frames}), {sweep.date}: `{sweep.command}`. ≤: allocators keep"
            " what an earlier, larger load took.\n"
        )
        pages.append("\n".join([*sheets, said]))
    return "\n".join(pages)


def whole() -> str:
    """The whole server on a GPU (`sam3-perf bench end-to-end`), its memory beside what the start check reckons with for
    a full load, and beside the published one."""
    measured = results.load(evidence.END_TO_END)
    rows = []
    for row in measured["rows"]:
        known = [m for m in RTX_5090 if (m.resolution, m.cameras_served) == (row["resolution"], row["cameras"])]
        cells = [str(row[name]) for name in ("resolution", "cameras", "in_flight", "classes", "engine")]
        cells += [f"{row['fps']:.1f}", f"{row['fps'] / row['cameras']:.1f}"]
        cells += [f"{row['p50_ms']:.1f}", f"{row['p95_ms']:.1f}", f"{row['peak_mb']:,.0f}"]
        cells += [f"{evidence.packages_mb(SAM3, row['resolution'], row['cameras'], row['classes']):,.0f}"]
        rows.append((*cells, f"{known[0].memory_mb:,.0f}" if known and known[0].memory_mb else "-"))
    load = ("resolution", "cameras", "frames of each under way", "classes", "engine")
    figures = ("fps", "fps per camera", "p50 ms", "p95 ms", "memory MB", "reckoned with, MB")
    theirs = "published, TensorRT on an RTX 5090: MB"
    best = measured["setting"]["max_detections"]
    title = f"This server on one {measured['machine']['gpu']}, 200 queries, best {best} of every frame with their masks"
    sheet = Sheet(title, (*load, *figures, theirs), tuple(rows))
    return (
        f"{sheet.markdown()}\nMeasured {measured['date']}: `{measured['command']}`; {measured['note'].split('.')[0]}.\n"
    )


def h200() -> Sheet:
    """Measured before there was a server: transformers' own model."""
    rows = [
        (
            name.removeprefix("h200-"),
            str(m.resolution),
            f"{m.batch:g}",
            str(m.classes),
            f"{m.ms_per_frame:.1f}",
            f"{1e3 / m.ms_per_frame:.1f}",
        )
        for name, samples in TABLES.items()
        if name.startswith("h200")
        for m in samples
    ]
    columns = ("transformers", "resolution", "frames", "classes", "ms a frame", "fps")
    return Sheet(
        "H200, transformers 5.17, bf16, model alone without decoding and transport (measured)", columns, tuple(rows)
    )


def embedded() -> str:
    """This server with the small checkpoint on a processor: the committed sweep."""
    sweep = results.read(SWEEP)
    repeat = repeatability(sweep.rows)
    sheets = [sheet.markdown() for sheet in tables.guide(sweep.rows)]
    said = f"Measured on {sweep.where}, {sweep.date}: `{sweep.command}`."
    said += " Memory is that of all the server's processes with every resolution loaded, and only grows."
    if repeat is not None:
        said += (
            " The fastest turn of each point is shown; the machine had other work meanwhile, and ratios between"
            f" resolutions in single turns lie up to {repeat:.0%} from their median."
        )
    return "\n".join([*sheets, said]) + "\n"


def coefficients() -> str:
    """The fitted coefficients in a sentence."""
    c = fit(RTX_5090)
    assert c.footprint is not None, "the table has memory figures"
    return (
        f"Fitted to that table: {c.per_frame_ms:.1f} ms a frame that no resolution changes, {c.per_call_ms:.1f} ms a"
        f" call, {c.ms_per_tflop:.1f} ms a TFLOP ({1 / c.ms_per_tflop * 1e3:.0f} TFLOP/s), {c.footprint.base_mb:.0f} MB"
        f" beside the weights, {c.footprint.activation_mb:.0f} MB of activations per thousand patches and frame of the"
        " plan's batch.\n"
    )


SECTIONS = {
    "windows": lambda: windows().markdown(),
    "parts": lambda: parts().markdown(),
    "objects": lambda: objects().markdown(),
    "published": lambda: published().markdown(),
    "predicted": lambda: predicted().markdown(),
    "gpu": gpu,
    "whole": whole,
    "h200": lambda: h200().markdown(),
    "coefficients": coefficients,
    "embedded": embedded,
}


def fill(text: str) -> str:
    """`text` with every `<!-- name -->` ... `<!-- /name -->` filled. Raises ValueError for a name that nobody
    generates."""

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in SECTIONS:
            raise ValueError(f"expected one of {', '.join(SECTIONS)} between <!-- and -->, got {name!r}")
        return f"<!-- {name} -->\n{SECTIONS[name]()}<!-- /{name} -->"

    return re.sub(r"<!-- (?P<name>[a-z0-9]+) -->\n.*?<!-- /(?P=name) -->", replace, text, flags=re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """0: the page is up to date (now); 1: with --check, it was not; 2: it cannot be read or names an unknown table."""
    parser = make_parser("guide", __doc__, EXAMPLES)
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/resolution.md of this checkout")
    parser.add_argument("--check", action="store_true", help="change nothing, say whether it is up to date")
    options = parser.parse_args(argv)
    try:
        before = options.page.read_text()
        after = fill(before)
    except (OSError, ValueError) as error:
        return refuse(parser.prog, error)
    if not options.check:
        options.page.write_text(after)
    print(json.dumps({"page": str(options.page), "up_to_date": before == after, "written": not options.check}))
    return int(options.check and before != after)


if __name__ == "__main__":
    raise SystemExit(main())
