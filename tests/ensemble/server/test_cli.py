"""`sam3-serve`: its options, what `--check` says, and the sentences where it cannot start. Nothing here starts a
server."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ensemble.server import cli, gpu
from ensemble.server.gpu import Gpu
from tests.ensemble.server.repositories import write

H200 = Gpu("NVIDIA H200", "9.0", 143_771, 143_000)
CARD = Gpu("NVIDIA GeForce RTX 4060", "8.9", 8_188, 7_800)
BUILT_FOR = {"gpu": "NVIDIA H200", "compute_capability": "9.0"}
COMMAND = [sys.executable, "-c", "from ensemble.server.cli import main; raise SystemExit(main())"]


def options(*words: str):
    return cli._parser().parse_args(["--repository", "somewhere", *words])


@pytest.mark.parametrize(
    ("words", "gpus"),
    [
        pytest.param([], (0,), id="the first"),
        pytest.param(["--gpus", "all"], "all", id="all"),
        pytest.param(["--gpus", "2"], (2,), id="one"),
        pytest.param(["--gpus", "0,2"], (0, 2), id="two"),
        pytest.param(["--gpus", "1,1,0"], (1, 0), id="each once"),
    ],
)
def test_gpus(words, gpus):
    assert options(*words).gpus == gpus


@pytest.mark.parametrize("text", ["", "none", "-1", "0,", "0;1", "0.5", "all,1"])
def test_gpus_that_are_none(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        options(f"--gpus={text}")
    assert f"expected all, or numbers with commas between them as in 0,2; got {text!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "megabytes"),
    [("8GB", 8192), ("8 gb", 8192), ("1.5G", 1536), ("8192MB", 8192), ("8192", 8192), ("512MiB", 512), ("2GiB", 2048)],
)
def test_gpu_memory(text, megabytes):
    assert options("--gpu-memory", text).gpu_memory == megabytes


@pytest.mark.parametrize("text", ["lots", "-1GB", "0", "0GB", "8TB", "8,5GB", ""])
def test_gpu_memory_that_is_none(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        options(f"--gpu-memory={text}")
    assert f"expected an amount of memory as in 8GB or 8192MB, got {text!r}" in capsys.readouterr().err


def test_front_settings_are_those_that_were_given():
    given = options("--max-batch", "2", "--queue-delay-us", "0")
    assert cli.front_settings(given) == {"max_batch": 2, "queue_delay_us": 0}
    assert cli.front_settings(options()) == {}


def test_version_names_what_it_serves_with(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    shown = " ".join(capsys.readouterr().out.split())
    for name in ("sam3-triton", "nvidia-pytriton", "tritonclient", "onnxruntime-gpu", "torch", "numpy", "Python 3."):
        assert f"{name}" in shown


# ---- --check
@pytest.fixture
def check(tmp_path, capsys):
    """Exit status and the JSON object of `sam3-serve --check`."""

    def run(*words: str) -> tuple[int, dict]:
        status = cli.main(["--repository", str(tmp_path), "--http-port", "0", "--check", *words])
        out = capsys.readouterr().out.splitlines()
        return status, json.loads(out[-1]) if out else {}

    return run


def test_check_on_the_cpu(check, tmp_path):
    write(tmp_path, [672, 560], "onnxruntime")
    status, report = check("--max-batch", "4")
    assert status == 0
    assert report["models"] == [
        {"model": name, "engine": "onnxruntime", "max_batch": 4, "on_gpu": False, "text_encoder_on_gpu": False}
        for name in ("sam3_r672", "sam3_r560")
    ]
    assert (report["gpus"], report["needed_mb"]) == ([], 0)
    assert report["lines"] == [
        "sam3_r672: onnxruntime, batches of up to 4 frames",
        "sam3_r560: onnxruntime, batches of up to 4 frames",
        "on the CPU",
    ]


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        pytest.param([], [0], id="the first"),
        pytest.param(["--gpus", "all"], [0, 1], id="all"),
        pytest.param(["--gpus", "1"], [1], id="the second"),
    ],
)
def test_check_on_gpus(check, tmp_path, monkeypatch, words, numbers):
    write(tmp_path, [672, 560], "aoti", built_for=BUILT_FOR)
    monkeypatch.setattr(gpu, "gpus", lambda: [H200, H200])
    status, report = check("--resolution", "560", *words)
    assert status == 0
    assert [model["model"] for model in report["models"]] == ["sam3_r560"]
    assert report["gpus"] == [{"gpu": n, "name": "NVIDIA H200", "free_mb": 143_000} for n in numbers]
    assert 0 < report["needed_mb"] < 143_000
    for number in numbers:
        assert any(f"GPU {number}: NVIDIA H200, 143,000 of 143,771 MB free; needed" in line for line in report["lines"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        pytest.param(["--gpu-memory", "1GB"], "the GPU has 1,024 MB, as stated", id="too little memory"),
        pytest.param(["--gpus", "all"], "NVIDIA GeForce RTX 4060", id="packages of another GPU"),
        pytest.param(["--gpus", "0,5"], "expected GPUs 0 to 1, got 5", id="no such GPU"),
        pytest.param(["--resolution", "1008"], "resolutions of this repository (672), got 1008", id="not there"),
        pytest.param(["--max-batch", "9"], "got 9; export it with --max-batch 9", id="larger batches"),
    ],
)
def test_check_refuses_what_a_start_would(check, tmp_path, monkeypatch, caplog, words, sentence):
    write(tmp_path, [672], "aoti", built_for=BUILT_FOR)
    monkeypatch.setattr(gpu, "gpus", lambda: [H200, CARD])
    assert check(*words) == (1, {})
    assert sentence in caplog.text


def test_the_command_says_what_is_missing(tmp_path):
    """On one line: the command in it can be copied."""
    done = subprocess.run(
        [*COMMAND, "--repository", str(tmp_path), "--http-port", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"found no */config.pbtxt; write one with sam3-export --repository {tmp_path}\n" in done.stderr
