"""A repository's ONNX files, run in this process under ONNX Runtime's profiler: kinds of kernels and a trace."""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.nvtx_ranges import unmarked
from ensemble.records import ModelSpec

PRODUCTS = ("MatMul", "Gemm", "Conv", "Attention", "Einsum")
"""Kinds whose name holds one of these multiply matrices; the others move and change numbers, and memory is their
limit."""


class OnnxSessions:
    """`call` for a `Pipeline`: an ONNX Runtime session per sub-model, with its profiler on."""

    annotate = staticmethod(unmarked)

    def __init__(self, repository: Path, folder: Path) -> None:
        self._repository, self._folder = repository, folder
        self._calls: dict[str, int] = defaultdict(int)
        self._warm: dict[str, int] = {}
        self._open: dict[str, Any] = {}

    def __call__(self, model: ModelSpec, tensors: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        if model.part not in self._open:
            self._open[model.part] = self._session(model)
        self._calls[model.part] += 1
        found = self._open[model.part].run(list(outputs), {name: np.asarray(value) for name, value in tensors.items()})
        return dict(zip(outputs, found, strict=True))

    def warm(self) -> None:
        """What was called so far is not counted."""
        self._warm = dict(self._calls)

    def finish(self, trace: Path, rounds: int) -> list[dict[str, Any]]:
        """Ends the sessions; writes the trace and returns the table of kernels."""
        events = {}
        for part, session in self._open.items():
            path = Path(session.end_profiling())
            found = json.loads(path.read_text())
            path.unlink()
            runs = sorted(e["ts"] for e in found if e.get("name") == "model_run")
            first = runs[self._warm.get(part, 0)] if self._warm.get(part, 0) < len(runs) else float("inf")
            events[part] = [e for e in found if e.get("ts", 0) >= first]
        write_trace(events, trace)
        return kernels(events, rounds)

    def _session(self, model: ModelSpec) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(self._folder / model.part)
        path = self._repository / model.name / "1" / "model.onnx"
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    @staticmethod
    def ceilings() -> dict[str, float]:
        """What this machine reaches: GFLOP/s of a product of fp32 matrices of 1536 a side, GB/s of a copy of 256 MB
        (read and written), best of three."""
        a = np.random.default_rng(0).random((1536, 1536), np.float32)
        block = np.zeros(64 << 20, np.float32)
        target = np.empty_like(block)
        products, copies = [], []
        for _ in range(3):
            start = time.perf_counter()
            a @ a
            products.append(time.perf_counter() - start)
            start = time.perf_counter()
            np.copyto(target, block)
            copies.append(time.perf_counter() - start)
        return {
            "gflop_s": round(2 * 1536**3 / min(products) / 1e9, 1),
            "copy_gb_s": round(2 * block.nbytes / min(copies) / 1e9, 1),
        }


def kernels(events: Mapping[str, Sequence[Mapping[str, Any]]], rounds: int) -> list[dict[str, Any]]:
    """One record per part and kind of kernel, the longest first: milliseconds and launches per round, of the median
    call."""
    rows = []
    for part, found in events.items():
        starts = sorted(e["ts"] for e in found if e.get("name") == "model_run")
        spent: dict[str, list[list[float]]] = {}
        for event in found:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                calls = spent.setdefault(event["args"]["op_name"], [[] for _ in starts])
                calls[bisect_right(starts, event["ts"]) - 1].append(event["dur"] / 1e3)
        for kind, calls in spent.items():
            a_round = len(calls) / rounds
            milliseconds = float(np.median([sum(call) for call in calls])) * a_round
            launches = round(float(np.median([len(call) for call in calls])) * a_round)
            limit = "arithmetic" if any(name in kind for name in PRODUCTS) else "memory"
            row = {"part": part, "kernel": kind, "ms": round(milliseconds, 3), "launches": launches}
            rows.append(row | {"limit": limit})
    return sorted(rows, key=lambda row: -row["ms"])


def write_trace(events: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """All parts in one file in Chrome's trace format: a process a part."""
    merged: list[dict[str, Any]] = []
    for number, (part, found) in enumerate(events.items()):
        merged.append({"ph": "M", "name": "process_name", "pid": number, "args": {"name": part}})
        merged += [dict(event) | {"pid": number} for event in found]
    path.write_text(json.dumps({"traceEvents": merged}))
