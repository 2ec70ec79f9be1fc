"""Weight files: what a file really holds, whether all of it is there, and its tensors.

Files are recognised by their first bytes, not by their names. Nothing in a file is ever run: pickles are read with
`weights_only=True`.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from export.checkpoint.error import CheckpointError, named

HEAD = 512
"""Bytes that are enough to recognise a file."""
AGAIN = "download it again (`hf download` goes on where it stopped)"


def read_weights(path: Path) -> Any:
    """What the file holds: a dict of tensors, or whatever else was saved by torch. Raises CheckpointError where it is
    no weight file, is cut off or damaged, or would run code."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    kind = recognised(head)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "zip":
        _check_zip(path)
        return _read_torch(path, mmap=True)
    if kind == "pickle":
        return _read_torch(path, mmap=False)
    raise CheckpointError(f"{path}: expected a weight file (safetensors, or saved by torch), got {kind}")


def recognised(head: bytes) -> str:
    """`safetensors`, `zip` or `pickle`; for anything else, words that say what it is and what to do."""
    text = head.lstrip().lower()
    if not head:
        return f"an empty file; {AGAIN}"
    if head.startswith(b"version https://git-lfs"):
        return f"a Git LFS pointer, which only names the weights; run `git lfs pull` in its folder, or {AGAIN}"
    if text.startswith(b"<"):
        return f"a web page, often one that asks to log in; run `hf auth login`, then {AGAIN}"
    if head.startswith(b"PK"):
        return "zip"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if head[8:9] == b"{":  # eight bytes of header size before it
        return "safetensors"
    if head.startswith(b"GGUF"):
        return "GGUF, which SAM3 is not read from; pass the checkpoint that it was made from"
    return f"something that begins with {head[:12]!r}; pass the file that was downloaded or saved"


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= size else b""
    if len(header) < length:
        raise _cut_off(path, size, length + 8)
    try:
        entries = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        wanted = 8 + length + max((entry["data_offsets"][1] for entry in entries), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({error}); {AGAIN}") from error
    if size < wanted:
        raise _cut_off(path, size, wanted)
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: safetensors cannot read it ({error}); {AGAIN}") from error


def _cut_off(path: Path, size: int, wanted: int) -> CheckpointError:
    return CheckpointError(f"{path} is cut off: its header promises {wanted:,} bytes, the file has {size:,}; {AGAIN}")


def _check_zip(path: Path) -> None:
    """Refuses a torch file that is cut off (the list of its parts is at its end) and archives that torch did not save
    weights in."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(
            f"{path} is cut off or damaged: a torch file (zip) of {size:,} bytes without its end ({error}); {AGAIN}"
        ) from error
    if any(name.endswith("constants.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript program, which holds code and is never loaded; save weights alone with"
            " torch.save(model.state_dict(), ...)"
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(
            f"{path}: expected a file that torch.save wrote, got an archive of {named(names)}; pass the weights"
        )


def _read_torch(path: Path, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        objects = _objects(path) or re.findall(r"GLOBAL ([\w.]+)", str(error))
        if objects:
            raise CheckpointError(
                f"{path} holds Python objects ({named(objects)}), and loading those can run code, so it is never done;"
                " save the weights alone, torch.save({'model': model.state_dict()}, ...), or as safetensors"
            ) from error
        # What torch says of pickles recommends to load them without this check.
        said = type(error).__name__ if isinstance(error, pickle.UnpicklingError) else repr(error).splitlines()[0]
        raise CheckpointError(f"{path}: torch cannot read it, it is damaged or cut off ({said}); {AGAIN}") from error


def _objects(path: Path) -> list[str]:
    """The classes and functions besides tensors that the pickle in a zip names; reading the names runs nothing."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above
        return []
