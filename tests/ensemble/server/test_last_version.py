"""A repository that version 0.1 exported is served as before: its configurations and scripts are not those of today."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from clients.connection import Client
from ensemble.server import repository as placement
from ensemble.server.embedded import EmbeddedServer
from ensemble.spec import STAGES, Variant
from tests.ensemble.drawn import CLASSES, FRAME

SCRIPT = 'from ensemble.{} import TritonPythonModel\n\n__all__ = ["TritonPythonModel"]\n'


@pytest.fixture
def old(repository: Path, tmp_path: Path) -> Path:
    """The session's repository as that version wrote it: eight stages, a checkpoint without a vocabulary, sub-models
    that run `ensemble.engine`."""
    root = tmp_path / "old"
    shutil.copytree(repository, root, copy_function=lambda source, target: Path(target).symlink_to(source))
    for config in root.glob("*/config.pbtxt"):
        text = config.read_text()
        if '"stage_ms"' in text:
            text = text.replace(f"dims: [ {len(STAGES)} ]", "dims: [ 8 ]")
            text = re.sub(r',\\"vocabulary_size\\":\d+', "", text)
            assert "dims: [ 8 ]" in text
            assert "vocabulary" not in text
        module = "front" if '"stage_ms"' in text else "engine"
        for path, content in ((config, text), (config.parent / "1" / "model.py", SCRIPT.format(module))):
            path.unlink()
            path.write_text(content)
    return root


def test_its_variants_are_read(old: Path, repository: Path) -> None:
    now, then = placement.read(repository), placement.read(old)
    assert [one.variant.front_name for one in then] == [one.variant.front_name for one in now]
    assert {one.variant.checkpoint.vocabulary_size for one in then} == {Variant().checkpoint.vocabulary_size}
    assert [one.missing for one in then] == [[], []]


@pytest.mark.server
@pytest.mark.parametrize("sub_models", [False, True])
def test_it_gives_the_same_answers(server: EmbeddedServer, old: Path, sub_models: bool) -> None:
    answers = []
    with EmbeddedServer(old, resolutions=[140], sub_models=sub_models) as running:
        running.probe()
        for url in (server.grpc_url, running.grpc_url):
            with Client(url, model="sam3_r140", timeout=300) as client:
                answers.append(client.detect(FRAME, CLASSES, mask_format="bits", threshold=0.1))
    now, then = answers
    assert len(now) > 0
    assert then.labels == now.labels
    np.testing.assert_allclose(then.scores, now.scores, atol=1e-5)
    np.testing.assert_allclose(then.boxes, now.boxes, atol=1e-5)
    np.testing.assert_array_equal(then.mask_bits, now.mask_bits)
    assert list(then.stage_ms) == list(STAGES)
    assert (old / "sam3_decoder_r140_q50" / "1" / "model.py").read_text() == SCRIPT.format("engine"), "left as it was"
