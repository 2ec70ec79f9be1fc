"""The only module beside `front` and `engine` that knows Triton's Python API: arrays of a request, and calls from the
front model to sub-models (BLS).

`triton_python_backend_utils` exists only inside Triton's stub process, so this module is imported there alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from ensemble.records import ModelSpec
from ensemble.spec import STAGES

if TYPE_CHECKING:
    from ensemble.postprocess import Detections

CALL_TIMEOUT_US = 60_000_000
"""A sub-model that has not answered by then is stuck; its callers get an error instead of waiting for ever."""


class SubModelError(RuntimeError):
    """A sub-model failed; the message names it. Every frame of the batch gets it, since they shared the call."""


def request_arrays(request: Any) -> dict[str, np.ndarray]:
    """Input name -> array of one inference request."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def call_sub_model(model: ModelSpec, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
    """`pipeline.Call` over BLS: arrays are wrapped, those on a GPU where they lie, handles from an earlier call are
    passed on, host outputs come back as NumPy arrays."""
    tensors = [to_triton(name, value) for name, value in inputs.items()]
    request = pb_utils.InferenceRequest(
        model_name=model.name, requested_output_names=list(outputs), inputs=tensors, timeout=CALL_TIMEOUT_US
    )
    response = request.exec()
    if response.has_error():
        raise SubModelError(f"{model.name}: {response.error().message()}")
    results = {}
    for name in outputs:
        tensor = pb_utils.get_output_tensor_by_name(response, name)
        results[name] = to_numpy(tensor, model.name) if model.output(name).host else tensor
    return results


def to_triton(name: str, value: Any) -> Any:
    """A Triton tensor of a NumPy array, of an array on a GPU (anything with `__dlpack__`, finished and not copied), or
    of a Triton tensor, as it is."""
    if isinstance(value, pb_utils.Tensor):
        return value
    return pb_utils.Tensor(name, value) if isinstance(value, np.ndarray) else pb_utils.Tensor.from_dlpack(name, value)


def to_numpy(tensor: Any, model_name: str) -> np.ndarray:
    """A tensor's values on the host. Triton's own backends answer a call in GPU memory, from which CuPy fetches them.

    Raises SubModelError where that is needed and CuPy cannot be imported.
    """
    if tensor.is_cpu():
        return tensor.as_numpy()
    try:
        import cupy
    except ImportError as error:
        raise SubModelError(
            f"{model_name}: expected output {tensor.name()!r} in host memory, got it on the GPU, and CuPy, which would"
            " fetch it, cannot be imported; install cupy-cuda13x<14 in the front model's environment"
        ) from error
    return cupy.from_dlpack(tensor.to_dlpack()).get()


def response(found: Detections, frame_size: tuple[int, int], stage_ms: Mapping[str, float], batch: int) -> Any:
    """The front model's answer for one frame."""
    arrays = {
        "boxes": found.boxes,
        "scores": found.scores,
        "class_ids": found.class_ids,
        "presence": found.presence,
        "mask_bits": found.mask_bits,
        "mask_rle": np.array(found.mask_rle, dtype=object),
        "frame_size": np.array(frame_size, np.int32),
        "stage_ms": np.array([stage_ms.get(stage, 0.0) for stage in STAGES], np.float32),
        "batch": np.array([batch], np.int32),
    }
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, np.ascontiguousarray(array[None])) for name, array in arrays.items()]
    )


def error_response(message: str, invalid: bool) -> Any:
    """An answer that tells one caller what was wrong: the request (`invalid`), or the server."""
    code = pb_utils.TritonError.INVALID_ARG if invalid else pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def log_info(message: str) -> None:
    """A line in Triton's log, for who looks there."""
    pb_utils.Logger.log_info(message)


def log_warning(message: str) -> None:
    """A warning in Triton's log, which `sam3-serve` shows."""
    pb_utils.Logger.log_warn(message)
