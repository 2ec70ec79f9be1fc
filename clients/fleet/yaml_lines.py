"""A YAML reader that keeps the line of every value, so that an error message can point at it.

It supports what configurations need: mappings with text keys, lists and scalars. Duplicate keys are refused, since
YAML's own loader would silently keep the last one.
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
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}:1: cannot be read ({error})") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ConfigError(f"{file}:{mark.line + 1 if mark else 1}: this is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}:1: this is not YAML: {error}") from error
    if node is None:
        raise ConfigError(f"{file}:1: the file is empty")
    return _entry(node, "the file", file, yaml.SafeLoader(""))


def _entry(node: yaml.Node, what: str, file: str, loader: yaml.SafeLoader) -> Entry:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return Entry(
            [_entry(item, f"{what}[{i}]", file, loader) for i, item in enumerate(node.value)], line, what, file
        )
    if not isinstance(node, yaml.MappingNode):
        try:
            return Entry(loader.construct_object(node), line, what, file)
        except yaml.YAMLError as error:
            raise ConfigError(f"{file}:{line}: {what}: {error}") from error
    entries: dict[str, Entry] = {}
    for key_node, value_node in node.value:
        here = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{file}:{here}: {what}: keys must be scalars")
        key = str(key_node.value)
        if key in entries:
            raise ConfigError(
                f"{file}:{here}: {what}: duplicate key {key!r}; it is on line {entries[key].line} already"
            )
        entry = _entry(value_node, key if what == "the file" else f"{what}.{key}", file, loader)
        # a block value begins on the line below its key, so the key's line is reported
        entries[key] = Entry(entry.value, here, entry.what, file)
    return Entry(entries, line, what, file)
