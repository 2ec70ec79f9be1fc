"""A YAML reader that keeps the line of every value, so that an error message can point at it.

It supports what configurations need: mappings with text keys, lists, scalars, anchors and merge keys (`<<`), which mean
what they mean to PyYAML. Duplicate keys are refused, since PyYAML would silently keep the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml

from clients.redact import without_password


class ConfigError(ValueError):
    """A configuration that cannot be used; the message begins with `file:line:` and holds no password."""

    def __init__(self, message: str) -> None:
        super().__init__(without_password(message))


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of the file. `value` is a scalar, a list of entries or a dictionary of entries by key; `what` is its
    path in messages, such as `cameras[2].fps`.
    """

    value: Any
    line: int
    what: str
    file: str

    def fail(self, expected: str) -> NoReturn:
        """Raises ConfigError with what was expected here and what the file says."""
        kinds: dict[type, str] = {dict: "a mapping", list: "a list", type(None): "nothing"}
        got = kinds.get(type(self.value)) or repr(self.value)
        raise ConfigError(f"{self.file}:{self.line}: {self.what}: expected {expected}, got {got}")

    def mapping(self, known: set[str], needed: tuple[str, ...] = ()) -> dict[str, Entry]:
        """The entries by key. Fails for a key that is not `known`, suggesting the most similar one, and for a missing
        `needed` key."""
        if not isinstance(self.value, dict):
            self.fail(f"a mapping with {', '.join(sorted(known))}")
        for key, entry in self.value.items():
            if key not in known:
                near = get_close_matches(key, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(
                    f"{self.file}:{entry.line}: {self.what}: unknown key {key!r}{hint} (known:"
                    f" {', '.join(sorted(known))})"
                )
        if missing := [key for key in needed if key not in self.value]:
            raise ConfigError(f"{self.file}:{self.line}: {self.what}: {missing[0]!r} is missing")
        return dict(self.value)

    def items(self, expected: str) -> list[Entry]:
        """The entries of a list, which must not be empty."""
        if not isinstance(self.value, list) or not self.value:
            self.fail(expected)
        return list(self.value)

    def text(self, expected: str = "text") -> str:
        """Text that is not blank."""
        if not isinstance(self.value, str) or not self.value.strip():
            self.fail(expected)
        return str(self.value)

    def choice(self, *words: str) -> str:
        """One of `words`."""
        if self.value not in words:
            self.fail(f"one of {', '.join(words)}")
        return str(self.value)

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            self.fail("true or false")
        return bool(self.value)

    def number(self, low: float, high: float, expected: str) -> float:
        """A number within `low` and `high`, both included."""
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)) or not low <= self.value <= high:
            self.fail(expected)
        return float(self.value)

    def whole(self, low: int, high: int, expected: str) -> int:
        """A whole number within `low` and `high`, both included."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not low <= self.value <= high:
            self.fail(expected)
        return int(self.value)

    def check(self, make: Callable[[], Any]) -> Any:
        """The result of `make()`; its ValueError becomes a ConfigError of this entry."""
        try:
            return make()
        except ValueError as error:
            raise ConfigError(f"{self.file}:{self.line}: {self.what}: {error}") from error


def load(path: Path | str) -> Entry:
    """The file's only document. Raises ConfigError where it cannot be read or is not YAML."""
    file = str(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}:1: cannot be read ({error})") from error
    try:
        node = yaml.compose(data, Loader=yaml.SafeLoader)
        if node is None:
            raise ConfigError(f"{file}:1: the file is empty")
        return _Builder(file).entry(node, "the file")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ": ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{file}:{mark.line + 1 if mark else 1}: this is not YAML: {what}") from error
    except yaml.reader.ReaderError as error:
        line = data.count(b"\n", 0, error.position) + 1  # a position in characters or bytes: before it all are ASCII
        raise ConfigError(f"{file}:{line}: this is not text in UTF-8 or UTF-16: {error.reason}") from error
    except RecursionError:
        raise ConfigError(f"{file}:1: expected a few levels of lists and mappings, got hundreds") from None


MOST_ENTRIES = 100_000
"""Values of a file with all its aliases written out: a few lines of aliases to aliases can mean billions."""
MERGE = "tag:yaml.org,2002:merge"
PLAIN_TAGS = {yaml.SequenceNode: "tag:yaml.org,2002:seq", yaml.MappingNode: "tag:yaml.org,2002:map"}

Pairs = dict[str, tuple[yaml.Node, yaml.Node]]
"""The nodes of keys and values by key."""


class _Builder:
    """Makes the entries of one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._loader = yaml.SafeLoader("")
        self._count = 0
        self._within: set[int] = set()  # the collections around the one that is made
        self._pairs: dict[int, Pairs] = {}

    def entry(self, node: yaml.Node, what: str) -> Entry:
        """The entry of a node and of all within it."""
        line = node.start_mark.line + 1
        self._count += 1
        if self._count > MOST_ENTRIES:
            self._fail(node, what, f"expected at most {MOST_ENTRIES:,} values with all aliases written out, got more")
        if isinstance(node, yaml.ScalarNode):
            return Entry(self._scalar(node, what), line, what, self.file)
        if node.tag != PLAIN_TAGS[type(node)]:
            self._fail(node, what, f"expected a plain list or mapping, got one with the tag {node.tag!r}")
        if id(node) in self._within:
            self._fail(node, what, "an alias stands inside what it is an alias of")
        self._within.add(id(node))
        value: Any
        if isinstance(node, yaml.SequenceNode):
            value = [self.entry(item, f"{what}[{i}]") for i, item in enumerate(node.value)]
        else:
            value = {}
            for key, (key_node, value_node) in self._mapping(node, what).items():
                made = self.entry(value_node, key if what == "the file" else f"{what}.{key}")
                # a block value begins on the line below its key, so the key's line is reported
                value[key] = Entry(made.value, key_node.start_mark.line + 1, made.what, self.file)
        self._within.discard(id(node))
        return Entry(value, line, what, self.file)

    def _scalar(self, node: yaml.Node, what: str) -> Any:
        try:
            return self._loader.construct_object(node)
        except yaml.YAMLError as error:
            self._fail(node, what, str(getattr(error, "problem", None) or error))
        except Exception as error:  # PyYAML's constructors: a 13th month, `!!int x`, `!!bool maybe`
            self._fail(
                node, what, f"{node.value!r} is no {node.tag.rpartition(':')[2]} ({type(error).__name__}: {error})"
            )

    def _mapping(self, node: yaml.Node, what: str) -> Pairs:
        """A mapping's pairs: merged ones first, in PyYAML's order, then its own, which win."""
        if id(node) in self._pairs:
            return self._pairs[id(node)]
        merged: Pairs = {}
        own: Pairs = {}
        self._pairs[id(node)] = {}  # of a mapping that is merged into itself, as PyYAML takes it
        for key_node, value_node in node.value:
            if key_node.tag == MERGE:
                merged |= self._merged(value_node, what)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._fail(key_node, what, "keys must be scalars")
            key = str(key_node.value)
            if key in own:
                first = own[key][0].start_mark.line + 1
                self._fail(key_node, what, f"duplicate key {key!r}; it is on line {first} already")
            own[key] = key_node, value_node
        self._pairs[id(node)] = merged | own
        return self._pairs[id(node)]

    def _merged(self, node: yaml.Node, what: str) -> Pairs:
        """What `<<` brings in: the pairs of a mapping, or of a list of mappings, of which earlier ones win, as
        https://yaml.org/type/merge.html says and PyYAML 6.0.2 does (6.0.4 compares keys by identity)."""
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, what)
        pairs: Pairs = {}
        if not isinstance(node, yaml.SequenceNode):
            self._fail(node, what, "expected a mapping or a list of mappings after '<<', got a scalar")
        for item in reversed(node.value):
            if not isinstance(item, yaml.MappingNode):
                self._fail(item, what, "expected only mappings in the list after '<<'")
            pairs |= self._mapping(item, what)
        return pairs

    def _fail(self, node: yaml.Node, what: str, why: str) -> NoReturn:
        raise ConfigError(f"{self.file}:{node.start_mark.line + 1}: {what}: {why}")
