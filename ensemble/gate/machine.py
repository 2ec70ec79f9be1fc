"""What an artifact's answers depend on beside its file: the device, its driver, and the version of what runs it."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata
from pathlib import Path

from ensemble.server import gpu
from ensemble.spec import find_engine

PACKAGES = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "aoti": ("torch",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
}
"""Engine -> packages that carry it."""


def conditions(engine: str, card: gpu.Gpu | None) -> dict[str, str]:
    """Under which an artifact of that engine runs on that GPU, or on this machine's processor for None: what a record
    of the gate holds, and what a later start compares with it."""
    device = {"gpu": card.name, "driver": gpu.driver_version() or "unknown"} if card else {"processor": processor()}
    return {**device, "engine": f"{engine} {engine_version(engine) or 'unknown'}"}


def conditions_here(engine: str) -> dict[str, str]:
    """`conditions` of the first GPU, for an engine that needs one, or of the processor."""
    return conditions(engine, gpu.serving() if find_engine(engine).on_gpu else None)


def built_on() -> dict[str, str]:
    """By what and on what an artifact is built, for its manifest."""
    card = gpu.serving()
    try:
        version = metadata.version("sam3-triton")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        version = "unknown"
    return {"by": f"sam3-triton {version}", "processor": processor(), "gpu": card.name if card else "none"}


def engine_version(engine: str) -> str | None:
    """Of the package of an engine, without importing it; None where it is not installed."""
    for package in PACKAGES[engine]:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


@cache
def processor() -> str:
    """Name of this machine's processor: results in fp32 differ by which products it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    pairs = (line.split(":", 1) for line in reversed(lines) if ":" in line)  # of several cores, the first
    told = {name.strip(): value.strip() for name, value in pairs}
    names = [told[key] for key in ("model name", "cpu family", "model") if key in told]
    return " ".join(names) or platform.machine()


def said(conditions: dict[str, str]) -> str:
    """As in "NVIDIA GeForce RTX 4090, driver 580.95, aoti 2.11.0"."""
    words = {"driver": "driver "}
    return ", ".join(f"{words.get(name, '')}{value}" for name, value in conditions.items())
