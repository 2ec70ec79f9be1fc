"""Which cards plans of TensorRT for RTX are built for: as they are given on a command line, 86 for 8.6."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from ensemble.engines.plans.cards import CARDS, INSTALL
from ensemble.engines.plans.library import module_of

USUAL = (86, 89, 120)
"""What is built for where nobody says, on a machine without a GPU."""
FP8_FROM = 89
"""Ada: the first that multiplies E4M3. For an older card the builder refuses a graph with fp8."""


def import_rtx() -> Any:
    """The package. Raises ImportError where it is not installed."""
    name = module_of("tensorrt_rtx")
    if name is None:
        raise ImportError(f"expected TensorRT for RTX in this Python, found none; {INSTALL}")
    return importlib.import_module(name)


def dotted(capability: int) -> str:
    """As people write it: "8.6" of 86, "12.0" of 120."""
    return f"{capability // 10}.{capability % 10}"


def check_capabilities(capabilities: Sequence[int]) -> None:
    """Raises ValueError where one is not of a card that TensorRT for RTX builds for."""
    for capability in capabilities:
        if dotted(capability) not in CARDS:
            known = ", ".join(f"{number.replace('.', '')} ({cards})" for number, cards in CARDS.items())
            raise ValueError(
                f"engine tensorrt_rtx builds for compute capabilities {known}; got {capability}. For data-centre cards"
                " of other generations, as Hopper (90) and Blackwell (100), use --engine aoti, or --engine tensorrt in"
                " the container of docker-compose.yml"
            )
