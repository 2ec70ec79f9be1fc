"""The tokenizer: whole words for the project's own prompts, bytes for everything else, and always 32 ids."""

import pytest

from export.tiny.tokenizer import CONTEXT, build_tokenizer, encode

TOKENIZER = build_tokenizer()


@pytest.mark.parametrize("text", ["red circle", "blue objects", "a star", "visual", "hexagon"])
def test_known_words_are_one_token_each(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) == len(text.split()) + 2
    assert ids[0] == TOKENIZER.bos_token_id
    assert ids[-1] == TOKENIZER.eos_token_id


@pytest.mark.parametrize(
    "text",
    [
        "red circle",
        "zyxwvut",  # never seen
        "naïve café",  # accents
        "日本の丸",  # another script
        "🙂👩\u200d🚒",  # emoji with a joiner
        "\x00\x7f",  # control characters
    ],
)
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.unk_token_id not in ids[1:-1]
    assert TOKENIZER.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_case_and_spaces_do_not_matter() -> None:
    assert TOKENIZER("  Red   CIRCLE ")["input_ids"] == TOKENIZER("red circle")["input_ids"]


@pytest.mark.parametrize("text", ["", "star", "very " * 40 + "long"])
def test_always_32_ids(text: str) -> None:
    (ids,), (mask,) = encode(TOKENIZER, [text])
    assert len(ids) == len(mask) == CONTEXT
    assert mask == sorted(mask, reverse=True)
    assert ids[sum(mask) - 1] == TOKENIZER.eos_token_id  # cut texts end properly too


def test_built_twice_it_is_the_same() -> None:
    assert build_tokenizer().get_vocab() == TOKENIZER.get_vocab()
    alphabet = [TOKENIZER.convert_ids_to_tokens(k) for k in range(512)]
    assert len(set(alphabet)) == 512
    assert sum(token.endswith("</w>") for token in alphabet) == 256
