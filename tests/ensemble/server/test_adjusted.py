"""Front models with other batches than they were exported with, without another export."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from clients.connection import AsyncClient
from ensemble.server import repository as placement
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError
from perf.sweep import inputs


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param(
            {"max_batch": 9},
            "sam3_r252: expected batches of at most 8, .* got 9; export it with --max-batch 9",
            id="more",
        ),
        pytest.param({"max_batch": 0}, "max_batch", id="no frame"),
        pytest.param({"front_instances": 0}, "front_instances", id="no instance"),
        pytest.param({"queue_delay_us": -1}, "queue_delay_us must be 0 or more, got -1", id="no time"),
    ],
)
def test_what_cannot_be_is_refused(repository: Path, changes: dict[str, int], sentence: str) -> None:
    with pytest.raises(ServerError, match=sentence):
        placement.adjusted(placement.read(repository), changes)


def test_nothing_asked_for_changes_nothing(repository: Path) -> None:
    found = placement.read(repository)
    assert placement.adjusted(found, {}) == found


@pytest.mark.server
def test_smaller_batches_on_one_instance(server: EmbeddedServer, repository: Path) -> None:
    shown = inputs.pictures(6)

    async def ask(url: str) -> list[tuple[int, int]]:
        async with AsyncClient(url, model="sam3_r140", timeout=120) as client:
            answers = await asyncio.gather(*(client.detect(frame.jpeg, list(frame.names)) for frame in shown))
            return [(answer.batch, len(answer)) for answer in answers]

    changed = {"max_batch": 2, "front_instances": 1, "queue_delay_us": 700}
    with EmbeddedServer(repository, resolutions=[140], front=changed) as own:
        written = own.root.joinpath("sam3_r140", "config.pbtxt").read_text()
        assert "max_batch_size: 2" in written
        assert "max_queue_delay_microseconds: 700" in written
        small = asyncio.run(ask(own.grpc_url))
    usual = asyncio.run(ask(server.grpc_url))
    assert max(batch for batch, _ in small) == 2
    assert [found for _, found in small] == [found for _, found in usual]
    assert sum(found for _, found in small) > 0
    assert "max_batch_size: 8" in (repository / "sam3_r140" / "config.pbtxt").read_text()
