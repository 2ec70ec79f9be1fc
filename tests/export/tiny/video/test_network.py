"""The small tracker's batched forward pass against transformers' own tracker."""

import pytest
import torch
from transformers import Sam3TrackerVideoInferenceSession

from export.tiny.video.configuration import random_video_model
from export.tiny.video.network import TrackerNetwork
from export.tiny.video.rollout import propagate

RESOLUTION, FRAMES = 140, 17  # more frames than a memory keeps pointers of
SIDE = 4 * RESOLUTION // 14


@pytest.fixture
def model(monkeypatch):
    # transformers keeps memory in bfloat16 whatever the model's dtype is; the comparison is about everything else.
    monkeypatch.setattr(torch, "bfloat16", torch.float32)
    return random_video_model(resolution=RESOLUTION, seed=3)


@torch.inference_mode()
def transformers_masks(model, pixels, first):
    """Masks [T, N, 4p, 4p] and scores [T, N] of transformers' tracker on the same trunk."""
    tracker, size = model.tracker_model, pixels.shape[1]
    session = Sam3TrackerVideoInferenceSession(
        video=torch.zeros(len(pixels), 3, size, size), video_height=size, video_width=size, dtype=torch.float32
    )
    for n, mask in enumerate(first):
        session.add_mask_inputs(session.obj_id_to_idx(n), 0, mask[None, None])
        session.obj_with_new_inputs.append(n)
    masks, scores = [], []
    for t, frame in enumerate(pixels):
        values = frame.permute(2, 0, 1)[None].float() / 127.5 - 1
        maps, places = model.get_vision_features_for_tracker(model.detector_model.vision_encoder(values))
        session.cache.cache_vision_features(t, {"vision_feats": maps, "vision_pos_embeds": places})
        out = tracker(session, frame_idx=t)
        masks.append(out.pred_masks[:, 0])
        scores.append(out.object_score_logits[:, 0])
    return torch.stack(masks), torch.stack(scores)


def test_same_masks_as_transformers(model):
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (FRAMES, RESOLUTION, RESOLUTION, 3), dtype=torch.uint8)
    first = torch.zeros(2, SIDE, SIDE)
    first[0, 5:20, 8:30] = 1
    first[1, 20:36, 2:18] = 1
    _, scores = transformers_masks(model, pixels, first)
    model.tracker_model.mask_decoder.pred_obj_score_head.proj_out.bias.data.sub_(scores[1:].median())
    wanted, wanted_scores = transformers_masks(model, pixels, first)
    network = TrackerNetwork(model, (RESOLUTION,))
    masks, scores = propagate(network, network.see(pixels), first)
    assert (wanted_scores[1:] > 0).any()
    assert (wanted_scores[1:] <= 0).any()  # objects that are not there have a memory and a pointer of their own
    torch.testing.assert_close(scores[1:], wanted_scores[1:], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(masks[1:], wanted[1:], atol=1e-4, rtol=1e-4)
