"""What the embedded Triton needs, looked for before it starts: a repository, its package, NumPy 1.26 and libpython.

Triton's own messages name symptoms; these name the cause and the remedy.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

PYTHONS = ("3.10", "3.11", "3.12")


class ServerError(RuntimeError):
    """The server cannot start or has stopped; the message says why and what to do."""


def check_all(repository: Path) -> tuple[Path, Path | None]:
    """Where Triton's package and Python's library are, which serve `repository`. Raises ServerError where anything is
    missing that the embedded server needs."""
    check_repository(repository)
    package = find_triton()
    check_numpy()
    return package, find_libpython()


def check_repository(repository: Path) -> None:
    """Raises ServerError unless the folder holds at least one model."""
    if not any(repository.glob("*/config.pbtxt")):
        raise ServerError(
            f"expected a model repository at {repository}, found no */config.pbtxt; write one with sam3-export"
            f" --repository {repository}"
        )


def find_triton() -> Path:
    """The folder of the `pytriton` package, found without importing it. Raises ServerError on another Python than
    `PYTHONS`, and where it is not installed."""
    if _python_version() not in PYTHONS:
        raise ServerError(
            f"expected Python {', '.join(PYTHONS)}, for which the embedded Triton and NumPy 1.26 have packages, this is"
            f" {_python_version()}; make the environment with one of those"
        )
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(
            "expected the nvidia-pytriton package, which carries the Triton server; install it with pip install -e"
            ' ".[serve]"'
        )
    return Path(next(iter(spec.submodule_search_locations)))


def check_numpy() -> None:
    """Raises ServerError on NumPy 2: the python backend of Triton 24.10 reads its arrays wrongly and crashes."""
    import numpy

    if int(numpy.__version__.split(".")[0]) >= 2:
        raise ServerError(
            f"expected NumPy 1.26 (the embedded Triton's python backend crashes with 2), got {numpy.__version__}; pip"
            " install 'numpy<2'"
        )


def check_onnxruntime() -> None:
    """Raises ServerError where ONNX Runtime, which a text encoder on the CPU needs, is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise ServerError(
            "expected ONNX Runtime, which runs the text encoder on the CPU, found none; install it with pip install"
            " onnxruntime, or start with --text-encoder gpu"
        )


def find_libpython() -> Path | None:
    """The folder of the shared libpython that the stub links to, None where the system's linker finds it. Raises
    ServerError where there is none."""
    name = f"libpython{_python_version()}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), str(Path(sys.base_prefix) / "lib")):
        if folder and (Path(folder) / name).exists():
            return Path(folder)
    try:
        ctypes.CDLL(name)
    except OSError:
        raise ServerError(
            f"expected a shared {name} for Triton's python backend, found none; on Debian or Ubuntu: apt-get install"
            f" libpython{_python_version()}, elsewhere use a Python that was built with --enable-shared"
        ) from None
    return None


def lay_out_backends(package: Path, folder: Path) -> Path:
    """Copies the python backend and the stub of this Python beside each other, as Triton expects them; returns the
    backend directory."""
    python = folder / "backends" / "python"
    shutil.copytree(package / "tritonserver" / "backends" / "python", python)
    stub = python / "triton_python_backend_stub"
    shutil.copy2(package / "tritonserver" / "python_backend_stubs" / _python_version() / stub.name, stub)
    stub.chmod(0o755)
    return python.parent


def environment(package: Path, libpython: Path | None) -> dict[str, str]:
    environment = dict(os.environ)
    libraries = [
        str(package.parent / "nvidia_pytriton.libs"),
        str(libpython) if libpython else "",
        environment.get("LD_LIBRARY_PATH", ""),
    ]
    return environment | {
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        # The stub takes the environment of the first python3 on PATH.
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        # Frames are megabytes that come and go: without these every one is mapped and page-faulted anew.
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
    }


def _python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
