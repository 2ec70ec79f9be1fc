"""The container's first process, with another program in the server's place: what it starts, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from ensemble import pbtxt
from ensemble.server import container as start
from ensemble.server.closed import FLAGS
from ensemble.server.requirements import ServerError
from ensemble.spec import Variant
from tests.ensemble.server.repositories import write


def begin(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m ensemble.server.container` as the container runs it, with another program in the server's place."""
    words = [sys.executable, "-m", "ensemble.server.container", *command]
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | environment, check=False, timeout=60)


def test_the_server_runs_as_told(tmp_path):
    write(tmp_path, [672], built_for={})
    done = begin("echo", f"--model-repository={tmp_path}", "--exit-on-error=true")
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[:2] == [f"--model-repository={tmp_path}", "--exit-on-error=true"]
    assert [word.split("=")[0] for word in words[2:]] == list(FLAGS)


def test_sigterm_is_passed_on_once_nothing_is_under_way(tmp_path):
    """As the container's first process: the server does not get the signal itself. Its exit status is the
    container's."""
    write(tmp_path, [672], built_for={})
    server = 'trap "ls $SAM3_ENDING; exit 7" TERM; echo up; while :; do sleep 0.1; done'
    words = [sys.executable, "-m", "ensemble.server.container", "sh", "-c", server, f"--model-repository={tmp_path}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read().split() == ["ending", "under-way"]
    assert process.returncode == 7


def test_own_restrictions_stay_as_they_are(tmp_path):
    write(tmp_path, [672], built_for={})
    own = [f"--model-repository={tmp_path}", *(f"{flag}=logging:key=value" for flag in FLAGS)]
    assert begin("echo", *own).stdout.split() == own


def test_the_server_does_not_start_where_it_cannot_fit(tmp_path):
    write(tmp_path, [672])
    pool = f"--cuda-memory-pool-byte-size=0:{2 << 30}"
    done = begin("echo", f"--model-repository={tmp_path}", pool, SAM3_GPU_MEMORY_MB="4000")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "memory pool 2,048" in done.stderr


@pytest.mark.parametrize(
    ("environment", "links"),
    [
        pytest.param({}, {"sam3_r672"}, id="what is built"),
        pytest.param({"SAM3_RESOLUTIONS": "672"}, {"sam3_r672"}, id="what is asked for"),
    ],
)
def test_only_some_resolutions(tmp_path, environment, links):
    write(tmp_path, [672])
    variant = Variant(resolution=1008)
    for model in (*variant.sub_models, variant.front):
        pbtxt.write(model, variant, "tensorrt", tmp_path)
    done = begin("sh", "-c", 'ls "${0#--model-repository=}"', f"--model-repository={tmp_path}", **environment)
    assert done.returncode == 0, done.stderr
    served = set(done.stdout.split())
    assert {name for name in served if name.startswith("sam3_r")} == links
    assert {"sam3_text_encoder", "sam3_decoder_r672_q200"} <= served
    assert ("not served, since not built: sam3_r1008" in done.stderr) == (not environment)
    assert ("--resolution 1008" in done.stderr) == (not environment)


def test_other_batches_than_exported(tmp_path):
    """The server gets a configuration of its own; the repository, which the container cannot write, stays as it is."""
    write(tmp_path, [672])
    settings = {"SAM3_MAX_BATCH": "4", "SAM3_FRONT_INSTANCES": "1", "SAM3_QUEUE_DELAY_US": "0"}
    shown = 'cat "${0#--model-repository=}"/sam3_r672/config.pbtxt'
    done = begin("sh", "-c", shown, f"--model-repository={tmp_path}", **settings)
    assert done.returncode == 0, done.stderr
    for line in ("max_batch_size: 4", "count: 1", "max_queue_delay_microseconds: 0"):
        assert line in done.stdout
    assert "max_batch_size: 8" in (tmp_path / "sam3_r672" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("command", "environment", "status", "sentence"),
    [
        pytest.param([], {}, 2, "expected the server's command", id="no command"),
        pytest.param(["echo"], {}, 1, "expected --model-repository=FOLDER", id="no repository"),
        pytest.param(
            ["echo", "--model-repository=/nowhere"], {}, 1, "found none; write one with sam3-export", id="nothing there"
        ),
        pytest.param(
            ["echo", "--model-repository=R"], {"SAM3_RESOLUTIONS": "big"}, 2, "are numbers with spaces", id="no number"
        ),
        pytest.param(
            ["echo", "--model-repository=R"], {"SAM3_RESOLUTIONS": "840"}, 1, "(672), got 840", id="not there"
        ),
        pytest.param(
            ["echo", "--model-repository=R"], {"SAM3_MAX_BATCH": "9"}, 1, "got 9; export it with", id="large batches"
        ),
        pytest.param(
            ["echo", "--model-repository=R"],
            {"SAM3_QUEUE_DELAY_US": "soon"},
            2,
            "SAM3_QUEUE_DELAY_US one number each",
            id="no delay",
        ),
        pytest.param(
            ["echo", "--model-repository=R"], {"SAM3_DRAIN_SECONDS": "long"}, 2, "SAM3_DRAIN_SECONDS and", id="no end"
        ),
    ],
)
def test_refusals(tmp_path, command, environment, status, sentence):
    write(tmp_path, [672])
    done = begin(*(word.replace("=R", f"={tmp_path}") for word in command), **environment)
    assert (done.returncode, done.stdout) == (status, "")
    assert sentence in done.stderr


def test_a_front_model_of_someone_else(tmp_path):
    (tmp_path / "sam3_r672").mkdir()
    (tmp_path / "sam3_r672" / "config.pbtxt").write_text('name: "sam3_r672"\n')
    with pytest.raises(ServerError, match="names no variant; write the repository again"):
        start.prepare(["tritonserver", f"--model-repository={tmp_path}"], [], None, {})
