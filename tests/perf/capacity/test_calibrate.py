"""Fits: known coefficients are found again, and the published table is predicted within the limits."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ensemble.server.memory import RTX_5090 as RTX_FOOTPRINT
from perf.capacity import check
from perf.capacity.calibrate import CalibrationError, fit, least_squares, leave_one_out
from perf.capacity.model import frame_flops
from perf.capacity.published import RTX_5090, Measurement


def test_known_coefficients_are_found_again():
    samples = [
        Measurement(r, b, c, b * (3.0 + 5.0 / b + 7.0 * frame_flops(r, c) / 1e12))
        for r in (1008, 672)
        for b in (1, 8)
        for c in (1, 4)
    ]
    found = fit(samples)
    assert (found.per_frame_ms, found.per_call_ms, found.ms_per_tflop) == pytest.approx((3.0, 5.0, 7.0))
    assert found.ms_per_frame(560, 4, 2) < found.ms_per_frame(1008, 4, 2)
    assert found.memory_mb(672, 8, 4) is None, "no sample says how much memory"


def test_coefficients_are_never_negative():
    found = least_squares([(1, 1), (1, 2), (1, 3)], [3, 2, 1], [1, 1, 1])
    assert found[1] == 0
    assert found[0] == pytest.approx(2)
    assert np.all(np.array(found) >= 0)


def test_every_published_point_is_predicted_by_the_others():
    found = leave_one_out(RTX_5090)
    assert len(found) == len(RTX_5090)
    errors = check.worst(found)
    assert errors["time"] <= 0.20
    assert errors["memory"] is not None
    assert errors["memory"] <= 0.10


def test_memory_grows_with_frames_classes_do_not_matter_and_smaller_plans_save():
    found = fit(RTX_5090)
    eight, one = found.memory_mb(672, 8, 4), found.memory_mb(672, 1, 4)
    assert found.memory_mb(672, 8, 16) == eight, "plans reserve all at the start"
    small = found.memory_mb(672, 1, 4, plan_batch=1)
    assert eight is not None
    assert one is not None
    assert small is not None
    assert small < one < eight


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_points_are_refused_with_their_number(count):
    with pytest.raises(CalibrationError, match=f"at least 2 measured points .* got {count}"):
        fit(RTX_5090[:count])


def test_check_ends_with_one_json_line(capsys):
    assert check.main([]) == 0
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert report["ok"] is True
    assert report["packages_memory"] <= report["limits"]["packages_memory"] == 0.05
    found = report["largest_errors"]["rtx5090"]
    assert set(found) == {"time", "memory", "footprint"}
    assert found["footprint"] == {
        "base_mb": RTX_FOOTPRINT.base_mb,
        "activation_mb": RTX_FOOTPRINT.activation_mb,
    }


def test_check_fails_where_one_point_cannot_be_predicted(capsys):
    assert check.main(["--table", "h200-eager"]) == 1, "the only point of batch 1 is no interpolation"
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["ok"] is False
