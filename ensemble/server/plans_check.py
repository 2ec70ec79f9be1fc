"""The check of plans of TensorRT for RTX before a server starts: package, card, version and file, from facts alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ensemble.engines.plans import plan_file
from ensemble.engines.plans.cards import why_not_built_for, why_not_here
from ensemble.engines.plans.library import why_not_in_this_python
from ensemble.gate.machine import engine_version
from ensemble.server.gpu import Gpu
from ensemble.server.repository import Artifact
from ensemble.server.requirements import ServerError

ENGINE = "tensorrt_rtx"


def check_plans(artifacts: Sequence[Artifact], card: Gpu | None) -> None:
    """Raises ServerError where one of these plans cannot be run on that card, with what to do. Other engines' artifacts
    are not looked at; without a card, only package and files are."""
    plans = [a for a in artifacts if a.engine == ENGINE and a.on_gpu]
    if not plans:
        return
    why = why_not_in_this_python(ENGINE) or (why_not_here(card.name, card.compute_capability) if card else None)
    if why:
        raise ServerError(why)
    for plan in plans:
        built_for = (plan.manifest.get("built_for") or {}).get("compute_capability", "")
        why = why_not_built_for(plan.model, built_for, card.name, card.compute_capability) if card else None
        if why:
            raise ServerError(why)
        try:
            plan_file.check(plan.path, engine_version(ENGINE) or plan_file.version_of(plan.path))
        except plan_file.PlanFileError as error:
            raise ServerError(str(error)) from None


def scratch_mb(artifacts: Iterable[Artifact]) -> float | None:
    """Megabytes that the largest of these plans computes in, as their builds noted; None where one did not."""
    noted = [a.manifest.get("build", {}).get("scratch_mb") for a in artifacts if a.on_gpu]
    return max(noted) if noted and None not in noted else None
