"""A day of cameras on pods that are scaled: how many pods, how old frames are when they are answered, how many are
dropped.

What a pod carries, and what the motion gate leaves out, are taken from this project's measurements; the autoscaler is
Kubernetes' rule with the settings of deploy/kubernetes, beside two that are worse and a fixed number of pods.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from perf import record, tables
from perf.console import make_parser, refuse
from perf.results import ResultsError
from perf.scale import demand, plot, pod, settings
from perf.scale.day import Cluster
from perf.scale.study import Study, figures

USE = 0.6
"""Target of the setting that scales on GPU utilisation: of 40, 50, 60 and 70 % the highest by which it grows at all."""
COLUMNS = {
    "settings": "settings",
    "pods_mean": "pods, mean",
    "pods_most": "most",
    "gpu_hours": "GPU hours a day",
    "p95_ms": "p95 ms",
    "p99_ms": "p99 ms",
    "dropped_percent": "frames dropped, %",
    "silence_s": "longest silence, s",
}
EXAMPLES = """examples:
  sam3-perf simulate                                        2,000 cameras on pods with an H100 each
  sam3-perf simulate --cameras 20 200 --resolution 1008 --start 600
  sam3-perf simulate --vary --output perf/results/cpu/scale.json --plot docs/scale.png"""


def main(argv: Sequence[str] | None = None) -> int:
    """0: simulated; 2: a measurement or the settings cannot be read."""
    parser = make_parser("simulate", __doc__, EXAMPLES)
    parser.add_argument(
        *("--cameras", "-c"), type=int, nargs=2, default=(200, 2000), help="at night and by day; default 200 2000"
    )
    parser.add_argument("--fps", type=float, default=5.0, help="of a camera that moves; default %(default)s")
    parser.add_argument("--resolution", type=int, default=672, help="of the front model; default %(default)s")
    parser.add_argument(
        "--server", type=Path, default=pod.MEASURED, help="file of sam3-perf bench end-to-end; default: one H100's"
    )
    parser.add_argument("--start", type=int, default=180, help="seconds until a pod is ready; default %(default)s")
    parser.add_argument("--days", type=int, default=5, help="days that are drawn; default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the first day; default %(default)s")
    parser.add_argument("--vary", action="store_true", help="vary settings and conditions too, one at a time")
    parser.add_argument("--plot", type=Path, help="PNG of the first day; default: none")
    record.add_output(parser)
    options = parser.parse_args(argv)
    if not 0 < options.cameras[0] <= options.cameras[1] or options.fps <= 0 or options.days < 1:
        return refuse(parser.prog, "expected cameras by day >= cameras at night > 0, fps > 0 and days > 0")
    try:
        server, chosen = pod.measured(options.resolution, options.server), settings.deployed()
        fewest, most = options.cameras
        wanted = demand.measured(demand.Demand(fewest=fewest, most=most, fps=options.fps))
    except (ResultsError, settings.SettingsError) as error:
        return refuse(parser.prog, error)
    seeds = tuple(range(options.seed, options.seed + options.days))
    study = Study(server, wanted, Cluster(start_s=options.start), seeds)
    worse = (settings.without_slow_down(chosen), settings.by_utilisation(chosen, USE))
    others = (settings.by_utilisation(chosen, USE + 0.1), settings.fixed(study.peak_pods))
    days = {s.name: study.days(s) for s in (chosen, *worse, *others)}
    rows = [{"settings": name, **figures(found)} for name, found in days.items()]
    data: dict[str, Any] = record.new(parser.prog, argv) | {
        "note": "simulated; the machine is the one that computed it",
        "pod": asdict(server) | {"fps": round(server.fps, 1)},
        "demand": asdict(wanted),
        "cluster": {name: value for name, value in asdict(study.cluster).items() if name != "losses"},
        "chosen": asdict(chosen),
        "rows": rows,
    }
    if options.vary:
        data["settings"] = [varied(s) | figures(study.days(s)) for s in settings.neighbours(chosen)]
        data["cases"] = [{"case": name, **figures(case.days(chosen))} for name, case in cases(study).items()]
    if options.plot:
        plot.draw(options.plot, study.cameras, {s.name: days[s.name][0] for s in (chosen, *worse)})
    record.write(options.output, data)
    print(table(rows).markdown(), file=sys.stderr)
    print(json.dumps(data))
    return 0


def varied(s: settings.Settings) -> dict[str, Any]:
    """What `settings.neighbours` varies."""
    down, up = s.behavior.down, s.behavior.up
    return {
        "target": s.triggers[0].target,
        "down_window_s": down.window_s,
        "down_percent": down.policies[0].value,
        "up_percent": up.policies[0].value,
    }


def cases(study: Study) -> dict[str, Study]:
    """The same settings where other things are otherwise."""
    few = replace(study.demand, fewest=max(1, study.demand.fewest // 10), most=max(1, study.demand.most // 10))
    starts = {
        f"a pod starts in {seconds} s": replace(study, cluster=replace(study.cluster, start_s=seconds))
        for seconds in (60, 600)
    }
    return {**starts, f"{few.fewest} to {few.most} cameras": replace(study, demand=few)}


def table(rows: Sequence[dict[str, Any]]) -> tables.Sheet:
    """The rows as docs/scale.md shows them."""
    cells = tuple(tuple(str(row[name]) for name in COLUMNS) for row in rows)
    return tables.Sheet("A simulated day", tuple(COLUMNS.values()), cells)


if __name__ == "__main__":
    raise SystemExit(main())
