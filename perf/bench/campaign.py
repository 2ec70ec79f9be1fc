"""Everything that is measured on a GPU host, in one go: a checkpoint and the host's GPUs go in, a folder of results
like `perf/results/h200` comes out.

Each step is a command of this project with a GPU to itself; as many run at once as there are GPUs, and the processor's
cores are divided among them. A step whose result is there already is not run again, so an interrupted campaign goes on
where it stopped; one that fails is reported, what needs it is left out, the rest goes on.

    python -m perf.bench.campaign --output build/campaign                  real size, random weights, all GPUs python -m
    perf.bench.campaign --tensorrt                               plans as well, by the Python that SAM3_TENSORRT_PYTHON
    names, or by this one python -m perf.bench.campaign --list                                   what would be run
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ensemble.server import gpu
from ensemble.spec import RESOLUTIONS
from export.tiny import CHECKPOINT

POLL_S = 0.2
ENGINES = ("aoti", "transformers", "transformers-compiled")
COMPILED = ("--classes", "4", "--present", "1")
"""Every other number of pairs would be compiled anew, for a minute and more."""
EVERYTHING = ("--threshold", "0", "--max-detections", "5")
"""Random weights detect nothing: the best five queries of a frame get masks."""
POINTS = ("--cameras", "1", "2", "4", "8", "--classes", "1", "4")
LOAD = ("--alone", "--frame", "1920x1080", "--requests", "64", *POINTS, *EVERYTHING)
PRECISIONS = ("fp16", "fp32")
REPOSITORIES = {"aoti": "packages", "tensorrt": "plans"}
"""What an engine's repository is called."""
MERGED = ("engines", "end_to_end", "sweep")
"""Results of which every step writes a part."""


@dataclass(frozen=True)
class Step:
    """A command (arguments of this Python), the file it writes, and the names of the steps whose files it reads."""

    name: str
    arguments: tuple[str, ...]
    writes: Path
    needs: tuple[str, ...] = ()


@dataclass
class Running:
    step: Step
    device: str
    process: subprocess.Popen[bytes]
    start: float


def steps(checkpoint: str, resolutions: Sequence[int], folder: Path, tensorrt: bool = False) -> list[Step]:
    """The campaign, in the order in which steps are begun as GPUs become free; with `tensorrt` plans are built and
    timed last."""
    found: list[Step] = []

    def add(name: str, writes: Path, module: str, *arguments: object, needs: tuple[str, ...] = ()) -> None:
        found.append(Step(name, ("-m", module, *map(str, arguments)), writes, needs))

    def export(name: str, source: str, resolution: int, *more: object, engine: str = "aoti") -> None:
        repository, prefix = folder / f"{REPOSITORIES[engine]}-{name}", "export" if engine == "aoti" else "export-plans"
        about = (
            "--checkpoint",
            source,
            "--resolution",
            resolution,
            "--engine",
            engine,
            "--repository",
            repository,
            *more,
        )
        add(f"{prefix}-{name}", repository / f"sam3_r{resolution}" / "config.pbtxt", "export.cli", *about)

    for r in resolutions:
        export(str(r), checkpoint, r)
    for precision in PRECISIONS:
        export(f"small-{precision}", str(CHECKPOINT), 252, "--queries", 50, "--precision", precision)

    def measure(name: str, r: int, module: str, *arguments: object, engine: str = "aoti") -> None:
        out, what = folder / f"{name}-{r}.json", ("--repository", folder / f"packages-{r}", "--resolutions", r)
        needs = (f"export-{r}",) if engine == "aoti" else ()
        add(f"{name}-{r}", out, module, *arguments, *what, "--output", out, needs=needs)

    def small(name: str, module: str, *arguments: object, needs: Sequence[str]) -> None:
        out = folder / f"{name}.json"
        add(name, out, module, *arguments, "--checkpoint", CHECKPOINT, "--output", out, needs=tuple(needs))

    for r in resolutions:
        measure("end_to_end", r, "perf.bench.end_to_end", "--checkpoint", checkpoint)
    for r in resolutions:
        measure("sweep", r, "perf.cli", "sweep", *LOAD)
    packages = {precision: folder / f"packages-small-{precision}" for precision in PRECISIONS}
    repositories = [part for path in packages.values() for part in ("--repository", path)]
    small(
        "accuracy",
        "perf.bench.accuracy",
        *repositories,
        needs=[f"export-small-{precision}" for precision in PRECISIONS],
    )
    for engine in ENGINES:
        for r in resolutions:
            more = COMPILED if engine.endswith("compiled") else ()
            measure(
                f"engines-{engine}",
                r,
                "perf.bench.engines",
                "--checkpoint",
                checkpoint,
                "--engines",
                engine,
                *more,
                engine=engine,
            )
        if engine == "aoti":
            out, name = folder / "profile" / "profile.json", str(resolutions[0])
            what = ("--repository", folder / f"packages-{name}", "--resolution", name, "--frames", 8, *EVERYTHING)
            add("profile", out, "perf.cli", "profile", *what, "--output", out.parent, needs=(f"export-{name}",))
            for name, module in (
                ("rewrites", "rewrites.rewrites"),
                ("kernels", "kernels"),
                ("preprocess", "preprocess"),
            ):
                add(name, folder / f"{name}.json", f"perf.bench.{module}", "--output", folder / f"{name}.json")
    about = ("--repository", packages["fp16"], "--resolution", 252, "--device", "cuda", "--compile")
    small("peers", "perf.cli", "peers", *about, needs=["export-small-fp16"])
    if tensorrt:
        for r in resolutions:
            export(str(r), checkpoint, r, engine="tensorrt")
        export("small", str(CHECKPOINT), 252, "--queries", 50, engine="tensorrt")
        for r in resolutions:
            plans, needs = ("--repository", folder / f"plans-{r}", "--checkpoint", checkpoint), (f"export-plans-{r}",)
            out = folder / f"plans-{r}.json"
            add(f"plans-{r}", out, "perf.bench.plans", *plans, "--resolutions", r, "--output", out, needs=needs)
        small(
            "accuracy-plans",
            "perf.bench.accuracy",
            "--repository",
            folder / "plans-small",
            needs=["export-plans-small"],
        )
    return found


def run(
    campaign: Sequence[Step], devices: Sequence[str], folder: Path, seconds: float, console: Console
) -> dict[str, str]:
    """Runs what is missing; step -> "there", "done", "failed" or, where a need failed or time was up, "left out". Logs
    are `folder`/log/NAME.txt."""
    (folder / "log").mkdir(parents=True, exist_ok=True)
    state = {step.name: "there" for step in campaign if step.writes.is_file()}
    waiting = [step for step in campaign if step.name not in state]
    running: list[Running] = []
    free, start = list(devices), time.monotonic()
    while waiting or running:
        for one in [r for r in running if r.process.poll() is not None]:
            running.remove(one)
            free.append(one.device)
            done = one.process.returncode == 0 and one.step.writes.is_file()
            state[one.step.name] = "done" if done else "failed"
            spent = f"{time.monotonic() - one.start:.0f} s on GPU {one.device}"
            console.print(f"{one.step.name}: {state[one.step.name]} after {spent}", highlight=False)
        over = time.monotonic() - start > seconds
        for step in list(waiting):
            if over or any(state.get(need) in ("failed", "left out") for need in step.needs):
                state[step.name] = "left out"
                waiting.remove(step)
            elif free and all(state.get(need) in ("done", "there") for need in step.needs):
                waiting.remove(step)
                running.append(begin(step, free.pop(0), len(devices), folder))
        time.sleep(POLL_S)
    return state


def begin(step: Step, device: str, shares: int, folder: Path) -> Running:
    """Starts a step on one GPU with its share of the cores: programs that each take all of them slow each other down
    many times over."""
    threads = str(max(1, len(os.sched_getaffinity(0)) // shares))
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": device, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    step.writes.parent.mkdir(parents=True, exist_ok=True)
    with (folder / "log" / f"{step.name}.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *step.arguments],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    return Running(step, device, process, time.monotonic())


def main(argv: Sequence[str] | None = None) -> int:
    """0: everything is there; 1: something failed or was left out; 2: there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m perf.bench.campaign", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", default="random", help="folder, hub name, or `random` (real size); default %(default)s"
    )
    parser.add_argument("--resolutions", type=int, nargs="+", default=list(RESOLUTIONS))
    parser.add_argument("--gpus", nargs="+", help="as in CUDA_VISIBLE_DEVICES; default: all that there are")
    parser.add_argument("--only", nargs="+", help="steps whose names begin so, and what they need")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no step after that long")
    parser.add_argument("--output", type=Path, default=Path("build/campaign"))
    parser.add_argument("--tensorrt", action="store_true", help="TensorRT plans as well: minutes to build, each")
    parser.add_argument("--list", action="store_true", help="print the steps and their commands")
    options = parser.parse_args(argv)
    campaign = chosen(steps(options.checkpoint, options.resolutions, options.output, options.tensorrt), options.only)
    if options.list:
        for step in campaign:
            print(f"{step.name}: {' '.join(step.arguments)}")
        return 0
    devices = options.gpus or [str(number) for number in range(len(gpu.gpus()))]
    if not devices:
        print("perf.bench.campaign: expected an NVIDIA GPU, NVML shows none; run it on the GPU host", file=sys.stderr)
        return 2
    state = run(campaign, devices, options.output, options.seconds, Console(stderr=True))
    for name in MERGED:
        merge(options.output, name)
    print(json.dumps({"output": str(options.output), "steps": state}))
    return 0 if set(state.values()) <= {"there", "done"} else 1


def merge(folder: Path, name: str) -> None:
    """`name`.json from the files `name`-*.json: the fields of the first, the rows of all, the command of each."""
    files = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-*.json"))]
    if files:
        lists = {key: [item for file in files for item in file[key]] for key in ("details", "rows") if key in files[0]}
        merged = files[0] | {"commands": [file["command"] for file in files]} | lists
        (folder / f"{name}.json").write_text(json.dumps(merged, indent=1) + "\n")


def chosen(campaign: Sequence[Step], only: Sequence[str] | None) -> list[Step]:
    """The steps whose names begin with one of `only`, and those that they need; all of them for None."""
    wanted = {step.name for step in campaign if only is None or step.name.startswith(tuple(only))}
    wanted |= {need for step in campaign if step.name in wanted for need in step.needs}
    return [step for step in campaign if step.name in wanted]


if __name__ == "__main__":
    sys.exit(main())
