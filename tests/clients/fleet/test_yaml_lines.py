"""YAML with lines: what PyYAML reads is read as PyYAML reads it, and what it cannot be has a line."""

from __future__ import annotations

import codecs
from pprint import pformat

import pytest
import yaml

from clients.fleet.config import read_config
from clients.fleet.yaml_lines import ConfigError, Entry, load


def plain(entry: Entry):
    """The values without their lines."""
    if isinstance(entry.value, dict):
        return {key: plain(value) for key, value in entry.value.items()}
    return [plain(item) for item in entry.value] if isinstance(entry.value, list) else entry.value


@pytest.fixture
def file(tmp_path):
    def make(data):
        path = tmp_path / "cameras.yaml"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return make


SAME = {
    "merge": "a: &a {fps: 1, loop: true}\nb: {<<: *a, fps: 2}\n",
    "merge after the own keys": "a: &a {fps: 1, loop: true}\nb:\n  fps: 2\n  <<: *a\n",
    "merge of a merge": "a: &a {fps: 1}\nb: &b {<<: *a, raw: on}\nc: {<<: *b, loop: no}\n",
    "merge of a list": "a: &a {fps: 1}\nb: &b {raw: true}\nc: {<<: [*a, *b], loop: no}\n",
    "merge of an empty list": "c: {<<: [], loop: no}\n",
    "merge in place": "c: {<<: {fps: 1}, loop: no}\n",
    "two merges": "a: &a {fps: 1}\nb: &b {raw: true}\nc:\n  <<: *a\n  <<: *b\n",
    "a key that is text": "c: {'<<': 1}\n",
    "alias of a list": "a: &a [person, car]\nb: *a\n",
    "alias of a scalar": "a: &a 0.4\nb: *a\n",
    "flow and block": "a: {b: [1, 2.5, yes, ~, 'x', \"\\u00e9\"]}\n",
    "folded text": "a: >\n  one\n  two\nb: |\n  x\n",
    "numbers of all kinds": "a: [0x1f, 0o17, 017, 1_000, 1e3, 1.0e+3, .inf, 1:30, 2024-01-02]\n",
    "Windows' line ends": "a: 1\r\nb:\r\n  - 2\r\n",
    "a document's start and end": "%YAML 1.1\n---\na: 1\n...\n",
    "UTF-8 with a mark": codecs.BOM_UTF8 + b"a: 1\nb: \xc3\xa9\n",
    "UTF-16": "a: 1\nb: é\n".encode("utf-16"),
}


@pytest.mark.parametrize("case", SAME)
def test_as_pyyaml_reads_it(case, file):
    path = file(SAME[case])
    # as text, for types count; sorted, for PyYAML's versions differ in the order of merged keys
    assert pformat(plain(load(path))) == pformat(yaml.safe_load(path.read_bytes()))


def test_the_first_of_merged_mappings_wins(file):
    merged = load(file("a: &a {fps: 1, n: 1}\nb: &b {fps: 2, raw: 2}\nc: {<<: [*a, *b], n: 3}\n"))
    assert plain(merged.value["c"]) == {"fps": 1, "raw": 2, "n": 3}


def test_values_keep_the_line_where_they_are_written(file):
    entries = load(file("usual: &usual\n  fps: 5\ncameras:\n  - <<: *usual\n    name: a\n")).value
    camera = entries["cameras"].value[0].value
    assert (camera["fps"].line, camera["name"].line) == (2, 5)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
MERGE_BOMB = "a0: &a0 {k0: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}], k{i}: 1}}\n" for i in range(1, 60)
)
WRONG = {
    # mistake: (the file, the line, the message)
    "a tab": ("a:\n\tb: 1\n", 2, "cannot start any token"),
    "a tab as indentation of a list": ("a:\n  - b\n\t- c\n", 3, "not YAML"),
    "duplicate keys beside a merge": ("a: &a {x: 1}\nb:\n  <<: *a\n  y: 1\n  y: 2\n", 5, "duplicate key 'y'"),
    "merge of a scalar": ("a: &a 1\nb:\n  <<: *a\n", 1, "expected a mapping or a list of mappings after '<<'"),
    "merge of a list of scalars": ("b:\n  <<: [1]\n", 2, "expected only mappings in the list after '<<'"),
    "an alias of nothing": ("a: 1\nb: *c\n", 2, "undefined alias"),
    "an alias inside itself": ("a: &a\n  - 1\n  - *a\n", 1, "stands inside what it is an alias of"),
    "an alias bomb": (BOMB, 1, "at most 100,000 values"),
    "two documents": ("a: 1\n---\nb: 1\n", 2, "another document"),
    "a key that is a list": ("a: 1\n? [x]\n: 2\n", 2, "keys must be scalars"),
    "an anchor twice": ("a: &x 1\nb: &x 2\n", 2, "duplicate anchor 'x'"),
    "a Python object": ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "with the tag"),
    "a Python name": ("a: !!python/name:os.system\n", 1, "could not determine a constructor"),
    "a set": ("a: !!set {x, y}\n", 1, "with the tag 'tag:yaml.org,2002:set'"),
    "a 13th month": ("a: 1\nb: 2024-13-01\n", 2, "'2024-13-01' is no timestamp"),
    "a tag that lies": ("a: !!int x\n", 1, "'x' is no int"),
    "a bool that is none": ("a: !!bool maybe\n", 1, "'maybe' is no bool"),
    "Latin-1": (b"a: 1\nb: caf\xe9\n", 2, "this is not text in UTF-8"),
    "a control character": (b"a: 1\nb: \x07\n", 2, "not text"),
    "a very deep list": ("a: " + "[" * 5000, 1, "a few levels"),
    "an open quote": ("a: 1\nb: 'x\n", 3, "not YAML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_it_cannot_be_has_a_line(case, file):
    data, line, says = WRONG[case]
    path = file(data)
    with pytest.raises(ConfigError) as error:
        load(path)
    found = int(str(error.value).removeprefix(f"{path}:").partition(":")[0])
    assert says in str(error.value)
    assert found == line or case == "an alias bomb"


def test_merges_of_merges_cost_no_more_than_their_keys(file):
    assert len(load(file(MERGE_BOMB)).value["a59"].value) == 60


def test_a_password_is_in_no_message(file):
    text = "cameras:\n- {name: a, source: [rtsp://u:Tr0ub4dor@h/1], classes: [x], webhook: ftp://u:Tr0ub4dor@h/}\n"
    for data in (text, text.replace("[rtsp://u:Tr0ub4dor@h/1]", "rtsp://u:Tr0ub4dor@h/1")):
        with pytest.raises(ConfigError) as error:
            read_config(file(data))
        assert "Tr0ub4dor" not in str(error.value)
