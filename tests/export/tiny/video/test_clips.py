"""Drawn clips: repeatable, with the hard cases that they promise."""

import numpy as np
import pytest

from export.tiny.video.clips import KINDS, draw_clips, random_clip
from export.tiny.video.evaluate import held_out_video

PIXELS = 96.0**2


def areas(clip, frames=120):
    """Visible pixels of each object, [T, K]."""
    count = len(clip.scene.objects) + 1
    maps = [clip.draw(float(t), PIXELS)[1] for t in range(0, frames, 4)]
    return np.array([np.bincount(m.ravel(), minlength=count)[1:] for m in maps])


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_frames(kind):
    first, again, other = random_clip(5, kind), random_clip(5, kind), random_clip(6, kind)
    assert first.kind == kind
    for one, two in zip(first.draw(7, PIXELS), again.draw(7, PIXELS), strict=True):
        np.testing.assert_array_equal(one, two)
    assert (
        first.draw(7, PIXELS)[0].shape != other.draw(7, PIXELS)[0].shape
        or (first.draw(7, PIXELS)[0] != other.draw(7, PIXELS)[0]).any()
    )


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r'expected a kind of clip out of plain, .*got "rain"'):
        random_clip(0, "rain")


@pytest.mark.parametrize("kind", ["leave", "occluder"])
def test_objects_vanish_and_come_back(kind):
    returned = 0
    for seed in range(6):
        seen = areas(random_clip(seed, kind)) > 4
        for k in range(seen.shape[1]):
            changes = np.diff(seen[:, k].astype(int))
            gone = np.flatnonzero(changes < 0)
            returned += bool(len(gone) and (changes[gone[0] :] > 0).any())
    assert returned >= 3


def test_twins_share_a_class_and_cross():
    for seed in range(4):
        clip = random_clip(seed, "twins")
        labels = [(o.colour, o.shape) for o in clip.scene.objects]
        twins = [(i, k) for i in range(len(labels)) for k in range(i) if labels[i] == labels[k]]
        assert twins
        nearest = 1.0
        for t in range(150):
            now = [orbit.at(o, t) for orbit, o in zip(clip.orbits, clip.scene.objects, strict=True)]
            nearest = min(nearest, *(np.hypot(now[i].x - now[k].x, now[i].y - now[k].y) for i, k in twins))
        assert nearest < 0.15


def test_a_batch_holds_frames_maps_and_objects():
    batch = draw_clips([1_000_000, 1_000_001, 1_000_002], frames=4, resolution=140, objects=3)
    assert batch.frames.shape == (3, 4, 140, 140, 3)
    assert batch.maps.shape == (3, 4, 80, 80)
    for maps, objects in zip(batch.maps, batch.objects, strict=True):
        followed = objects[objects > 0]
        assert len(set(followed)) == len(followed)
        assert all((maps[0] == value).sum() >= 24 for value in followed)
    assert (batch.objects > 0).any()
    assert (batch.frames[:, 0] != batch.frames[:, 3]).any()


def test_held_out_videos_follow_objects_that_show_themselves():
    video = held_out_video(1, frames=12)
    assert video.kind == "leave"
    assert video.objects
    for value, start in video.objects:
        seen = (video.maps == value).sum((1, 2))
        assert seen[start] >= seen.max() / 2 > (seen[:start].max() if start else 0)
