"""Tokenizers: where one may come from, and those that are refused since they do not tell words apart or belong to
another checkpoint. transformers makes an empty one up where there is none."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest
from transformers import CLIPTokenizer

from export.checkpoint import CheckpointError, load
from export.checkpoint.tokenizer import CLIP_MERGES, byte_letters, load_tokenizer
from export.cli import main

WORDS = ("Red circle", "blue  square", "café 猫", "don't", "")


@pytest.fixture
def copy(folder, tmp_path):
    """The small checkpoint, to take files away from."""
    return shutil.copytree(folder, tmp_path / "checkpoint")


def removed(*patterns):
    return lambda folder: [file.unlink() for pattern in patterns for file in folder.glob(pattern)]


def changed(change):
    """tokenizer.json with its content changed in place."""

    def write(folder):
        data = json.loads((folder / "tokenizer.json").read_text())
        change(data)
        (folder / "tokenizer.json").write_text(json.dumps(data))

    return write


def split(folder):
    """vocab.json and merges.txt in place of tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))
    (folder / "tokenizer.json").unlink()


def words_alone(data):
    """Every word of the prompts is unknown, so all have the same ids."""
    ends = {token: n for n, token in enumerate(("<|startoftext|>", "<|endoftext|>"))}
    data["model"] |= {"vocab": ends, "merges": []}
    data["added_tokens"] = [token | {"id": ends[token["content"]]} for token in data["added_tokens"]]


def two_letters(data):
    """All other letters are unknown, so words of the same length have the same ids."""
    vocabulary = data["model"]["vocab"]
    kept = ("x", "y</w>", "xy</w>", "<|startoftext|>", "<|endoftext|>")
    ids = vocabulary | {"xy</w>": 0}
    data["model"] |= {"vocab": {token: ids[token] for token in kept}, "merges": ["x y</w>"]}


def with_id(number):
    return changed(lambda data: data["model"]["vocab"].update(zebra=number))


REMEDY = "--tokenizer: a folder, a hub name such as openai/clip-vit-base-patch32, or Meta's bpe_simple_vocab_16e6"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(
            removed("*token*", "vocab.json", "merges.txt"),
            ["the tokenizer is missing (tokenizer.json, or vocab.json with merges.txt)", "processor.save_pretrained"],
            id="no tokenizer",
        ),
        pytest.param(
            removed("tokenizer.json"), ["the tokenizer is missing", "found config.json"], id="its options alone"
        ),
        pytest.param(
            lambda f: [split(f), (f / "merges.txt").unlink()], ["is missing (merges.txt)"], id="no merges.txt"
        ),
        pytest.param(
            lambda f: [split(f), (f / "vocab.json").unlink()], ["is missing (vocab.json)"], id="no vocab.json"
        ),
        pytest.param(
            lambda f: [split(f), (f / "merges.txt").write_text("#version: 0.2\n")],
            ["has no merges"],
            id="empty merges.txt",
        ),
        pytest.param(changed(lambda d: d["model"].update(merges=[])), ["has no merges"], id="no merges"),
        pytest.param(changed(words_alone), ["has no merges"], id="two words, as transformers makes one up"),
        pytest.param(
            changed(two_letters),
            ["for its tokenizer 'red circle' and", "are the same prompt"],
            id="an alphabet of two letters",
        ),
        pytest.param(with_id(5000), ["has ids up to 5000, and the text encoder's embedding 699 rows"], id="ids beyond"),
        pytest.param(
            changed(lambda d: d["model"].update(type="WordPiece")), ["expected CLIP's byte-level BPE"], id="BERT's"
        ),
        pytest.param(lambda f: (f / "tokenizer.json").write_text("{"), ["expected JSON"], id="cut off"),
        pytest.param(lambda f: (f / "tokenizer.json").write_text("{}"), ["expected CLIP's byte-level BPE"], id="empty"),
        pytest.param(changed(lambda d: d["model"].update(vocab={"a": "b"})), ["cannot be read"], id="damaged"),
        pytest.param(
            lambda f: (f / "tokenizer_config.json").write_text('{"eos_token": "</s>"}'),
            ["has ids up to 699, and the text encoder's embedding 699 rows"],
            id="another end",
        ),
    ],
)
def test_refused_tokenizers(copy, damage, words):
    damage(copy)
    with pytest.raises(CheckpointError) as caught:
        load(str(copy))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert REMEDY in str(caught.value) or "download it again" in str(caught.value)


def test_a_tokenizer_of_a_smaller_vocabulary_is_of_another_checkpoint(bare_folder, state):
    import torch
    from safetensors.torch import save_file

    config = json.loads((bare_folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 1200
    (bare_folder / "config.json").write_text(json.dumps(config))
    name = "text_encoder.text_model.embeddings.token_embedding.weight"
    save_file({**state, name: torch.ones(1200, 64)}, bare_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="has 699 ids, and the text encoder's embedding 1200 rows"):
        load(str(bare_folder))


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda f: None, id="tokenizer.json"),
        pytest.param(split, id="vocab.json and merges.txt"),
        pytest.param(removed("tokenizer_config.json", "special_tokens_map.json"), id="without options"),
    ],
)
def test_the_same_ids_from_every_form(source, folder, copy, tmp_path, prepare):
    prepare(copy)
    beside = load(str(copy))
    elsewhere = shutil.copytree(
        copy, tmp_path / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors", "config.json")
    )
    removed("*token*", "vocab.json", "merges.txt")(copy)
    for loaded in (beside, load(str(copy), tokenizer=str(elsewhere))):
        for text in WORDS:
            assert loaded.tokenizer.encode(text).ids == source.tokenizer.encode(text).ids


def test_the_command_takes_a_tokenizer_and_says_what_is_missing(copy, folder, capsys, tmp_path):
    removed("*token*")(copy)
    argv = ["--checkpoint", str(copy), "--resolution", "112", "--repository", str(tmp_path / "repository")]
    assert main(argv) == 2
    assert "the tokenizer is missing" in json.loads(capsys.readouterr().out.strip().splitlines()[-1])["error"]
    assert main([*argv, "--tokenizer", str(tmp_path / "nowhere")]) == 2
    assert "as tokenizer" in json.loads(capsys.readouterr().out.strip().splitlines()[-1])["error"]
    assert main([*argv, "--tokenizer", str(folder), "--queries", "999"]) == 2  # refused after the tokenizer was taken
    assert "queries must be 1 to 20" in json.loads(capsys.readouterr().out.strip().splitlines()[-1])["error"]


def test_metas_list_of_merges(tmp_path):
    """Two letters joined, then joined with a third, are learnt merges; ids are those of CLIP."""
    letters = byte_letters()
    others = [(a, b) for a in letters for b in letters if a + b != "re"]
    pairs = [("r", "e"), ("re", "d</w>"), *others][:CLIP_MERGES]
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    more = ["not one of CLIP's"] * 3
    path.write_bytes(gzip.compress("\n".join(["#version", *(" ".join(p) for p in pairs), *more]).encode()))
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, CLIPTokenizer)
    assert len(tokenizer) == 49408
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (49406, 49407, 49407)
    assert tokenizer("red").input_ids == [49406, 512 + 1, 49407]
    assert tokenizer("!").input_ids == [49406, 256, 49407]  # the first byte, at the end of a word


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"merges", "expected Meta's gzipped list of merges", id="not gzipped"),
        pytest.param(gzip.compress(b"#version\na b\n"), "expected 48894 merges", id="too few"),
    ],
)
def test_another_file_in_place_of_the_merges(tmp_path, data, words):
    (tmp_path / "merges.gz").write_bytes(data)
    with pytest.raises(CheckpointError, match=words):
        load_tokenizer(tmp_path / "merges.gz")
