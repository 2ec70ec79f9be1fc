"""`sam3-perf`: every measurement is a verb; each verb is a module with a `main` of its own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence

from perf.console import PACKAGES, refuse, show_log

COMMANDS = {
    "sweep": ("perf.sweep.cli", "measure a server with perf_analyzer over resolutions, cameras and classes"),
    "report": ("perf.report.cli", "turn sweeps into a page of plots and Markdown tables"),
    "capacity": ("perf.capacity.cli", "which resolution for my cameras and my GPU, and why"),
    "check": ("perf.capacity.check", "what the model behind `capacity` predicts for points that it has not seen"),
    "simulate": ("perf.scale.cli", "how many servers a day of many cameras needs, and how autoscaling copes"),
    "guide": ("perf.report.guide", "write the numbers of docs/resolution.md again"),
    "bench": ("", "single measurements; `sam3-perf bench --help` lists them"),
}
BENCH = {
    "end-to-end": ("perf.bench.end_to_end", "the whole server on a GPU, beside its engines alone and transformers"),
    "engines": ("perf.bench.engines.cli", "milliseconds a frame of the sub-models on a GPU, engine beside engine"),
    "plans": ("perf.bench.engines.plans", "the same of a repository's TensorRT plans"),
    "kernels": ("perf.bench.kernels", "this project's GPU kernels beside the library calls that they replace"),
    "rewrites": ("perf.bench.rewrites.cli", "what each exact rewrite of the sub-models gains by itself"),
    "profile": ("perf.bench.profile.cli", "where the time of one resolution goes, kernel by kernel"),
    "preprocess": ("perf.bench.preprocess", "frames decoded and resized on a GPU and on the CPU: time and pixels"),
    "accuracy": ("perf.bench.accuracy", "average precision of exported artifacts beside PyTorch in fp32"),
    "weights": ("perf.bench.weights.cli", "smaller weights: size, load time, memory, speed and average precision"),
    "recovery": ("perf.bench.recovery", "blocks left out, pooled keys, and what a short training gives back"),
    "peers": ("perf.bench.peers", "transformers' model and this server on the same frames"),
    "overhead": ("perf.bench.overhead", "what a frame costs outside the sub-models"),
    "soak": ("perf.bench.soak", "many cameras for a long time: memory, lost frames, fairness"),
    "video": ("perf.bench.video.cli", "videos on a GPU: what an object costs, and what a server carries"),
    "video-soak": ("perf.bench.video_soak", "videos for a long time: memory, frames in order, the cap of objects"),
    "hard-soak": ("perf.bench.hard_soak", "an hour of cameras that misbehave on servers that fail"),
    "tracking": ("perf.bench.tracking", "ids through occlusions: the tracker's masks beside ByteTrack's boxes"),
    "gate": ("perf.bench.gate", "quiet cameras: which frames the motion gate leaves out, and what it misses"),
    "fleet": ("perf.bench.fleet", "servers behind Envoy: latency, shares, and servers killed, frozen, upgraded"),
    "zoom": ("perf.bench.zoom", "small objects: one look, or a second one on crops"),
    "loop-cost": ("perf.bench.loop_cost", "what fetching a frame costs a client's event loop"),
    "campaign": ("perf.bench.campaign", "all of this on a GPU host in one go, into a folder of results"),
}
FORMERLY_ABOVE = ("profile", "peers")
"""Verbs of `bench` that are understood without it too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Hands the rest of the command line to the verb; 2 where there is none of that name, or what it needs is not
    installed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbs, prog = COMMANDS, "sam3-perf"
    if arguments and arguments[0] in ("bench", *FORMERLY_ABOVE):
        verbs, prog, arguments = BENCH, "sam3-perf bench", arguments[arguments[0] == "bench" :]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(prog, verbs))
        return 0
    if arguments[0] not in verbs:
        print(f"{prog}: expected one of {', '.join(verbs)}, got {arguments[0]!r}", file=sys.stderr)
        print(usage(prog, verbs), file=sys.stderr)
        return 2
    show_log()
    try:
        module = importlib.import_module(verbs[arguments[0]][0])
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] in PACKAGES:
            raise
        return refuse(f"{prog} {arguments[0]}", f"needs the package {error.name}; pip install -e '.[serve,export]'")
    return int(module.main(arguments[1:]))


def usage(prog: str, verbs: Mapping[str, tuple[str, str]]) -> str:
    """The verbs with a line each."""
    lines = [f"  {name:{max(map(len, verbs))}}  {what}" for name, (_, what) in verbs.items()]
    return "\n".join([f"usage: {prog} VERB [options]", "", *lines, "", f"{prog} VERB --help explains one of them"])


if __name__ == "__main__":
    sys.exit(main())
