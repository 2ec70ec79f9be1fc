"""Sub-models that take turns: every frame of two busy front models is answered, and nothing of the lock is left
behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from clients.connection import AsyncClient
from ensemble.engines.turns import turns_path
from ensemble.server.embedded import EmbeddedServer
from perf.sweep import inputs

FRAMES = 24

pytestmark = pytest.mark.server


def test_every_frame_is_answered_in_turns(repository: Path) -> None:
    """Batches of one frame, so that both instances of the front model have work."""
    shown = inputs.pictures(4)

    async def ask(url: str) -> list[int]:
        async with AsyncClient(url, model="sam3_r140", timeout=120) as client:
            frames = [shown[i % len(shown)] for i in range(FRAMES)]
            answers = await asyncio.gather(*(client.detect(f.jpeg, list(f.names)) for f in frames))
            return [len(answer) for answer in answers]

    with EmbeddedServer(repository, resolutions=[140], front={"max_batch": 1}) as server:
        assert server.pid
        lock = turns_path(server.pid)
        assert lock.is_file()  # made by the sub-models' processes: the server is their parent
        found = asyncio.run(ask(server.grpc_url))
    assert len(found) == FRAMES
    assert all(found[i] == found[i % len(shown)] > 0 for i in range(FRAMES))
    assert not lock.exists()
