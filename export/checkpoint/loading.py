"""Loads a checkpoint of SAM3, whatever shape it comes in.

Hugging Face folders and hub names (SAM3, its video model, SAM3-LiteText), Meta's own files, and what a training saved:
the weights come under one set of names, every one of them accounted for, into a model in fp32.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, Sam3LiteTextModel, Sam3Model
from transformers.initialization import no_init_weights

from export.checkpoint.account import Account, balanced
from export.checkpoint.configuration import model_class, read_configuration, sub_configurations, told_by_weights
from export.checkpoint.error import CheckpointError, named
from export.checkpoint.files import read_weights
from export.checkpoint.folder import Found, find_weights
from export.checkpoint.hub import download, download_tokenizer, is_hub_name
from export.checkpoint.layouts import Weight, layout_of, not_used, translated
from export.checkpoint.lite_text import settle
from export.checkpoint.preprocessing import check_preprocessing
from export.checkpoint.random_weights import RANDOM, random_source
from export.checkpoint.source import Source
from export.checkpoint.tokenizer import check_tokenizer, fixed_length, load_tokenizer
from export.checkpoint.tracker_weights import read_tracker, read_video_configuration, together
from export.checkpoint.training import bare, choose
from export.sub_models import pooled_keys


def load(name: str, tokenizer: str | None = None, ema: bool = False, video: bool = False) -> Source:
    """Loads a folder in transformers' format, a file of Meta's or of a training, a hub name (`owner/model`), or
    `random`.

    `tokenizer` is a folder, a hub name or Meta's list of merges, for checkpoints without one; `ema` takes averaged
    weights; `video` loads the tracker of a video model too. Raises CheckpointError with a remedy.
    """
    if name == RANDOM:
        return random_source(video=video)
    path = Path(name).expanduser()
    if path.is_file():
        return _load(path.parent, Found((path,)), _short(path), tokenizer, ema, video)
    if not name or not (path.is_dir() or is_hub_name(name)):
        raise CheckpointError(
            f"expected a checkpoint folder, a file or a hub name like facebook/sam3, got {name!r}, which is no folder;"
            " check the path, or pass a hub name"
        )
    folder = path if path.is_dir() else download(name)
    found = find_weights(folder)
    try:
        return _load(folder, found, _short(path) if path.is_dir() else name, tokenizer, ema, video)
    except CheckpointError as error:
        raise CheckpointError(f"{found.note}; {error}" if found.note else str(error)) from error


def _load(folder: Path, found: Found, shown: str, place: str | None, ema: bool, video: bool) -> Source:
    check_preprocessing(folder)
    if video:
        read_video_configuration(folder)  # before the gigabytes
    tokenizer_place = _tokenizer_place(place, folder)
    tokenizer = load_tokenizer(tokenizer_place)  # before the gigabytes
    model, account = read_model(folder, found, ema)
    check_tokenizer(tokenizer, model.config.text_config.vocab_size, str(tokenizer_place))
    if isinstance(model, Sam3LiteTextModel):
        settle(model, tokenizer)
    length = model.config.text_config.max_position_embeddings
    source = Source(shown, model, fixed_length(tokenizer, length), account, tokenizer_place, folder, found.weights)
    if not video:
        return source
    tracker, own = read_tracker(folder, found, ema)
    return replace(source, tracker=tracker, account=together(account, own))


def read_model(folder: Path, found: Found, ema: bool = False) -> tuple[Sam3Model | Sam3LiteTextModel, Account]:
    """The model in fp32 that the files `found` in a folder hold, and the account of their weights. Raises
    CheckpointError."""
    config = read_configuration(folder)
    file = str(found.weights[0] if len(found.weights) == 1 else folder)
    weights, unused, notes = _read(found, ema, file, config is not None)
    config = config or told_by_weights({weight.name: weight.tensor for weight in weights})
    return _filled(config, weights, unused, notes, file)


def _read(found: Found, ema: bool, file: str, configured: bool) -> tuple[list[Weight], Counter[str], list[str]]:
    """All weights of the files under transformers' names; how many others there are, by what they are for; notes. Only
    Meta's layout does without a configuration."""
    everything: dict[str, Tensor] = {}
    notes = [found.note] if found.note else []
    strange: list[str] = []
    for path in found.weights:
        chosen, said = choose(read_weights(path), ema, str(path))
        notes += said
        strange += [name for name in chosen if found.listed.get(name, path.name) != path.name or name in everything]
        everything |= chosen
    lost = [name for name in found.listed if name not in everything]
    if lost or strange:
        raise CheckpointError(
            f"{file}: the index and its files disagree: {len(lost)} weights are not in the file that it names"
            f" ({named(lost) or 'none'}), {len(strange)} are in another ({named(strange) or 'none'}); download all"
            " files of one version"
        )
    kept = {origin: tensor for origin, tensor in everything.items() if not not_used(bare(origin))}
    unused = Counter(reason for origin in everything if (reason := not_used(bare(origin))))
    layout = layout_of([bare(origin) for origin in kept], file)
    if layout == "transformers" and not configured:
        raise CheckpointError(
            f"expected config.json with a model_type beside {found.weights[0]}, found none; pass the folder that"
            " save_pretrained wrote"
        )
    return list(translated(kept, layout)), unused, notes


def _filled(
    config: PreTrainedConfig, weights: list[Weight], unused: Counter[str], notes: list[str], file: str
) -> tuple[Sam3Model | Sam3LiteTextModel, Account]:
    """The model of `config` in fp32 with these weights."""
    config = copy.deepcopy(config)
    for part in (config, *sub_configurations(config)):
        part.dtype = torch.float32  # what was saved in half would have its tables of positions made in half, too
    try:
        with no_init_weights():  # every weight is assigned below
            model = model_class(config)._from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, AttributeError, IndexError, KeyError) as error:
        raise CheckpointError(
            f"{file}: no model can be made of its config.json ({(str(error).splitlines() or [''])[0]}); use the file"
            " saved in training"
        ) from error
    state, account = balanced(model.state_dict(), weights, unused, notes, file)
    model.load_state_dict(state, assign=True)
    return pooled_keys.apply(model).eval(), account


def _tokenizer_place(place: str | None, folder: Path) -> Path:
    """The folder or file that the tokenizer is in."""
    if place is None:
        return folder
    path = Path(place).expanduser()
    if path.exists():
        return path
    if is_hub_name(place):
        return download_tokenizer(place)
    raise CheckpointError(f"expected a folder, a file or a hub name as tokenizer, got {place!r}, which is none")


def _short(path: Path) -> str:
    return "/".join(path.resolve().parts[-2:])
