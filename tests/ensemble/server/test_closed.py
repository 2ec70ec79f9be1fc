"""Endpoints that change the server for all, asked for at the real one."""

import json
import urllib.error
import urllib.request

import pytest
import tritonclient.grpc as triton

from ensemble.server.closed import CLOSABLE, closing

pytestmark = pytest.mark.server
CLOSED_ROUTES = {
    "log settings": ("/v2/logging", {"log_verbose_level": 9}),
    "traces": ("/v2/trace/setting", {"trace_level": ["TIMESTAMPS"]}),
    "shared memory": ("/v2/systemsharedmemory/region/x/register", {"key": "/x", "offset": 0, "byte_size": 8}),
    "shared memory of a GPU": ("/v2/cudasharedmemory/status", None),
}


@pytest.mark.parametrize(("path", "body"), CLOSED_ROUTES.values(), ids=CLOSED_ROUTES)
@pytest.mark.parametrize("key", [None, "guessed"])
def test_what_changes_the_server_is_closed_over_http(server, path, body, key):
    request = urllib.request.Request(
        f"http://{server.http_url}{path}", None if body is None else json.dumps(body).encode()
    )
    if key:
        request.add_header("sam3-administration", key)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    assert refused.value.code == 403


def test_what_changes_the_server_is_closed_over_grpc(server):
    with triton.InferenceServerClient(server.grpc_url) as asked:
        for call in (
            lambda: asked.update_log_settings({"log_verbose_level": 9}),
            lambda: asked.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
            lambda: asked.register_system_shared_memory("x", "/x", 8),
            asked.get_cuda_shared_memory_status,
        ):
            with pytest.raises(triton.InferenceServerException, match="restricted"):
                call()
        assert asked.get_model_repository_index(as_json=True)["models"], "what clients read stays open"


def test_what_is_opened_is_not_closed():
    (http, grpc) = closing(("shared-memory",))
    assert http.startswith("--http-restricted-api=trace,logging:sam3-administration=")
    assert grpc.startswith("--grpc-restricted-protocol=trace,logging:sam3-administration=")
    assert closing(CLOSABLE) == []
    assert len({word.rpartition("=")[2] for word in (*closing(), *closing())}) == 4, "each value is drawn anew"
