"""Which video front models a server has, and what they take."""

import pytest

from ensemble.server import repository as repositories
from ensemble.server.requirements import ServerError
from ensemble.server.videos import is_direct, videos_of
from ensemble.video.sizes import slot_bytes


@pytest.fixture(scope="module")
def known(video_repository):
    return repositories.read(video_repository)


def test_each_resolution_with_a_tracker_has_one_and_slots_fill_the_memory(known):
    (video,) = videos_of(known, known, 30.0, None)
    assert video.variant.front_name == "sam3_video_r140"
    assert video.slots == int(30 * 2**20 // slot_bytes(known[0].variant))
    assert set(video.engines) == {m.part for m in video.variant.sub_models}
    assert {name for name, _ in video.artifacts} == {m.name for m in video.variant.sub_models}
    assert 29 < video.bank_mb <= 30
    assert {a.model for a in video.own} == {m.name for m in known[0].variant.tracker_parts}


def test_none_are_served_where_nobody_wants_them(known):
    assert videos_of(known, known, 0.0, None) == []


@pytest.mark.parametrize(
    ("memory", "resolution", "sentence"),
    [
        (0.1, None, r"sam3_video_r140: expected at least 0\.3 MB for one object, got 0\.1 MB"),
        (30.0, 84, r"expected a tracker's resolution of this repository \(140\), got 84"),
    ],
)
def test_what_cannot_be_is_said_with_a_remedy(known, memory, resolution, sentence):
    with pytest.raises(ServerError, match=sentence):
        videos_of(known, known, memory, resolution)


def test_a_repository_for_pictures_has_none(repository):
    pictures = repositories.read(repository)
    assert videos_of(pictures, pictures, None, None) == []
    with pytest.raises(ServerError, match="got one for pictures alone; write it again with sam3-export --video"):
        videos_of(pictures, pictures, 100.0, None)


def test_clients_do_not_call_the_engine_model_where_there_are_videos(known):
    assert not is_direct(None, known, False, True)
    with pytest.raises(ServerError, match=r"videos \(--video-memory 0 leaves them out\); leave out --direct"):
        is_direct(True, known, False, True)
