"""Average precision of several versions of the small checkpoint on the same held-out scenes, as rows of a table.

Scenes are drawn once by all cores, and versions and resolutions are evaluated by processes side by side, on one GPU or
on the CPU: one frame at a time leaves a GPU idle most of the time.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from export.tiny.configuration import RESOLUTIONS
from export.tiny.evaluate import FULL_SIDE, Case, cases_of, judge
from export.tiny.predictor import TorchPredictor, load_model
from export.tiny.random_scene import validation_seeds

Row = dict[str, Any]
_cases: list[Case] = []  # set before the processes start, which share it
STANDS_FOR = FULL_SIDE // RESOLUTIONS[0]


def rows(
    folders: Mapping[str, Path],
    resolutions: Sequence[int] = RESOLUTIONS,
    scenes: int = 500,
    device: str = "cpu",
    processes: int = 1,
    predictors: Mapping[str, type[TorchPredictor]] = MappingProxyType({}),
) -> list[Row]:
    """One row for each checkpoint folder (by scheme) and resolution, of questions in words:
    {"scheme", "resolution", "stands_for", "box_ap", "box_ap_small", "mask_ap", "mask_ap_small", …}.

    `resolution` is the small checkpoint's in pixels; every spatial number of it is a quarter of the original's, so that
    it stands for one four times as large. With several processes, call this before anything uses the GPU. A scheme in
    `predictors` is asked by another one than `TorchPredictor`.
    """
    global _cases
    # Whether there is a GPU is asked of its driver: CUDA, asked before a process forks, does not work after.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    context = multiprocessing.get_context("fork")  # the others would draw or copy all scenes again
    ask = {scheme: predictors.get(scheme, TorchPredictor) for scheme in folders}
    tasks = [(scheme, Path(folder), r, device, ask[scheme]) for r in resolutions for scheme, folder in folders.items()]
    if processes == 1:
        _cases = list(cases_of(validation_seeds(scenes)))
        return [_row(*task) for task in tasks]
    with context.Pool(processes, _single_thread) as pool:
        _cases = pool.map(_drawn, list(validation_seeds(scenes)), chunksize=4)
    with context.Pool(processes, _single_thread) as pool:
        return pool.starmap(_row, tasks, chunksize=1)


def _single_thread() -> None:
    torch.set_num_threads(1)


def _drawn(seed: int) -> Case:
    return next(cases_of([seed]))


def _row(scheme: str, folder: Path, resolution: int, device: str, predictor: type[TorchPredictor]) -> Row:
    predict = predictor(*load_model(folder, resolution, device), resolution)
    answered = ((case, predict(case.rendering.frame, [q.prompt for q in case.questions])) for case in _cases)
    return row(scheme, resolution, len(_cases), judge(answered))


def row(scheme: str, resolution: int, scenes: int, found: Mapping[str, Any]) -> Row:
    """One row of `rows`, of what `judge` found."""
    text = found["text"]
    return {
        "scheme": scheme,
        "resolution": resolution,
        "stands_for": resolution * STANDS_FOR,
        "scenes": scenes,
        **{
            f"{kind}_ap{name}": text[kind][figure]
            for kind in ("box", "mask")
            for name, figure in (("", "AP"), ("50", "AP50"), ("_small", "APs"), ("_medium", "APm"), ("_large", "APl"))
        },
        "presence": round(text["presence_accuracy"], 4),
        "exemplar_box_ap": found["exemplar"]["box"]["AP"],
        "exemplar_mask_ap": found["exemplar"]["mask"]["AP"],
    }
