"""How sub-models get into a repository: each is built where it waits for the gate, and moved in when it has passed.

What the export of a variant and that of its tracker have in common.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ensemble.records import ModelSpec
from ensemble.spec import Variant
from export.calibration_options import METHODS
from export.checkpoint import Source
from export.engines.engine import Tool
from export.engines.tensorrt.settings import TensorRT
from export.gate.frames import Frame
from export.gate.verify import GateReport, Run
from export.manifest import manifest
from export.repository import VERSION, publish

Facts = dict[str, Any]
"""What is known about a build; see `staged_build`."""
Progress = Callable[[str], None]
"""Called with each step of an export as it begins, for a progress bar."""


@dataclass(frozen=True)
class Job:
    """One export: `variant` of `source` for `engine`, into the repository at `root`, verified on `frames`.

    `force` builds even what is current. With `locate`, failures of the gate name the first layer that is off. Artifacts
    wait for the gate in the folder `staging` (default: the one that the repository is in). fp8 and a GPU's int8 are
    calibrated on the pixels `calibration`, uint8 [3,R,R] each; without any, on drawn scenes, unless the repository has
    a calibration in fp8. int8 looks for `calibration_prompts` in them and has a `calibration_method` of `METHODS`.
    """

    source: Source
    variant: Variant
    engine: str
    root: Path
    frames: Sequence[Frame]
    force: bool = False
    locate: bool = False
    staging: Path | None = None
    calibration: Sequence[np.ndarray] = ()
    calibration_prompts: Sequence[str] = ()
    calibration_method: str = METHODS[0]
    tensorrt: TensorRT = field(default_factory=TensorRT)

    @property
    def staged(self) -> Path:
        """Where this variant's artifacts wait: outside the repository, which a server may be watching."""
        return (self.staging or self.root.parent) / f".{self.root.name}.{self.variant.front_name}"


def built_all(build: Callable[[str], Facts], parts: Sequence[str], side_by_side: bool) -> list[Facts]:
    """`build` of each part, in order. One after another they stay in this thread: `torch.export` crashes the process in
    a second one (2.11)."""
    if not side_by_side:
        return [build(part) for part in parts]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(build, parts))


def staged_build(
    job: Job, tool: Tool, model: ModelSpec, recipe: str, make: Callable[[], tuple[nn.Module, Facts]]
) -> Facts:
    """Builds the artifact of what `make` makes where it is staged, unless an interrupted export left it there. Returns
    the `recipe`, the `build_seconds`, and as `build` what the engine says of it and what `make` does."""
    folder = job.staged / model.name
    note = folder / "built.json"
    if note.is_file() and not job.force:
        facts = json.loads(note.read_text())
        if facts["recipe"] == recipe:
            return facts
    shutil.rmtree(folder, ignore_errors=True)
    (folder / VERSION).mkdir(parents=True)
    start = time.perf_counter()
    module, more = make()
    said = tool.build(module, model, job.variant, folder / VERSION / tool.engine.spec.artifact)
    facts = {"recipe": recipe, "build_seconds": round(time.perf_counter() - start, 2), "build": {**said, **more}}
    note.write_text(json.dumps(facts))
    return facts


@contextmanager
def opened(artifacts: Mapping[str, tuple[Tool, Path]]) -> Iterator[dict[str, Run]]:
    """The artifacts that this machine can run, by part what runs each and its folder, as functions until the end of the
    block."""
    with ExitStack() as stack:
        runs = {}
        for part, (tool, folder) in artifacts.items():
            if tool.open is not None:
                runs[part] = tool.open(folder / tool.engine.spec.artifact)
                stack.callback(getattr(runs[part], "close", lambda: None))
        yield runs


def admit(
    job: Job, tool: Tool, built: Mapping[str, Facts], recipes: Mapping[str, str], gate: GateReport | None
) -> None:
    """Moves what was built, by part, into the repository, unless the gate found fault: then that is discarded, and
    GateError raised."""
    names = {part: getattr(job.variant, part).name for part in built}
    if gate and gate.failures:
        discard(job.staged, list(names.values()), gate)
        gate.raise_for_failures()
    for part, facts in built.items():
        known = manifest(job.source, job.variant, part, recipes[part], tool, facts, gate)
        publish(job.staged / names[part], job.root / names[part], known)


def discard(staged: Path, built: Sequence[str], gate: GateReport) -> None:
    """Removes the staged models that the gate found fault with; all of them where it names none."""
    blamed = [name for name in built if any(failure.startswith(f"{name}:") for failure in gate.failures)]
    for name in blamed or built:
        shutil.rmtree(staged / name)
    if not any(staged.iterdir()):
        staged.rmdir()
