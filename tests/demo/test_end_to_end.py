"""The whole demo with the real server: films, streaming, scores and the mosaic."""

import json

import pytest
from PIL import Image

from demo.__main__ import main
from ensemble.spec import Variant

pytestmark = pytest.mark.server


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_three_cameras(server, tmp_path, protocol, capfd):
    url = server.grpc_url if protocol == "grpc" else server.http_url
    code = main(
        [
            "--output",
            str(tmp_path),
            "--cameras",
            "3",
            "--frames",
            "4",
            "--url",
            url,
            "--protocol",
            protocol,
            "--model",
            Variant(252).front_name,
        ]
    )
    result = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert code == 0
    assert (result["cameras"], result["frames"], result["failed"]) == (3, 12, 0)
    assert result["fps"] > 0
    assert result["p95_ms"] >= result["p50_ms"] > 0
    assert result["mean_batch"] >= 1
    assert result["map50"] > 0.7
    assert (tmp_path / "mosaic.mp4").stat().st_size > 0
    assert Image.open(tmp_path / "mosaic.png").size[0] > 1200
    assert "serves no videos" in result["followed"]["error"]
    assert not (tmp_path / "films" / "followed.mp4").exists()
    assert [camera["name"] for camera in json.loads((tmp_path / "cameras.yaml").read_text())["cameras"]] == [
        *("camera 1", "camera 2", "camera 3")
    ]


def test_one_camera_more_is_followed(video_server, tmp_path, capfd):
    options = ["--output", str(tmp_path), "--cameras", "1", "--frames", "1", "--size", "320x180"]
    assert main([*options, "--url", video_server.grpc_url]) == 0
    output = capfd.readouterr().out
    result = json.loads(output.strip().splitlines()[-1])
    told = result["followed"]
    assert (result["frames"], result["model"]) == (1, "sam3_r140")
    assert (told["model"], told["frames"], told["failed"], told["drawn"]) == ("sam3_video_r140", 40, 0, 3)
    assert told["occlusions"]
    assert told["ids_kept"] == all(gap["id_before"] == gap["id_after"] is not None for gap in told["occlusions"])
    assert "followed by sam3_video_r140" in output
    for name in ("mosaic.png", "followed.png", "followed.mp4"):
        assert (tmp_path / name).stat().st_size > 0
    assert "followed" in (tmp_path / "cameras.yaml").read_text()


def test_an_unknown_model_fails_every_frame(server, tmp_path, capfd):
    code = main(
        [
            "--output",
            str(tmp_path),
            "--cameras",
            "2",
            "--frames",
            "2",
            "--url",
            server.grpc_url,
            "--model",
            "sam3_r1008",
        ]
    )
    output = capfd.readouterr().out.strip().splitlines()
    result = json.loads(output[-1])
    assert (code, result["frames"], result["failed"], result["map50"]) == (1, 0, 4, None)
    assert any("does not serve 'sam3_r1008'" in line for line in output)
