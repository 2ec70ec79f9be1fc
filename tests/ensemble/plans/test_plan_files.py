"""What is known of a plan of TensorRT for RTX without a GPU: its head, its version, and what the runtime says of it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from ensemble.engines import open_sub_model
from ensemble.engines.plans import cards, library, plan_file
from ensemble.engines.plans.library import PlanError, RtxLibrary, module_of
from ensemble.engines.plans.plan_file import PlanFileError
from ensemble.server import gpu
from ensemble.server.gpu import Gpu
from ensemble.server.plans_check import check_plans
from ensemble.server.repository import read
from ensemble.server.requirements import ServerError
from tests.ensemble.server.repositories import write

installed = pytest.mark.skipif(module_of("tensorrt_rtx") is None, reason="needs TensorRT for RTX")


@pytest.fixture(scope="module")
def rtx() -> RtxLibrary:
    opened = library.open_library("tensorrt_rtx")
    assert isinstance(opened, RtxLibrary)
    return opened


@pytest.fixture(scope="module")
def plan(rtx, tmp_path_factory) -> Path:
    """The plan of a sum, for two kinds of cards."""
    trt = rtx.trt
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    x = network.add_input("x", trt.float32, (-1, 4))
    y = network.add_elementwise(x, x, trt.ElementWiseOperation.SUM).get_output(0)
    network.mark_output(y)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 2
    for i, kind in enumerate((trt.ComputeCapability.SM86, trt.ComputeCapability.SM89)):
        config.set_compute_capability(kind, i)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 4), (2, 4), (8, 4))
    config.add_optimization_profile(profile)
    path = tmp_path_factory.mktemp("plans") / "repository" / "sam3_sum" / "1" / "model.rtx"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(builder.build_serialized_network(network, config)))
    return path


@installed
def test_a_whole_plan_of_this_version_is_taken(plan, rtx):
    assert plan_file.version_of(plan) == rtx.version
    plan_file.check(plan, rtx.version)


@installed
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        pytest.param(lambda data: data[: len(data) // 2], "was not written whole", id="half written"),
        pytest.param(lambda data: data[:20], "got something else", id="begun"),
        pytest.param(lambda data: b"", "got something else", id="empty"),
        pytest.param(lambda data: b"PK\3\4" + data[4:], "got something else", id="another kind of file"),
        pytest.param(lambda data: data[:24] + bytes([1, 6, 0, 9]) + data[28:], "got one of 1.6.0.9", id="older"),
    ],
)
def test_other_files_are_refused_with_a_remedy(plan, rtx, tmp_path, spoil, sentence):
    path = tmp_path / "model.rtx"
    path.write_bytes(spoil(plan.read_bytes()))
    with pytest.raises(PlanFileError, match=sentence) as refused:
        plan_file.check(path, rtx.version)
    assert "sam3-export --engine tensorrt_rtx --force" in str(refused.value)


@installed
def test_the_runtime_tells_damaged_plans_without_a_gpu(rtx):
    """Its diagnostics are the bits for which there are sentences."""
    validity, bits = rtx._runtime.get_engine_validity(b"x" * 1000)
    assert validity == rtx.trt.EngineValidity.INVALID
    assert "no whole plan" in cards.diagnosis(int(bits))
    assert set(cards.DIAGNOSTICS) == {int(m) for m in rtx.trt.EngineInvalidityDiagnostics.__members__.values()}
    assert rtx._runtime.engine_header_size == plan_file.HEAD_BYTES


@installed
@pytest.mark.skipif(bool(gpu.gpus()), reason="there is a GPU")
def test_without_a_gpu_a_plan_cannot_be_opened(plan, rtx):
    """Neither to be looked at nor to be run: TensorRT for RTX asks the driver first, and finds no fault with the
    file."""
    with pytest.raises(PlanError, match=r"cannot be run on RTX 4090: "):
        rtx.deserialize(plan, "RTX 4090", "8.9", 1000.0)


@installed
@pytest.mark.parametrize(
    ("card", "spoil", "sentence"),
    [
        pytest.param("8.9", lambda data: data[:-1], "it was not written whole; .*--force", id="half written"),
        pytest.param("8.9", lambda data: data[:24] + bytes(4) + data[28:], "got one of 0.0.0.0", id="another version"),
        pytest.param("9.0", bytes, "no kernels for a card", id="Hopper"),
        pytest.param("6.1", bytes, "a card .* is too old", id="too old"),
    ],
)
def test_an_engine_process_looks_before_it_opens(plan, rtx, tmp_path, card, spoil, sentence):
    """It may be on another GPU than the one that the start looked at."""
    path = tmp_path / "model.rtx"
    path.write_bytes(spoil(plan.read_bytes()))
    with pytest.raises(PlanError, match=sentence):
        rtx.deserialize(path, "a card", card, 1000.0)


@installed
def test_the_package_has_every_call_that_only_it_has(rtx):
    """The names of the adapter's calls, since no card runs them here."""
    trt = rtx.trt
    config = ("create_runtime_cache", "set_runtime_cache", "set_execution_context_allocation_strategy")
    config += ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy")
    assert all(hasattr(trt.IRuntimeConfig, name) for name in config)
    plans = ("device_memory_size_v2", "create_runtime_config", "create_execution_context", "num_io_tensors")
    plans += ("get_tensor_name", "get_tensor_mode", "get_tensor_dtype", "get_tensor_shape", "get_tensor_profile_shape")
    assert all(hasattr(trt.ICudaEngine, name) for name in plans)
    contexts = ("set_device_memory", "active_optimization_profile", "set_optimization_profile_async")
    contexts += ("set_input_shape", "get_tensor_shape", "set_tensor_address", "execute_async_v3")
    assert all(hasattr(trt.IExecutionContext, name) for name in contexts)
    assert all(hasattr(trt.IRuntimeCache, name) for name in ("serialize", "deserialize"))
    assert {"EAGER", "LAZY"} <= set(trt.DynamicShapesKernelSpecializationStrategy.__members__)
    assert {"WHOLE_GRAPH_CAPTURE", "DISABLED"} <= set(trt.CudaGraphStrategy.__members__)
    assert "USER_MANAGED" in trt.ExecutionContextAllocationStrategy.__members__
    assert {f"DataType.{name}" for name in library.DTYPES} <= {str(t) for t in trt.DataType.__members__.values()}


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        pytest.param(("NVIDIA GeForce RTX 4060", "8.9"), None, id="Ada"),
        pytest.param(("NVIDIA GeForce RTX 5090", "12.0"), None, id="Blackwell"),
        pytest.param(("NVIDIA H100 80GB HBM3", "9.0"), "--engine aoti, or serve plans in the container", id="Hopper"),
        pytest.param(("NVIDIA B200", "10.0"), "as for cards of data centres", id="data-centre Blackwell"),
        pytest.param(("NVIDIA GeForce GTX 1080", "6.1"), "too old for TensorRT for RTX", id="Pascal"),
    ],
)
def test_which_cards_it_runs_on(card, sentence):
    why = cards.why_not_here(*card)
    assert (why is None) == (sentence is None)
    assert sentence is None or sentence in why
    assert sentence is None or card[0] in why


def test_a_plan_that_cannot_be_read_is_refused(tmp_path):
    """A folder in its place: root, as whom tests may run, reads everything."""
    with pytest.raises(PlanFileError, match=r"cannot be read \(Is a directory\); make it readable"):
        plan_file.check(tmp_path, "1.7.1.116")


PLAN_OF = {"tensorrt_rtx": "1.7.1.116", "compute_capability": "8.6 8.9"}
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24_000, 23_000)
RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", "12.0", 32_000, 31_000)
GTX_1080 = Gpu("NVIDIA GeForce GTX 1080", "6.1", 8_000, 7_000)
H100 = Gpu("NVIDIA H100", "9.0", 81_000, 80_000)


def older(data: bytes) -> bytes:
    return data[:24] + bytes([1, 6, 0, 9]) + data[28:]


@installed
@pytest.mark.parametrize(
    ("card", "spoil", "sentence"),
    [
        pytest.param(RTX_4090, bytes, None, id="a card that it is for"),
        pytest.param(None, bytes, None, id="the card is not known"),
        pytest.param(
            RTX_5090,
            bytes,
            r"8\.6, 8\.9, NVIDIA GeForce RTX 5090 has 12\.0; export again with --compute-capability 120",
            id="the one of several cards that was not named",
        ),
        pytest.param(H100, bytes, "no kernels for NVIDIA H100 .*--engine aoti", id="Hopper"),
        pytest.param(GTX_1080, bytes, "GTX 1080 .* is too old .*--engine onnxruntime", id="too old"),
        pytest.param(
            RTX_4090, older, r"expected a plan .* 1\.7\.1\.116.*got one of 1\.6\.0\.9; .*--force", id="another version"
        ),
        pytest.param(RTX_4090, lambda data: data[:-1], "it was not written whole; .*--force", id="half written"),
        pytest.param(RTX_4090, lambda data: b"", "got something else; .*--force", id="empty"),
    ],
)
def test_a_server_does_not_start_on_plans_that_cannot_run(tmp_path, monkeypatch, plan, card, spoil, sentence):
    found = read(write(tmp_path, [672], "tensorrt_rtx", built_for=PLAN_OF))
    for artifact in found[0].artifacts:
        artifact.path.write_bytes(plan.read_bytes())
    found[0].artifacts[-1].path.write_bytes(spoil(plan.read_bytes()))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())  # CuPy too
    with pytest.raises(ServerError, match=sentence) if sentence else nullcontext():
        check_plans(found[0].artifacts, card)


@installed
def test_without_cupy_it_does_not_start_either(tmp_path, monkeypatch):
    found = read(write(tmp_path, [672], "tensorrt_rtx", built_for=PLAN_OF))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "cupy" else object())
    with pytest.raises(ServerError, match=r"expected CuPy .*sam3-triton\[gpu\]"):
        check_plans(found[0].artifacts, None)


@pytest.mark.parametrize("built_for", [None, {}], ids=["no manifest", "it does not say"])
def test_a_manifest_that_does_not_say_leaves_it_to_the_runtime(tmp_path, monkeypatch, built_for):
    found = read(write(tmp_path, [672], "tensorrt_rtx", built_for=built_for))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ServerError, match="got something else"):  # the files of this repository are holes
        check_plans(found[0].artifacts, RTX_5090)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    found = read(write(tmp_path, [672], "tensorrt_rtx", built_for=PLAN_OF))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"package of engine tensorrt_rtx .*sam3-triton\[rtx\]"):
        check_plans(found[0].artifacts, None)
    with pytest.raises(PlanError, match=r"sam3-triton\[rtx\]"):
        open_sub_model("tensorrt_rtx", found[0].artifacts[0].path, 0)
    with pytest.raises(ValueError, match="expected a GPU"):
        open_sub_model("tensorrt_rtx", found[0].artifacts[0].path, None)
