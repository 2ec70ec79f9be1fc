"""The prompt cache: one text-encoder call for all missing names, least recently used out first."""

import threading

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from ensemble.prompts import PromptCache, PromptTokenizer
from ensemble.request import RequestError

LENGTH = 6


@pytest.fixture
def tokenizer(tmp_path):
    words = {"[pad]": 0, "dog": 1, "cat": 2, "red": 3, "car": 4}
    made = Tokenizer(models.WordLevel(words, unk_token="[pad]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_padding(length=LENGTH, pad_id=0, pad_token="[pad]")
    made.save(str(tmp_path / "tokenizer.json"))
    return PromptTokenizer(tmp_path / "tokenizer.json", LENGTH)


@pytest.fixture
def encode():
    def call(ids):
        call.seen.append(ids.copy())
        return ids[..., None].astype(np.float32) * [1.0, 10.0]

    call.seen = []
    return call


def test_ids_are_padded(tokenizer):
    ids, mask = tokenizer("red car")
    assert ids.tolist() == [3, 4, 0, 0, 0, 0]
    assert mask.tolist() == [1, 1, 0, 0, 0, 0]
    assert ids.dtype == mask.dtype == np.int32


def test_a_prompt_that_is_too_long_is_refused_not_cut(tokenizer):
    with pytest.raises(RequestError, match="7 tokens long, the text encoder reads 6"):
        tokenizer("dog " * 7)


def test_missing_file_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="run sam3-export"):
        PromptTokenizer(tmp_path / "tokenizer.json", LENGTH)


def test_each_name_is_encoded_once(tokenizer, encode):
    cache = PromptCache(encode)
    first, encoded = cache.lookup([tokenizer(name) for name in ("dog", "cat", "dog")])
    assert [len(ids) for ids in encode.seen] == [2]
    np.testing.assert_array_equal(first[0].features, first[2].features)
    assert first[0].features[0].tolist() == [1.0, 10.0]
    _, more = cache.lookup([tokenizer(name) for name in ("cat", "red car")])
    assert [len(ids) for ids in encode.seen] == [2, 1]
    assert (encoded, more) == (2, 1)


def test_least_recently_used_goes_first(tokenizer, encode):
    cache = PromptCache(encode, capacity=2)
    for name in ("dog", "cat", "dog", "car", "dog", "cat"):
        cache.lookup([tokenizer(name)])
    assert [ids[0, 0] for ids in encode.seen] == [1, 2, 4, 2]


def test_more_names_than_the_cache_holds_are_all_answered(tokenizer, encode):
    cache = PromptCache(encode, capacity=1)
    found, _ = cache.lookup([tokenizer(name) for name in ("dog", "cat", "car")])
    assert [p.features[0, 0] for p in found] == [1.0, 2.0, 4.0]


def test_what_is_cached_is_there_while_another_thread_encodes(tokenizer, encode):
    """A text encoder on the CPU takes long; batches of known names do not wait for it."""
    entered, let_go = threading.Event(), threading.Event()

    def slow(ids):
        if len(encode.seen):
            entered.set()
            let_go.wait()
        return encode(ids)

    cache = PromptCache(slow)
    cache.lookup([tokenizer("dog")])
    other = threading.Thread(target=cache.lookup, args=([tokenizer("cat")],))
    other.start()
    entered.wait()
    _, encoded = cache.lookup([tokenizer("dog")])
    assert encoded == 0
    let_go.set()
    other.join()
    assert cache.lookup([tokenizer("cat")])[1] == 0
