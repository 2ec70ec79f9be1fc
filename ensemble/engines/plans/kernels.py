"""Kernels that TensorRT for RTX has finished for this card, kept beside the repository from start to start.

A file for each sub-model and kind of card. It is only ever a saving of time: where it cannot be read it is thrown away,
and where it cannot be written kernels are finished at each start. Standard library only.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)


def file_for(plan: Path, card: str) -> Path:
    """Where the kernels of the plan REPOSITORY/MODEL/1/model.rtx for that card are: REPOSITORY.here/MODEL.CARD.kernels;
    links to the model's folder are followed."""
    plan = plan.resolve()
    repository = plan.parents[2]
    slug = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    return repository.parent / f"{repository.name}.here" / f"{plan.parents[1].name}.{slug}.kernels"


def load(path: Path, accept: Callable[[bytes], bool]) -> bool:
    """Hands what is kept to `accept`, which says whether it can be used. Returns whether it was; throws away what
    cannot."""
    try:
        kept = path.read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        log.warning("kept kernels in %s cannot be read (%s); they are finished anew", path, error.strerror)
        return False
    if kept and accept(kept):
        return True
    log.warning(
        "kept kernels in %s are damaged, or of another card or version: they are thrown away and made anew", path
    )
    try:
        path.unlink()
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error.strerror)
    return False


def store(path: Path, kernels: bytes) -> bool:
    """Writes them at once or not at all. Returns whether; where not, the log says what that means."""
    try:
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(kernels)
        partial.replace(path)
        return True
    except OSError as error:
        log.warning(
            "finished kernels cannot be kept in %s (%s): they are finished again at each start; make %s writable",
            *(path.parent, error.strerror, path.parent.parent),
        )
        return False
