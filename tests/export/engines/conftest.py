"""Plans of TensorRT for RTX of the small checkpoint, and the graphs that they were built from."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ensemble.records import ModelSpec
from ensemble.spec import Variant
from export.checkpoint import at_size, load
from export.engines.onnx import export_onnx
from export.engines.registry import ready
from export.engines.tensorrt.definition import Definition, define
from export.engines.tensorrt.settings import TensorRT
from export.engines.tensorrt_rtx import engine
from export.engines.tensorrt_rtx.build import LEVEL, VersionRtx
from export.engines.tensorrt_rtx.package import USUAL
from export.manifest import recipe
from export.sub_models.parts import make_part
from export.sub_models.tracker.parts import TRACKER_PARTS, make_tracker_part

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def small(checkpoint: Path) -> Callable[[int], Variant]:
    """Resolution -> the small checkpoint's variant in fp16, as the export makes it."""
    record = load(str(checkpoint)).record
    return lambda resolution: Variant(resolution, 50, "fp16", checkpoint=record)


@pytest.fixture(scope="session")
def tracked(checkpoint: Path, small: Callable[[int], Variant]) -> Callable[[int], Variant]:
    """Resolution -> the same with its tracker."""
    tracker = load(str(checkpoint), video=True).tracker
    assert tracker is not None
    return lambda resolution: replace(small(resolution), tracker=tracker.record)


@pytest.fixture(scope="session")
def record(small: Callable[[int], Variant], tracked: Callable[[int], Variant]) -> Callable[[int, str], ModelSpec]:
    """(resolution, part) -> the part's record."""
    return lambda resolution, part: getattr((tracked if part in TRACKER_PARTS else small)(resolution), part)


@dataclass(frozen=True)
class Built:
    """A plan, the graph that it was built from, and what the manifest would say of the build."""

    plan: Path
    graph: Path
    info: dict[str, Any]


@pytest.fixture(scope="session")
def built(
    checkpoint: Path, small: Callable[[int], Variant], tracked: Callable[[int], Variant]
) -> Callable[[int, str], Built]:
    """(resolution, part) -> the plan as `sam3-export --engine tensorrt_rtx --compute-capability 86 89 120` builds it.
    Plans whose recipe has not changed are kept from run to run: most of the time goes into tracing their graphs."""
    source = load(str(checkpoint), video=True)
    tool = ready("tensorrt_rtx", TensorRT(compute_capability=USUAL))

    def module_of(resolution: int, part: str) -> nn.Module:
        if part not in TRACKER_PARTS:
            model = at_size(source.model, resolution, 50)
            if part == "decoder":  # from the second on, layers are alike, and each takes seconds to trace
                for layers in (model.detr_encoder.layers, model.detr_decoder.layers):
                    del layers[2:]
            return make_part(part, model, engine.ENGINE.style, "fp16")
        assert source.tracker is not None
        sized = source.tracker.at_size(resolution)
        return make_tracker_part(part, sized.model, sized.neck, engine.ENGINE.style, "fp16")

    @cache
    def build(resolution: int, part: str) -> Built:
        variant = (tracked if part in TRACKER_PARTS else small)(resolution)
        made_from = recipe(source, variant, part, tool)
        folder = ROOT / "build" / "test-plans" / f"{part}-{resolution}"
        files = folder / "model.rtx", folder / "model.onnx", folder / "built.json"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / "lock").open("w") as lock:  # one session builds, others then find it done
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not files[2].is_file() or json.loads(files[2].read_text())["recipe"] != made_from:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                module = module_of(resolution, part)
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(engine, "export_onnx", lambda *told: shutil.copy(export_onnx(*told), files[1]))
                    info = tool.build(module, getattr(variant, part), variant, files[0])
                files[2].write_text(json.dumps({"recipe": made_from, "info": info}))
        return Built(*files[:2], json.loads(files[2].read_text())["info"])

    return build


@pytest.fixture(scope="session")
def graph(built: Callable[[int, str], Built]) -> Callable[[int, str], Path]:
    """(resolution, part) -> the strongly typed graph that the plan was built from."""
    return lambda resolution, part: built(resolution, part).graph


@pytest.fixture(scope="session")
def defined(
    graph: Callable[[int, str], Path], record: Callable[[int, str], ModelSpec]
) -> Callable[[int, str], Definition]:
    """(resolution, part) -> what the builder is given."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    logger = trt.Logger(trt.Logger.ERROR)

    @cache
    def parsed(resolution: int, part: str) -> Definition:
        wanted = record(resolution, part)
        return define(trt, logger, VersionRtx(USUAL), graph(resolution, part), wanted, "fp16", LEVEL)

    return parsed
