"""The small checkpoint's tokenizer, built from the words that scenes are described with.

It is byte-level BPE as in CLIP (lower-casing, an end-of-word mark, `<|startoftext|>` and `<|endoftext|>`), with all 256
bytes in its alphabet, so that any text can be encoded. It is a `CLIPTokenizer`, so the code that loads the original
checkpoint's tokenizer loads this one.
"""

from collections import Counter
from itertools import pairwise, product

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from export.tiny.prompts import ANY_SHAPE, FOREIGN_COLOURS, FOREIGN_NOUNS, VISUAL, plural
from export.tiny.shapes import COLOURS, SHAPES

CONTEXT = 32  # tokens, start and end included, as in the original
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 384


def corpus() -> list[str]:
    """The phrases that the merges are learnt from, in a fixed order."""
    colours, nouns = (*COLOURS, *FOREIGN_COLOURS), (*SHAPES, *ANY_SHAPE, *FOREIGN_NOUNS)
    forms = [form for noun in nouns for form in (noun, plural(noun))]
    pairs = [f"{colour} {form}" for colour, form in product(colours, forms)]
    return [
        *pairs,
        *forms,
        *(f"a {noun}" for noun in nouns),
        *(f"the {noun}" for noun in nouns),
        *[VISUAL] * 20,
    ]


def _byte_symbols(word: str) -> tuple[str, ...]:
    """A word as CLIP spells it: one printable character a byte, the last one carrying the end-of-word mark."""
    ((spelled, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)
    return (*spelled[:-1], spelled[-1] + "</w>")


def _join(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    joined, k = [], 0
    while k < len(symbols):
        width = 2 if symbols[k : k + 2] == pair else 1
        joined.append("".join(symbols[k : k + width]))
        k += width
    return tuple(joined)


def learn_merges(words: Counter[str], most: int) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first and the alphabetically first of equals, until `most` are found or
    no pair occurs twice.

    The library's own trainer breaks ties in the order of a hash table, so it would learn another vocabulary every time.
    """
    spelled = {_byte_symbols(word): count for word, count in words.items()}
    merges: list[tuple[str, str]] = []
    while len(merges) < most:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, count in spelled.items():
            for pair in pairwise(symbols):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        merges.append(best)
        spelled = {_join(symbols, best): count for symbols, count in spelled.items()}
    return merges


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer, its merges learnt anew; the result is the same every time.

    Ids: 256 bytes, 256 bytes that end a word, the merges, the two special tokens, as in CLIP's own vocabulary.
    """
    merges = learn_merges(Counter(word for line in corpus() for word in line.split()), MERGES)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet), *(a + b for a, b in merges), START, END]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


def encode(tokenizer: CLIPTokenizer, texts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
    """(input_ids, attention_mask), both [len(texts), 32], padded and cut to the context."""
    batch = tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT)
    return batch["input_ids"], batch["attention_mask"]
