"""Load time, memory and speed of one scheme, measured in a process of its own; `measured` starts it.

The last line of the process's standard output is JSON: {"load_s", "memory_mb", "ms", "core_ms", "load"}, the last one
the machine's load in the minute before.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ensemble.server.repository import read
from ensemble.spec import MB
from export.tiny.evaluate import held_out
from export.tiny.predictor import TorchPredictor, load_model
from perf.bench.weights.schemes import EXPORTED, PREDICTORS

FRAMES, ROUNDS = 4, 3
"""Drawn frames that are timed, after one that is not, and how often; the figure is the mean of each frame's fastest
time, since other work on the machine only ever takes time away."""


def measured(scheme: str, folder: Path, resolution: int, device: str) -> dict[str, float]:
    """Seconds to load the scheme, MB of this machine's memory (on a GPU, of the GPU's) that it then takes beside what
    the process took before, milliseconds a frame with its five questions (`ms`, and `core_ms` of all its threads'
    processor time, which other work on the machine hardly changes), and the machine's load. Where that is more than its
    cores, there is no `ms`. Raises RuntimeError where the process fails."""
    command = [sys.executable, "-m", "perf.bench.weights.probe", scheme, str(folder), str(resolution), device]
    waiting = {"OMP_WAIT_POLICY": "PASSIVE"}  # threads that spin while they wait would count as at work
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | waiting)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"expected figures of {scheme} at {resolution}, its process ended with {last}")
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    if device == "cpu" and found["load"] > len(os.sched_getaffinity(0)):
        del found["ms"]
    return found


def main() -> None:
    """The process itself."""
    scheme, folder, resolution, device = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    cases = list(held_out(FRAMES + 1))
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.zeros(1, device=device)  # the context is the process's, not the model's
    before, start = memory_mb(device), time.perf_counter()
    times: dict[int, list[tuple[float, float]]] = {}
    turns = [0, *(list(range(1, FRAMES + 1)) * ROUNDS)]
    if scheme in EXPORTED:
        from perf.bench.in_process import opened

        served = next(one for one in read(folder) if one.variant.resolution == resolution)
        with opened(served) as answer:
            load_s, memory = time.perf_counter() - start, memory_mb(device) - before
            for n in turns:
                begun = clocks()
                list(answer([cases[n]]))
                times.setdefault(n, []).append(since(begun))
    else:
        loaded = load_model(folder, resolution, device)
        load_s, memory = time.perf_counter() - start, memory_mb(device) - before
        predict = PREDICTORS.get(scheme, TorchPredictor)(*loaded, resolution)
        asked = [(case.rendering.frame, [question.prompt for question in case.questions]) for case in cases]
        for n in turns:
            begun = clocks()
            predict(*asked[n])
            times.setdefault(n, []).append(since(begun))  # the answers are numpy's: nothing is under way
    ms, core_ms = (1e3 * statistics.mean(min(t[i] for t in times[n]) for n in range(1, FRAMES + 1)) for i in (0, 1))
    found = {"load_s": round(load_s, 3), "memory_mb": round(memory, 1), "ms": round(ms, 2)}
    if device == "cpu":
        found["core_ms"] = round(core_ms, 1)
    print(json.dumps(found | {"load": round(os.getloadavg()[0], 1)}))


def clocks() -> tuple[float, float]:
    """Seconds, and seconds of this process' threads at work."""
    return time.perf_counter(), time.process_time()


def since(begun: tuple[float, float]) -> tuple[float, float]:
    now = clocks()
    return now[0] - begun[0], now[1] - begun[1]


def memory_mb(device: str) -> float:
    """Of this process, or of its tensors on the GPU."""
    if device == "cuda":
        return torch.cuda.memory_allocated() / MB
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB


def least_cosine(predict: TorchPredictor, truth: TorchPredictor, frames: list[np.ndarray]) -> float:
    """The lowest cosine of a feature map of the vision encoder with that of `truth`, over frames uint8 [3,R,R]."""
    found = []
    for frame in frames:
        pixels = torch.from_numpy(frame).permute(1, 2, 0)[None].to(predict.model.device)
        with torch.inference_mode():
            pairs = zip(predict.see(pixels).fpn_hidden_states[:3], truth.see(pixels).fpn_hidden_states, strict=False)
            found += [float(torch.cosine_similarity(a.double().flatten(), b.double().flatten(), 0)) for a, b in pairs]
    return min(found)


if __name__ == "__main__":
    main()
