"""Passwords, tokens and keys kept out of what people and programs read: messages, logs, accounts, pages.

Cameras' manuals put them everywhere: before the host (with `@`, `/` or `:` inside, escaped or not), in the query, and
in the path (`/user=admin_password=..._channel=1`). Where it is not certain that something is no secret, it goes:
a message that hides too much is better than one that hides too little.
"""

from __future__ import annotations

import re
from pathlib import Path

HIDDEN, ELLIPSIS = "***", "…"
SHOWN = (
    "app|cam|camera|ch|channel|channelid|chn|codec|fps|height|id|port|profile|proto|resolution|stream|streamid|subtype|"
    "tcp|transport|unicast|video|width"
)
"""Keys of an address's query whose values are shown: they tell cameras of one address apart."""

_ADDRESS = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)(?P<rest>.*?)(?=[a-zA-Z][a-zA-Z0-9+.-]*://|\n|$)")
_PLAIN_HOST = re.compile(r"(\[[0-9a-fA-F:.]*\]|[\w.-]*)(:\d{1,5})?(?=[/?#\s'\"),;]|$)")
_SURE_HOST = re.compile(r"(?i)(\[[0-9a-f:.]*\]|\d+\.\d+\.\d+\.\d+)(:\d{1,5})?[/?#]|(localhost|[\w-]+(\.[\w-]+)+)[/?#]")
"""A host for certain, although an `@` comes later: no user name is an IP address or stands without a colon."""
_QUERY_VALUE = re.compile(rf"(?i)(?P<key>(?<=[?&;])(?!(?:{SHOWN})=)[^=&;?\s'\"]+=)(?P<value>[^&;\s'\"]+)")
_BARE_QUERY = re.compile(rf"(?i)(?<=[?&#])(?!(?:{SHOWN})\b)[^\s=&'\"),]+(?=[\s'\"),&]|$)")
_WORDS = r"(?:user|pass|pwd|psw|pas|token|key|secret|auth|cred|sess|sig)"
_NAMED = re.compile(
    rf"(?i)(?P<key>[\w.-]*{_WORDS}[\w-]*?"
    r"(?:=|%3D|['\"]\s?[:=]\s?['\"]?|(?:(?<=authorization)|(?<=-key)|(?<=-token)|(?<=password)):\s*))"
    r"(?P<value>(?:(?:basic|bearer|digest)\s+)?[^&\s'\",;)]+)"
)
_SEGMENT = re.compile(
    r"(?i)(?P<key>://[^\s'\"]*?/(?:[\w-]*(?:password|passwd|pwd|token|key|secret)/|(?=[^\s/?#'\":=]+:)))"
    r"(?P<value>[^\s/?#'\"]+)"
)
_HOOK = re.compile(r"(?i)(?P<key>(?:://[^\s'\"]*?hooks?\b[\w.-]*(?::\d+)?|\bhooks\.[\w.-]+)/)[^\s'\")]+")
"""The path of a webhook is its secret."""
_BEARER = re.compile(r"(?i)(?P<key>\bbearer\s+)[\w.~+/=-]{8,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*")
"""What follows the name of its scheme, and a token (JWT) wherever it stands."""
_LONE_USER = re.compile(r"(?<![\w/.@])(?:[^\s/@:'\"]+:[^\s'\"]+@(?=[\w\[])|[^\s/:'\"]+@(?=[\w.-]+:\d))")


def without_password(text: Path | str) -> str:
    """`text`, an address or a message in which addresses may stand, without user names, passwords, tokens and keys."""
    # user names first: a password may look like a query
    shown = _ADDRESS.sub(lambda found: found["scheme"] + _without_query(_without_user(found["rest"])), str(text))
    shown = _HOOK.sub(lambda found: found["key"] + ELLIPSIS, shown)
    for pattern in (_QUERY_VALUE, _NAMED):
        shown = pattern.sub(lambda found: found["key"] + HIDDEN, shown)
    shown = _LONE_USER.sub("", _BEARER.sub(lambda found: (found["key"] or "") + HIDDEN, shown))
    return _SEGMENT.sub(lambda found: found["key"] + HIDDEN, shown)


def host_only(address: str) -> str:
    """Scheme, host and port of an address, for those whose path is the secret: `https://hooks.slack.com/…`."""
    shown = without_password(address)
    found = re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#\s]*", shown)
    if found is None:
        return ELLIPSIS
    return found.group() + ("/" + ELLIPSIS if shown[found.end() :].strip("/") else "")


def _without_query(rest: str) -> str:
    """What follows `scheme://`, without the words of its query that have no key."""
    token = re.split(r"\s", rest, maxsplit=1)[0]
    return _BARE_QUERY.sub(HIDDEN, token) + rest[len(token) :]


def _without_user(rest: str) -> str:
    """What follows `scheme://`, from the host on."""
    word = re.match(r"\S*", rest)
    assert word is not None
    token = word.group()
    if "@" in token and not _SURE_HOST.match(token):
        # the last one: passwords may hold it, and so may what follows, of which less is shown then
        before, _, after = token.rpartition("@")
        if not re.search("[?&#=]", before):
            return rest[len(before) + 1 :]
        host = re.match(r"(\[[0-9a-fA-F:.]*\]|[\w.-]*)(:\d{1,5})?", after)
        end = re.search(r"['\"),;:]*$", after)  # of what quotes the address
        assert host is not None
        assert end is not None
        return f"{host.group()}/{HIDDEN}{end.group()}{rest[len(token) :]}"
    if not _PLAIN_HOST.match(rest) and "@" in rest:  # a password with a blank in it
        return rest[rest.index("@") + 1 :]
    return rest
