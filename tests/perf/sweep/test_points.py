"""The plan of a sweep: which points, in which order, with which arguments, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf.sweep.points import Point, points


def test_resolutions_are_measured_side_by_side():
    found = points([252, 140], [1, 8], [4])
    assert [(p.cameras, p.resolution) for p in found] == [(1, 252), (1, 140), (8, 252), (8, 140)]
    assert {p.target for p in found} == {"front"}


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        pytest.param(Point("front", 252, 8, 4), ["-m", "sam3_r252", "-u", "g:1", "-i", "grpc"], id="cameras over gRPC"),
        pytest.param(Point("front", 252, 8, 4, precision="fp8"), ["-m", "sam3_r252_fp8"], id="a precision of its own"),
        pytest.param(Point("front", 252, 8, 4, protocol="http"), ["-u", "h:2", "-i", "http"], id="over HTTP"),
        pytest.param(Point("front", 252, 8, 4), ["--concurrency-range", "8"], id="answers are waited for"),
        pytest.param(Point("front", 252, 1, 4, rate=12.5), ["--request-rate-range", "12.5"], id="fixed rate"),
        pytest.param(
            Point("vision_encoder", 252, 1, 0, batch=8, shared_memory="system"),
            ["--shared-memory", "system", "--output-shared-memory-size"],
            id="shared memory",
        ),
        pytest.param(Point("vision_encoder", 252, 1, 0, batch=8), ["-m", "sam3_vision_encoder_r252"], id="a sub-model"),
    ],
)
def test_arguments(point, expected):
    arguments = point.arguments({"grpc": "g:1", "http": "h:2"}, Path("in.json"))
    at = arguments.index(expected[0])
    assert arguments[at : at + len(expected)] == expected


def test_rates_and_batches_come_on_top():
    found = points([252], [1], [1, 4], rates=[10], batches=[1, 8], protocols=["grpc", "http"])
    assert len(found) == 2 * (2 + 2 + 2)
    assert len({p.key() for p in found}) == len(found)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param({"resolutions": [1000]}, "nearest: 994, 1008", id="resolution"),
        pytest.param({"cameras": [0]}, "cameras must be at least 1, got 0", id="no cameras"),
        pytest.param({"classes": [101]}, "at most 100 classes, got 101", id="too many classes"),
        pytest.param({"rates": [0.0]}, "must be above 0, got 0", id="no rate"),
        pytest.param({"masks": "png"}, "masks must be one of none, bits, rle, got 'png'", id="mask format"),
        pytest.param(
            {"shared_memory": "system"}, "measure the vision encoder with it", id="shared memory of the front model"
        ),
    ],
)
def test_refusals(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        points(**({"resolutions": [252], "cameras": [1], "classes": [1]} | change))
