"""perf_analyzer: found or missed with a sentence, its files read, its inputs made of real pictures."""

from __future__ import annotations

import base64
import struct

import pytest

from perf.sweep import analyzer, inputs, metrics, window

ROW = {
    "Inferences/Second": "4.0",
    "Client Send": "10",
    "Client Recv": "30",
    "Network+Server Send/Recv": "1000",
    "Server Queue": "5000",
    "Server Compute Input": "100",
    "Server Compute Infer": "93000",
    "Server Compute Output": "860",
    "p50 latency": "99000",
    "p90 latency": "110000",
    "p95 latency": "120000",
    "p99 latency": "130000",
}
PAGE = """# HELP nv_inference_count Number of inferences
nv_inference_count{model="sam3_r252",version="1"} %(frames)d
nv_inference_exec_count{model="sam3_r252",version="1"} %(executions)d
nv_inference_queue_duration_us{model="sam3_r252",version="1"} %(queue)d
nv_inference_compute_infer_duration_us{model="sam3_decoder_r252_q50",version="1"} %(decoder)d
sam3_stage_seconds_count{model="sam3_r252",stage="vision",version="1"} %(frames)d
sam3_stage_seconds_sum{model="sam3_r252",stage="vision",version="1"} %(vision)f
nv_inference_request_failure{model="sam3_r252",reason="OTHER",version="1"} 1
"""


def test_the_log_of_requests_gives_throughput_and_percentiles():
    """Four requests of 100, 200, 300 and 400 ms, the last of which ends one second after the first began."""
    second = 10**9
    requests = [
        {"timestamp": 0, "response_timestamps": [second // 10]},
        {"timestamp": second // 10, "response_timestamps": [3 * second // 10]},
        {"timestamp": 3 * second // 10, "response_timestamps": [6 * second // 10]},
        {"timestamp": 6 * second // 10, "response_timestamps": [second]},
        {"timestamp": second, "response_timestamps": []},
    ]
    found = analyzer.window(ROW, {"experiments": [{"requests": requests}]}, batch=2)
    assert found.requests == 4, "the last one was never answered"
    assert found.fps == pytest.approx(8.0)
    assert (found.mean_ms, found.p50_ms) == (250.0, 250.0)
    assert found.queue_ms == 5.0
    assert found.compute_ms == pytest.approx(93.96)


def test_without_a_log_the_row_is_enough():
    found = analyzer.window_of_row(ROW, requests=16, batch=8)
    assert found.mean_ms == pytest.approx(100.0)
    assert found.fps == pytest.approx(80.0)
    assert found.p95_ms == 120.0


def test_steady_windows_have_perf_analyzers_own_throughput():
    assert analyzer.window_of_row(ROW, requests=16, batch=1, steady=True).fps == 4.0


def test_no_answer_at_all_is_an_error():
    with pytest.raises(analyzer.AnalyzerError, match="no answered request"):
        analyzer.window(ROW, {"experiments": [{"requests": []}]}, batch=1)


def test_the_error_is_told_without_the_page_of_usage():
    output = "error: Failed to init: no model\n\t--request-count <number of requests>\n whose error is ...\n"
    assert analyzer.last_words(output) == "error: Failed to init: no model"


def test_a_missing_program_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(analyzer.sys, "executable", "/nowhere/python")
    with pytest.raises(analyzer.AnalyzerError, match="pip install"):
        analyzer.find_program()


def test_a_program_without_its_libraries_says_which(monkeypatch, tmp_path):
    broken = tmp_path / "perf_analyzer"
    broken.write_text("#!/bin/sh\necho 'libb64.so.0d: cannot open shared object file' >&2\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setattr(analyzer, "find_program", lambda: str(broken))
    with pytest.raises(analyzer.AnalyzerError, match=r"libb64\.so\.0d.*libb64-0d"):
        analyzer.Analyzer()


def test_inputs_are_pictures_with_what_is_asked_for():
    shown = inputs.pictures(3)
    content = inputs.front_input(shown, classes=4, masks="bits")["data"]
    assert len(content) == 3
    element = base64.b64decode(content[0]["image"]["b64"])
    assert struct.unpack("<I", element[:4])[0] == len(element) - 4
    assert element[4:6] == b"\xff\xd8", "a JPEG file"
    names = content[0]["classes"]["content"]
    assert len(set(names)) == 4
    assert shown[0].names[0] in names
    pixels = inputs.vision_input(shown, 140)["data"][0]["pixel_values"]
    assert pixels["shape"] == [3, 140, 140]
    assert len(base64.b64decode(pixels["b64"])) == 3 * 140 * 140


def test_server_figures_are_those_of_the_window():
    begin = metrics.parse(PAGE % {"frames": 100, "executions": 50, "queue": 10_000, "decoder": 7_000, "vision": 3.0})
    end = metrics.parse(PAGE % {"frames": 124, "executions": 56, "queue": 130_000, "decoder": 247_000, "vision": 3.6})
    found = metrics.figures(begin, end, "sam3_r252", {"decoder": "sam3_decoder_r252_q50"})
    assert found["mean_batch"] == 4.0
    assert found["queue_ms"] == 5.0
    assert found["compute_decoder_ms"] == 10.0
    assert found["stage_vision_ms"] == pytest.approx(25.0)
    assert found["failed"] == 0, "the failure was before the window"


def test_no_metrics_is_a_sentence():
    with pytest.raises(metrics.MetricsError, match="is --metrics-url right"):
        metrics.scrape("127.0.0.1:9", timeout=1)


@pytest.fixture
def stuck(monkeypatch, tmp_path) -> analyzer.Analyzer:
    """A program that never ends, in perf_analyzer's place."""
    program = tmp_path / "perf_analyzer"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] || exec sleep 60\n')
    program.chmod(0o755)
    monkeypatch.setattr(analyzer, "find_program", lambda: str(program))
    monkeypatch.setattr(analyzer, "POLL_S", 0.02)
    monkeypatch.setattr(analyzer, "GRACE_S", 0.2)
    return analyzer.Analyzer()


def test_a_program_that_has_all_answers_and_does_not_end_is_told_from_a_server_that_does_not_answer(stuck):
    counts = iter([100.0, 103.0, 104.0, *[105.0] * 10_000])
    fewer = iter([100.0, *[103.0] * 10_000])
    with stuck:
        with pytest.raises(analyzer.AnalyzerStuckError, match="after the server's last answer"):
            stuck.run([], requests=5, answered=lambda: next(counts))
        with pytest.raises(
            analyzer.AnalyzerError, match="had no 5 answers after 1 s; the server gave 3; is the server"
        ) as caught:
            stuck.run([], requests=5, timeout=0.6, answered=lambda: next(fewer))
    assert not isinstance(caught.value, analyzer.AnalyzerStuckError)


def test_a_stuck_window_is_measured_once_more_and_no_oftener(caplog):
    tries: list[int] = []

    def call(good: int) -> str:
        tries.append(len(tries))
        if len(tries) < good:
            raise analyzer.AnalyzerStuckError("stuck")
        return "measured"

    assert window.once_more(lambda: call(2)) == "measured"
    assert caplog.messages == ["stuck; measured once more"]
    tries.clear()
    with pytest.raises(analyzer.AnalyzerStuckError):
        window.once_more(lambda: call(3))
    assert len(tries) == 2
