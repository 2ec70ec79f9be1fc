"""Batches that wait in the engine model: which become one, what is told where that fails, and how many may wait."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ensemble import engine as engine_module
from ensemble.waiting import Waiting
from tests.ensemble.engine_model import answers, request, response
from tests.ensemble.fake_triton import TritonError
from tests.ensemble.stand_ins import VARIANT, job
from tests.ensemble.waiting import until


@pytest.fixture
def reading(monkeypatch):
    """Each release lets the pixels of one batch be read."""
    permits, opened = threading.Semaphore(0), engine_module.open_preprocessor

    def open_preprocessor(*arguments):
        preprocess = opened(*arguments)

        def wait(requests):
            permits.acquire()
            return preprocess(requests)

        return wait

    monkeypatch.setattr(engine_module, "open_preprocessor", open_preprocessor)
    yield permits
    permits.release(1000)


def read_apart(model, *requests):
    """Hands batches over one by one: each waits for the computing thread before the next one comes."""
    for count, one in enumerate(requests, 1):
        model.execute([one])
        until(lambda count=count: len(model._read._waiting) == count, *model._threads)


@pytest.mark.parametrize("together", [pytest.param(True, id="read together"), pytest.param(False, id="read apart")])
def test_what_waits_becomes_one_batch(start, sub_models, held, reading, monkeypatch, together):
    """Of one front model, in the order of coming, as far as the largest batch goes; each gets its own answers. Whether
    pixels are read together or apart makes no difference."""
    monkeypatch.setattr(engine_module, "WAITING_BATCHES", 9)
    model, first = start(), request(job(1, ("bbb",)))
    model.execute([first])
    reading.release()
    held.entered.acquire()
    jobs = [[job(1, ("aa",))], [job(3, ("bbb",)), job(2, ("bbb",))], [job(1, ("cccc",))], [job(3, ("aa",))] * 2]
    waiting = [request(*own) for own in jobs]
    large = job(1, ("aa",))
    large.request = replace(large.request, frame=np.full((42, 42, 3), 1, np.uint8))
    other = request(large, of="sam3_r42", resolution=42)
    if together:
        with model._handed_over._changed:  # the reading thread sees all of them at once
            model.execute([waiting[0], other, *waiting[1:]])
        reading.release(100)
    else:
        reading.release(100)
        read_apart(model, waiting[0], other, *waiting[1:])
    held.set()
    model.finalize()
    batches = [shapes["pixel_values"][:1] + shapes["pixel_values"][2:3] for _, shapes, _ in encoded(sub_models)]
    assert batches == [(1, 28), (4, 28), (1, 42), (2, 28)], "four frames are the largest batch"
    found = [[len(answer.scores) for answer in answers(one, *own)] for one, own in zip(waiting, jobs, strict=True)]
    assert found == [[1], [2, 0], [3], [1, 1]]
    assert answers(waiting[1], *jobs[1])[0].boxes[0, 0] == pytest.approx(0.3), "its own image"


def encoded(sub_models):
    return [call for call in sub_models.calls if call[0] == "vision_encoder"]


def test_a_batch_that_cannot_be_joined(start, sub_models, held, monkeypatch):
    """For lack of memory, say: its frames are told, and the next ones answered."""

    def failing(pixel_values):
        if len(pixel_values) > 1:
            raise RuntimeError("no room to join them")
        return pixel_values[0]

    monkeypatch.setattr(engine_module, "joined", failing)
    model, asked = start(), [request(job(1, ("bbb",))) for _ in range(4)]
    model.execute(asked[:1])
    held.entered.acquire()
    read_apart(model, *asked[1:3])
    held.set()
    until(lambda: asked[2].sent, *model._threads)
    model.execute(asked[3:])
    model.finalize()
    found = [answers(one, job(1, ("bbb",)))[0] for one in asked]
    assert [str(found[1]), str(found[2])] == ["RuntimeError: no room to join them"] * 2
    assert [len(found[0].scores), len(found[3].scores)] == [2, 2]


def test_pixels_that_cannot_be_read_at_all(start, monkeypatch):
    """The pre-processor itself fails: that batch is told, and the next one answered."""
    opened = engine_module.open_preprocessor

    def open_preprocessor(*arguments):
        preprocess = opened(*arguments)

        def failing(requests):
            if len(requests) > 1:
                raise RuntimeError("no room for pixels")
            return preprocess(requests)

        return failing

    monkeypatch.setattr(engine_module, "open_preprocessor", open_preprocessor)
    model, bad, good = start(), request(job(1, ("bbb",)), job(1, ("bbb",))), request(job(1, ("bbb",)))
    model.execute([bad])
    until(lambda: bad.sent, *model._threads)
    model.execute([good])
    model.finalize()
    assert response(bad).error().message() == "RuntimeError: no room for pixels"
    assert response(bad).error().code != TritonError.INVALID_ARG
    assert len(answers(good, job(1, ("bbb",)))[0].scores) == 2


def test_put_blocks_while_as_much_waits_as_may():
    front = SimpleNamespace(variant=replace(VARIANT, max_batch=1))
    waiting, entries, after = Waiting(2), [SimpleNamespace(front=front, jobs=[i]) for i in range(3)], threading.Event()

    def put():
        waiting.put(entries[2])
        after.set()

    waiting.put(entries[0])
    waiting.put(entries[1])
    putting = threading.Thread(target=put, daemon=True)
    putting.start()
    assert not after.wait(0.05)
    assert list(waiting._waiting) == entries[:2]
    taken = [waiting.take()]
    putting.join()
    taken += [waiting.take(), waiting.take()]
    assert taken == [[work] for work in entries], "in the order of coming"
    assert waiting.empty
    waiting.close()
    assert waiting.take() == [], "closed, and nothing is left"


def test_execute_waits_when_too_much_waits(start, reading):
    """Triton's queue holds the rest, with its timeouts, or another GPU's instance takes it; nothing is lost."""
    most = VARIANT.max_batch
    model, asked = start(), [request(job(1, ("bbb",))) for _ in range(most + 2)]
    model.execute(asked[:1])
    until(lambda: model._handed_over.empty, *model._threads)
    model.execute(asked[1 : most + 1])
    executing = threading.Thread(target=model.execute, args=(asked[most + 1 :],), daemon=True)
    executing.start()
    executing.join(0.05)
    assert executing.is_alive(), "one is being read and as many as the largest batch wait"
    reading.release(100)
    executing.join()
    model.finalize()
    assert [len(answers(one, job(1, ("bbb",)))[0].scores) for one in asked] == [2] * len(asked)


@pytest.mark.parametrize(
    ("gpus", "waits"),
    [pytest.param([0], False, id="one GPU takes all"), pytest.param([0, 1], True, id="two share")],
)
def test_an_instance_with_enough_to_do_leaves_the_next_frames_to_others(start, held, gpus, waits):
    """Triton hands the next batch to an instance whose `execute` has returned."""
    half = VARIANT.max_batch // 2
    model, asked = start(gpus=gpus), [request(job(1, ("bbb",))) for _ in range(half + 1)]
    model.execute(asked[:1])
    held.entered.acquire()
    executing = threading.Thread(target=model.execute, args=(asked[1:],), daemon=True)
    executing.start()
    if waits:
        executing.join(0.05)
        assert executing.is_alive(), "half of the largest batch waits behind the first frame"
        held.set()
    executing.join()
    held.set()
    model.finalize()
    assert [len(answers(one, job(1, ("bbb",)))[0].scores) for one in asked] == [2] * len(asked)


def test_frames_that_fail_on_the_way_do_not_count_as_waiting(start, monkeypatch):
    opened = engine_module.open_preprocessor

    def open_preprocessor(*arguments):
        preprocess = opened(*arguments)

        def failing(requests):
            if len(requests) == 3:
                raise RuntimeError("no room for pixels")
            return preprocess(requests)

        return failing

    monkeypatch.setattr(engine_module, "open_preprocessor", open_preprocessor)
    model, bad = start(gpus=[0, 1]), [request(*[job(1, ("bbb",))] * 3) for _ in range(3)]
    for one in bad:
        model.execute([one])
        assert response(one).error().message() == "RuntimeError: no room for pixels"
    good = request(job(1, ("bbb",)))
    model.execute([good])
    model.finalize()
    assert len(answers(good, job(1, ("bbb",)))[0].scores) == 2


def test_whatever_a_frame_was_not_worked_on_it_waited():
    """Before it is read as well as after."""
    begun, waiting = [], job(1, ("aa",))
    waiting.stage_ms = {"text": 300.0, "decode": 700.0}
    front = SimpleNamespace(detector=SimpleNamespace(begin=lambda items, pixels: begun.append(items)))
    part = engine_module.Part(front, [waiting], None, time.perf_counter() - 10.0)
    engine_module.begin([engine_module.Read(front, [part], [waiting], [waiting], np.zeros((1, 3, 28, 28), np.uint8))])
    assert begun == [[waiting]]
    assert waiting.stage_ms["queue"] >= 9000.0
