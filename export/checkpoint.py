"""SAM3 checkpoints: loading one, its sizes and fingerprint, and the same weights at another resolution.

transformers loads a checkpoint once, in fp32. For a resolution and a number of queries a second `Sam3Model` shares the
loaded weights, so that several variants take the memory of one and the loaded model is never changed.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, Sam3Config, Sam3Model
from transformers.initialization import no_init_weights

from ensemble.spec import Checkpoint

RANDOM = "random"
"""Name of the real-size configuration with random weights, for load tests without the gated weights."""
MODEL_TYPES = ("sam3", "sam3_video")


class CheckpointError(ValueError):
    """The checkpoint cannot be used; the message says what was expected, what was found and what to do."""


@dataclass(frozen=True)
class Source:
    """A loaded checkpoint: a `name` for people, the `model` in fp32 and eval mode at the size it was trained at, and
    the `tokenizer` (see `fixed_length`)."""

    name: str
    model: Sam3Model
    tokenizer: Tokenizer

    @cached_property
    def record(self) -> Checkpoint:
        """The sizes from which `ensemble/spec.py` derives names and shapes."""
        config = self.model.config
        vision = config.vision_config
        return Checkpoint(
            name=self.name,
            image_size=vision.image_size,
            patch_size=vision.backbone_config.patch_size,
            hidden_size=vision.fpn_hidden_size,
            num_queries=config.detr_decoder_config.num_queries,
            context_length=config.text_config.max_position_embeddings,
            vocabulary_size=config.text_config.vocab_size,
        )

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of configuration, weights and tokenizer, wherever they were loaded from."""
        digest = hashlib.sha256(self.model.config.to_json_string().encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().data)
        digest.update(self.tokenizer.to_str().encode())
        return digest.hexdigest()


def load(name: str) -> Source:
    """Loads a folder in transformers' format, a hub name (`owner/model`), or `random`. Raises CheckpointError with a
    remedy."""
    if name == RANDOM:
        return random_source()
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder)
    elif name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"expected a checkpoint folder or a hub name like facebook/sam3, got {name!r}, which is no folder; check"
            " the path, or pass a hub name"
        )
    path = str(folder) if folder.is_dir() else name
    try:
        _check_type(path)
        model, info = Sam3Model.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, KeyError) as error:
        raise CheckpointError(_explain(name, error)) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(
            f"{name}: {len(missing)} weights of Sam3Model are missing, {missing[0]} first; download the checkpoint"
            " again, the file is incomplete"
        )
    shown = "/".join(folder.resolve().parts[-2:]) if folder.is_dir() else name
    return Source(shown, model.eval(), fixed_length(tokenizer, model.config.text_config.max_position_embeddings))


def at_size(model: Sam3Model, resolution: int, queries: int) -> Sam3Model:
    """`model` at another resolution (pixels a side) and with its first `queries` queries: a new Sam3Model that shares
    all other weights.

    The rotary positions of global layers depend on the configuration's image size, so they are computed anew; nothing
    of `model` changes.
    """
    config = copy.deepcopy(model.config)
    config.image_size = resolution
    config.detr_decoder_config.num_queries = queries
    weights = model.state_dict()
    for name in ("detr_decoder.query_embed.weight", "detr_decoder.reference_points.weight"):
        weights[name] = weights[name][:queries].clone()
    with no_init_weights():  # the weights are assigned in the next line
        sized = Sam3Model._from_config(config)
    sized.load_state_dict(weights, assign=True)
    return sized.eval()


def fixed_length(tokenizer: PreTrainedTokenizerBase, length: int) -> Tokenizer:
    """The checkpoint's tokenizer for the `tokenizers` library alone: it pads on the right to `length` tokens and never
    truncates.

    A prompt that is too long gives more than `length` ids, so that the caller can refuse it.
    """
    fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    fast.no_truncation()
    fast.enable_padding(direction="right", length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    return fast


def random_source(config: Sam3Config | None = None, seed: int = 0) -> Source:
    """Random weights for `config` (by default the real-size one: 840 million parameters, 3200 MB), and the small
    checkpoint's tokenizer.

    Weights are drawn so that signals neither vanish nor explode; transformers' own initialisation is meant to be
    overwritten.
    """
    from export.tiny.tokenizer import build_tokenizer

    torch.manual_seed(seed)
    with no_init_weights():
        model = Sam3Model._from_config(config or Sam3Config())
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            _draw(module, name, weight.data)
    tokenizer = fixed_length(build_tokenizer(), model.config.text_config.max_position_embeddings)
    return Source(RANDOM, model.eval(), tokenizer)


def _draw(module: nn.Module, name: str, weight: torch.Tensor) -> None:
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        weight.fill_(1.0 if name == "weight" else 0.0)
    elif name == "bias":
        weight.normal_(0, 0.1)
    elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        inputs = weight.shape[0] if isinstance(module, nn.ConvTranspose2d) else weight[0].numel()
        weight.normal_(0, inputs**-0.5)
    else:
        weight.normal_(0, 1.0 if weight.shape[-1] == 4 else 0.5)  # embeddings; reference points spread over the frame


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        raise CheckpointError(
            f"expected config.json and *.safetensors of a transformers checkpoint in {folder}, found {found}; pass the"
            " folder that save_pretrained wrote"
        )


def _check_type(path: str) -> None:
    model_type = AutoConfig.from_pretrained(path).model_type
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{path}: expected a checkpoint of type {' or '.join(MODEL_TYPES)}, got {model_type!r}; pass a SAM3"
            " checkpoint"
        )


def _explain(name: str, error: Exception) -> str:
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)  # type: ignore[arg-type]
    kinds = {type(e).__name__ for e in chain}
    text = " ".join(str(e) for e in chain)
    if "GatedRepoError" in kinds or "gated repo" in text:
        return (
            f"{name} is gated: accept its licence at https://huggingface.co/{name}, then run `hf auth login` (or set"
            " HF_TOKEN) and export again, or pass a folder with the downloaded weights"
        )
    if "RepositoryNotFoundError" in kinds or "not a valid model identifier" in text:
        return (
            f"{name}: expected a folder or a public hub name, the hub knows no such model; check the spelling, or run"
            " `hf auth login` if it is private"
        )
    if (
        kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectionError"}
        or "couldn't connect" in text.lower()
    ):
        return (
            f"{name} is neither a folder here nor in the local cache, and the hub cannot be reached; download it"
            " elsewhere and pass the folder"
        )
    return (
        f"{name}: transformers could not load it ({type(error).__name__}: {str(error).splitlines()[0]}); pass a folder"
        " that save_pretrained wrote"
    )
