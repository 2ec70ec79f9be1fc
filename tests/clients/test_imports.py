"""Importing the client library and starting `sam3-camera` load only what a camera's base install has."""

import subprocess
import sys

import pytest

HEAVY = {
    *("cupy", "fastapi", "matplotlib", "onnx", "onnxruntime", "pycocotools", "pytriton", "scipy", "supervision"),
    *("tensorrt", "tokenizers", "torch", "torchvision", "transformers", "uvicorn", "clients.dashboard"),
    *("demo", "export", "perf", "ensemble.server"),
}
"""Packages of extras and of other rooms."""


@pytest.mark.parametrize(
    "program",
    [
        "import clients",
        "from clients.camera import main; main(['--config', 'none.yaml'])",
        "import runpy; sys.argv = ['sam3-camera', '--help']; runpy.run_module('clients.camera', run_name='__main__')",
    ],
    ids=["import clients", "sam3-camera --config", "sam3-camera --help"],
)
def test_only_the_base_install_is_imported(program):
    code = f"import atexit, sys; atexit.register(lambda: print('loaded', *sys.modules)); {program}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    loaded = done.stdout.rpartition("loaded ")[2].split()
    assert "clients" in loaded, done.stderr
    assert HEAVY.isdisjoint(loaded)


def test_the_door():
    """What the README imports."""
    from clients import AsyncClient, Client, Detections, open_source

    assert all((AsyncClient, Client, Detections, open_source))
