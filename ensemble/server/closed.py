"""What of Triton's protocols is closed: endpoints that no client of a model needs, and that change the server for all.

Whoever reaches the ports could otherwise read and write the memory that its python models exchange tensors through
(shared memory), fill a disk (traces) or hide what happens (log settings). Triton asks there for a header with a value,
which is drawn anew at each start and which nobody is told.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence

CLOSABLE = ("shared-memory", "trace", "logging")
"""Triton's own names of these groups of endpoints."""
FLAGS = ("--http-restricted-api", "--grpc-restricted-protocol")


def closing(opened: Collection[str] = (), arguments: Sequence[str] = ()) -> list[str]:
    """Arguments of tritonserver that close what is not `opened`; none where `arguments`, which the server gets too,
    restrict a protocol in their own way."""
    closed = [name for name in CLOSABLE if name not in opened]
    return [
        f"{flag}={','.join(closed)}:sam3-administration={secrets.token_hex(16)}"
        for flag in FLAGS
        if closed and not any(word.startswith(flag) for word in arguments)
    ]
