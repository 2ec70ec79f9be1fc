"""Passwords, tokens and keys kept out of what people and programs read: messages, logs, accounts, pages.

Cameras' manuals put them everywhere: before the host (with `@`, `/` or `:` inside, escaped or not), in the query, and
in the path (`/user=admin_password=..._channel=1`). Where it is not certain that something is no secret, it goes:
a message that hides too much is better than one that hides too little.
"""

from __future__ import annotations

import re
from pathlib import Path

HIDDEN = "***"
SHOWN = (
    "app|cam|camera|ch|channel|channelid|chn|codec|fps|height|id|port|profile|proto|resolution|stream|streamid|subtype|"
    "tcp|transport|unicast|video|width"
)
"""Keys of an address's query whose values are shown: they tell cameras of one address apart."""

_ADDRESS = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)(?P<rest>.*?)(?=[a-zA-Z][a-zA-Z0-9+.-]*://|\n|$)")
_PLAIN_HOST = re.compile(r"(\[[0-9a-fA-F:.]*\]|[\w.-]*)(:\d{1,5})?(?=[/?#\s'\"),;]|$)")
_QUERY_VALUE = re.compile(rf"(?i)(?P<key>(?<=[?&;])(?!(?:{SHOWN})=)[^=&;?\s'\"]+=)(?P<value>[^&;\s'\"]+)")
_WORDS = r"(?:pass|pwd|psw|pas|token|key|secret|auth|cred|sess|sig)"
_NAMED = re.compile(
    rf"(?i)(?P<key>[\w.-]*{_WORDS}[\w-]*?(?:=|%3D|['\"]\s?[:=]\s?['\"]?|(?<=authorization):\s*))"
    r"(?P<value>(?:(?:basic|bearer|digest)\s+)?[^&\s'\",;)]+)"
)
_SEGMENT = re.compile(
    r"(?i)(?P<key>://[^\s'\"]*?/(?:[\w-]*(?:password|passwd|pwd|token|apikey|secret)/|(?=[^\s/?#'\":=]+:)))"
    r"(?P<value>[^\s/?#'\"]+)"
)
_LONE_USER = re.compile(r"(?<![\w/.@])[^\s/@:'\"]+:[^\s@'\"]+@(?=[\w\[])")


def without_password(text: Path | str) -> str:
    """`text`, an address or a message in which addresses may stand, without user names, passwords, tokens and keys."""
    shown = str(text)
    for pattern in (_QUERY_VALUE, _NAMED):
        shown = pattern.sub(lambda found: found["key"] + HIDDEN, shown)
    shown = _ADDRESS.sub(lambda found: found["scheme"] + _without_user(found["rest"]), shown)
    shown = _LONE_USER.sub("", shown)
    return _SEGMENT.sub(lambda found: found["key"] + HIDDEN, shown)


def _without_user(rest: str) -> str:
    """What follows `scheme://`, from the host on."""
    word = re.match(r"\S*", rest)
    assert word is not None
    token = word.group()
    if "@" in token:  # the last one: passwords may hold it, and so may what follows, of which less is shown then
        return rest[token.rindex("@") + 1 :]
    if not _PLAIN_HOST.match(rest) and "@" in rest:  # a password with a blank in it
        return rest[rest.index("@") + 1 :]
    return rest
