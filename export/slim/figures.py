"""Average precision of several versions of the small checkpoint on the same held-out scenes, as rows of a table.

Scenes are drawn once by all cores, and versions and resolutions are evaluated by processes side by side, on one GPU or
on the CPU: one frame at a time leaves a GPU idle most of the time.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from export.tiny.configuration import RESOLUTIONS
from export.tiny.evaluate import FULL_SIDE, Case, Judge, cases_of
from export.tiny.predictor import Detections, TorchPredictor, load_model
from export.tiny.random_scene import validation_seeds

Row = dict[str, Any]
_cases: list[Case] = []  # set before the processes start, which share it
STANDS_FOR = FULL_SIDE // RESOLUTIONS[0]
LOGITS = "logits_"
"""In front of names of figures about masks that are enlarged as logits and then cut."""


def rows(
    folders: Mapping[str, Path],
    resolutions: Sequence[int] = RESOLUTIONS,
    scenes: int = 500,
    device: str = "cpu",
    processes: int = 1,
) -> list[Row]:
    """`each` of checkpoint folders by scheme, with the figures of logits as those of masks."""
    found = []
    for row in each(folders, resolutions, scenes, device, processes):
        logits = {name: value for name, value in row.items() if name.startswith(LOGITS)}
        others = {name: value for name, value in row.items() if name not in logits}
        found.append(others | {name.removeprefix(LOGITS): value for name, value in logits.items()})
    return found


def each(
    folders: Mapping[str, Path],
    resolutions: Sequence[int] = RESOLUTIONS,
    scenes: int = 500,
    device: str = "cpu",
    processes: int = 1,
    predictors: Mapping[str, type[TorchPredictor]] = MappingProxyType({}),
) -> Iterator[Row]:
    """One row for each checkpoint folder (by scheme) and resolution, of questions in words, as they come:
    {"scheme", "resolution", "stands_for", "box_ap", "box_ap_small", "mask_ap", "logits_mask_ap", …}.

    `resolution` is the small checkpoint's in pixels; every spatial number of it is a quarter of the original's, so that
    it stands for one four times as large. `mask_ap` is of what a client gets, decisions at 4p a side that are enlarged
    to the frame; `logits_mask_ap` of logits that are enlarged and then cut. With several processes, ask for the first
    row before anything uses the GPU. A scheme in `predictors` is asked by another one than `TorchPredictor`.
    """
    global _cases
    # Whether there is a GPU is asked of its driver: CUDA, asked before a process forks, does not work after.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    context = multiprocessing.get_context("fork")  # the others would draw or copy all scenes again
    ask = {scheme: predictors.get(scheme, TorchPredictor) for scheme in folders}
    tasks = [(scheme, Path(folder), r, device, ask[scheme]) for r in resolutions for scheme, folder in folders.items()]
    if processes == 1:
        _cases = list(cases_of(validation_seeds(scenes)))
        yield from map(_row, tasks)
        return
    with context.Pool(processes, _single_thread) as pool:
        _cases = pool.map(_drawn, list(validation_seeds(scenes)), chunksize=4)
    with context.Pool(processes, _single_thread) as pool:
        yield from pool.imap_unordered(_row, tasks)


def _single_thread() -> None:
    torch.set_num_threads(1)


def _drawn(seed: int) -> Case:
    return next(cases_of([seed]))


def _row(task: tuple[str, Path, int, str, type[TorchPredictor]]) -> Row:
    scheme, folder, resolution, device, predictor = task
    predict = predictor(*load_model(folder, resolution, device), resolution)
    logits, cut = Judge(), Judge()
    for case in _cases:
        answers = predict(case.rendering.frame, [question.prompt for question in case.questions])
        logits.add(case, answers)
        cut.add(case, [packed(found) for found in answers])
    return row(scheme, resolution, len(_cases), cut.figures()) | logits_figures(logits.figures())


def packed(found: Detections) -> Detections:
    """With masks as a client gets them: decisions at the size that the model gives, 4p a side."""
    return replace(found, masks=found.masks > 0)


def row(scheme: str, resolution: int, scenes: int, found: Mapping[str, Any]) -> Row:
    """One row, of what a `Judge` found."""
    return {
        "scheme": scheme,
        "resolution": resolution,
        "stands_for": resolution * STANDS_FOR,
        "scenes": scenes,
        **precisions(found, "box"),
        **precisions(found, "mask"),
        "presence": round(found["text"]["presence_accuracy"], 4),
        "exemplar_box_ap": found["exemplar"]["box"]["AP"],
        "exemplar_mask_ap": found["exemplar"]["mask"]["AP"],
    }


def logits_figures(found: Mapping[str, Any]) -> Row:
    """What a row says of masks that are enlarged as logits, of what a `Judge` found."""
    figures = {**precisions(found, "mask"), "exemplar_mask_ap": found["exemplar"]["mask"]["AP"]}
    return {LOGITS + name: value for name, value in figures.items()}


def precisions(found: Mapping[str, Any], kind: str) -> Row:
    """{"box_ap", "box_ap50", "box_ap_small", …} for the kind "box", of questions in words."""
    names = (("", "AP"), ("50", "AP50"), ("_small", "APs"), ("_medium", "APm"), ("_large", "APl"))
    return {f"{kind}_ap{name}": found["text"][kind][figure] for name, figure in names}
