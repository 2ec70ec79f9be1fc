"""A sweep on a GPU as evidence: memory only where one resolution was loaded, the pool and fused attention known, and
the words that say where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble.server.architecture import SAM3
from ensemble.server.memory import (
    MB,
    ONE_PROCESS,
    Footprint,
    engine_model_need,
    need,
    pool_mb,
    server_need,
    weight_bytes,
)
from ensemble.spec import RESOLUTIONS, Checkpoint, Layers, Variant
from perf import record
from perf.capacity import cli as capacity
from perf.capacity import evidence
from perf.capacity.calibrate import fit
from perf.capacity.model import frame_flops
from perf.report import guide
from perf.results import Results
from perf.sweep.target import describe

POOL_MB = 1700.0
TRUTH = Footprint(3000.0, 50.0, "made up for this test")


def gpu_sweep(path: Path, loaded: int = 1, engine: str = "aoti", pool: float = POOL_MB) -> Path:
    """A sweep such as a repository gives on a GPU, its figures computed from known coefficients."""
    found = Results(**record.new("sam3-perf sweep", ["--alone"]))
    found.machine = {"gpu": "NVIDIA H200", "gpu_memory_mb": 143771}
    found.setting = {
        "engine": engine,
        "queries": 200,
        "max_batch": 8,
        "checkpoint": "random",
        "architecture": SAM3.to_dict(),
    }
    for resolution in (1008, 840, 672, 560):
        most = 0.0
        for classes, cameras in ((1, 1), (1, 8), (2, 1), (4, 1), (4, 8)):
            ms = 2.0 + 3.0 / cameras + 4.0 * frame_flops(resolution, classes) / 1e12
            own = need(TRUTH, resolution, cameras, plan_batch=8).total + pool
            most = memory = max(most, own)  # nothing is given back
            row = {
                "target": "front",
                "resolution": resolution,
                "cameras": cameras,
                "classes": classes,
                "rate": 0.0,
                "protocol": "grpc",
            }
            row |= {
                "mean_batch": float(cameras),
                "fps": 1e3 / ms,
                "mean_ms": ms * cameras,
                "p95_ms": 1.2 * ms * cameras,
            }
            found.rows.append(row | {"gpu_memory_mb": memory, "pool_mb": pool, "loaded": loaded})
    record.write(path, found.data())
    return path


@pytest.fixture
def carried(tmp_path, monkeypatch):
    """The repository as it is with a sweep on a GPU in it."""
    folder = tmp_path / "h200"
    folder.mkdir()
    gpu_sweep(folder / "sweep.json")
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    return folder


def test_the_footprint_of_a_server_is_found_again(tmp_path):
    """Of plans. Rows that show an earlier load's memory do not count."""
    found = fit(evidence.from_sweep(gpu_sweep(tmp_path / "sweep.json", engine="tensorrt")).samples)
    assert found.footprint is not None
    assert (found.footprint.base_mb, found.footprint.activation_mb) == pytest.approx(
        (TRUTH.base_mb, TRUTH.activation_mb)
    )
    assert found.memory_mb(672, 4, 4) == pytest.approx(need(TRUTH, 672, 4, plan_batch=8).total)


def test_a_sweep_of_packages_calibrates_time_alone(tmp_path):
    """840 as well: packages do not keep attention scores, whatever the rule says of plans."""
    found = fit(evidence.from_sweep(gpu_sweep(tmp_path / "sweep.json")).samples)
    assert found.footprint is None
    assert (found.per_frame_ms, found.per_call_ms, found.ms_per_tflop) == pytest.approx((2.0, 3.0, 4.0))


@pytest.mark.parametrize(
    ("pool", "told"),
    [
        pytest.param(POOL_MB, False, id="a pool: each sub-model was a process"),
        pytest.param(0.0, True, id="one process a GPU"),
    ],
)
def test_memory_of_a_process_a_model_is_not_todays(tmp_path, pool, told):
    samples = evidence.from_sweep(gpu_sweep(tmp_path / "sweep.json", pool=pool)).samples
    assert any(sample.memory_mb for sample in samples) == told
    assert all(("when each sub-model was a process of its own" in sample.where) != told for sample in samples)


def test_memory_of_several_resolutions_together_is_not_that_of_one(tmp_path):
    samples = evidence.from_sweep(gpu_sweep(tmp_path / "sweep.json", loaded=4)).samples
    assert all(sample.memory_mb is None for sample in samples)


def test_capacity_says_on_what_time_and_memory_rest(carried, capsys):
    argv = "--cameras 8 --memory 24GB --fps 4 --calibration h200"
    assert capacity.main(argv.split()) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (found["resolution"], found["basis"]) == (1008, "modelled")
    time, memory = found["figures"]["fps_per_camera"], found["figures"]["memory_mb"]
    assert time["basis"] == "measured elsewhere"
    assert time["where"].startswith("one NVIDIA H200, this server with aoti random, sweep.json of ")
    assert time["where"].endswith("when each sub-model was a process of its own")
    assert memory == {"basis": "modelled", "where": ONE_PROCESS.source}
    assert found["memory_mb"] == pytest.approx(6064, abs=1), "what the start check reckons with"
    assert found["notes"] == []
    assert capacity.main(["--cameras", "4", "--memory", "24GB", "--calibration", "h200"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["basis"] == "modelled"
    assert "calibrated by one NVIDIA H200" in found["figures"]["fps_per_camera"]["where"]
    assert found["figures"]["memory_mb"]["where"] == ONE_PROCESS.source
    assert found["memory_mb"] < 6064, "four cameras need less"


@pytest.mark.parametrize(
    ("memory", "status", "megabytes", "sentence"),
    [
        pytest.param("8GB", 0, 6064, None, id="there is room"),
        pytest.param("5.5GB", 0, 5391, "the text encoder is on the CPU then", id="not for the text encoder"),
        pytest.param(
            "5GB",
            1,
            5391,
            "1008 needs 5.3 GB for 8 cameras, you have 5 (the text encoder is on the CPU then",
            id="not even without",
        ),
    ],
)
def test_the_text_encoder_goes_where_the_server_puts_it(carried, capsys, memory, status, megabytes, sentence):
    words = ["--cameras", "8", "--memory", memory, "--calibration", "h200", "--resolution", "1008"]
    assert capacity.main(words) == status
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    one = found if status == 0 else found["rejected"][0]
    assert one["memory_mb"] == pytest.approx(megabytes, abs=1)
    said = " ".join(one["notes"] if status == 0 else one["reasons"])
    assert sentence in said if sentence else said == ""


def test_on_such_a_gpu_it_is_the_default(carried, monkeypatch):
    assert evidence.usual() == ["rtx5090"]
    monkeypatch.setattr(record, "card", lambda: {"gpu": "NVIDIA H200", "gpu_memory_mb": 143771})
    assert evidence.usual() == ["h200"]


def test_a_sweep_of_the_small_checkpoint_or_of_a_processor_is_no_evidence_for_sam3(carried):
    assert list(evidence.committed()) == ["h200"]
    for change in ({"machine": {"cores": 2}}, {"setting": {"architecture": SAM3.to_dict() | {"fpn": 128}}}):
        (carried.parent / "other").mkdir(exist_ok=True)
        data = json.loads((carried / "sweep.json").read_text()) | change
        (carried.parent / "other" / "sweep.json").write_text(json.dumps(data))
        assert list(evidence.committed()) == ["h200"]


def test_the_guide_shows_it_beside_the_published_table(carried):
    page = guide.published().markdown()
    assert "this server on NVIDIA H200: fps per camera" in page
    assert len([line for line in page.splitlines() if line.startswith("| 1008 |")]) == 2, (
        "eight cameras at 1008 are in ours alone"
    )
    assert "| 1008 | 8 | - | - | - | - |" in page
    own = guide.gpu()
    assert "**8 cameras, 4 classes**" in own
    assert "Measured on one NVIDIA H200 (aoti" in own


@pytest.mark.parametrize(
    ("row", "reckoned"),
    [pytest.param(*pair, id="{resolution}-{cameras}".format(**pair[0])) for pair in evidence.peaks()],
)
def test_the_start_check_reckons_with_what_was_measured(row, reckoned):
    """The whole server, under full load and with one camera, whose batches are one frame and its four pairs."""
    limits = {"max_batch": 1, "max_pairs": 4} if row["cameras"] == 1 else {}
    variant = Variant(row["resolution"], **limits)
    assert engine_model_need([variant], weight_bytes() / MB).total == reckoned
    assert reckoned == pytest.approx(row["peak_mb"], rel=0.05)


def test_all_four_resolutions_were_measured_with_one_camera_and_under_full_load():
    loads = {(row["resolution"], row["cameras"], row["in_flight"]) for row, _ in evidence.peaks()}
    assert loads == {(r, *load) for r in RESOLUTIONS for load in ((1, 1), (8, 2))}


def test_a_process_a_model_took_what_the_start_check_reckons_with():
    """`sam3-serve --sub-models` still serves so."""
    measured = json.loads((evidence.RESULTS / "h200" / "end_to_end.json").read_text())
    loaded = [row for row in measured["rows"] if row["in_flight"] == 2]
    assert {row["resolution"] for row in loaded} == {1008, 672}
    for row in loaded:
        variant = Variant(row["resolution"])
        reckoned = server_need([variant], "aoti", weight_bytes() / MB, pool_mb([variant]))
        assert reckoned.total == pytest.approx(row["peak_mb"], rel=0.05)


def test_a_slimmed_checkpoint_is_not_taken_for_sam3(tmp_path: Path):
    path = gpu_sweep(tmp_path / "sweep.json")
    swept = json.loads(path.read_text())
    fewer = Variant(checkpoint=Checkpoint("fewer blocks", layers=Layers(parameters=7.4e8, layers=24)))
    swept["setting"] |= describe(fewer, "aoti")
    path.write_text(json.dumps(swept))
    found = evidence.from_sweep(path).architecture
    assert (found.layers, found.parameters) == (24, 7.4e8)
    assert frame_flops(1008, 4, found) < frame_flops(1008, 4, SAM3)
    assert describe(Variant(), "aoti")["architecture"] == SAM3.to_dict()
