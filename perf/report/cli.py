"""A page of plots and tables from one sweep or several, with the plots as PNG and the tables as Markdown beside it.

The page needs no network and no other file. Several sweeps are set side by side, the first being what the others are
compared with.
"""

from __future__ import annotations

import base64
import html
import io
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from perf import record, results, tables
from perf.console import make_parser, refuse
from perf.report import plots

log = logging.getLogger(__name__)

EXAMPLES = """examples:
  sam3-perf report build/perf/sweep.json --output build/perf/report
  sam3-perf report perf/results/cpu/sweep.json build/perf/sweep.json      what changed since, with ratios"""
EVALUATION = Path(__file__).parents[2] / "export" / "tiny" / "evaluation.json"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
body { color: #222; background: #fff; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-bottom: 1.2rem; }
th, td { text-align: right; padding: .2rem .7rem; border-bottom: 1px solid #e5e5e5; } th { background: #f5f7fa; }
img { max-width: 100%; display: block; margin: 1rem 0; } code { background: #f5f7fa; padding: .1rem .3rem; }
.small { color: #666; font-size: .9em; }
"""


def pictures(sweep: results.Results, evaluation: dict[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """Name and figure of every plot that the sweep has rows for."""
    if not tables.front_rows(sweep.rows):
        return
    for draw in (plots.throughput_latency, plots.stage_breakdown, plots.cost, plots.speed_up, plots.memory):
        figure = draw(sweep.rows)
        if figure is not None:
            yield draw.__name__, figure
    figure = plots.accuracy(sweep.rows, evaluation) if evaluation else None
    if figure is not None:
        yield "accuracy", figure


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plots.plt.close(figure)
    return buffer.getvalue()


def about(sweep: results.Results) -> str:
    """Hardware, date, versions and command in a few lines of plain text."""
    machine = ", ".join(f"{name} {value}" for name, value in sweep.machine.items()) or "machine unknown (read from CSV)"
    setting = {name: value for name, value in sweep.setting.items() if name != "architecture"}
    lines = [f"measured on {machine}, {sweep.date}", f"setting: {', '.join(f'{k} {v}' for k, v in setting.items())}"]
    lines += [
        f"versions: {', '.join(f'{name} {value}' for name, value in sweep.versions.items())}",
        f"command: {sweep.command}",
    ]
    return "\n".join(lines)


def build(sweeps: Sequence[tuple[str, results.Results]], evaluation: dict[str, Any] | None, folder: Path) -> list[str]:
    """Writes the report into `folder`; returns the names of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    text, page, written = ["# What was measured", ""], ["<h1>SAM3 on Triton: what was measured</h1>"], []
    for name, sweep in sweeps:
        text += [f"## {name}", "", *(f"- {line}" for line in about(sweep).splitlines()), ""]
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in about(sweep).splitlines())
        page.append(f"<h2>{html.escape(name)}</h2><ul class=small>{lines}</ul>")
        for sheet in tables.guide(sweep.rows):
            text.append(sheet.markdown())
            page.append(sheet.html())
        for picture, figure in pictures(sweep, evaluation):
            data, file = png(figure), f"{name}-{picture.replace('_', '-')}.png"
            (folder / file).write_bytes(data)
            written.append(file)
            text += [f"![{picture.replace('_', ' ')}]({file})", ""]
            encoded = base64.b64encode(data).decode()
            page.append(f'<img alt="{picture.replace("_", " ")}" src="data:image/png;base64,{encoded}">')
            if picture == "accuracy" and evaluation:
                source = f"accuracy: {evaluation.get('command', '')}, {evaluation.get('date', '')}"
                text += [source, ""]
                page.append(f"<p class=small>{html.escape(source)}</p>")
    for name, sweep in sweeps[1:]:
        sheet = tables.ratios(sweeps[0][1].rows, sweep.rows, (sweeps[0][0], name))
        text.append(sheet.markdown())
        page += ["<h2>Side by side</h2>", sheet.html()]
    (folder / "report.md").write_text("\n".join(text))
    head = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>SAM3 on Triton,"
        f" measured</title><style>{STYLE}</style>"
    )
    (folder / "report.html").write_text(head + "\n".join(page) + "</html>\n")
    return ["report.html", "report.md", *written]


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short names of the sweeps: the file's, the folder's before it where that is not enough, a number where nothing
    is."""
    short = [p.stem for p in paths]
    if len(set(short)) < len(short):
        short = [f"{p.parent.name}-{p.stem}" for p in paths]
    return short if len(set(short)) == len(short) else [f"{name}-{i + 1}" for i, name in enumerate(short)]


def main(argv: Sequence[str] | None = None) -> int:
    """0: written; 2: a sweep cannot be read or has nothing to show."""
    parser = make_parser("report", __doc__, EXAMPLES)
    parser.add_argument("sweeps", type=Path, nargs="+", help="JSON (or CSV) files of sam3-perf sweep")
    record.add_output(parser, "folder", suffix="")
    parser.add_argument(
        "--evaluation", type=Path, default=EVALUATION, help="accuracy by resolution; default: the small checkpoint's"
    )
    options = parser.parse_args(argv)
    try:
        names = names_of(options.sweeps)
        found = [(name, results.read(path)) for name, path in zip(names, options.sweeps, strict=True)]
        for path, (_, sweep) in zip(options.sweeps, found, strict=True):
            if sweep.note:
                log.warning("%s", sweep.note)
            if not tables.front_rows(sweep.rows):
                raise results.ResultsError(
                    f"{path} has no finished point of a front model; go on with the sweep that wrote it"
                )
    except results.ResultsError as error:
        return refuse(parser.prog, error)
    evaluation = json.loads(options.evaluation.read_text()) if options.evaluation.is_file() else None
    files = build(found, evaluation, options.output)
    print(json.dumps({"report": str(options.output / "report.html"), "files": files}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
