"""The runner of plans on a GPU that is stood in for: which memory a plan is given, what becomes of refusals, and what
is kept from start to start. The package, its enumerations and the adapter are the true ones."""

from __future__ import annotations

import gc
import importlib
import logging
import sys
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ensemble.engines.plans import kernels, library
from ensemble.engines.plans.library import PlanError, RtxLibrary, module_of
from tests.ensemble.plans import gpu_stand_in
from tests.ensemble.plans.gpu_stand_in import MAX_IMAGES, Array, Plan

pytestmark = pytest.mark.skipif(module_of("tensorrt_rtx") is None, reason="needs TensorRT for RTX")

SCRATCH = 4096
CARD = "NVIDIA GeForce RTX 4090"
OUTPUTS = ("fpn_2", "pred_logits")


@pytest.fixture
def free() -> list[int]:
    """Bytes of free GPU memory."""
    return [1 << 30]


@pytest.fixture
def opened(monkeypatch, free, tmp_path) -> Callable[..., Any]:
    """(name, scratch, refuses) -> a runner of a plan of that name, with its `plan`."""
    for name, module in gpu_stand_in.modules(free).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("ensemble.engines.device.use_gpu", lambda device_id: None)  # PyTorch's too, if it is loaded
    for name in ("ensemble.engines.plans.gpu", "ensemble.engines.plans.runner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    runner = importlib.import_module("ensemble.engines.plans.runner")

    def open_plan(name: str = "sam3_vision_encoder_r252", scratch: int = SCRATCH, refuses: str = "") -> Any:
        plans: list[Plan] = []

        class Opens(RtxLibrary):
            def deserialize(self, path, card, compute_capability, free_mb):
                plans.append(Plan(self.trt, scratch, refuses))
                return plans[-1]

        with monkeypatch.context() as patch:
            patch.setattr(runner, "open_library", lambda engine: Opens(library.open_library(engine).trt))
            path = tmp_path / "repository" / name / "1" / "model.rtx"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(b"plan")
            made = runner.PlanRunner("tensorrt_rtx", path, 0)
        made.plan = plans[0]
        return made

    yield open_plan
    for name in ("ensemble.engines.plans.gpu", "ensemble.engines.plans.runner"):
        sys.modules.pop(name, None)


def frames(count: int, start: int = 1) -> dict[str, np.ndarray]:
    return {"pixel_values": np.arange(start, start + 5 * count, dtype=np.uint8).reshape(count, 5)}


@pytest.mark.parametrize("count", [1, 2, 3, MAX_IMAGES])
def test_it_computes_what_the_plan_does(opened, count):
    """One frame by way of a graph, two and four as the profile has them, three as they come."""
    runner, given = opened(), frames(count)
    for start in (1, 7):
        given = frames(count, start)
        made = runner.run(given, OUTPUTS)
        assert isinstance(made["fpn_2"], Array), "features stay on the GPU"
        np.testing.assert_array_equal(made["fpn_2"].get(), given["pixel_values"] * 2.0)
        np.testing.assert_array_equal(made["pred_logits"], given["pixel_values"] * 3.0)


@pytest.mark.parametrize(
    ("model", "output", "stays"),
    [
        pytest.param("sam3_mask_head_r252_q50", "mask_bits", False, id="a detector's masks"),
        pytest.param("sam3_tracker_step_r252", "mask_bits", True, id="a tracker's masks"),
        pytest.param("sam3_tracker_step_r252", "track_score", True, id="a tracker's scores"),
        pytest.param("sam3_vision_encoder_r252_fp8", "hidden", True, id="tokens for a tracker"),
        pytest.param("sam3_memory_encoder_r252", "memory", True, id="memory maps"),
        pytest.param("sam3_decoder_r252_q50", "pred_boxes", False, id="boxes"),
    ],
)
def test_what_stays_on_the_gpu_depends_on_the_sub_model(opened, model, output, stays, monkeypatch):
    """Two sub-models name their masks alike, and those of one are read on the host."""
    tensors = {"pixel_values": np.uint8, output: np.float16, "pred_logits": np.float32}
    monkeypatch.setattr(gpu_stand_in, "TENSORS", tensors)
    found = opened(model).run(frames(2), (output,))[output]
    assert isinstance(found, Array) == stays
    np.testing.assert_array_equal(found.get() if stays else found, frames(2)["pixel_values"] * 2.0)


def test_every_context_has_the_profile_and_the_memory(opened):
    runner = opened()
    for count in (1, 2, 3):
        runner.run(frames(count), OUTPUTS)
    strategies = {(str(c.config.cuda_graph_strategy), c.scratch) for c in runner.plan.contexts}
    assert len(runner.plan.contexts) == 3
    assert len(strategies) == 2, "graphs for one frame, and one memory for all"
    assert {c.active_optimization_profile for c in runner.plan.contexts} == {0}


def test_frames_from_the_middle_of_a_batch_are_read_where_they_may_be(opened):
    runner = opened()
    batch = gpu_stand_in.empty((4, 5), np.uint8)
    batch.host[...] = frames(4)["pixel_values"]
    part = batch[1:3]
    assert part.data.ptr % gpu_stand_in.ALIGNED
    found = runner.run({"pixel_values": part}, ("pred_logits",))["pred_logits"]
    np.testing.assert_array_equal(found, frames(4)["pixel_values"][1:3] * 3.0)


# ---- the memory that all compute in
def test_a_larger_plan_gives_all_a_larger_memory(opened):
    first = opened()
    first.run(frames(1), OUTPUTS)
    second = opened("sam3_decoder_r252_q50", 4 * SCRATCH)
    for runner in (first, second):
        assert runner.run(frames(1), OUTPUTS)["pred_logits"][0, 0] == 3
        assert runner.run(frames(3), OUTPUTS)["pred_logits"][0, 0] == 3
    assert first._scratch == second._scratch
    assert first._scratch[1] == 4 * SCRATCH
    graphs = [c for c in first.plan.contexts if "WHOLE" in str(c.config.cuda_graph_strategy)]
    assert len(graphs) == 2, "what was captured read the old memory"
    assert graphs[0].scratch != graphs[1].scratch == first._scratch


def test_where_a_plan_finds_no_room_the_others_go_on(opened, free):
    first = opened()
    free[0] = 2 * SCRATCH
    with pytest.raises(MemoryError, match=r"expected 1 MB of GPU memory .*there are 0 MB free; free some"):
        opened("sam3_decoder_r252_q50", 1 << 20)
    held = first._gpu._scratch
    assert held, "memory that is not given back"
    assert first._scratch == (held.ptr, SCRATCH)
    assert first.run(frames(3), OUTPUTS)["pred_logits"][0, 0] == 3
    third = opened("sam3_mask_head_r252_q50", SCRATCH // 2)
    assert third.run(frames(3), OUTPUTS)["pred_logits"][0, 0] == 3
    assert third._scratch == first._scratch


def test_a_plan_that_nobody_uses_is_given_back(opened):
    """The gate opens one after the other, on cards that do not hold them all."""
    run = opened().run
    plan = weakref.ref(run.__self__.plan)
    del run
    gc.collect()
    assert plan() is None
    assert opened("sam3_decoder_r252_q50", 4 * SCRATCH).run(frames(1), OUTPUTS)["pred_logits"][0, 0] == 3


# ---- refusals
@pytest.mark.parametrize(
    ("refuses", "error", "sentence"),
    [
        pytest.param("create_execution_context", MemoryError, "1,024 MB are free; serve fewer", id="no context"),
        pytest.param("set_optimization_profile_async", PlanError, "refuses the plan's profile", id="profile"),
        pytest.param("set_input_shape", PlanError, r"refuses pixel_values of \[1, 5\]", id="shape"),
        pytest.param("get_tensor_shape", PlanError, "gives no size for fpn_2, pred_logits", id="size of outputs"),
        pytest.param("set_tensor_address", PlanError, "refuses the address of pixel_values", id="address"),
        pytest.param("execute_async_v3", PlanError, r"did not run .*pixel_values of \[1, 5\]; .*--force", id="run"),
    ],
)
def test_what_tensorrt_refuses_is_named(opened, refuses, error, sentence):
    with pytest.raises(error, match=f"sam3_vision_encoder_r252: .*{sentence}"):
        opened(refuses=refuses)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        pytest.param({}, "asks for pixel_values too; export it again", id="an input is missing"),
        pytest.param(frames(0), r"got \[0, 5\]; export it with larger limits", id="an empty batch"),
        pytest.param(frames(5), r"expected pixel_values of \[1, 5\] to \[4, 5\], got \[5, 5\]", id="too many"),
        pytest.param({"pixel_values": np.zeros((1, 5), np.float32)}, "as uint8, got float32", id="another type"),
    ],
)
def test_inputs_that_the_plan_does_not_take(opened, given, sentence):
    with pytest.raises(PlanError, match=sentence):
        opened().run(given, OUTPUTS)


# ---- kernels from start to start
def finished(caplog: pytest.LogCaptureFixture) -> int:
    found = sum("finishing kernels" in record.message for record in caplog.records)
    caplog.clear()
    return found


def test_kernels_are_finished_once_for_a_plan(opened, caplog, tmp_path):
    with caplog.at_level(logging.WARNING):
        opened()
        assert finished(caplog) == 3, "smallest, usual, largest"
        assert opened().run(frames(2), OUTPUTS)["pred_logits"][0, 0] == 3
        assert finished(caplog) == 0
        (tmp_path / "repository" / "sam3_vision_encoder_r252" / "1" / "model.rtx").write_bytes(b"another plan")
        opened()
        assert finished(caplog) == 3, "a plan that was exported again"


def test_damaged_kernels_are_finished_again(opened, caplog, tmp_path):
    opened()
    path = kernels.file_for(tmp_path / "repository" / "sam3_vision_encoder_r252" / "1" / "model.rtx", CARD)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        opened()
        assert "thrown away and made anew" in caplog.text
        assert finished(caplog) == 3
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_time_alone(opened, caplog, tmp_path):
    (tmp_path / "repository.here").write_text("")
    for _ in range(2):
        assert opened().run(frames(2), OUTPUTS)["pred_logits"][0, 0] == 3
        assert "finished again at each start" in caplog.text
        assert finished(caplog) == 3


# ---- opening
@pytest.mark.parametrize(
    ("bit", "sentence"),
    [
        (1, "another version of TensorRT for RTX; export it again"),
        (2, "not built for this card; export it again with --compute-capability"),
        (4, "driver is too old .*; update the driver"),
        (16, "too little free memory; free some"),
        (32, "no whole plan; export it again"),
    ],
)
def test_what_the_runtime_finds_wrong_is_told_with_a_remedy(monkeypatch, tmp_path, bit, sentence):
    rtx = library.open_library("tensorrt_rtx")
    monkeypatch.setattr(library.plan_file, "check", lambda path, version: None)
    rtx._runtime = SimpleNamespace(get_engine_validity=lambda plan: (rtx.trt.EngineValidity.INVALID, bit))
    (tmp_path / "model.rtx").write_bytes(b"plan")
    with pytest.raises(PlanError, match=rf"model\.rtx cannot be run on {CARD}: .*{sentence}"):
        rtx.deserialize(tmp_path / "model.rtx", CARD, "8.9", 1000)


@pytest.mark.parametrize("engine", ["tensorrt_rtx", "tensorrt"])
@pytest.mark.parametrize(
    ("free_mb", "error", "sentence"),
    [
        (1, MemoryError, rf"expected 3 MB of free GPU memory for it, {CARD} has 1 MB free; free some"),
        (1000, PlanError, rf"cannot be opened .*{CARD}.*1,000 MB free\): .*--force"),
    ],
    ids=["no room", "no reason"],
)
def test_a_plan_that_is_not_opened_is_told_with_what_was_free(monkeypatch, tmp_path, engine, free_mb, error, sentence):
    trt = library.open_library("tensorrt_rtx").trt
    opens = library.Library(trt) if engine == "tensorrt" else RtxLibrary(trt)
    monkeypatch.setattr(library.plan_file, "check", lambda path, version: None)
    opens._runtime = SimpleNamespace(
        get_engine_validity=lambda plan: (trt.EngineValidity.VALID, 0), deserialize_cuda_engine=lambda plan: None
    )
    (tmp_path / "model.rtx").write_bytes(bytes(3 << 20))
    with pytest.raises(error, match=sentence):
        opens.deserialize(tmp_path / "model.rtx", CARD, "8.9", free_mb)


def test_a_library_that_cannot_start_says_where_to_look(monkeypatch):
    def nothing(*_: Any) -> None:
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(library, "RtxLibrary", nothing)
    with pytest.raises(PlanError, match=r"version 1\..*cannot be started: .*nvidia-smi"):
        library.open_library("tensorrt_rtx")


def test_plans_of_a_process_have_one_logger():
    """TensorRT warns of a second one, for every plan."""
    first, second = library.open_library("tensorrt_rtx"), library.open_library("tensorrt_rtx")
    assert first._runtime is not second._runtime
    assert first._runtime.logger is second._runtime.logger


def test_kernels_that_tensorrt_cannot_read_are_no_error(caplog):
    def spoilt(kept: bytes) -> bool:
        raise RuntimeError("no such format")

    rtx = library.open_library("tensorrt_rtx")
    rtx._cache = SimpleNamespace(deserialize=spoilt)
    assert not rtx._accepts(b"kernels")
    assert "cannot read kept kernels: no such format" in caplog.text
