"""When graphs of small calls are made, kept and given up. Without a GPU: what would be captured is a stand-in."""

import threading
from types import SimpleNamespace

import pytest

from ensemble.engines.device import release_memory
from tests.ensemble.waiting import until

torch = pytest.importorskip("torch")
cuda_graphs = pytest.importorskip("ensemble.engines.cuda_graphs")


@pytest.fixture
def calls(monkeypatch):
    """Calls that double their input; `captures` counts graphs that were made, `held` keeps them from being finished."""
    made = cuda_graphs.CapturedCalls(lambda inputs: [2 * inputs[0]])
    made.captures, made.held, made.entered = [], threading.Event(), threading.Event()
    made.held.set()

    def capture(inputs):
        made.entered.set()
        made.held.wait()
        kept, outputs = [inputs[0].clone()], [torch.empty_like(inputs[0])]
        made.captures.append(inputs[0].shape)
        replay = SimpleNamespace(replay=lambda: outputs[0].copy_(2 * kept[0]))
        return cuda_graphs._Captured(replay, kept, outputs)

    monkeypatch.setattr(made, "_capture", capture)
    yield made
    made.held.set()


def double(calls, value, size=3):
    (result,) = calls([torch.full((size,), float(value))])
    return result.tolist()


def test_the_third_call_of_a_shape_is_captured(calls):
    for value in range(5):
        assert double(calls, value) == [2.0 * value] * 3
    assert len(calls.captures) == 1
    assert double(calls, 7, size=4) == [14.0] * 4
    assert len(calls.captures) == 1, "another shape, which came once"


def test_the_graph_that_was_not_used_for_longest_goes(calls, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    for size in (1, 2, 1, 3):
        for _ in range(3):
            double(calls, 1, size)
    double(calls, 1, 1)
    assert [shape[0] for shape in calls.captures] == [1, 2, 3], "the first is still there"
    double(calls, 1, 2)
    assert [shape[0] for shape in calls.captures] == [1, 2, 3, 2]


def test_memory_is_given_back_after_a_capture_and_graphs_are_made_again(calls):
    """In whichever thread memory runs out."""
    calls.held.clear()
    computing = threading.Thread(target=lambda: [double(calls, 1) for _ in range(3)])
    computing.start()
    calls.entered.wait()
    releasing = threading.Thread(target=release_memory)
    releasing.start()
    releasing.join(0.05)
    assert releasing.is_alive(), "a capture is under way"
    calls.held.set()
    computing.join()
    releasing.join()
    until(lambda: not calls._graphs)
    assert double(calls, 4) == [8.0] * 3
    assert len(calls.captures) == 2
