"""What ends, hangs or fills the process that judges cases is named, and the next case is tried."""

from __future__ import annotations

import ctypes
import os
import time
import warnings

import pytest

from tests.fuzz.child import Child


def end(case):
    """A judge that ends as its case says."""
    if case == "reads where nothing is":
        ctypes.string_at(0)
    elif case == "leaves":
        os._exit(3)
    elif case == "hangs":
        time.sleep(600)
    elif case == "raises":
        raise KeyError("x")
    elif case == "warns":
        warnings.warn("of something", stacklevel=1)
    elif case == "takes 300 MB":
        bytes([1]) * (300 << 20)
    return "answered", ""


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("is fine", ""),
        ("reads where nothing is", "crashed: SIGSEGV"),
        ("leaves", "crashed: exit status 3"),
        ("hangs", "silent: "),
        ("raises", "raised: KeyError: 'x'"),
        ("warns", "warned: of something"),
        ("takes 300 MB", ""),
    ],
)
def test_what_ends_a_process_is_named_and_the_next_case_is_tried(case, problem):
    with Child(end) as child:
        reply, mb = child.try_out(case, timeout_s=2 if case == "hangs" else 60)
        assert reply.problem() == problem
        assert (mb > 250) == (case == "takes 300 MB")
        assert child.try_out("is fine")[0].kind == "answered"
        assert child.ended == problem.startswith(("crashed", "silent"))
