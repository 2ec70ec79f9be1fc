"""What NVML says of this machine: the same as the driver's own tool says, and nothing where there is no driver."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from ensemble.server import gpu


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "NVML", "libno-such-driver.so.1")
    assert gpu.gpus() == []
    assert gpu.used_mb() == 0


def test_a_machine_without_tensorrt(monkeypatch):
    monkeypatch.setattr(gpu, "TENSORRT", ("libno-such-tensorrt.so.11",))
    assert gpu.tensorrt_version() is None


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA driver here")
def test_the_first_gpu_is_what_nvidia_smi_says(monkeypatch):
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    shown = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    name, capability, megabytes = shown[0].split(", ")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (found,) = gpu.gpus()
    assert (found.name, found.compute_capability, round(found.total_mb)) == (name, capability, int(megabytes))
    assert 0 < found.free_mb <= found.total_mb
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.gpus() == []


def test_models_are_placed_on_the_first_of_several(monkeypatch):
    first, second = (gpu.Gpu(f"card {n}", "9.0", 1000.0 * n, 900.0) for n in (1, 2))
    monkeypatch.setattr(gpu, "gpus", lambda: [first, second])
    assert gpu.serving() == first
    assert gpu.used_mb() == 100.0
    monkeypatch.setattr(gpu, "gpus", list)
    assert gpu.serving() is None
