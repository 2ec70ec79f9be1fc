"""A server for the time of one command: `sam3-serve`, which has to be installed beside the clients."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STOP_S = 30.0


class NoServer(ValueError):  # noqa: N818 - the name says what is wrong
    """`sam3-serve` is not installed or did not start; the message says which."""


@contextmanager
def own_server(repository: Path, videos: int, objects: int, memory: str | None = None) -> Iterator[str]:
    """host:port (gRPC) of a server of that repository with room for so many videos of so many objects, which takes at
    most `memory` ("8GB") of the GPU; its log is this process' stderr. Raises NoServer."""
    command = shutil.which("sam3-serve", path=str(Path(sys.executable).parent)) or shutil.which("sam3-serve")
    if command is None:
        raise NoServer("expected sam3-serve beside sam3-video, found none; install it with pip install '.[serve]'")
    ports = [word for kind in ("http", "grpc", "metrics") for word in (f"--{kind}-port", "0")]
    words = [command, "--repository", str(repository), "--videos", str(videos), "--video-objects", str(objects), *ports]
    words += ["--gpu-memory", memory] if memory else []
    # A session of its own: Ctrl-C ends the films first.
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None, "it is a pipe"
        told = process.stdout.readline()
        if not told:
            raise NoServer(f"sam3-serve ended with status {process.wait()}; what it says is above")
        yield str(json.loads(told)["grpc"])
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
