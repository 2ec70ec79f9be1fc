"""The package TensorRT for RTX: whether it is installed, what it builds for, and how old a plan's version is.

It knows the consumer cards from Turing on and the A100. Data-centre cards of the Hopper and Blackwell generations are
not among them: those have the full TensorRT of the container.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")
"""Names of the module: of the meta package, and of the bindings alone, which the extra `rtx` installs."""
PACKAGES = ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings")
INSTALL = 'pip install "sam3-triton[rtx]"'

CARDS = {
    75: "RTX 20 series, T4",
    80: "A100, A30",
    86: "RTX 30 series, A10",
    89: "RTX 40 series, L4, L40",
    120: "RTX 50 series, RTX PRO Blackwell",
    121: "GB10",
}
"""Compute capabilities that it builds for (86 for 8.6), and cards that have them."""
USUAL = (86, 89, 120)
"""What is built for where nobody says, on a machine without a GPU."""
FP8_FROM = 89
"""Ada: the first that multiplies E4M3. For an older card its builder refuses a graph with fp8."""


def import_rtx() -> Any:
    """The package. Raises ImportError where it is not installed."""
    names = [name for name in MODULES if importlib.util.find_spec(name)]
    if not names:
        raise ImportError(f"expected TensorRT for RTX in this Python; install it with {INSTALL}")
    return importlib.import_module(names[0])


def installed_version() -> str | None:
    """Version of the installed package ("1.7.1.116"), None where there is none. Its libraries are not loaded."""
    for package in PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def dotted(capability: int) -> str:
    """As people write it: "8.6" of 86, "12.0" of 120."""
    return f"{capability // 10}.{capability % 10}"


def check_capabilities(capabilities: Sequence[int]) -> None:
    """Raises ValueError where one is not of a card that TensorRT for RTX builds for."""
    for capability in capabilities:
        if capability not in CARDS:
            known = ", ".join(f"{number} ({cards})" for number, cards in CARDS.items())
            raise ValueError(
                f"engine tensorrt_rtx builds for compute capabilities {known}; got {capability}. For data-centre cards"
                " of other generations, as Hopper (90) and Blackwell (100), use --engine aoti, or --engine tensorrt in"
                " the container of docker-compose.yml"
            )
