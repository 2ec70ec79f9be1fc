"""The tokenizer of a checkpoint: where its files are, and whether it is one that tells words apart.

transformers makes up an empty tokenizer where there is none, for which all words are the same.
"""

from __future__ import annotations

import gzip
from itertools import combinations
from pathlib import Path

from tokenizers import Tokenizer
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from export.checkpoint.error import CheckpointError, named
from export.checkpoint.folder import read_json

WHOLE, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
TOKENIZER_FILES = (WHOLE, VOCABULARY, MERGES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
CLIP = "openai/clip-vit-base-patch32"
"""The hub name of a public tokenizer that is SAM3's: CLIP's byte-level BPE of 49,408 tokens."""
REMEDY = (
    "save it beside the weights with processor.save_pretrained(folder), or pass one with --tokenizer: a folder, a hub"
    f" name such as {CLIP}, or Meta's bpe_simple_vocab_16e6.txt.gz"
)
START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = 49152 - 256 - 2
"""Lines of Meta's file that are merges of CLIP; the first line is a version, and there are more than CLIP has."""
PROBES = (
    *("red circle", "blue square", "person", "car", "dog", "cat", "bus", "traffic light", "a white helmet"),
    *("two birds", "left hand", "right hand", "wheel", "visual"),
)
"""Phrases of which no two may have the same ids."""
SPARE = 128
"""Rows that an embedding may have beyond the tokenizer's ids, for tables that are rounded up."""


def load_tokenizer(place: Path) -> CLIPTokenizer:
    """The tokenizer in a folder, or that of Meta's file of merges. Raises CheckpointError where files are missing or
    damaged."""
    if place.is_file():
        return _of_merges(place)
    missing = missing_files(place)
    if missing:
        shown = named((p.name for p in place.iterdir() if p.is_file()), 6) or "nothing"
        raise CheckpointError(f"{place}: the tokenizer is missing ({missing}), found {shown}; {REMEDY}")
    _check_merges(place)
    try:
        return CLIPTokenizer.from_pretrained(place)
    except Exception as error:  # the library raises its own, and bare Exception for damaged files
        raise CheckpointError(
            f"{place}: the tokenizer cannot be read ({' '.join(str(error).split())[:200]}); {REMEDY}"
        ) from error


def missing_files(folder: Path) -> str:
    """Which files of a tokenizer a folder lacks, in words; empty where it has enough."""
    here = {name: (folder / name).is_file() for name in (WHOLE, VOCABULARY, MERGES)}
    if here[WHOLE] or (here[VOCABULARY] and here[MERGES]):
        return ""
    if here[VOCABULARY] or here[MERGES]:
        return MERGES if here[VOCABULARY] else VOCABULARY
    return f"{WHOLE}, or {VOCABULARY} with {MERGES}"


def fixed_length(tokenizer: PreTrainedTokenizerBase, length: int) -> Tokenizer:
    """The checkpoint's tokenizer for the `tokenizers` library alone: it pads on the right to `length` tokens and never
    truncates.

    A prompt that is too long gives more than `length` ids, so that the caller can refuse it.
    """
    fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    fast.no_truncation()
    fast.enable_padding(direction="right", length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    return fast


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, place: str) -> None:
    """Raises CheckpointError unless the tokenizer tells words apart and fits a token embedding of `rows` rows."""
    fast = tokenizer.backend_tokenizer
    ids = {phrase: tuple(fast.encode(phrase, add_special_tokens=False).ids) for phrase in PROBES}
    same = [f"{a!r} and {b!r}" for a, b in combinations(PROBES, 2) if ids[a] == ids[b]]
    if same:
        raise CheckpointError(f"{place}: for its tokenizer {same[0]} are the same prompt; {REMEDY}")
    highest = max(fast.get_vocab().values())
    if highest >= rows:
        raise CheckpointError(
            f"{place}: its tokenizer has ids up to {highest}, and the text encoder's embedding {rows} rows (ids up to"
            f" {rows - 1}); it belongs to another checkpoint; {REMEDY}"
        )
    if highest + 1 + SPARE < rows:
        raise CheckpointError(
            f"{place}: its tokenizer has {highest + 1} ids, and the text encoder's embedding {rows} rows; it belongs to"
            f" another checkpoint; {REMEDY}"
        )


def _check_merges(folder: Path) -> None:
    """A vocabulary without merges spells every word letter by letter, and nothing fails."""
    if (folder / WHOLE).is_file():
        model = read_json(folder / WHOLE).get("model")
        kind = model.get("type", "BPE") if isinstance(model, dict) else None
        if kind != "BPE":
            raise CheckpointError(f"{folder / WHOLE}: expected CLIP's byte-level BPE, got {kind}; {REMEDY}")
        merges = model.get("merges") or ()
    else:
        merges = [line for line in (folder / MERGES).read_text(encoding="utf-8").splitlines() if line.strip()][1:]
    if not merges:
        raise CheckpointError(f"{folder}: its tokenizer has no merges, so it only knows letters; {REMEDY}")


def _of_merges(path: Path) -> CLIPTokenizer:
    """CLIP's tokenizer of the list of merges that Meta keeps with its code (`bpe_simple_vocab_16e6.txt.gz`).

    Ids, in this order: 256 bytes, 256 bytes that end a word, the merges, start and end (OpenAI CLIP,
    `simple_tokenizer.py`).
    """
    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : CLIP_MERGES + 1]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: expected Meta's gzipped list of merges ({error}); {REMEDY}") from error
    merges = [tuple(line.split()) for line in lines]
    if len(merges) < CLIP_MERGES or any(len(merge) != 2 for merge in merges):
        raise CheckpointError(f"{path}: expected {CLIP_MERGES} merges of two parts each; {REMEDY}")
    letters = [*byte_letters(), *(f"{letter}</w>" for letter in byte_letters())]
    tokens = [*letters, *("".join(merge) for merge in merges), START, END]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=77)


def byte_letters() -> list[str]:
    """The letters that stand for the 256 bytes, in CLIP's order: printable ones first, as themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = range(256 - len(printable))
    return [*map(chr, printable), *(chr(256 + i) for i in others)]
