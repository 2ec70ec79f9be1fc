"""Two engine processes behind one model, as on two GPUs, here both on the CPU: they share the load, their batches stay
full, and every frame is answered."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from clients.connection import AsyncClient
from ensemble import pbtxt
from ensemble.server.embedded import EmbeddedServer
from perf.sweep import inputs, metrics
from tests.ensemble.real_server import stubs

pytestmark = pytest.mark.server

FRONT, FRAMES, UNDER_WAY = "sam3_r140", 160, 16
FAIR = 0.25
"""Of the work, which each of the two does at least."""
LEAST_BATCH = 2
"""Frames of a call on average: of 16 under way, each of two instances has 8, some of which are under way elsewhere."""


def seconds(pid):
    """Processor time that a process has taken."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def load(url):
    """So many frames, with as many under way; how much was found in each."""
    shown, waiting = inputs.pictures(4), asyncio.Semaphore(UNDER_WAY)
    async with AsyncClient(url, model=FRONT, timeout=300) as client:

        async def ask(frame):
            async with waiting:
                return len(await client.detect(frame.jpeg, list(frame.names)))

        return await asyncio.gather(*(ask(shown[i % 4]) for i in range(FRAMES)))


@pytest.mark.parametrize("direct", [True, False], ids=["called by clients", "called by front models"])
def test_two_instances_share_the_load(repository, monkeypatch, direct):
    monkeypatch.setattr(pbtxt, "_place", lambda gpus: "kind: KIND_CPU, count: 2")
    with EmbeddedServer(repository, resolutions=[140], front={"front_instances": 8}, direct=direct) as running:
        pids = stubs(running, FRONT if direct else "sam3_engine")
        before = [seconds(pid) for pid in pids]
        found = asyncio.run(load(running.grpc_url))
        took = [seconds(pid) - was for pid, was in zip(pids, before, strict=True)]
        calls = metrics.value(
            metrics.scrape(running.metrics_url), "sam3_sub_model_calls_total", model=FRONT, part="vision_encoder"
        )
    assert len(pids) == 2
    assert len(found) == FRAMES
    assert all(found[i] == found[i % 4] > 0 for i in range(FRAMES))
    assert min(took) > FAIR * sum(took)
    assert FRAMES / calls > LEAST_BATCH
