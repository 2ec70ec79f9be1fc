"""Every name of TensorRT that the builder and the runner use is there in the Python bindings of version 10 and of 11.

Those bindings are on the package index, their libraries are not. Empty stand-ins for the libraries let the package
load, far enough to ask its classes what they have. Needs the index and a C compiler.
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

EXPORT = Path(__file__).parents[3] / "export"
BINDINGS = ("tensorrt-cu12-bindings==10.13.3.9", "tensorrt-cu13-bindings==11.4.0.106")
OLDER = {"set_dtypes", "pin_precisions"}
"""Functions that TensorRT 8.6 alone gets to."""
OLDER_NAMES = {
    "EXPLICIT_BATCH",
    "JIT_CONVOLUTIONS",
    "EDGE_MASK_CONVOLUTIONS",
    "TacticSource",
    "set_tactic_sources",
    "device_memory_size",
}
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
missing = [n for n in json.loads(sys.argv[1]) if functools.reduce(lambda o, a: getattr(o, a, None), n.split("."), trt) is None]
print(json.dumps([trt.__version__, missing]))
"""


def used(tree: ast.AST) -> Iterator[str]:
    """`IBuilderConfig.clear_flag`, `BuilderFlag.TF32`: what `trt` and the objects that come from it are asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name in OLDER | OTHERS:
            continue
        if isinstance(node, ast.Attribute):
            words = ast.unparse(node).removeprefix("self.").split(".")
            if words[0] == "trt":
                yield ".".join(words[1:])
            elif words[0] in CLASSES and len(words) > 1:
                yield f"{CLASSES[words[0]]}.{words[1]}"
        yield from used(node)


def names() -> list[str]:
    found = set()
    for module in ("tensorrt_network", "tensorrt_plan", "tensorrt_worker"):
        found |= set(used(ast.parse((EXPORT / f"{module}.py").read_text())))
    real = {name for name in found if name.replace(".", "").isidentifier()}  # not what is asked of a call's result
    return sorted(
        name for name in real if not OLDER_NAMES & set(name.split(".")) and not name.startswith("__version__")
    )


def test_the_names_are_found_in_the_source():
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


@pytest.mark.parametrize("package", BINDINGS)
def test_the_bindings_have_them(package: str, libraries: Path, tmp_path: Path) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--target",
        str(tmp_path),
        package,
    ]
    got = subprocess.run(pip, capture_output=True, text=True, timeout=300, check=False)
    if got.returncode:
        pytest.skip(f"{package} cannot be had here: {got.stderr.strip().splitlines()[-1]}")
    environment = os.environ | {"LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(tmp_path)}
    asked = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(names())], env=environment, capture_output=True, text=True, check=True
    )
    version, missing = json.loads(asked.stdout)
    assert package.endswith(version)
    assert missing == []
