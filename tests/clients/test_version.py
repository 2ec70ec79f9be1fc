"""A client that has an input which the server's model does not know is told so, by the real server."""

import numpy as np
import pytest

from clients import Client, WrongVersion, connection
from clients.message import build_request
from ensemble.spec import Variant

pytestmark = pytest.mark.server


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_of_another_version_is_named(server, protocol, monkeypatch):
    def newer(*arguments, **options):
        return build_request(*arguments, **options) | {"new": np.zeros((1, 1), np.float32)}

    monkeypatch.setattr(connection, "build_request", newer)
    url = server.grpc_url if protocol == "grpc" else server.http_url
    with (
        Client(url, protocol=protocol, model=Variant(140).front_name) as client,
        pytest.raises(WrongVersion, match=r"other inputs or outputs .*new.*; client and server are of different"),
    ):
        client.detect(np.zeros((20, 20, 3), np.uint8), ["a"])
