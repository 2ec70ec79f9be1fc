"""The examples of the pages, run as a reader would run them: Python, shell and YAML blocks that need no GPU.

They run in a folder of their own that has the project's folders and a few drawn frames under the names that the pages
use, against the session's real server. What differs from the page is in `STAND_INS` and `for_the_test_server`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clients.fleet.config import read_config
from clients.video.encode import VideoWriter, to_jpeg
from export.tiny.random_scene import random_scene
from export.tiny.scenes import render
from tests.docs.pages import BLOCKS, ROOT, Block, words

pytestmark = pytest.mark.server

STAND_INS = {
    "localhost:8001": "{grpc}",
    'Client("localhost:8001")': 'Client("{grpc}", model="sam3_r252")',  # the test server has two front models
    "sam3-camera --source": "sam3-camera --url {grpc} --model sam3_r252 --source",
    "build/repository": "{repository}",
    "sam3_r1008": "sam3_r252",
    "sam3_r672": "sam3_r140",
    "sam3_video_r672": "sam3_video_r140",
    "resolution: 1008": "resolution: 252",
    "resolution: 672": "resolution: 140",
    "rtsp://user:password@192.0.2.10/stream1": "video.mp4",
    "rtsp://192.0.2.10/stream1": "video.mp4",
    "--seconds 60": "--seconds 3",
    "deadline_ms: 1000": "deadline_ms: 60000",  # however busy the machine is
}
"""What a page says -> what the test says in its place, the longest first."""

VIDEO_WORDS = (".session(", "sam3-video ", "--track masks")
"""What examples of videos have and others have not."""

STAY = ("sam3-serve", "sam3-dashboard")
"""Commands that run until they are interrupted."""

RUN = [block for block in BLOCKS if not block.tags and block.language in ("python", "console", "yaml")]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder that looks like the project's to a command, with frames and videos of drawn scenes in it."""
    for name in ("clients", "docs", "ensemble", "export", "model_repository", "perf", ".venv"):
        (tmp_path / name).symlink_to(ROOT / name)
    frame = render(random_scene(7), 360, 640).frame
    (tmp_path / "photos").mkdir()
    for name in ("frame.jpg", "yard.jpg", "photos/1.jpg", "photos/2.jpg"):
        (tmp_path / name).write_bytes(to_jpeg(frame))
    for name in ("video.mp4", "yard.mp4"):
        writer = VideoWriter(tmp_path / name, 10.0)
        for _ in range(3):
            writer.write(frame)
        writer.close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return tmp_path


@pytest.fixture
def adapt(request, server, repository):
    """A page's text with `STAND_INS` in place of what it says; examples of videos get a server of videos."""

    def adapt(text: str) -> str:
        of_videos = any(word in text for word in VIDEO_WORDS)
        url = (request.getfixturevalue("video_server") if of_videos else server).grpc_url
        if of_videos:
            text = text.replace('Client("localhost:8001")', 'Client("{grpc}")')
            text = text.replace("sam3-camera --source", "sam3-camera --url {grpc} --source").replace("{grpc}", url)
        for old in sorted(STAND_INS, key=len, reverse=True):
            text = text.replace(old, STAND_INS[old].format(grpc=url, repository=repository))
        return text

    return adapt


def for_the_test_server(text: str) -> dict:
    """A fleet's configuration whose cameras name a model, since the test server has two, and whose files end."""
    config = yaml.safe_load(text)
    defaults = config.setdefault("defaults", {})
    if not {"model", "resolution"} & defaults.keys():
        defaults["model"] = "sam3_r252"
    return config


@pytest.mark.parametrize("block", [b for b in RUN if b.language == "python"], ids=str)
def test_python(block, folder, adapt):
    exec(compile(adapt(block.text), str(block), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", [b for b in RUN if b.language == "yaml"], ids=str)
def test_a_fleet(block, folder):
    (folder / "cameras.yaml").write_text(block.text)
    assert read_config(folder / "cameras.yaml").cameras


@pytest.mark.parametrize("block", [b for b in RUN if b.language == "console"], ids=str)
def test_console(block, folder, adapt):
    (folder / "cameras.yaml").write_text(yaml.safe_dump(for_the_test_server(adapt(fleet_of(block)))))
    assert block.commands, "expected commands after $"
    commands = [adapt(command) for command in block.commands]
    lasting = [command for command in commands if words(command)[0] in STAY and "--check" not in command]
    script = "\n".join(["set -e", *(command for command in commands if command not in lasting)])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    for command in lasting:
        start_and_interrupt(command)


def fleet_of(block: Block) -> str:
    """The configuration that a page shows before a block; what its `cameras.yaml` means."""
    shown = [b for b in BLOCKS if b.page == block.page and b.language == "yaml" and b.line < block.line]
    return shown[-1].text if shown else "cameras: []"


def start_and_interrupt(command: str) -> None:
    """Runs a command until its first line of output, which comes when it is ready, then ends it with Ctrl-C."""
    process = subprocess.Popen(words(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert first.startswith("{"), f"{command}\n{errors[-2000:]}"
    assert process.returncode == 0, f"{command}\n{errors[-2000:]}"
