"""What came back for a case, and what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass

TIMEOUT_S = 60.0
"""An answer that takes longer is none."""
GIVEN_UP_S = 0.5
"""So long an answer is waited for where the request is not complete, and nobody owes one."""
FINE = ("answered", "refused", "failed", "given up", "closed")
LONGEST = 2000
"""Characters of an error's sentence, without what it repeats of the request."""
PROGRAMMERS = re.compile(
    r"Traceback|\[Errno |\.py\b|line \d+, in |\b(?:Attribute|Key|Index|Type|Value|Name|Unicode\w*|Assertion|Zero\w*"
    r"|Overflow|Recursion|Runtime|Memory|Import)Error\b|<class |object at 0x|std::|0x[0-9a-f]{8}"
)
"""Words of a program's, not of an answer's."""


@dataclass(frozen=True, slots=True)
class Reply:
    """`kind`: one of `FINE`, or how it went wrong; `text`: the error's sentence; `seconds`: how long it took."""

    kind: str
    text: str
    seconds: float

    def problem(self) -> str:
        """What is wrong with it; empty where it may be so."""
        if self.kind not in FINE:
            return f"{self.kind}: {self.text[:200]}"
        if found := PROGRAMMERS.search(self.text):
            return f"a program's words ({found[0]}): {self.text[:300]}"
        if self.kind in ("refused", "failed") and len(re.sub(r"(.)\1{40,}", "", self.text)) > 10 * LONGEST:
            return f"{len(self.text)} characters: {self.text[:200]}"
        return ""
