"""Triton's Python API as this project uses it: arrays of requests and responses, calls between models (BLS), the log.

`triton_python_backend_utils` exists only inside Triton's stub process, so this module is imported there alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from ensemble.ending import ServerEnding
from ensemble.request import RequestError, sentence

log = logging.getLogger(__name__)


class CallError(RuntimeError):
    """A model that was called failed or did not answer; the message names it. Every frame of the batch gets it, since
    they shared the call."""


def request_arrays(request: Any) -> dict[str, np.ndarray]:
    """Input name -> array of one inference request."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def call_model(name: str, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
    """The wanted outputs of another model of this server, as Triton tensors; `inputs` as `to_triton` takes them.

    Blocks until the model answers. Raises CallError.
    """
    tensors = [to_triton(input_name, value) for input_name, value in inputs.items()]
    request = pb_utils.InferenceRequest(model_name=name, requested_output_names=list(outputs), inputs=tensors)
    response = request.exec()
    if response.has_error():
        raise CallError(f"{name}: {response.error().message()}")
    return {output: pb_utils.get_output_tensor_by_name(response, output) for output in outputs}


def to_triton(name: str, value: Any) -> Any:
    """A Triton tensor of a NumPy array, of an array on a GPU (anything with `__dlpack__`, finished and not copied), or
    of a Triton tensor, as it is."""
    if isinstance(value, pb_utils.Tensor):
        return value
    if isinstance(value, np.ndarray):
        return pb_utils.Tensor(name, np.ascontiguousarray(value))
    return pb_utils.Tensor.from_dlpack(name, value)


def to_numpy(tensor: Any, model_name: str) -> np.ndarray:
    """A tensor's values on the host. Triton's own backends answer a call in GPU memory, from which CuPy fetches them.

    Raises CallError where that is needed and CuPy cannot be imported.
    """
    if tensor.is_cpu():
        return tensor.as_numpy()
    try:
        import cupy
    except ImportError as error:
        raise CallError(
            f"{model_name}: expected output {tensor.name()!r} in host memory, got it on the GPU, and CuPy, which would"
            " fetch it, cannot be imported; install cupy-cuda13x<14 in the front model's environment"
        ) from error
    return cupy.from_dlpack(tensor.to_dlpack()).get()


def response(arrays: Mapping[str, Any]) -> Any:
    """A response that holds these outputs, as `to_triton` takes them."""
    return pb_utils.InferenceResponse([to_triton(name, value) for name, value in arrays.items()])


def error_response(message: str, code: Any = None) -> Any:
    """An answer that tells one caller what was wrong: the server, where `code` says nothing else."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code or pb_utils.TritonError.INTERNAL))


def refusal(error: Exception) -> Any:
    """An answer that says what failed, and whether the request was at fault or the server is going away."""
    codes = {RequestError: pb_utils.TritonError.INVALID_ARG, ServerEnding: pb_utils.TritonError.UNAVAILABLE}
    return error_response(sentence(error), codes.get(type(error)))


def send(sender: Any, response: Any) -> None:
    """Answers a request whose `execute` has returned without a response; it is the only answer.

    Where that fails, the log says so: nobody else is there to tell, and the next request must get its answer.
    """
    try:
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception:
        log.exception("an answer could not be sent")


class LogHandler(logging.Handler):
    """Python's log records in Triton's log, which `sam3-serve` shows from warnings on."""

    @classmethod
    def install(cls, model: str) -> None:
        """For all loggers of this project in this process; lines begin with the model's name."""
        handler = cls()
        handler.setFormatter(logging.Formatter(f"{model}: %(message)s"))
        logger = logging.getLogger("ensemble")
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        log = pb_utils.Logger.log_info if record.levelno < logging.WARNING else pb_utils.Logger.log_warn
        log(self.format(record))
