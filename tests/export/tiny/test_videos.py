"""Videos: decoded frames are the ones that were drawn, and the JSON file beside them has their objects."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from pycocotools import mask as rle

from export.tiny.prompts import named_by
from export.tiny.scenes import render
from export.tiny.videos import camera_scene, class_list, main

FRAMES, WIDTH, HEIGHT = 6, 320, 180


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("videos")
    size = f"{WIDTH}x{HEIGHT}"
    main(["--output", str(out), "--cameras", "2", "--frames", str(FRAMES), "--size", size, "--seed", "3"])
    return out


@pytest.mark.parametrize("camera", [0, 1])
def test_decoded_frames_are_the_drawn_ones(folder: Path, camera: int) -> None:
    truth = json.loads((folder / f"camera_{camera + 1}.json").read_text())
    with av.open(str(folder / f"camera_{camera + 1}.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    scene = camera_scene(3, camera, WIDTH / HEIGHT)
    assert len(decoded) == len(truth["frames"]) == FRAMES
    for k, frame in enumerate(decoded):
        drawn = render(scene, HEIGHT, WIDTH, t=k / truth["fps"], supersample=2)
        others = [render(scene, HEIGHT, WIDTH, t=j / truth["fps"], supersample=2) for j in range(FRAMES) if j != k]
        error = lambda r, f=frame: np.abs(r.frame.astype(int) - f).mean()  # noqa: E731
        assert error(drawn) < 8 + 0.8 * scene.noise  # colours are subsampled, and compression smooths the noise away
        assert error(drawn) <= min(map(error, others)) + 0.05  # and it is this frame, not its neighbour


def test_ground_truth_matches_the_scene(folder: Path) -> None:
    truth = json.loads((folder / "camera_1.json").read_text())
    scene = camera_scene(3, 0, WIDTH / HEIGHT)
    for k, records in enumerate(truth["frames"]):
        drawn = render(scene, HEIGHT, WIDTH, t=k / truth["fps"], supersample=2)
        assert len(records) == sum(len(named_by(name, drawn.instances)) for name in truth["classes"])
        for record in records:
            mask = rle.decode(record["mask"])
            assert mask.shape == (HEIGHT, WIDTH)
            assert int(mask.sum()) == record["area"]
            x, y, w, h = rle.toBbox(record["mask"])
            expected = [x / WIDTH, y / HEIGHT, (x + w) / WIDTH, (y + h) / HEIGHT]
            assert record["bbox"] == pytest.approx(expected, abs=1e-5)


def test_every_camera_has_its_own_classes_and_one_is_absent() -> None:
    lists = [class_list(camera_scene(0, camera, 16 / 9), 0) for camera in range(8)]
    assert len(set(lists)) == 8
    for camera, classes in enumerate(lists):
        instances = render(camera_scene(0, camera, 16 / 9), 360, 640).instances
        assert len(set(classes)) == len(classes) == 4
        assert not named_by(classes[-1], instances)


def test_odd_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be even"):
        main(["--output", str(tmp_path), "--size", "321x180", "--frames", "1", "--cameras", "1"])
