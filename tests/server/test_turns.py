"""Sub-models that take turns: every frame of two busy front models is answered, and nothing of the lock is left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from clients.connection import AsyncClient
from ensemble.server import EmbeddedServer
from ensemble.turns import turns_path
from perf import inputs

FRAMES = 24

pytestmark = pytest.mark.server


@pytest.fixture
def single_frames(repository: Path, tmp_path: Path) -> Path:
    """The repository at 140 with batches of one frame, so that both instances of the front model have work."""
    for model in repository.iterdir():
        if model.name.endswith("r252") or "_r252_" in model.name:
            continue
        (tmp_path / model.name).mkdir()
        for entry in model.iterdir():
            if entry.name != "config.pbtxt":
                (tmp_path / model.name / entry.name).symlink_to(entry)
        config = (model / "config.pbtxt").read_text()
        if model.name == "sam3_r140":
            config = config.replace("max_batch_size: 8", "max_batch_size: 1")
        (tmp_path / model.name / "config.pbtxt").write_text(config)
    return tmp_path


def test_every_frame_is_answered_in_turns(single_frames: Path) -> None:
    shown = inputs.pictures(4)

    async def ask(url: str) -> list[int]:
        async with AsyncClient(url, model="sam3_r140", timeout=120) as client:
            frames = [shown[i % len(shown)] for i in range(FRAMES)]
            answers = await asyncio.gather(*(client.detect(f.jpeg, list(f.names)) for f in frames))
            return [len(answer) for answer in answers]

    with EmbeddedServer(single_frames) as server:
        assert server.pid
        lock = turns_path(server.pid)
        assert lock.is_file()  # made by the sub-models' processes: the server is their parent
        found = asyncio.run(ask(server.grpc_url))
    assert len(found) == FRAMES
    assert all(found[i] == found[i % len(shown)] > 0 for i in range(FRAMES))
    assert not lock.exists()
