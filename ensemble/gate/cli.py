"""`sam3-export verify`: measures a repository's artifacts on this machine by the truths that its export stored.

It needs what serves them and NumPy, neither PyTorch nor the checkpoint. What passes is noted beside the repository, and
`sam3-serve` believes it until the file, the GPU, its driver or the engine's version changes.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ensemble.engines import SubModel, open_sub_model
from ensemble.engines.device import release_memory
from ensemble.gate import truths
from ensemble.gate.compare import GateError, OutputCheck
from ensemble.gate.limits import limits_of
from ensemble.gate.machine import conditions
from ensemble.gate.measure import failures, measure
from ensemble.gate.record import Record
from ensemble.gate.truths import Truths, TruthsError
from ensemble.server import gpu
from ensemble.server.plans_check import check_plans
from ensemble.server.repository import Artifact, Served, choose, read
from ensemble.server.requirements import ServerError, check_repository

log = logging.getLogger("ensemble.gate")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sam3-export verify", description=__doc__)
    add = parser.add_argument
    add("repository", type=Path, help="folder that sam3-export wrote")
    add("--resolution", type=int, nargs="+", default=[], help="measure these alone; default: all of the repository")
    add("--front", help="measure the sub-models of this front model alone")
    add("--models", nargs="+", default=[], help="measure these sub-models alone")
    add("--gpu", type=int, default=0, help="number of the GPU, for engines that need one; default %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0: all passed; 1: something failed, or could not be opened. The last line of standard output is JSON."""
    options = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        check_repository(options.repository)
        result = measured(options)
    except (ServerError, TruthsError) as error:
        result = {"ok": False, "error": str(error)}
    if not result["ok"]:
        log.error("%s", result["error"])
    print(json.dumps(result))
    return 0 if result["ok"] else 1


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """What is measured and its figures. Raises ServerError and TruthsError for what cannot be looked at."""
    repository: Path = options.repository
    found = choose(read(repository), options.resolution) if options.resolution else read(repository)
    fronts = [s for s in found if options.front in (None, s.variant.front_name)]
    record, wrong, outputs = Record.read(repository), [], {}
    cards = gpu.gpus()
    card = cards[options.gpu] if options.gpu < len(cards) else None
    check_plans([artifact for one in fronts for _, artifact in _artifacts(one, options.models)], card)
    for one in fronts:
        held = _truths_of(one, options.models)
        for part, artifact in _artifacts(one, options.models):
            if artifact.model in outputs:
                continue  # the text encoder of several front models
            checks, failed, more = _measure(artifact, part, held, options.gpu)
            outputs[artifact.model] = {c.output: [c.cosine, c.relative] for c in checks}
            wrong += failed
            if not failed:
                on = conditions(artifact.engine, card if artifact.on_gpu else None)
                digests = record.digests(artifact.path.parent)
                record.note(artifact.model, digests, on, held.made_from, checks, more)
    if not outputs:
        raise ServerError(f"expected sub-models {' '.join(options.models)} in {repository}, found none of them")
    record.write()
    if wrong:
        return {"ok": False, "error": "; ".join(wrong), "failures": wrong, "outputs": outputs}
    return {"ok": True, "outputs": outputs}


def _truths_of(one: Served, models: Sequence[str]) -> Truths:
    path = one.folder / truths.FILE
    try:
        found = replace(truths.read(path), variant=one.variant)  # they are the same for every precision
    except FileNotFoundError:
        raise TruthsError(
            f"expected truths to measure {one.variant.front_name} by in {path}, found no such file; write the"
            " repository again with sam3-export"
        ) from None
    tracker = [model.name for model in one.variant.tracker_parts if not models or model.name in models]
    if tracker and not truths.holds_tracker(found.arrays):
        raise TruthsError(
            f"expected truths to measure {', '.join(tracker)} by in {path}, found those of a detector alone; write the"
            " repository again with sam3-export --video, or name other sub-models with --models"
        )
    return found


def _artifacts(one: Served, models: Sequence[str]) -> list[tuple[str, Artifact]]:
    """Parts and artifacts, the tracker's too; the text encoder's form for the CPU among them where there is one."""
    every = (*one.variant.sub_models, *one.variant.tracker_parts)
    pairs = [(m.part, a) for m, a in zip(every, (*one.artifacts, *one.tracker), strict=True)]
    if one.text_encoder_cpu.path.is_file():
        pairs.append(("text_encoder", one.text_encoder_cpu))
    return [(part, artifact) for part, artifact in pairs if not models or artifact.model in models]


def _measure(
    artifact: Artifact, part: str, held: Truths, number: int
) -> tuple[list[OutputCheck], list[str], dict[str, Any]]:
    """Checks, sentences of what failed, and what else the runner tells (megabytes of scratch memory)."""
    limits = limits_of(held.variant, part)
    try:
        run = open_sub_model(artifact.engine, artifact.path, number if artifact.on_gpu else None)
        checks = measure(run, part, artifact.model, held, limits)
        more = _told(run)
        del run  # and below with it the GPU's memory: the next may need all that there is
    except GateError as error:
        return [], [f"{artifact.model}: {error}"], {}
    except Exception as error:  # of whatever library opens and runs it: this sub-model cannot be served
        return [], [f"{artifact.model} cannot be run here: {type(error).__name__}: {error}"], {}
    gc.collect()
    release_memory()
    for check in checks:
        log.info("%s: %s: cosine %.7f, relative error %.1e", artifact.model, check.output, check.cosine, check.relative)
    return checks, failures(checks, limits), more


def _told(run: SubModel) -> dict[str, Any]:
    """What a runner says of its memory, where it does; for `ensemble/server/memory.py`."""
    memory = getattr(getattr(run, "__self__", run), "memory", None)
    return {"memory": memory} if memory else {}


if __name__ == "__main__":
    raise SystemExit(main())
