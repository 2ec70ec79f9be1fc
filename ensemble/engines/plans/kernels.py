"""Kernels that TensorRT for RTX has finished for this card, kept beside the repository from start to start.

A file for each sub-model and kind of card: a SHA-256 of the rest and of which plan it is for, then what TensorRT wrote.
It is only ever a saving of time: where it cannot be read, is damaged or of another plan it is thrown away, and where it
cannot be written kernels are finished at each start. Standard library only.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

HEAD_BYTES = hashlib.sha256().digest_size


def file_for(plan: Path, card: str) -> Path:
    """Where the kernels of the plan REPOSITORY/MODEL/1/model.rtx for that card are: REPOSITORY.here/MODEL.CARD.kernels;
    links to the model's folder are followed."""
    plan = plan.resolve()
    repository = plan.parents[2]
    slug = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    return repository.parent / f"{repository.name}.here" / f"{plan.parents[1].name}.{slug}.kernels"


def load(plan: Path, card: str, accept: Callable[[bytes], bool]) -> bool:
    """Hands what is kept to `accept`, which says whether it can be used. Returns whether it was; throws away what
    cannot."""
    path = file_for(plan, card)
    try:
        kept = path.read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        log.warning("kept kernels in %s cannot be read (%s); they are finished anew", path, error.strerror)
        return False
    kernels = kept[HEAD_BYTES:]
    if kernels and kept[:HEAD_BYTES] == _head(plan, kernels) and accept(kernels):
        return True
    log.warning(
        "kept kernels in %s are damaged, or of another plan, card or version: they are thrown away and made anew", path
    )
    try:
        path.unlink()
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error.strerror)
    return False


def store(plan: Path, card: str, kernels: bytes) -> bool:
    """Writes them at once or not at all. Returns whether; where not, the log says what that means."""
    path = file_for(plan, card)
    partial = path.with_suffix(f".{os.getpid()}.partial")  # processes on several GPUs write at the same time
    try:
        path.parent.mkdir(exist_ok=True)
        partial.write_bytes(_head(plan, kernels) + kernels)
        partial.replace(path)
        return True
    except OSError as error:
        log.warning(
            "finished kernels cannot be kept in %s (%s): they are finished again at each start; make %s writable, with"
            " room for %.0f MB",
            *(path.parent, error.strerror, path.parent.parent, len(kernels) / 1e6),
        )
    try:
        partial.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed: %s", partial, error.strerror)
    return False


def _head(plan: Path, kernels: bytes) -> bytes:
    """Differs when a byte of the kernels does, or when the plan was written again: by its size and time, since it may
    have gigabytes."""
    stat = plan.stat()
    return hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns} ".encode() + kernels).digest()
