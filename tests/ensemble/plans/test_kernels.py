"""Finished kernels are kept beside the repository; what cannot be read or written costs time and nothing else."""

from __future__ import annotations

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
    path, taken = kernels.file_for(plan, "card"), []
    assert not kernels.load(path, lambda kept: True), "there is none at the first start"
    assert kernels.store(path, b"kernels")
    assert kernels.load(path, lambda kept: not taken.append(kept))
    assert taken == [b"kernels"]


@pytest.mark.parametrize("kept", [b"", b"damaged"], ids=["empty", "damaged"])
def test_what_is_not_accepted_is_thrown_away_with_a_sentence(plan, caplog, kept):
    path = kernels.file_for(plan, "card")
    kernels.store(path, kept)
    assert not kernels.load(path, lambda kept: False)
    assert not path.exists()
    assert "thrown away and made anew" in caplog.text


def test_where_nothing_can_be_written_the_sentence_says_what_it_costs(plan, tmp_path, caplog):
    """A file in the folder's place: root, as whom tests may run, writes to read-only folders."""
    (tmp_path / "repository.here").write_text("")
    assert not kernels.store(kernels.file_for(plan, "card"), b"kernels")
    assert "finished again at each start" in caplog.text
