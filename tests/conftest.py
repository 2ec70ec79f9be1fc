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
    folder = ROOT / "build" / "test-repository"
    options = "--resolution 252 140 --queries 50 --precision fp32 --engine onnxruntime"
    command = [sys.executable, "-m", "export.cli", "--checkpoint", str(CHECKPOINT), "--repository", str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "test-repository.lock").open("w") as lock:  # one session exports, others then find it done
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([*command, *options.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    """The embedded Triton on that repository, on free ports."""
    with EmbeddedServer(repository) as running:
        yield running
