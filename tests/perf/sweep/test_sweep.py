"""A small sweep on the real server with the real perf_analyzer, and the sentences where there is no server or no
model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble.server.embedded import EmbeddedServer
from perf import record, results
from perf.sweep import cli as sweep
from perf.sweep import target


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict]:
    """Exit status and the JSON of the last line of standard output."""
    status = sweep.main(argv)
    return status, json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def addresses(server: EmbeddedServer) -> list[str]:
    return ["--url", server.grpc_url, "--http-url", server.http_url, "--metrics-url", server.metrics_url]


@pytest.mark.server
def test_figures_of_perf_analyzer_server_and_client(addresses: list[str], tmp_path: Path, capsys):
    output = tmp_path / "sweep.json"
    few = ["--resolution", "140", "--cameras", "2", "--classes", "2", "--requests", "8", "--output", str(output)]
    both = ["--protocols", "grpc", "http", "--check-client", "1"]
    status, last = run(capsys, *addresses, *few, *both)
    assert status == 0, last
    assert last["points"] == 2
    found = results.read(output)
    assert found.versions["perf_analyzer"] == "2.51.0"
    assert found.setting["architecture"]["fpn"] == 128, "the small checkpoint's"
    for row in found.rows:
        assert row["requests"] == 8
        assert row["failed"] == 0
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert 1 <= row["mean_batch"] <= 2
        assert row["client_fps"] > 0
        assert 0 < row["client_ratio_low"] <= row["client_ratio"] <= row["client_ratio_high"]
        assert row["loaded"] == 2
        assert row["gpu_memory_mb"] == 0, "nothing here is on a GPU"
        # The server's own account of a frame is part of the round trip that perf_analyzer saw.
        assert 0 < row["stage_vision_ms"] <= row["stage_total_ms"] <= row["mean_ms"] * 1.05
    status, _ = run(capsys, *addresses, *few, *both)
    assert status == 0
    assert results.read(output).rows == found.rows, "nothing was measured again"


@pytest.mark.server
def test_the_vision_encoder_alone_in_shared_memory_and_a_fixed_rate(repository: Path, tmp_path: Path, capsys):
    """Two servers: one on which the front models are what is served, and one that has the sub-models too."""
    output = tmp_path / "sweep.json"
    argv = ["--resolution", "140", "--cameras", "1", "--classes", "1", "--requests", "4", "--output", str(output)]
    more = ["--batches", "2", "--shared-memory", "system", "--rates", "5"]
    status, last = run(capsys, "--repository", str(repository), *argv, *more)
    assert status == 0, last
    rows = {(row["target"], row["rate"]): row for row in results.read(output).rows}
    assert set(rows) == {("front", 0.0), ("front", 5.0), ("vision_encoder", 0.0)}
    assert rows["vision_encoder", 0.0]["mean_batch"] == 2.0
    assert 0 < rows["vision_encoder", 0.0]["compute_vision_encoder_ms"] < rows["vision_encoder", 0.0]["mean_ms"]
    assert rows["front", 5.0]["requests"] == 5, "perf_analyzer wants no fewer than it sends in a second"


@pytest.mark.server
def test_one_resolution_at_a_time(repository: Path, tmp_path: Path, capsys):
    """Two servers, one after the other; what is asked of each frame is in the file; a finished resolution's server is
    not started again."""
    output = tmp_path / "sweep.json"
    argv = ["--repository", str(repository), "--alone", "--cameras", "1", "--classes", "2", "--requests", "4"]
    asked = ["--threshold", "0", "--max-detections", "3", "--frame", "320x180", "--output", str(output)]
    status, last = run(capsys, *argv, *asked)
    assert status == 0, last
    found = results.read(output)
    assert [(row["resolution"], row["loaded"]) for row in found.rows] == [(252, 1), (140, 1)]
    assert found.setting["frames"] == "16 drawn scenes, 320x180 JPEG"
    assert (found.setting["threshold"], found.setting["max_detections"]) == (0, 3)
    assert (found.setting["engine"], found.setting["max_batch"]) == ("onnxruntime", 8)
    assert all(row["stage_masks_ms"] > 0 for row in found.rows), "with a threshold of 0 every pair has masks"
    found.rows.pop()
    record.write(output, found.data(), table=True)
    status, _ = run(capsys, *argv, *asked)
    assert status == 0
    assert [row["resolution"] for row in results.read(output).rows] == [252, 140]


def test_alone_needs_a_repository(tmp_path: Path, capsys):
    status, last = run(capsys, "--alone", "--output", str(tmp_path / "sweep.json"))
    assert status == 2
    assert "it needs --repository" in last["error"]


@pytest.mark.server
def test_a_model_that_is_not_loaded_is_named_with_what_there_is(addresses: list[str], tmp_path: Path, capsys):
    status, last = run(capsys, *addresses, "--resolution", "672", "--output", str(tmp_path / "sweep.json"))
    assert status == 2
    assert "not loaded: sam3_r672; the server has" in last["error"]
    assert "sam3_r140" in last["error"]


@pytest.mark.server
def test_sub_models_that_a_running_server_keeps_to_itself(addresses: list[str], tmp_path: Path, capsys):
    status, last = run(
        capsys, *addresses, "--resolution", "140", "--batches", "1", "--output", str(tmp_path / "sweep.json")
    )
    assert status == 2
    assert "sam3_vision_encoder_r140; start it with sam3-serve --sub-models" in last["error"]


def test_no_server_is_a_sentence(tmp_path: Path, capsys):
    status, last = run(capsys, "--http-url", "127.0.0.1:9", "--output", str(tmp_path / "sweep.json"))
    assert status == 2
    assert "start one with sam3-serve" in last["error"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "urls"),
    [
        pytest.param([], ("localhost:8001", "localhost:8000", "localhost:8002"), id="Triton's own ports"),
        pytest.param(["--url", "gpu:9001"], ("gpu:9001", "gpu:9000", "gpu:9002"), id="other ports side by side"),
        pytest.param(
            ["--url", "gpu:9001", "--http-url", "gpu:80", "--metrics-url", "m:1"],
            ("gpu:9001", "gpu:80", "m:1"),
            id="each by itself",
        ),
    ],
)
def test_one_address_is_enough(options, urls):
    found = target.addressed(sweep.parser().parse_args(options))
    assert (found.grpc, found.http, found.metrics) == urls


@pytest.mark.parametrize("url", ["gpu", "http://gpu:8001", "gpu:grpc", ":8001"])
def test_what_is_no_address_is_refused(url, tmp_path: Path, capsys):
    status, last = run(capsys, "--url", url, "--output", str(tmp_path / "sweep.json"))
    assert status == 2
    assert f"--url must be host:port of the server's gRPC, got {url!r}" in last["error"]


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        pytest.param([], {252: "sam3_r252", 140: "sam3_r140_fp8"}, id="plain first, else what there is"),
        pytest.param(["--precision", "int8"], {252: "sam3_r252_int8"}, id="int8"),
        pytest.param(["--precision", "plain"], {252: "sam3_r252"}, id="plain"),
    ],
)
def test_a_precision_has_models_of_its_own(asked, names, monkeypatch):
    loaded = ["sam3_engine", "sam3_r140_fp8", "sam3_r252", "sam3_r252_int8", "sam3_text_encoder"]
    monkeypatch.setattr(target.Target, "models", lambda _: loaded)
    monkeypatch.setattr(target.Target, "about", lambda _, front: {"of": front})
    options = sweep.parser().parse_args(asked)
    found, about = target.offered(options)
    assert found == names
    assert [about(resolution)["of"] for resolution in found] == list(names.values())
    wanted, _ = sweep.plan(options, sweep.Load())
    assert {point.model for point in wanted} == set(names.values())
