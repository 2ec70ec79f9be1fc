"""Finished kernels are kept beside the repository; what cannot be read or written costs time and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ensemble.engines.plans import kernels


@pytest.fixture
def plan(tmp_path):
    """A plan as the server sees it: through a link to the model's folder."""
    own = tmp_path / "repository" / "sam3_decoder_r252_q50"
    (own / "1").mkdir(parents=True)
    (own / "1" / "model.rtx").write_bytes(b"plan")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / own.name).symlink_to(own)
    return tmp_path / "served" / own.name / "1" / "model.rtx"


def test_they_lie_beside_the_repository_by_model_and_card(plan, tmp_path):
    found = kernels.file_for(plan, "NVIDIA GeForce RTX 4090")
    assert found == tmp_path / "repository.here" / "sam3_decoder_r252_q50.nvidia-geforce-rtx-4090.kernels"


def test_what_was_stored_is_loaded(plan):
    taken = []
    assert not kernels.load(plan, "card", lambda kept: True), "there is none at the first start"
    assert kernels.store(plan, "card", b"kernels")
    assert kernels.load(plan, "card", lambda kept: not taken.append(kept))
    assert taken == [b"kernels"]
    assert not kernels.load(plan, "another card", lambda kept: True)


def damaged(kept: bytes, place: int) -> bytes:
    return kept[:place] + bytes([kept[place] ^ 1]) + kept[place + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda kept: b"", id="empty"),
        pytest.param(lambda kept: kept[: kernels.HEAD_BYTES], id="head alone"),
        pytest.param(lambda kept: kept[:-3], id="cut off"),
        pytest.param(lambda kept: damaged(kept, 5), id="a bit of the head"),
        pytest.param(lambda kept: damaged(kept, -2), id="a bit of the kernels"),
    ],
)
def test_what_is_damaged_is_thrown_away_and_never_handed_on(plan, caplog, spoil):
    """Whatever the package would have said of it: a kernel with a wrong bit may compute."""
    path = kernels.file_for(plan, "card")
    kernels.store(plan, "card", b"kernels")
    path.write_bytes(spoil(path.read_bytes()))
    assert not kernels.load(plan, "card", lambda kept: pytest.fail(f"handed on {kept!r}"))
    assert not path.exists()
    assert "thrown away and made anew" in caplog.text


def test_what_the_package_does_not_take_is_thrown_away_too(plan, caplog):
    """As that of another driver."""
    kernels.store(plan, "card", b"kernels")
    assert not kernels.load(plan, "card", lambda kept: False)
    assert not kernels.file_for(plan, "card").exists()
    assert "of another plan, card or version" in caplog.text


def test_kernels_of_a_plan_that_was_written_again_are_thrown_away(plan):
    """The package would take them, and finish the new plan's in the middle of calls, at every start."""
    kernels.store(plan, "card", b"kernels")
    stat = plan.stat()
    os.utime(plan, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert not kernels.load(plan, "card", lambda kept: True)


def test_where_nothing_can_be_written_the_sentence_says_what_it_costs(plan, tmp_path, caplog):
    """A file in the folder's place: root, as whom tests may run, writes to read-only folders."""
    (tmp_path / "repository.here").write_text("")
    assert not kernels.store(plan, "card", b"kernels")
    assert "finished again at each start" in caplog.text
    assert f"make {tmp_path} writable" in caplog.text


def test_where_it_cannot_be_written_whole_nothing_stays(plan, tmp_path, caplog, monkeypatch):
    def full(path, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert not kernels.store(plan, "card", b"kernels")
    assert "No space left on device" in caplog.text
    assert list((tmp_path / "repository.here").iterdir()) == []


def test_what_cannot_be_read_costs_time_alone(plan, caplog):
    kernels.file_for(plan, "card").mkdir(parents=True)
    assert not kernels.load(plan, "card", lambda kept: True)
    assert "cannot be read (Is a directory); they are finished anew" in caplog.text
