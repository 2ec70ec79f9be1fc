"""Text features of class names, each encoded once: a camera asks for the same few words in every frame.

The cache keeps the least recently used names for all cameras of a server; its key is the token ids, so "Dog " and "dog"
share an entry where the tokenizer treats them alike.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ensemble.request import RequestError

Tokens = tuple[np.ndarray, np.ndarray]
"""Ids int32 [L] of one name and their mask int32 [L], 1 where a token is real."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the decoder attends to for one class: `features` [S,C], `mask` int32 [S], 1 where a token is real."""

    features: np.ndarray
    mask: np.ndarray


class PromptTokenizer:
    """Turns names into fixed-length token ids with the checkpoint's own tokenizer file."""

    def __init__(self, path: Path, context_length: int) -> None:
        """`path` is a Hugging Face `tokenizer.json` whose padding is `context_length`. Raises FileNotFoundError naming
        the command that writes it."""
        if not path.is_file():
            raise FileNotFoundError(
                f"expected the checkpoint's tokenizer at {path}; run sam3-export for this repository again"
            )
        self._tokenizer = Tokenizer.from_file(str(path))
        self._length = context_length

    @lru_cache(maxsize=4096)  # noqa: B019  (one tokenizer lives as long as its process)
    def __call__(self, name: str) -> Tokens:
        """(ids int32 [L], mask int32 [L]). Raises RequestError where the name has more tokens than the text encoder
        reads."""
        encoding = self._tokenizer.encode(name)
        tokens = sum(encoding.attention_mask)
        if tokens > self._length:
            raise RequestError(
                f"classes: {name[:40]!r}... is {tokens} tokens long, the text encoder reads {self._length}; use fewer"
                " words"
            )
        return np.array(encoding.ids, np.int32), np.array(encoding.attention_mask, np.int32)


class PromptCache:
    """Least-recently-used text features, filled by one text-encoder call for all the names that are missing. For any
    number of threads: one that encodes keeps no other one from what is there."""

    def __init__(self, encode: Callable[[np.ndarray], np.ndarray], capacity: int = 1024) -> None:
        """`encode` maps ids int32 [N,L] to features [N,L,C]."""
        self._encode, self._capacity = encode, capacity
        self._entries: OrderedDict[bytes, Prompt] = OrderedDict()
        self._lock = threading.Lock()

    def knows(self, tokens: Sequence[Tokens]) -> bool:
        """Whether all these names are here."""
        with self._lock:
            return all(ids.tobytes() in self._entries for ids, _ in tokens)

    def lookup(self, tokens: Sequence[Tokens]) -> tuple[list[Prompt], int]:
        """A `Prompt` for each (ids, mask), and how many had to be encoded because they were not cached."""
        wanted = {ids.tobytes(): (ids, mask) for ids, mask in tokens}
        with self._lock:
            found = {key: self._entries[key] for key in wanted if key in self._entries}
        missing = [key for key in wanted if key not in found]
        if missing:
            features = self._encode(np.stack([wanted[key][0] for key in missing]))
            found |= {
                key: Prompt(feature.copy(), wanted[key][1]) for key, feature in zip(missing, features, strict=True)
            }
        with self._lock:
            for key, prompt in found.items():
                self._entries[key] = prompt
                self._entries.move_to_end(key)
            while len(self._entries) > self._capacity:
                self._entries.popitem(last=False)
        return [found[ids.tobytes()] for ids, _ in tokens], len(missing)
