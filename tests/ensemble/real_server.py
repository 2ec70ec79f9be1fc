"""What tests do to a running server: requests past the clients of this project, and looking up its processes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import np_to_triton_dtype


def infer(server, protocol, request, model):
    """Straight through tritonclient, so that nothing of ours stands between bad input and the server."""
    module = {"grpc": tritonclient.grpc, "http": tritonclient.http}[protocol]
    client = module.InferenceServerClient(server.grpc_url if protocol == "grpc" else server.http_url)
    try:
        inputs = [
            module.InferInput(n, list(a.shape), np_to_triton_dtype(a.dtype)).set_data_from_numpy(a)
            for n, a in request.items()
        ]
        return client.infer(model, inputs)
    finally:
        client.close()


def stubs(server, model):
    """Process ids of a model's python instances; a stub is told its server's shared-memory prefix."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if any(w.startswith(server.identity) for w in words) and any(f"/{model}/" in w for w in words):
                found.append(int(path.parent.name))
    return found
