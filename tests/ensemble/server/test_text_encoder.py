"""Where the text encoder of a server on a GPU runs. No GPU is needed: it is described."""

from __future__ import annotations

import logging

import pytest

from ensemble.server import embedded, requirements, start_check
from ensemble.server import repository as placement
from ensemble.server.gpu import Gpu
from ensemble.server.requirements import ServerError
from tests.ensemble.server.repositories import write


@pytest.mark.parametrize(
    ("where", "free", "on_cpu"),
    [
        pytest.param("auto", 143_000, False, id="there is room"),
        pytest.param("auto", 6_000, True, id="a full load has no room with it"),
        pytest.param("cpu", 143_000, True, id="asked for"),
        pytest.param("gpu", 6_000, False, id="refused"),
    ],
)
def test_where_names_are_encoded(caplog, tmp_path, where, free, on_cpu):
    caplog.set_level(logging.INFO)
    served = placement.read(write(tmp_path, [1008, 672], "aoti"))
    cards = {0: Gpu("NVIDIA H200", "9.0", 143_771, free)}
    placed = start_check.place_text_encoder(served, where, cards, None)
    assert [not s.artifacts[1].on_gpu for s in placed] == [on_cpu] * 2
    saved = start_check.need_of(served, None).weights - start_check.need_of(placed, None).weights
    assert saved == pytest.approx(680 * on_cpu)
    assert ("the text encoder runs on the CPU" in caplog.text) == (where == "auto" and on_cpu)
    lines = start_check.report(placed, cards, None)["lines"]
    assert ("the text encoder runs on the CPU" in lines) == on_cpu


def test_a_stated_amount_decides_where_names_are_encoded(tmp_path):
    served = placement.read(write(tmp_path, [672], "aoti"))
    (placed,) = start_check.place_text_encoder(served, "auto", {0: None}, 3_500)
    assert placed.text_encoder_cpu in placed.artifacts
    assert start_check.place_text_encoder(served, "auto", {0: None}, None) == served


def test_a_text_encoder_that_was_not_exported_for_the_cpu(tmp_path):
    served = placement.read(write(tmp_path, [672], "aoti"))
    served[0].text_encoder_cpu.path.unlink()
    assert start_check.place_text_encoder(served, "auto", {0: None}, 3_500) == served
    with pytest.raises(ServerError, match=r"expected the text encoder for the CPU at .*\nsam3-export --engine aoti"):
        start_check.place_text_encoder(served, "cpu", {0: None}, None)
    embedded_server = embedded.EmbeddedServer(tmp_path, text_encoder="cpu", sub_models=True)
    with pytest.raises(ServerError, match="leave out --sub-models"):
        embedded_server.check()


def test_without_onnx_runtime_nothing_is_loaded(tmp_path, monkeypatch):
    served = placement.read(write(tmp_path, [672], "aoti"))
    monkeypatch.setattr(requirements.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"expected ONNX Runtime, .* install it with pip install onnxruntime"):
        start_check.place_text_encoder(served, "cpu", {0: None}, None)


@pytest.mark.parametrize(
    ("megabytes", "sentence"),
    [
        pytest.param(
            3_100,
            "With --text-encoder cpu it starts: that needs 2,828 MB at least",
            id="with the text encoder it does not fit",
        ),
        pytest.param(2_500, "", id="not even without it"),
    ],
)
def test_who_keeps_it_on_a_gpu_that_is_too_small_is_told(tmp_path, megabytes, sentence):
    server = embedded.EmbeddedServer(write(tmp_path, [672], "aoti"), gpu_memory_mb=megabytes, text_encoder="gpu")
    with pytest.raises(ServerError, match="sam3_r672: needs") as refused:
        server.check()
    assert ("--text-encoder" in str(refused.value)) == bool(sentence)
    assert sentence in str(refused.value)


def test_a_server_on_the_cpu_has_it_there_anyway(tmp_path):
    served = placement.read(write(tmp_path, [672], "onnxruntime"))
    assert start_check.place_text_encoder(served, "cpu", {}, None) == served
