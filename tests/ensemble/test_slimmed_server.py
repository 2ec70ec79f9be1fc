"""A checkpoint that was slimmed, blocks left out and the rest halved, goes through the usual export and gate, and the
real server answers with it."""

from __future__ import annotations

import json

import pytest

from clients.connection import Client
from ensemble.server.embedded import EmbeddedServer
from ensemble.spec import Variant
from export.checkpoint import load
from export.gate.frames import drawn_frames
from export.slim.blocks import without_blocks
from export.slim.saving import write_model
from export.slim.slimming import Job as Slimming
from export.slim.slimming import slim
from export.variant import Job, export_variant
from tests.ensemble.drawn import CLASSES, FRAME

pytestmark = pytest.mark.server
LEFT_OUT = 2
SIDE = 252


@pytest.fixture(scope="module")
def slimmed(checkpoint, tmp_path_factory):
    """A repository of the small checkpoint without one block and in fp16."""
    work = tmp_path_factory.mktemp("slimmed")
    whole = load(str(checkpoint))
    write_model(whole, without_blocks(whole.model, [LEFT_OUT]), work / "dropped", {"blocks_left_out": [LEFT_OUT]})
    slim(Slimming(load(str(work / "dropped")), work / "half", "fp16", frames=drawn_frames(1, SIDE), resolution=SIDE))
    source = load(str(work / "half"))
    variant = Variant(SIDE, source.record.num_queries, "fp32", checkpoint=source.record)
    export_variant(Job(source, variant, "onnxruntime", work / "repository", drawn_frames(1, SIDE)))
    return work


def test_a_slimmed_checkpoint_is_exported_gated_and_answers(slimmed):
    half = slimmed / "half"
    layers = json.loads((half / "config.json").read_text())["vision_config"]["backbone_config"]["num_hidden_layers"]
    assert layers == 7
    with (
        EmbeddedServer(slimmed / "repository") as running,
        Client(running.grpc_url, model=f"sam3_r{SIDE}", timeout=300) as client,
    ):
        found = client.detect(FRAME, CLASSES, threshold=0.2, mask_format="rle")
    assert len(found) > 0
    assert all(0.2 <= score <= 1 for score in found.scores)
    assert len(found.masks) == len(found)
