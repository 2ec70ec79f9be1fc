"""The record of an engine in the export: how its artifacts are built and opened, and what makes them stale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ensemble.records import ModelSpec
from ensemble.spec import EngineSpec, Variant
from export.engines.tensorrt.settings import TensorRT
from export.gate.verify import Run
from export.slim.calibration import Calibration
from export.sub_models.parts import Style

Build = Callable[[nn.Module, ModelSpec, Variant, Path], Mapping[str, Any]]
"""(module, its record, the variant it is of, file to write) -> what the manifest says of the build."""


class EngineError(RuntimeError):
    """The engine cannot be used here; the message says what is missing and what would work."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What the export adds to an engine's record in `ensemble/spec.py`.

    `style` says how its sub-models are written. `code` are the files and folders of `export/` whose change makes its
    artifacts stale, beside those that all engines share. `ready` checks that the engine can be used on this machine and
    returns its tool; it raises EngineError. `in_fp8` makes what is built in fp8 of a vision encoder in this style, by a
    calibration, and `in_int8` what is built in int8 of any sub-model, by inputs of it and a way to calibrate (one of
    `METHODS`), which processors do not ask for. `side_by_side`: several artifacts may be built at once.
    """

    spec: EngineSpec
    style: Style
    code: tuple[str, ...]
    ready: Callable[[TensorRT], Tool]
    in_fp8: Callable[[Any, Calibration], nn.Module] | None = None
    in_int8: Callable[[nn.Module, Sequence[Mapping[str, Any]], str], nn.Module] | None = None
    side_by_side: bool = False


@dataclass(frozen=True, slots=True)
class Tool:
    """An engine that is ready on this machine: `build` writes an artifact, `open` runs one (and may have a `close`);
    None where this machine cannot run what it builds, which then nobody believes before the gate has run elsewhere.

    `built_for` is what its artifacts are bound to, `settings` what else changes them; a change of either makes
    artifacts stale. `refused` are precisions that the engine makes, but not on this machine, and the sentence that says
    so.
    """

    engine: Engine
    build: Build
    open: Callable[[Path], Run] | None
    built_for: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
