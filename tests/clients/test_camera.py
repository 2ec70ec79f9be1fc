"""`sam3-camera`: what it refuses, what it prints, what it writes."""

import json

import av
import numpy as np
import pytest
from PIL import Image

from clients import camera
from clients.output import Output, frame_record
from clients.video.frames import Frame


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


def test_outputs(tmp_path, detections, masks):
    """One writer per suffix, given two frames of which the second has more detections."""
    paths = [tmp_path / "out" / name for name in ("a.mp4", "a.png", "a.jsonl")]
    outputs = [Output(path, fps=10) for path in paths]
    frames = [Frame(i, i / 10, np.full((360, 640, 3), 90, np.uint8)) for i in range(2)]
    for frame, found in zip(frames, (detections(0), detections(masks=masks)), strict=True):
        for output in outputs:
            output.write(frame, found)
    for output in outputs:
        output.close()

    with av.open(str(paths[0])) as container:
        assert sum(1 for _ in container.decode(video=0)) == 2
    assert (np.asarray(Image.open(paths[1])) != 90).any()
    first, second = (json.loads(line) for line in paths[2].read_text().splitlines())
    assert first["detections"] == []
    assert [d["label"] for d in second["detections"]] == ["red circle", "blue square"]
    assert second["detections"][0]["box"] == [160, 90, 320, 270]
    assert isinstance(second["detections"][0]["mask"], str)


def test_record_without_masks(detections):
    record = frame_record(Frame(0, 0.0, np.zeros((360, 640, 3), np.uint8)), detections())
    assert all("mask" not in d for d in record["detections"])


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("films/street.mp4", "street-annotated.mp4"),
        ("cat.JPG", "cat-annotated.png"),
        ("photos/", "photos-annotated.mp4"),
    ],
)
def test_default_output(source, output):
    assert str(camera.default_output(source)) == output
