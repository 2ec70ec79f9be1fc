"""Cases over gRPC, as messages of Triton's protocol or as bytes that are none."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from tests.fuzz.cases import Case, Tensor
from tests.fuzz.reply import TIMEOUT_S, Reply

METHOD = "/inference.GRPCInferenceService/ModelInfer"
OTHERS = (
    *("ModelConfig", "ModelMetadata", "ModelStatistics", "RepositoryModelUnload", "RepositoryModelLoad", "Nothing"),
    *("SystemSharedMemoryUnregister", "CudaSharedMemoryStatus", "TraceSetting", "LogSettings", "ModelReady"),
)
REFUSED = {
    *("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "ALREADY_EXISTS", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED"),
    *("FAILED_PRECONDITION",),
}
TYPED = {"INT32": "int_contents", "INT64": "int64_contents", "FP32": "fp32_contents", "BYTES": "bytes_contents"}


def open_channel(address: str) -> grpc.Channel:
    options: list[tuple[str, Any]] = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    return grpc.insecure_channel(address, options=[*options, ("grpc.enable_http_proxy", 0)])


def message_of(case: Case) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=case.model, model_version=case.version, id=str(case.number))
    typed = case.rng.random() < 0.2 and (case.spoilt or all(t.dtype in TYPED for t in case.tensors))
    for tensor in case.tensors:
        entry = request.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=tensor.shape)
        if not (typed and _typed(entry, tensor)):
            request.raw_input_contents.append(tensor.raw)
    for name, value in case.parameters.items():
        _set(request.parameters[name], value)
    for output in case.outputs:
        entry = request.outputs.add(name=output["name"])
        for name, value in output["parameters"].items():
            if name != "classification":  # ends Triton 24.10 where the output is text: docs/cameras.md says so
                _set(entry.parameters[name], value)
    return request.SerializeToString()


def quick(model: str, arrays: Mapping[str, np.ndarray]) -> bytes:
    """The message of these arrays, each with its leading 1."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, array in arrays.items():
        dtype = np_to_triton_dtype(array.dtype)
        request.inputs.add(name=name, datatype=dtype, shape=array.shape)
        request.raw_input_contents.append(serialize_byte_tensor(array).item() if dtype == "BYTES" else array.tobytes())
    return request.SerializeToString()


def _typed(entry: Any, tensor: Tensor) -> bool:
    """The values in a field of their type, where that can hold them."""
    if tensor.dtype not in TYPED or not isinstance(tensor.values, list):
        return False
    values = [v.encode("utf-8", "surrogateescape") if isinstance(v, str) else v for v in tensor.values]
    try:
        getattr(entry.contents, TYPED[tensor.dtype]).extend(values)
    except (TypeError, ValueError):
        return False
    return True


def _set(parameter: Any, value: Any) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = int(np.clip(value, -(2**63), 2**63 - 1))
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = str(value)


def send(case: Case, channel: grpc.Channel) -> Reply:
    """Sends the case, one in five with something wrong on the way too."""
    data, method, rng = message_of(case), METHOD, case.rng
    metadata: list[tuple[str, str | bytes]] = []
    way = rng.randrange(20)
    if way == 0 and data:
        data = data[: rng.randrange(len(data))]
        case.spoilt.append("cut")
    elif way == 1 and data:
        spoilt = bytearray(data)
        for _ in range(rng.randint(1, 10)):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        data = bytes(spoilt)
        case.spoilt.append("bytes")
    elif way == 2:
        data, method = rng.randbytes(rng.randint(0, 200)), METHOD.replace("ModelInfer", rng.choice(OTHERS))
        case.spoilt.append("method")
    elif way == 3:
        metadata = rng.choice(
            ([("x", "y" * 4000)], [("x-bin", rng.randbytes(3000))], [("triton_trace", "-1"), ("timeout", "x")])
        )
        case.spoilt.append("metadata")
    start = time.monotonic()
    try:
        channel.unary_unary(method)(data, timeout=TIMEOUT_S, metadata=metadata, wait_for_ready=False)
    except grpc.RpcError as error:
        status, text = error.code().name, error.details() or ""
        seconds = time.monotonic() - start
        if status == "DEADLINE_EXCEEDED":
            return Reply("silent", text, seconds)
        if status in REFUSED or (status == "UNAVAILABLE" and "unknown model" in text):
            return Reply("refused", text, seconds)
        return Reply("nobody" if status == "UNAVAILABLE" else "failed", text, seconds)
    return Reply("answered", "", time.monotonic() - start)
