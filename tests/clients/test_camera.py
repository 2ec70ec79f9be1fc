"""The command `sam3-camera`: refusals, messages and exit codes."""

import json
import sys

import pytest

from clients import camera


def last_json(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_no_server(film, closed_port, capsys):
    assert (
        camera.main(
            ["--source", str(film), "--classes", "cat", "--url", f"127.0.0.1:{closed_port}", "--model", "sam3_r252"]
        )
        == 2
    )
    output = capsys.readouterr()
    assert "no SAM3 server answers" in output.err
    assert "Traceback" not in output.err
    assert "no SAM3 server answers" in json.loads(output.out.strip().splitlines()[-1])["error"]


def test_no_source(closed_port, capsys):
    assert camera.main(["--source", "none.mp4", "--classes", "cat", "--url", f"127.0.0.1:{closed_port}"]) == 2
    assert "no file 'none.mp4'" in last_json(capsys)["error"]


def test_an_address_without_a_camera(closed_port, capsys):
    """One camera alone is not waited for."""
    address = f"tcp://127.0.0.1:{closed_port}"
    assert camera.main(["--source", address, "--classes", "cat", "--url", "127.0.0.1:1", "--output"]) == 2
    assert f"{address!r} is not a video" in last_json(capsys)["error"]


def test_a_missing_package_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    config = tmp_path / "cameras.yaml"
    config.write_text("cameras: [{name: yard, source: a.mp4, classes: [cat], track: true}]")
    assert camera.main(["--config", str(config)]) == 2
    assert "sam3-triton[tracks]" in last_json(capsys)["error"]


USAGE = {
    "no classes": (["--source", "a.mp4"], "--classes"),
    "unknown output": (["--source", "a.mp4", "--classes", "cat", "--output", "a.gif"], ".jsonl"),
    "unknown protocol": (["--source", "a.mp4", "--classes", "cat", "--protocol", "smtp"], "grpc"),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage(case, capsys):
    arguments, says = USAGE[case]
    with pytest.raises(SystemExit) as end:
        camera.main(arguments)
    assert end.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("films/street.mp4", "street-annotated.mp4"),
        ("cat.JPG", "cat-annotated.png"),
        ("photos/", "photos-annotated.mp4"),
        ("webcam:0", "webcam-0-annotated.mp4"),
        ("rtsp://me:pass/word@10.0.0.7/stream1", "stream1-annotated.mp4"),
        ("http://10.0.0.7/video.cgi?user=me&pwd=word", "video-annotated.mp4"),
        ("rtsp://10.0.0.7/user=me_password=word_channel=1.sdp", "user-annotated.mp4"),
    ],
)
def test_default_output(source, output):
    assert str(camera.default_output(source)) == output
