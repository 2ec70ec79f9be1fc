"""`sam3-perf capacity`: what it recommends, on what basis, and the sentence where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble.server.architecture import SAM3
from ensemble.server.memory import PLANS_PROCESS, engine_model_need, weight_bytes
from ensemble.spec import MB, Variant
from perf import record, results
from perf.capacity import cli as capacity
from perf.results import Results


def ask(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict]:
    """Exit status and the JSON of the last line of standard output."""
    status = capacity.main(argv)
    return status, json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_eight_cameras_on_eight_gigabytes(capsys):
    status, found = ask(
        capsys, *["--cameras", "8", "--memory", "8GB", "--classes", "4", "--fps", "4", "--object-pixels", "40"]
    )
    assert status == 0
    assert found["resolution"] == 672
    assert found["fps_per_camera"] == pytest.approx(4.0, abs=0.1)
    assert found["memory_mb"] == 4846
    assert found["basis"] == "measured with another pipeline"
    ours = "the memory is another pipeline's; this server with compiled packages needs 4.4 GB, modelled"
    assert found["notes"][0] == ours
    assert "RTX 5090" in found["figures"]["memory_mb"]["where"]
    reasons = {r["resolution"]: " ".join(r["reasons"]) for r in found["rejected"]}
    assert set(reasons) == {1008, 840, 560}
    assert "840 needs 12.6 GB for 8 cameras, you have 8 (another pipeline; this server with compiled" in reasons[840]
    assert "0.83 patches at 560" in reasons[560]


@pytest.mark.parametrize(
    ("argv", "resolution", "basis"),
    [
        pytest.param(
            "--cameras 1 --memory 8GB", 1008, "measured with another pipeline", id="one camera: the best picture"
        ),
        pytest.param(
            "--cameras 1 --memory 8GB --prefer speed",
            560,
            "measured with another pipeline",
            id="one camera: the fastest",
        ),
        pytest.param("--cameras 1 --memory 4GB", 560, "measured with another pipeline", id="little memory"),
        pytest.param("--cameras 3 --memory 8GB --fps 8 --classes 2", 672, "modelled", id="a point nobody measured"),
        pytest.param("--cameras 2 --memory 9GB --resolution 896", 896, "modelled", id="a resolution nobody measured"),
    ],
)
def test_recommendation_and_its_basis(capsys, argv, resolution, basis):
    status, found = ask(capsys, *argv.split())
    assert status == 0
    assert (found["resolution"], found["basis"]) == (resolution, basis)
    assert found["batch"] <= 8
    assert found["queue_delay_us"] == 0 or found["instances"] == 2


@pytest.mark.parametrize(
    ("argv", "status", "sentence"),
    [
        pytest.param("--cameras 0 --memory 8GB", 2, "cameras must be at least 1, got 0", id="no cameras"),
        pytest.param("--cameras 8 --memory 8GB --resolution 1000", 2, "nearest: 994, 1008", id="between two patches"),
        pytest.param("--cameras 8 --memory lots", 2, "an amount of memory as in 8GB", id="memory is no number"),
        pytest.param("--cameras 8 --memory 0GB", 2, "got '0GB'", id="no memory"),
        pytest.param("--cameras 8 --memory 8GB --classes 101", 2, "classes must be 1 to 100", id="too many classes"),
        pytest.param("--cameras 8 --memory 8GB --fps 0", 2, "must be above 0, got 0", id="no frames"),
        pytest.param("--cameras 8 --memory 8GB --frame big", 2, "write for example 1920x1080", id="frame is no size"),
        pytest.param(
            "--cameras 8 --memory 8GB --sweep /no/such.json", 2, "sam3-perf sweep --output", id="no such sweep"
        ),
        pytest.param("--cameras 500 --memory 8GB", 1, "500 cameras need 14 of them", id="500 cameras"),
        pytest.param("--cameras 1 --memory 2GB", 1, "the least that works is 3.8 GB, for 560", id="too little memory"),
        pytest.param(
            "--cameras 1 --memory 8GB --object-pixels 9", 1, "sees objects from 27 pixels on", id="too small objects"
        ),
    ],
)
def test_impossible_wishes_get_a_sentence(capsys, argv, status, sentence):
    got, found = ask(capsys, *argv.split())
    assert got == status
    assert sentence in found["error"]


def test_memory_is_asked_for_where_no_gpu_is_found(capsys, monkeypatch):
    monkeypatch.setattr(record, "card", dict)
    status, found = ask(capsys, "--cameras", "8")
    assert status == 2
    assert "say how much memory" in found["error"]


def test_the_memory_of_the_gpu_that_is_here_is_the_default(capsys, monkeypatch):
    monkeypatch.setattr(record, "card", lambda: {"gpu": "a card", "gpu_memory_mb": 8188})
    status, found = ask(capsys, "--cameras", "8", "--fps", "4")
    assert status == 0
    assert found["resolution"] == 672


def test_a_sweep_of_this_machine_comes_before_tables(capsys, tmp_path):
    sweep = Results(**record.new("sam3-perf sweep", []))
    sweep.setting = {"queries": 200, "architecture": SAM3.to_dict()}
    row = {"target": "front", "classes": 4, "rate": 0.0, "protocol": "grpc", "p95_ms": 90.0, "server_memory_mb": 0}
    for resolution, fps in ((1008, 40.0), (672, 80.0)):
        sweep.rows += [
            row
            | {
                "resolution": resolution,
                "cameras": cameras,
                "mean_batch": float(cameras),
                "fps": fps,
                "gpu_memory_mb": 6000,
            }
            for cameras in (1, 8)
        ]
    record.write(tmp_path / "mine.json", sweep.data())
    status, found = ask(capsys, *f"--cameras 8 --memory 8GB --fps 4 --sweep {tmp_path / 'mine.json'}".split())
    assert status == 0
    assert (found["resolution"], found["fps_per_camera"], found["basis"]) == (1008, 5.0, "measured here")


def test_a_sweep_of_the_small_checkpoint_does_not_speak_for_sam3(capsys):
    committed = Path(results.__file__).parent / "results" / "cpu" / "sweep.json"
    status, found = ask(capsys, *f"--cameras 8 --memory 8GB --sweep {committed}".split())
    assert status == 2
    assert "no GPU memory figures, and no other measurement of the same model has" in found["error"]


@pytest.mark.parametrize(
    ("text", "megabytes"), [("8GB", 8192), ("8 GiB", 8192), ("4846", 4846), ("512mb", 512), ("1.5g", 1536)]
)
def test_memory_sizes(text, megabytes):
    assert capacity.memory_of(text) == megabytes


def test_plans_are_reckoned_as_the_start_check_reckons_them(capsys):
    """With `--engine tensorrt_rtx`: other memory than the measurements' engine has, and marked as modelled."""
    argv = ["--cameras", "8", "--memory", "24GB", "--resolution", "672"]
    _, found = ask(capsys, *argv, "--engine", "tensorrt_rtx")
    expected = engine_model_need([Variant(672, max_batch=8, max_pairs=32)], weight_bytes() / MB, "tensorrt_rtx").total
    assert found["memory_mb"] == round(expected)
    assert found["figures"]["memory_mb"] == {"basis": "modelled", "where": PLANS_PROCESS.source}
    assert ask(capsys, *argv)[1]["memory_mb"] != found["memory_mb"]
