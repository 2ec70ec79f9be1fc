"""transformers' own tracker on the same card: what its documentation shows, masks of the first frame carried on."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

FRAMES, WARM = 14, 8
"""Frames of a video; the first ones fill the memory and are not counted."""


class TransformersTracker:
    """`Sam3TrackerVideoModel` in bfloat16 (fp32 on a CPU) with random weights of real size."""

    def __init__(self, resolution: int, device: str) -> None:
        import torch
        from transformers import Sam3TrackerVideoConfig, Sam3TrackerVideoModel

        config = Sam3TrackerVideoConfig()
        config.image_size = resolution
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        with torch.device(device):
            self._model: Any = Sam3TrackerVideoModel._from_config(config, attn_implementation="sdpa").to(dtype).eval()
        self._resolution, self._device, self._dtype = resolution, device, dtype

    def frame_ms(self, objects: int) -> float:
        """Median milliseconds of a frame with so many objects, its image encoder included."""
        import torch
        from transformers import Sam3TrackerVideoInferenceSession

        size, device = self._resolution, self._device
        session = Sam3TrackerVideoInferenceSession(
            video_height=size,
            video_width=size,
            inference_device=device,
            inference_state_device=device,
            video_storage_device=device,
            dtype=self._dtype,
        )
        generator = torch.Generator(device).manual_seed(0)
        frames = torch.randn(FRAMES, 3, size, size, device=device, dtype=self._dtype, generator=generator)
        for n in range(objects):
            mask = torch.rand(1, 1, size, size, device=device, generator=generator) > 0.5
            session.add_mask_inputs(session.obj_id_to_idx(n), 0, mask)
            session.obj_with_new_inputs.append(n)
        times = []
        with torch.inference_mode():
            for index, frame in enumerate(frames):
                start = time.perf_counter()
                self._model(session, frame=frame, frame_idx=index)
                if device != "cpu":
                    torch.cuda.synchronize()
                times.append((time.perf_counter() - start) * 1e3)
        return float(np.median(times[WARM:]))
