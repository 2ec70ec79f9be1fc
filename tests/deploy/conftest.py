"""One real Envoy as `deploy/edge.yaml` before the session's server."""

from __future__ import annotations

import threading

import pytest

from tests.deploy.edge import Honest, envoy


@pytest.fixture(scope="session")
def edge(video_server, tmp_path_factory):
    with envoy(video_server, tmp_path_factory.mktemp("edge")) as running:
        yield running


@pytest.fixture(scope="module")
def honest(edge):
    asking = Honest(edge)
    thread = threading.Thread(target=asking.run)
    thread.start()
    yield asking
    asking.over.set()
    thread.join()
    assert not asking.errors
    assert asking.answers
