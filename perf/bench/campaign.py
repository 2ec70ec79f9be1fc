"""Everything that is measured on a GPU host, in one go, into a folder of results like `perf/results/h200`.

Each step is a command of this project with a GPU to itself; as many run at once as there are GPUs, and the processor's
cores are divided among them. A step whose result is there already is not run again, so an interrupted campaign goes on
where it stopped; one that fails is reported, what needs it is left out, the rest goes on.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemble.server import gpu
from ensemble.spec import RESOLUTIONS
from export.tiny import CHECKPOINT
from perf import record, results
from perf.console import make_parser, refuse

POLL_S = 0.2
ENGINES = ("aoti", "transformers", "transformers-compiled")
COMMANDS = {"sam3-perf": "perf.cli", "sam3-export": "export.cli"}
"""The commands of the steps, and the modules that are run in their place by this Python."""
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
EXAMPLES = """examples:
  sam3-perf bench campaign                 real size, random weights, all GPUs
  sam3-perf bench campaign --tensorrt      plans as well, by the Python that SAM3_TENSORRT_PYTHON names, or by this one
  sam3-perf bench campaign --list          what would be run"""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """A command (arguments of this Python), the file it writes, and the names of the steps whose files it reads."""

    name: str
    arguments: tuple[str, ...]
    writes: Path
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As it is typed in a shell."""
        commands = {module: command for command, module in COMMANDS.items()}
        return f"{self.name}: {commands[self.arguments[1]]} {shlex.join(self.arguments[2:])}"


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

    def add(name: str, writes: Path, command: str, *arguments: object, needs: Sequence[str] = ()) -> None:
        program, *verbs = command.split()
        found.append(Step(name, ("-m", COMMANDS[program], *verbs, *map(str, arguments)), writes, tuple(needs)))

    def export(name: str, source: object, resolution: int, *more: object, engine: str = "aoti") -> None:
        repository, prefix = folder / f"{REPOSITORIES[engine]}-{name}", "export" if engine == "aoti" else "export-plans"
        about = ("--checkpoint", source, "--resolution", resolution, "--engine", engine, "--repository", repository)
        config = repository / f"sam3_r{resolution}" / "config.pbtxt"
        add(f"{prefix}-{name}", config, "sam3-export", *about, *more)

    def measure(name: str, verb: str, *arguments: object, needs: Sequence[str] = ()) -> None:
        out = folder / f"{name}.json"
        add(name, out, f"sam3-perf {verb}", *arguments, "--output", out, needs=needs)

    for r in resolutions:
        export(str(r), checkpoint, r)
    for precision in PRECISIONS:
        export(f"small-{precision}", CHECKPOINT, 252, "--queries", 50, "--precision", precision)
    real = {r: ("--repository", folder / f"packages-{r}", "--resolution", r) for r in resolutions}
    weights, small = ("--checkpoint", checkpoint), ("--checkpoint", CHECKPOINT)
    packages = {precision: folder / f"packages-small-{precision}" for precision in PRECISIONS}
    for r in resolutions:
        measure(f"end_to_end-{r}", "bench end-to-end", *weights, *real[r], needs=[f"export-{r}"])
    for r in resolutions:
        measure(f"sweep-{r}", "sweep", *LOAD, *real[r], needs=[f"export-{r}"])
    repositories = [part for path in packages.values() for part in ("--repository", path)]
    exports = [f"export-small-{precision}" for precision in PRECISIONS]
    measure("accuracy", "bench accuracy", *repositories, *small, needs=exports)
    for engine in ENGINES:
        for r in resolutions:
            more = COMPILED if engine.endswith("compiled") else ()
            needs = [f"export-{r}"] if engine == "aoti" else []
            about = (*weights, "--engines", engine, *more, *real[r])
            measure(f"engines-{engine}-{r}", "bench engines", *about, needs=needs)
        if engine == "aoti":
            out, r = folder / "profile" / "profile.json", resolutions[0]
            what = (*real[r], "--frames", 8, *EVERYTHING, "--output", out.parent)
            add("profile", out, "sam3-perf bench profile", *what, needs=[f"export-{r}"])
            for name in ("rewrites", "kernels", "preprocess"):
                measure(name, f"bench {name}")
    about = ("--repository", packages["fp16"], "--resolution", 252, "--device", "cuda", "--compile")
    measure("peers", "bench peers", *about, *small, needs=["export-small-fp16"])
    if tensorrt:
        for r in resolutions:
            export(str(r), checkpoint, r, engine="tensorrt")
        export("small", CHECKPOINT, 252, "--queries", 50, engine="tensorrt")
        for r in resolutions:
            plans = ("--repository", folder / f"plans-{r}", *weights, "--resolution", r)
            measure(f"plans-{r}", "bench plans", *plans, needs=[f"export-plans-{r}"])
        own = ("--repository", folder / "plans-small", *small)
        measure("accuracy-plans", "bench accuracy", *own, needs=["export-plans-small"])
    return found


def run(campaign: Sequence[Step], devices: Sequence[str], folder: Path, seconds: float) -> dict[str, str]:
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
            spent = time.monotonic() - one.start
            log.info("%s: %s after %.0f s on GPU %s", one.step.name, state[one.step.name], spent, one.device)
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
    command = [sys.executable, *step.arguments]
    with (folder / "log" / f"{step.name}.txt").open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
    return Running(step, device, process, time.monotonic())


def main(argv: Sequence[str] | None = None) -> int:
    """0: everything is there; 1: something failed or was left out; 2: there is no GPU."""
    parser = make_parser("bench campaign", __doc__, EXAMPLES)
    parser.add_argument(
        "--checkpoint", default="random", help="folder, hub name, or `random` (real size); default %(default)s"
    )
    parser.add_argument("--resolution", type=int, nargs="+", default=list(RESOLUTIONS), help="default: all four")
    parser.add_argument("--gpus", nargs="+", help="as in CUDA_VISIBLE_DEVICES; default: all that there are")
    parser.add_argument("--only", nargs="+", help="steps whose names begin so, and what they need")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no step after that long")
    record.add_output(parser, "folder", suffix="")
    parser.add_argument("--tensorrt", action="store_true", help="TensorRT plans as well: minutes to build, each")
    parser.add_argument("--list", action="store_true", help="print the steps and their commands")
    options = parser.parse_args(argv)
    campaign = chosen(steps(options.checkpoint, options.resolution, options.output, options.tensorrt), options.only)
    if options.list:
        print(*campaign, sep="\n")
        print(json.dumps({"steps": [step.name for step in campaign]}))
        return 0
    devices = options.gpus or [str(number) for number in range(len(gpu.gpus()))]
    if not devices:
        return refuse(parser.prog, "expected an NVIDIA GPU, NVML shows none; run it on the GPU host")
    state = run(campaign, devices, options.output, options.seconds)
    for name in MERGED:
        merge(options.output, name)
    print(json.dumps({"output": str(options.output), "steps": state}))
    return 0 if set(state.values()) <= {"there", "done"} else 1


def merge(folder: Path, name: str) -> None:
    """`name`.json from the files `name`-*.json: the fields of the first, the rows of all, the command of each."""
    files = [results.load(path) for path in sorted(folder.glob(f"{name}-*.json"))]
    if files:
        lists = {key: [item for file in files for item in file[key]] for key in ("details", "rows") if key in files[0]}
        merged = files[0] | {"commands": [file["command"] for file in files]} | lists
        record.write(folder / f"{name}.json", merged, table=name == "sweep")


def chosen(campaign: Sequence[Step], only: Sequence[str] | None) -> list[Step]:
    """The steps whose names begin with one of `only`, and those that they need; all of them for None."""
    wanted = {step.name for step in campaign if only is None or step.name.startswith(tuple(only))}
    wanted |= {need for step in campaign if step.name in wanted for need in step.needs}
    return [step for step in campaign if step.name in wanted]


if __name__ == "__main__":
    raise SystemExit(main())
