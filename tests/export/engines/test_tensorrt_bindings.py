"""The Python bindings of TensorRT 10 and 11 have every name that building and running plans uses.

Those bindings are on the package index, their libraries are not. Empty stand-ins for the libraries let the package
load, far enough to ask its classes what they have. That installs packages and compiles C, so it has to be asked for:
SAM3_TEST_TENSORRT_BINDINGS=1 python -m pytest tests/export/engines/test_tensorrt_bindings.py
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "export" / "engines" / "tensorrt"
MODULES = ("definition", "network", "plan", "version", "worker")
VARIABLE = "SAM3_TEST_TENSORRT_BINDINGS"
BINDINGS = ("tensorrt-cu12-bindings==10.13.3.9", "tensorrt-cu13-bindings==11.4.0.106")
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime": "Runtime",
}
"""Class of what a variable, or an attribute of the runner, of that name holds."""
OTHERS = {"build_parser", "main", "_build"}
"""Functions in which such a name is something else."""
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
FUNCTIONS = [
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
]
ASK = """
import functools, json, sys
import tensorrt_bindings as trt
find = lambda name: functools.reduce(lambda o, a: getattr(o, a, None), name.split("."), trt)
missing = [name for name in json.loads(sys.argv[1]) if find(name) is None]
print(json.dumps([trt.__version__, missing]))
"""


def used(tree: ast.AST) -> Iterator[str]:
    """`IBuilderConfig.clear_flag`, `BuilderFlag.TF32`: what `trt` and the objects that come from it are asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name in OTHERS:
            continue
        if isinstance(node, ast.Attribute):
            words = ast.unparse(node).removeprefix("self.").split(".")
            if words[0] == "trt":
                yield ".".join(words[1:])
            elif words[0] in CLASSES and len(words) > 1:
                yield f"{CLASSES[words[0]]}.{words[1]}"
        yield from used(node)


def names() -> list[str]:
    found = {name for module in MODULES for name in used(ast.parse((FOLDER / f"{module}.py").read_text()))}
    real = {name for name in found if name.replace(".", "").isidentifier()}  # not what is asked of a call's result
    return sorted(name for name in real if not name.startswith("__version__"))


def test_the_names_are_found_in_the_source() -> None:
    found = names()
    assert {
        "Builder.build_serialized_network",
        "IBuilderConfig.clear_flag",
        "BuilderFlag.TF32",
        "IExecutionContext.execute_async_v3",
    } <= set(found)
    assert len(found) > 40


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("libraries")
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    for version in ("10", "11"):
        for name in LIBRARIES:
            library = f"lib{name}.so.{version}"
            subprocess.run(
                [compiler, "-shared", "-fPIC", "-o", folder / library, source, f"-Wl,-soname,{library}"], check=True
            )
    return folder


@pytest.mark.skipif(os.environ.get(VARIABLE) != "1", reason=f"installs packages and compiles C: set {VARIABLE}=1")
@pytest.mark.parametrize("package", BINDINGS)
def test_the_bindings_have_them(package: str, libraries: Path, tmp_path: Path) -> None:
    pip = f"-m pip install --quiet --no-deps --only-binary=:all: --target {tmp_path} {package}".split()
    got = subprocess.run([sys.executable, *pip], capture_output=True, text=True, timeout=300, check=False)
    if got.returncode:
        pytest.skip(f"{package} cannot be had here: {got.stderr.strip().splitlines()[-1]}")
    environment = os.environ | {"LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(tmp_path)}
    asked = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(names())], env=environment, capture_output=True, text=True, check=True
    )
    version, missing = json.loads(asked.stdout)
    assert package.endswith(version)
    assert missing == []
