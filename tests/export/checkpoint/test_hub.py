"""What the hub refuses, and the remedy for it."""

from __future__ import annotations

import json

import httpx
import pytest
from huggingface_hub import errors

from export.checkpoint import CheckpointError, load
from export.checkpoint.hub import is_hub_name
from export.cli import main

ANSWER = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/facebook/sam3"))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        pytest.param(errors.GatedRepoError("gated", response=ANSWER), "is gated: accept its licence", id="no login"),
        pytest.param(
            errors.RepositoryNotFoundError("404", response=ANSWER), "the hub knows no such model", id="no such model"
        ),
        pytest.param(errors.HFValidationError("Repo id"), "the hub knows no such model", id="no name for a model"),
        pytest.param(errors.LocalEntryNotFoundError("offline"), "the hub cannot be reached", id="no network"),
        pytest.param(errors.OfflineModeIsEnabled("offline"), "the hub cannot be reached", id="told to stay offline"),
        pytest.param(httpx.ReadTimeout("timed out"), "the download failed (ReadTimeout: timed out)", id="interrupted"),
        pytest.param(OSError(28, "No space left on device"), "No space left on device", id="disk full"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"tokenizer": "facebook/sam3"}], ids=["checkpoint", "tokenizer"])
def test_hub_errors_become_remedies(monkeypatch, folder, error, sentence, options):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr("export.checkpoint.hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError) as caught:
        load(str(folder) if options else "facebook/sam3", **options)
    assert sentence in str(caught.value)
    assert "facebook/sam3" in str(caught.value)


def test_the_command_says_so(monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise errors.GatedRepoError("gated", response=ANSWER)

    monkeypatch.setattr("export.checkpoint.hub.snapshot_download", refuse)
    assert main(["--checkpoint", "facebook/sam3", "--resolution", "112"]) == 2
    assert "hf auth login" in json.loads(capsys.readouterr().out.strip().splitlines()[-1])["error"]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("facebook/sam3", True), ("sam3", False), ("./facebook/sam3", False), ("/facebook/sam3", False), ("a/b/c", False)],
)
def test_names_of_models(name, is_one):
    assert is_hub_name(name) is is_one
