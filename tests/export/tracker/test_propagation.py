"""A video of many frames through the sub-models beside transformers' tracker, each with a memory of its own making."""

import numpy as np
import torch

from export.checkpoint import at_size
from export.tiny.video.clips import draw_clips
from tests.export.tracker.propagation import ours, overlap, theirs

FRAMES = 24
"""More than an object keeps maps and pointers of."""
UNDECIDED = 0.05
"""Of a random tracker's score: transformers keeps memory maps in bfloat16, and a score this near to zero may be on the
other side of it."""


def tokens_and_masks(video, resolution, frames, seed=11):
    """Tokens fp32 [T,p*p,192] of a drawn clip, and the masks bool [T,K,4p,4p] of its objects."""
    clip = draw_clips([seed], frames, resolution, 3)
    pixels = torch.from_numpy(clip.frames[0]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    trunk = at_size(video.model, resolution, 50).vision_encoder.backbone
    tokens = torch.cat([trunk(part).last_hidden_state for part in pixels.split(8)])
    objects = clip.objects[0][clip.objects[0] > 0]
    return tokens.numpy(), clip.maps[0][:, None, ::2, ::2] == objects[:, None, None]


def test_masks_and_presence_are_those_of_transformers(video, case, runs, variant):
    """Of objects that begin on different frames; one is given again."""
    of, own = variant(140), case(140)
    hidden, masks = tokens_and_masks(video, 140, FRAMES)
    assert masks.shape[1] == 3
    given = {0: {0: masks[0, 0], 1: masks[0, 1]}, 4: {2: masks[0, 2]}, 12: {0: masks[0, 0]}}
    shift = float(np.median([score for frame in theirs(own.tracker, hidden, given) for _, score in frame.values()]))
    bias = own.tracker.model.mask_decoder.pred_obj_score_head.proj_out.bias
    bias -= shift  # about half of the objects are in their frames
    try:
        wanted, found = theirs(own.tracker, hidden, given), ours(runs(own.tracker, of), of, hidden, given)
    finally:
        bias += shift

    assert [frame.keys() for frame in found] == [frame.keys() for frame in wanted]
    pairs = [(mine, its) for f, w in zip(found, wanted, strict=True) for mine, its in ((f[n], w[n]) for n in w)]
    decided = [(mine, its) for mine, its in pairs if abs(its[1]) > UNDECIDED]
    assert len(decided) > len(pairs) / 2
    assert all((mine[1] > 0) == (its[1] > 0) for mine, its in decided)
    assert {its[1] > 0 for _, its in decided} == {True, False}
    overlaps = [overlap(mine[0], its[0]) for mine, its in decided if its[1] > 0]
    assert min(overlaps) >= 0.98
