"""`sam3-serve`: serves a model repository with the embedded Triton for as long as you like."""

from __future__ import annotations

import argparse
import json
import logging
import platform
import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ensemble.server import gpu, repository
from ensemble.server.closed import CLOSABLE
from ensemble.server.drain import DRAIN_S, drain
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.fit_videos import Load, fit
from ensemble.server.memory import parse_mb
from ensemble.server.ports import choose_ports
from ensemble.server.repository import FRONT_SETTINGS
from ensemble.server.requirements import ServerError
from ensemble.server.start_check import TEXT_ENCODER
from ensemble.server.supervision import supervise
from ensemble.video.variant import DEFAULT_OBJECTS

DEFAULT_PORTS = (8000, 8001, 8002)
"""HTTP, gRPC and metrics, as Triton's own defaults."""
EXAMPLES = """examples:
  sam3-serve --repository build/repository
  sam3-serve --repository build/packages --resolution 672 --gpus all --gpu-memory 8GB
  sam3-serve --repository build/repository --check          says what would be served, on what, and starts nothing"""
log = logging.getLogger("ensemble.serve")


def main(argv: Sequence[str] | None = None) -> int:
    """Starts the embedded Triton on a repository and keeps it until Ctrl-C. Exit status 1: it cannot start, or cannot
    be kept."""
    options = _parser().parse_args(argv)
    level = logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _end)
    try:
        settings = {"resolutions": options.resolution, **server_settings(options)}
        if options.videos is not None:
            settings |= fitting(options)
        server = EmbeddedServer(
            options.repository,
            *_ports(options.address, (options.http_port, options.grpc_port, options.metrics_port)),
            address=options.address,
            arguments=options.arguments,
            **settings,
            sub_models=options.sub_models,
            direct=options.direct,
            opened=options.open,
        )
        if options.check:
            report = server.check()
            for line in report["lines"]:
                log.info(line)
            print(json.dumps(report))
            return 0
        log.info("starting Triton on %s ...", server.repository)
        with server:
            urls = {"http": server.http_url, "grpc": server.grpc_url, "metrics": server.metrics_url, "pid": server.pid}
            print(json.dumps(urls), flush=True)
            log.info("ready; Ctrl-C stops it")
            try:
                supervise(server, options.probe_interval)
            except (SystemExit, KeyboardInterrupt):
                drain(server.ending, server.health, options.drain_seconds)
                raise
    except KeyboardInterrupt:
        log.info("stopped")
    except ServerError as error:
        log.error("sam3-serve: %s", error)
        return 1
    return 0


def _end(*_: object) -> None:
    """Ends the command in order; a second SIGTERM must not interrupt that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


def fitting(options: argparse.Namespace) -> dict[str, Any]:
    """Settings with which `--videos` of `--video-objects` fit into `--gpu-memory`, or into what is free. Raises
    ServerError."""
    if options.video_memory is not None or options.tracker_resolution is not None or options.sub_models:
        raise ServerError(
            "--videos chooses --video-memory and --tracker-resolution, for an engine model: leave these and"
            " --sub-models out"
        )
    known = repository.read(options.repository)
    if options.resolution:
        known = repository.choose(known, options.resolution)
    on_gpu, card = any(one.on_gpu for one in known), gpu.serving()
    if options.gpu_memory is not None and not on_gpu:
        raise ServerError("--gpu-memory: expected models for a GPU, got a repository for the CPU; leave it out")
    memory_mb = options.gpu_memory if options.gpu_memory is not None or card is None else card.free_mb
    load = Load(options.videos, options.video_objects)
    chosen = fit(known, load, memory_mb, options.text_encoder)
    log.info(
        "%d videos of up to %d objects: detector at %d, tracker at %d%s",
        *(options.videos, options.video_objects, chosen.resolution, chosen.tracker_resolution),
        f"; needed, modelled: {chosen.need}" if chosen.need else "",
    )
    settings = chosen.settings()
    return settings | {"front": settings["front"] | front_settings(options)}


def add_front_options(parser: argparse.ArgumentParser) -> None:
    """Where a server places its models, and what it can change of the front models; `server_settings` reads it."""
    add = parser.add_argument
    add("--gpus", type=_gpus, default=(0,), help="GPUs to serve on: all, or numbers as in 0,2; default: the first")
    add("--gpu-memory", type=_megabytes, metavar="SIZE", help="of each GPU, as in 8GB; default: what is free")
    help_ = "where names are encoded; auto: off a GPU that has no room for it; default %(default)s"
    add("--text-encoder", choices=TEXT_ENCODER, default="auto", help=help_)
    help_ = "what is remembered of videos' objects, as in 2GB; 0: no videos; default: 512MB where there is a tracker"
    add("--video-memory", type=_video_megabytes, metavar="SIZE", help=help_)
    add("--tracker-resolution", type=int, metavar="PIXELS", help="of the tracker; default: the detector's")
    for name, what in FRONT_SETTINGS.items():
        add(f"--{name.replace('_', '-')}", type=int, help=f"{what}; default: what suits the engine")


def front_settings(options: argparse.Namespace) -> dict[str, int]:
    """Those of `add_front_options` that were given."""
    return {name: value for name in FRONT_SETTINGS if (value := getattr(options, name)) is not None}


def server_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `EmbeddedServer` from the options of `add_front_options`."""
    every = tuple(range(max(1, len(gpu.gpus()))))
    return {
        "gpus": every if options.gpus == "all" else options.gpus,
        "gpu_memory_mb": options.gpu_memory,
        "text_encoder": options.text_encoder,
        "front": front_settings(options),
        "video_memory_mb": options.video_memory,
        "tracker_resolution": options.tracker_resolution,
    }


def version() -> str:
    """This project's version and those of what it serves with."""
    names = ("sam3-triton", "nvidia-pytriton", "tritonclient", "onnxruntime-gpu", "torch", "numpy")
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join([*found, f"Python {platform.python_version()}", platform.platform()])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sam3-serve",
        description="Serve a model repository with the embedded Triton server (no Docker, no GPU needed).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--version", action="version", version=version())
    add("--repository", type=Path, required=True, help="folder that sam3-export wrote")
    add("--check", action="store_true", help="say what would be served, on what, and whether it fits; start nothing")
    for kind, port in zip(("http", "grpc", "metrics"), DEFAULT_PORTS, strict=True):
        add(f"--{kind}-port", type=int, help=f"0 for a free one; default {port}, or a free one where it is taken")
    add("--address", default="127.0.0.1", help="interface to listen on; default: this machine only")
    add("--resolution", type=int, nargs="+", default=[], help="serve these alone; default: all of the repository")
    add_front_options(parser)
    help_ = "so many at a time: chooses the resolutions of detector and tracker that fit, and --video-memory"
    add("--videos", type=_count, metavar="N", help=help_)
    help_ = "most objects of each of --videos at a time; default %(default)s"
    add("--video-objects", type=_count, metavar="N", default=DEFAULT_OBJECTS, help=help_)
    add("--sub-models", action="store_true", help="serve each sub-model as a Triton model too, to measure the parts")
    add(
        "--direct",
        action=argparse.BooleanOptionalAction,
        help="clients call the process that holds the sub-models, without front models; default: for one resolution on"
        " GPUs",
    )
    help_ = "endpoints of Triton that are closed unless they are named here; default: none"
    add("--open", nargs="+", choices=CLOSABLE, default=[], metavar="API", help=f"{help_}; {', '.join(CLOSABLE)}")
    add(
        "--probe-interval",
        type=float,
        default=20.0,
        help="seconds between probes by a real inference; default %(default)s",
    )
    help_ = "at the end, for frames that are here to be answered; default %(default)s"
    add("--drain-seconds", type=float, default=DRAIN_S, help=help_)
    add("--verbose", action="store_true", help="show Triton's whole log")
    add("arguments", nargs="*", help="further tritonserver arguments, after --")
    return parser


def _gpus(text: str) -> str | tuple[int, ...]:
    if text == "all":
        return text
    if not all(part.isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"expected all, or numbers with commas between them as in 0,2; got {text!r}")
    return tuple(dict.fromkeys(map(int, text.split(","))))


def _megabytes(text: str) -> float:
    try:
        return parse_mb(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


def _video_megabytes(text: str) -> float:
    return 0.0 if text.strip() == "0" else _megabytes(text)


def _ports(address: str, given: Sequence[int | None]) -> list[int]:
    """The given ports; for the others Triton's defaults, or free ones where any of those is taken."""
    try:
        choose_ports(address, DEFAULT_PORTS)
        defaults: Sequence[int] = DEFAULT_PORTS
    except ServerError:
        defaults = (0, 0, 0)
    return [default if port is None else port for port, default in zip(given, defaults, strict=True)]


if __name__ == "__main__":
    raise SystemExit(main())
