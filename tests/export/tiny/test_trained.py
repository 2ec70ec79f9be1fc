"""The trained small checkpoint on drawn scenes: the same detections, from ONNX Runtime as from `Sam3Model`, in fp32 and
in fp16."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from PIL import Image

from ensemble.gate.limits import LIMITS
from ensemble.server.repository import read_variant
from export.checkpoint import load
from export.gate.detections import check_detections
from export.gate.frames import to_pixels
from export.gate.reference import all_expected_outputs, make_sample, scores
from export.gate.verify import run_chain, strongest, verify
from export.tiny.random_scene import random_scene
from export.tiny.scenes import render

SEEDS = range(8_100_000, 8_100_003)


@pytest.fixture(scope="module")
def trained(checkpoint):
    return load(str(checkpoint))


@pytest.fixture(scope="module")
def served(trained, repository, open_export):
    """Resolution -> the export in fp32 that the server's tests use."""

    @cache
    def read(resolution):
        variant = read_variant(repository / f"sam3_r{resolution}" / "config.pbtxt")
        return open_export(trained, repository, variant)

    return read


@pytest.fixture(scope="module")
def half(trained, export_fresh, tmp_path_factory):
    """The export at 140 in fp16, which processors are slow at."""
    return export_fresh(tmp_path_factory.mktemp("half") / "repository", 140, "fp16", trained)


@pytest.fixture(scope="module")
def scenes(trained):
    """Resolution -> two samples of the same frames: everything in them looked for by name; the same with an exemplar
    box each."""

    @cache
    def make(resolution):
        drawn = [render(random_scene(seed, aspect=16 / 9, count=6), 360, 640) for seed in SEEDS]
        pixels = np.stack([to_pixels(Image.fromarray(d.frame), resolution) for d in drawn])
        named = [(image, f"{i.colour} {i.shape}", i.box) for image, d in enumerate(drawn) for i in d.instances][:15]
        named.append((0, "white elephant", (0.2, 0.2, 0.4, 0.5)))
        prompts = sorted({name for _, name, _ in named})
        pairs = [(image, prompts.index(name)) for image, name, _ in named]
        boxes = {
            n: [((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, 1)] for n, (_, _, (x0, y0, x1, y1)) in enumerate(named)
        }
        return [
            make_sample(pixels, trained.tokenizer, prompts, pairs, b, slots) for b, slots in ((None, 0), (boxes, 8))
        ]

    return make


@pytest.fixture(scope="module")
def truths(served, scenes):
    return cache(lambda resolution: all_expected_outputs(served(resolution).model, scenes(resolution)))


@pytest.mark.parametrize("with_boxes", [pytest.param(0, id="text"), pytest.param(1, id="text and boxes")])
@pytest.mark.parametrize(
    "resolution", [pytest.param(252, id="252 whole windows"), pytest.param(140, id="140 padded windows")]
)
def test_detections_are_identical(served, scenes, truths, resolution, with_boxes):
    export, sample, truth = served(resolution), scenes(resolution)[with_boxes], truths(resolution)[with_boxes]
    picks = strongest(scores(truth), export.variant.max_picks)
    found = check_detections(
        run_chain(export.runs, export.variant, sample, picks), truth, picks, threshold=0.5, margin=0.0
    )
    assert found.expected >= 8  # it does find what was drawn
    assert (found.matched, found.missing, found.unexpected) == (found.expected, 0, 0)
    assert found.box_iou > 0.9999
    assert found.mask_iou > 0.999
    assert found.score_difference < LIMITS["fp32"].score


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_output_is_within_the_limits(request, served, scenes, truths, precision):
    export = served(140) if precision == "fp32" else request.getfixturevalue("half")
    report = verify(export.runs, export.variant, scenes(140), truths(140))
    assert report.failures == ()
    numbers = [c for c in report.outputs if c.output != "mask_bits"]
    assert min(c.cosine for c in numbers) >= LIMITS[precision].cosine
    assert max(c.relative for c in numbers) <= LIMITS[precision].relative


def test_fp16_answers_keep_their_dtypes(half):
    dtypes = {t.name: t.dtype for t in half.variant.decoder.outputs}
    assert dtypes == {
        **dict.fromkeys(("pred_logits", "pred_boxes", "presence_logits"), "FP32"),
        **dict.fromkeys(("query_features", "memory"), "FP16"),
    }
