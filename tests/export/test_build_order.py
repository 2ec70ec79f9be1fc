"""The thread in which artifacts are built: `torch.export` crashes the process in a second one, and two resolutions are
built one after another."""

import threading

import pytest

from export.staging import built_all


@pytest.mark.parametrize(("side_by_side", "here"), [(False, True), (True, False)])
def test_only_builds_in_processes_of_their_own_leave_this_thread(side_by_side: bool, here: bool) -> None:
    threads = []

    def build(part: str) -> dict[str, str]:
        threads.append(threading.get_ident())
        return {"part": part}

    parts = ["vision_encoder", "decoder"]
    assert built_all(build, parts, side_by_side) == [{"part": part} for part in parts]
    assert all((thread == threading.get_ident()) == here for thread in threads)
