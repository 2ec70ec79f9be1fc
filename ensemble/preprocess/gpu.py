"""Pre-processing on a GPU, into a batch uint8 [B,3,R,R] that the vision encoder reads where it lies.

nvImageCodec decodes all files of a batch in one call, on the card's JPEG engines where it has some; two kernels resize
as Pillow does (`ensemble/preprocess/resample.py`). `open_preprocessor` says which way a front model takes, after a test
of the whole way on this very card.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ensemble.engines.device import use_gpu
from ensemble.preprocess.cpu import CpuPreprocessor, DevicePreprocessor, Preprocessor
from ensemble.preprocess.resample import CUDA_SOURCE, tables
from ensemble.request import FrameRequest

log = logging.getLogger(__name__)
MODES = ("cpu", "gpu", "auto")
MEAN_LIMIT = 1.0
"""Grey levels by which pixels decoded and resized on the GPU may differ from Pillow's, on average over a frame."""
REMEDY = (
    'pip install ".[gpu]", or cupy-cuda13x<14 and nvidia-nvimgcodec-cu13[nvjpeg], in the front model\'s environment'
)
RELEASE_THRESHOLD = 4
"""cudaMemPoolAttrReleaseThreshold"""
THREADS = 128
MAX_GRID_ROWS = 65_535
POOL_BYTES = 128 << 20
"""GPU memory that stays with the pre-processor between batches, for pictures and again for decoded files; frames larger
than 4K can need more for a moment."""


class GpuUnavailableError(RuntimeError):
    """This process cannot pre-process on a GPU; the message says what is missing and how to get it."""


def open_preprocessor(mode: str, resolution: int, pool: Executor, device_id: int) -> Preprocessor:
    """The way of `mode`: `cpu`, `gpu`, or `auto`, the GPU where it works and otherwise, with a warning in the log, the
    CPU.

    Raises GpuUnavailableError for `gpu` where it does not work, ValueError for another mode.
    """
    if mode not in MODES:
        raise ValueError(f"preprocess must be one of {', '.join(MODES)}, got {mode!r}")
    if mode != "cpu":
        try:
            device = GpuDevice(resolution, device_id)
            check(device, resolution, pool)
            log.info("pre-processing on GPU %d (%s)", device_id, device.versions)
            return DevicePreprocessor(device, pool)
        except GpuUnavailableError as error:
            if mode == "gpu":
                raise
            log.warning("pre-processing on the CPU: %s", error)
    return CpuPreprocessor(resolution, pool)


def check(device: GpuDevice, resolution: int, pool: Executor) -> None:
    """Raises GpuUnavailableError unless a file and a raw frame come out of `device` as they come out of Pillow, within
    `MEAN_LIMIT`."""
    y, x = np.mgrid[:96, :160]
    frame = np.stack([x, 2 * y, x + y], axis=-1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "JPEG", quality=90)
    requests = [FrameRequest(("",), image=stream.getvalue()), FrameRequest(("",), frame=frame)]
    try:
        decoded = device.decode([stream.getvalue()])[0]
        ours, _ = DevicePreprocessor(device, pool)(requests)
        pixels = ours.get()
    except Exception as error:  # of many kinds, from CuPy and nvImageCodec; what they say is all there is to know
        raise GpuUnavailableError(f"{_one_line(error)}; needs a working NVIDIA GPU and driver, and {REMEDY}") from error
    if getattr(decoded, "shape", None) != frame.shape:
        raise GpuUnavailableError(
            f"expected nvImageCodec to decode a JPEG of {frame.shape}, got {getattr(decoded, 'shape', None)};"
            f" it gives None where it finds no nvJPEG library: {REMEDY}"
        )
    theirs, _ = CpuPreprocessor(resolution, pool)(requests)
    difference = np.abs(pixels.astype(int) - theirs).mean(axis=(1, 2, 3))
    if not (difference <= MEAN_LIMIT).all():
        raise GpuUnavailableError(
            f"expected pixels within {MEAN_LIMIT} grey levels of Pillow's, got {difference.round(2).tolist()} (JPEG,"
            " raw); please report the versions of the driver, CuPy and nvImageCodec"
        )


class GpuDevice:
    """`preprocess.Device` on one GPU, for one resolution and one thread, whose GPU it becomes (`engines.use_gpu`).

    `hardware` allows the card's JPEG engines; without them, CUDA cores and CPU threads share the work. Raises
    GpuUnavailableError.
    """

    def __init__(self, resolution: int, device_id: int = 0, hardware: bool = True) -> None:
        # The container's file system is read-only, and two small kernels compile in no time.
        os.environ.setdefault("CUPY_CACHE_IN_MEMORY", "1")
        try:
            with _muted_stderr():  # nvImageCodec complains of codecs that nobody asked for
                import cupy
                from nvidia import nvimgcodec
        except ImportError as error:
            raise GpuUnavailableError(f"{_one_line(error)}; {REMEDY}") from error
        self.resolution, self.device_id = resolution, device_id
        self.versions = f"CuPy {cupy.__version__}, nvImageCodec {nvimgcodec.__version__}"
        self._cupy, self._codec = cupy, nvimgcodec
        self._tables = lru_cache(maxsize=64)(self._upload_tables)
        kinds = [nvimgcodec.BackendKind.HYBRID_CPU_GPU, nvimgcodec.BackendKind.GPU_ONLY]
        if hardware:
            kinds.insert(0, nvimgcodec.BackendKind.HW_GPU_ONLY)
        try:
            _load_nvrtc()
            use_gpu(device_id)
            with cupy.cuda.Device(device_id):
                self._stream = cupy.cuda.Stream(non_blocking=True)
                # nvImageCodec takes its pictures from the driver's pool, which by itself gives everything back at
                # once: each decoding would begin with an allocation that waits for the GPU.
                pool = cupy.cuda.runtime.deviceGetDefaultMemPool(device_id)
                cupy.cuda.runtime.memPoolSetAttribute(pool, RELEASE_THRESHOLD, POOL_BYTES)
                module = cupy.RawModule(code=CUDA_SOURCE)
                self._rows, self._columns = (
                    module.get_function("resample_rows"),
                    module.get_function("resample_columns"),
                )
            self._decoder = nvimgcodec.Decoder(
                device_id=device_id,
                max_num_cpu_threads=min(8, os.cpu_count() or 1),
                backends=[nvimgcodec.Backend(kind) for kind in kinds],  # none on the CPU alone: that is Pillow's part
                options=":fancy_upsampling=1",  # chroma is interpolated, as libjpeg does it
            )
            self._params = nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB)
        except Exception as error:
            raise GpuUnavailableError(
                f"{_one_line(error)}; needs a working NVIDIA GPU and driver, and {REMEDY}"
            ) from error

    def decode(self, files: Sequence[bytes]) -> list[Any]:
        """CuPy arrays uint8 [H,W,3], rows may be padded; None for what nvImageCodec refuses."""
        streams = [self._code_stream(file) for file in files]
        known = [stream for stream in streams if stream is not None]
        images = iter(self._decoder.decode(known, params=self._params, cuda_stream=self._stream.ptr) if known else [])
        with self._cupy.cuda.Device(self.device_id), self._stream:
            return [self._as_array(next(images)) if stream is not None else None for stream in streams]

    def resize(self, pictures: Sequence[Any]) -> Any:
        """CuPy uint8 [B,3,R,R] of pictures uint8 [H,W,3], CuPy's or NumPy's; written when this returns, since other
        processes read it."""
        cupy, size = self._cupy, self.resolution
        with cupy.cuda.Device(self.device_id), self._stream:
            batch = cupy.empty((len(pictures), 3, size, size), cupy.uint8)
            uploaded = [cupy.asarray(picture) for picture in pictures]
            for picture, square in zip(uploaded, batch, strict=True):
                self._resize(picture, square)
            self._stream.synchronize()
            del uploaded
            pool = cupy.get_default_memory_pool()
            if pool.total_bytes() > POOL_BYTES:
                pool.free_all_blocks()
        return batch

    def _resize(self, picture: Any, square: Any) -> None:
        cupy, size = self._cupy, np.int32(self.resolution)
        if picture.strides[1:] != (3, 1):
            picture = cupy.ascontiguousarray(picture)
        height, width = np.int32(picture.shape[0]), int(picture.shape[1])
        planes = cupy.empty((3, int(height), self.resolution), cupy.uint8)
        blocks = -(-self.resolution // THREADS)
        self._rows(
            (blocks, min(int(height), MAX_GRID_ROWS)),
            (THREADS,),
            (picture, np.int64(picture.strides[0]), height, size, *self._tables(width), planes),
        )
        self._columns(
            (blocks, self.resolution, 3), (THREADS,), (planes, height, size, *self._tables(int(height)), square)
        )

    def _upload_tables(self, size_in: int) -> tuple[Any, Any, np.int32]:
        spans, weights = tables(size_in, self.resolution)
        return self._cupy.asarray(spans), self._cupy.asarray(weights), np.int32(weights.shape[1])

    def _code_stream(self, file: bytes) -> Any:
        try:
            return self._codec.CodeStream(file)
        except RuntimeError:  # a header that Pillow took and nvImageCodec does not: Pillow decodes it
            return None

    def _as_array(self, image: Any) -> Any:
        return None if image is None else self._cupy.asarray(image)


def _load_nvrtc() -> None:
    """CuPy looks for the run-time compiler on the loader's path; the package index puts it beside Python's packages, so
    it is loaded from there first."""
    import nvidia

    for folder in map(Path, nvidia.__path__):
        for name in ("libnvrtc-builtins.so.*", "libnvrtc.so.*"):  # the second opens the first by its name
            for library in sorted(folder.glob(f"cu*/lib/{name}")):
                ctypes.CDLL(str(library))


@contextmanager
def _muted_stderr() -> Iterator[None]:
    """Libraries that write to file descriptor 2 themselves are not heard."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _one_line(error: BaseException) -> str:
    cause = error.__cause__ or error  # CuPy wraps what went wrong at its import in a page of advice
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
