"""Checkpoints on the Hugging Face hub: downloads what is needed, and says what to do where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import httpx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from export.checkpoint.error import CheckpointError
from export.checkpoint.tokenizer import TOKENIZER_FILES

DESCRIPTION = ("config.json", "processor_config.json", "preprocessor_config.json")
WEIGHTS = (("*.safetensors", "*.safetensors.index.json"), ("*.bin", "*.bin.index.json"), ("*.pt",))
"""Patterns of weight files; each is looked for only where there is nothing by those before."""


def is_hub_name(name: str) -> bool:
    """Whether it could be `owner/model`."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def download(name: str) -> Path:
    """The folder in the local cache with the checkpoint's configuration, tokenizer and weights. Raises
    CheckpointError."""
    folder = _fetch(name, (*DESCRIPTION, *TOKENIZER_FILES, *WEIGHTS[0]))
    for patterns in WEIGHTS[1:]:
        if not any(p for pattern in (*WEIGHTS[0], *patterns) for p in folder.glob(pattern)):
            folder = _fetch(name, patterns)
    return folder


def download_tokenizer(name: str) -> Path:
    """The folder in the local cache with the tokenizer of a model. Raises CheckpointError."""
    return _fetch(name, TOKENIZER_FILES)


def _fetch(name: str, patterns: Sequence[str]) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{name} is gated: accept its licence at https://huggingface.co/{name}, then run `hf auth login` (or set"
            " HF_TOKEN) and export again, or pass a folder with the downloaded weights"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"{name}: expected a folder or a public hub name, the hub knows no such model; check the spelling, or run"
            " `hf auth login` if it is private"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{name} is neither a folder here nor in the local cache, and the hub cannot be reached; download it"
            " elsewhere and pass the folder"
        ) from error
    except (OSError, httpx.HTTPError) as error:
        raise CheckpointError(
            f"{name}: the download failed ({type(error).__name__}: {(str(error).splitlines() or [''])[0]}); export"
            " again to go on with it, or pass a folder with the downloaded weights"
        ) from error
