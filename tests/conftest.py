"""The real thing, once a session: the small checkpoint exported for ONNX Runtime, and the embedded Triton that serves
it."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemble.server.embedded import EmbeddedServer

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "export" / "tiny" / "checkpoint"


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The small checkpoint's folder."""
    return CHECKPOINT


@pytest.fixture(scope="session")
def repository() -> Path:
    """A repository with the small checkpoint at 252 (windows fill it) and 140 (windows are padded). The export skips
    what is up to date."""
    return exported("test-repository", "--resolution 252 140 --queries 50 --precision fp32 --engine onnxruntime")


@pytest.fixture(scope="session")
def video_repository() -> Path:
    """The same at 140 with the tracker."""
    options = "--video --resolution 140 --queries 50 --precision fp32 --engine onnxruntime"
    return exported("test-videos", options)


def exported(name: str, options: str) -> Path:
    """The repository of that name below build/. The export skips what is up to date."""
    folder = ROOT / "build" / name
    command = [sys.executable, "-m", "export.cli", "--checkpoint", str(CHECKPOINT), "--repository", str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:  # one session exports, others then find it done
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([*command, *options.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    """The embedded Triton on that repository, on free ports."""
    with EmbeddedServer(repository) as running:
        yield running


@pytest.fixture(scope="session")
def video_server(video_repository: Path) -> Iterator[EmbeddedServer]:
    """The embedded Triton on the repository with a tracker; its sessions have room for 118 objects together."""
    with EmbeddedServer(video_repository, video_memory_mb=30.0) as running:
        yield running
