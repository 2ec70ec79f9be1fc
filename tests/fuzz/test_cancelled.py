"""Some hundred requests that are taken back: whether the server lives or dies of it, it answers afterwards, and a
camera beside them is told of every frame. Thousands are a command's (`tests/fuzz/cancelled.py`)."""

import pytest

from ensemble.server.embedded import EmbeddedServer
from tests.fuzz import cancelled


@pytest.mark.server
def test_requests_that_are_taken_back_cost_no_camera_a_frame(repository):
    with EmbeddedServer(repository, resolutions=[140]) as own_server:
        account = cancelled.run(own_server, "sam3_r140", 485, 3)
    assert account["problems"] == []
    assert account["camera"]["answered"] >= 3
    taken_back = {"cancelled", "HTTP closed", "channel closed"} & account["ways"].keys()
    assert len(taken_back) >= 2
    assert sum(account["ways"].values()) == 485
