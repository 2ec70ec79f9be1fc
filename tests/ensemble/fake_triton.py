"""What this project uses of `triton_python_backend_utils`, which exists inside Triton's processes only."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import ClassVar


class HostTensor:
    """Triton's tensor with values on the host."""

    def __init__(self, name, value):
        self._name, self.value = name, value

    def name(self):
        return self._name

    def is_cpu(self):
        return True

    def as_numpy(self):
        return self.value

    @classmethod
    def from_dlpack(cls, name, value):
        return GpuTensor(name, value)


class GpuTensor(HostTensor):
    """Triton's tensor with values on a GPU, which it hands out through DLPack alone."""

    def is_cpu(self):
        return False

    def as_numpy(self):
        raise RuntimeError("Tensor is stored in GPU and cannot be converted to NumPy.")

    def to_dlpack(self):
        return self.value.__dlpack__()


class TritonError:
    INVALID_ARG, INTERNAL, UNAVAILABLE = "invalid argument", "internal", "unavailable"

    def __init__(self, message, code=INTERNAL):
        self._message, self.code = message, code

    def message(self):
        return self._message


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self.tensors, self._error = {tensor.name(): tensor for tensor in output_tensors}, error

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error


class InferenceRequest:
    """A request to a model, and of a front model: `exec` is answered by `answer`, a sender keeps what it is given."""

    answer: Callable[[InferenceRequest], InferenceResponse]

    def __init__(self, model_name="", requested_output_names=(), inputs=()):
        self.model_name, self.wanted, self._inputs = model_name, list(requested_output_names), list(inputs)
        self.sent = []

    def inputs(self):
        return self._inputs

    def exec(self):
        return type(self).answer(self)

    def get_response_sender(self):
        return self

    def send(self, response, flags):
        assert flags == module.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self.sent.append(response)


class MetricFamily:
    """Its metrics count what they are told: (family, labels) -> sum, or what a gauge was last set to."""

    HISTOGRAM, COUNTER, GAUGE = "histogram", "counter", "gauge"
    told: ClassVar[dict[tuple, float]] = {}

    def __init__(self, name, description, kind):
        self.name = name

    def Metric(self, labels, buckets=()):  # noqa: N802  (Triton's name)
        key = (self.name, *labels.values())

        def add(value):
            MetricFamily.told[key] = MetricFamily.told.get(key, 0) + value

        return types.SimpleNamespace(
            increment=add, observe=add, set=lambda value: MetricFamily.told.update({key: value})
        )


module = types.ModuleType("triton_python_backend_utils")
module.__dict__.update(
    Tensor=HostTensor,
    TritonError=TritonError,
    InferenceResponse=InferenceResponse,
    InferenceRequest=InferenceRequest,
    MetricFamily=MetricFamily,
    Logger=types.SimpleNamespace(log_info=lambda line: None, log_warn=lambda line: None),
    TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
    get_output_tensor_by_name=lambda response, name: response.tensors.get(name),
)
