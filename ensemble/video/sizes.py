"""How much one object of a video takes. Standard library only."""

from __future__ import annotations

from ensemble.records import ITEM_BYTES
from ensemble.spec import Variant
from ensemble.tracker_interfaces import CONDITIONING_MAPS, MEMORY_WIDTH, RECENT_MAPS, RECENT_POINTERS, sizes

MAPS, POINTERS = CONDITIONING_MAPS + RECENT_MAPS, CONDITIONING_MAPS + RECENT_POINTERS
"""Memory maps and pointers that a slot has room for."""


def slot_bytes(variant: Variant) -> int:
    """Bytes of one slot of the bank: what one object remembers."""
    values = MAPS * variant.patches**2 * MEMORY_WIDTH + POINTERS * sizes(variant).hidden_size
    return ITEM_BYTES[variant.float_dtype] * values
