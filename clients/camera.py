"""`sam3-camera`: one camera on the command line; with `--config` a whole fleet, which is `clients/fleet/watch.py`'s.

A video, a folder or an image and a list of names flow in; each frame goes to the server, one line per frame flows out,
and an annotated video, a picture, or a JSON line per frame is written. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clients.connection import DEFAULT_TIMEOUT_S, Client
from clients.errors import RequestTimeout, Sam3ServerError
from clients.output import Output
from clients.video.encode import to_jpeg
from clients.video.frames import IMAGE_SUFFIXES, SourceError
from clients.video.sources import open_source
from ensemble.spec import DEFAULT_THRESHOLD

EXAMPLES = """examples:
  sam3-camera --source video.mp4 --classes "red circle" "blue square"
  sam3-camera --source video.mp4 --classes person dog --masks --output annotated.mp4
  sam3-camera --source photos/ --classes "traffic light" --url gpu-host:8001 --output found.jsonl
  sam3-camera --config cameras.yaml --seconds 60
  sam3-camera --source photo.jpg --classes cat --protocol http --model sam3_r672 --output cat.png
"""


def watch(arguments: argparse.Namespace, client: Client, say: Callable[[str], None]) -> dict[str, Any]:
    """Sends the frames of a source one after the other and returns the summary. A frame that times out is counted and
    skipped; other errors are raised.
    """
    latencies: list[float] = []
    detections = failed = 0
    options = {"threshold": arguments.threshold, "mask_format": "bits" if arguments.masks else "none"}
    start = time.perf_counter()
    with open_source(arguments.source) as source:
        outputs = [Output(path, source.fps) for path in arguments.output]
        try:
            for frame in source:
                if arguments.limit is not None and frame.index >= arguments.limit:
                    break
                try:
                    found = client.detect(
                        frame.rgb if arguments.raw else to_jpeg(frame.rgb), arguments.classes, **options
                    )
                except RequestTimeout as error:
                    failed += 1
                    say(f"{frame.index:6d} {frame.time_s:8.2f} s  failed: {error}")
                    continue
                latencies.append(found.latency_ms)
                detections += len(found)
                say(f"{frame.index:6d} {frame.time_s:8.2f} s {found.latency_ms:8.1f} ms  {found.summary()}")
                for output in outputs:
                    output.write(frame, found)
        finally:
            for output in outputs:
                output.close()
    seconds = time.perf_counter() - start
    p50, p95 = np.percentile(latencies, [50, 95]).tolist() if latencies else (0.0, 0.0)
    return {
        "source": str(arguments.source),
        "model": client.model,
        "frames": len(latencies),
        "failed": failed,
        "detections": detections,
        "fps": round(len(latencies) / seconds, 2),
        "p50_ms": round(p50, 2),
        "p95_ms": round(p95, 2),
        "output": [str(path) for path in arguments.output],
    }


def default_output(source: str) -> Path:
    """Where the annotated frames of a source go if nobody says: `street.mp4` becomes `street-annotated.mp4` in the
    current folder."""
    path = Path(source)
    return Path(f"{path.stem}-annotated{'.png' if path.suffix.lower() in IMAGE_SUFFIXES else '.mp4'}")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="sam3-camera",
        description="Send the frames of a video, a folder or an image to a SAM3 server and show what it finds.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--source", help="video file, image, folder of images, rtsp:// or another address, or webcam:0")
    p.add_argument("--classes", nargs="+", metavar="NAME", help="what to look for, each in a few words")
    p.add_argument(
        "--config", type=Path, metavar="FILE", help="many cameras: a YAML file instead of --source and --classes"
    )
    p.add_argument("--seconds", type=float, metavar="S", help="with --config: stop after so long")
    p.add_argument(
        "--url", default="localhost", help="host:port of the server (default: %(default)s with Triton's port)"
    )
    p.add_argument("--protocol", choices=("grpc", "http"), default="grpc", help="default: %(default)s")
    p.add_argument("--model", help="front model, such as sam3_r672 (default: the server's only one)")
    p.add_argument(
        "--threshold", type=float, default=DEFAULT_THRESHOLD, help="least score, 0 to 1 (default: %(default)s)"
    )
    p.add_argument("--masks", action="store_true", help="ask for masks too")
    p.add_argument("--raw", action="store_true", help="send pixels instead of JPEG: exact, and ten times the bytes")
    p.add_argument("--limit", type=int, metavar="N", help="stop after N frames")
    p.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help="seconds to wait for a frame (default: %(default)s)",
    )
    p.add_argument(
        "--output",
        type=Path,
        nargs="*",
        metavar="FILE",
        help=(
            f"write {', '.join(Output.suffixes)}, one or several; without files nothing is written "
            "(default: SOURCE-annotated.mp4 in this folder, .png for an image)"
        ),
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: every frame was answered; 1: some were not; 2: it could not start or go on, and stderr says why."""
    p = parser()
    arguments = p.parse_args(argv)
    if arguments.config is not None:
        from clients.fleet.watch import run

        if arguments.source or arguments.classes:
            p.error("--config names the cameras; leave --source and --classes out")
        return run(arguments.config, arguments.seconds)
    if not arguments.source or not arguments.classes:
        p.error("--source and --classes are needed, or --config")
    if arguments.output is None:
        arguments.output = [default_output(arguments.source)]
    if wrong := [str(path) for path in arguments.output if path.suffix not in Output.suffixes]:
        p.error(f"--output must end in {', '.join(Output.suffixes)}, got {', '.join(wrong)}")
    try:
        with Client(
            arguments.url, protocol=arguments.protocol, model=arguments.model, timeout=arguments.timeout
        ) as client:
            result = watch(arguments, client, print)
    except (Sam3ServerError, SourceError, ValueError) as error:
        print(f"sam3-camera: {error}", file=sys.stderr)
        print(json.dumps({"source": str(arguments.source), "error": str(error)}))
        return 2
    print(
        f"{result['frames']} frames, {result['failed']} failed, {result['detections']} detections, {result['fps']} fps,"
        f" p50 {result['p50_ms']} ms, p95 {result['p95_ms']} ms"
    )
    print(json.dumps(result))
    return 1 if result["failed"] or not result["frames"] else 0


if __name__ == "__main__":
    sys.exit(main())
