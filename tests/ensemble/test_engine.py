"""The engine model outside Triton, with stand-ins for its sub-models: answers, failures, what is shared."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from ensemble import engine as engine_module
from ensemble import pbtxt
from ensemble.engines.device import LEAST_MB, limit_memory
from tests.ensemble.engine_model import ENGINES, FRONTS, answers, request, response
from tests.ensemble.fake_triton import InferenceRequest, MetricFamily, TritonError
from tests.ensemble.stand_ins import job
from tests.ensemble.waiting import until


def test_a_batch_is_answered(start):
    model, jobs = start(), [job(1, ("aa", "bbb")), job(2, ("bbb",)), job(3, ("c", "bbb"), mask_format="bits")]
    asked = request(*jobs)
    assert model.execute([asked]) is None, "it answers later"
    model.finalize()
    found = answers(asked, *jobs)
    assert [answer.class_ids.tolist() for answer in found] == [[0, 1, 1], [], [1, 1]]
    assert [len(answer.mask_bits) for answer in found] == [0, 0, 2]
    assert all(jobs[0].stage_ms[stage] >= 0 for stage in ("decode", "queue", "vision", "decoder", "pack"))
    assert MetricFamily.told["sam3_sub_model_calls_total", "sam3_r28", "vision_encoder"] >= 1


def test_sub_models_are_opened_once_and_where_the_links_lie(start, sub_models, tmp_path):
    start()
    text = ("onnxruntime", "sam3_text_encoder", "model.onnx", None)
    assert sub_models.opened.count(text) == 1
    assert len(sub_models.opened) == 1 + 2 * 4
    assert {name for _, name, _, _ in sub_models.opened} == {m.name for v in FRONTS.values() for m in v.sub_models}


@pytest.mark.parametrize(("kind", "gpus"), [("GPU", {1}), ("CPU", set())])
def test_an_instance_of_a_gpu_touches_no_other(start, sub_models, monkeypatch, kind, gpus):
    """In whichever thread: what a library does without being told where is done on the thread's own GPU."""
    used = {}
    monkeypatch.setattr(engine_module, "use_gpu", lambda number: used.update({threading.current_thread().name: number}))
    model, asked = start(kind, "1", engines=dict.fromkeys(ENGINES, "aoti")), request(job(1, ("bbb",)))
    model.execute([asked])
    model.finalize()
    assert {device_id for *_, device_id in sub_models.opened} == (gpus or {None})
    assert set(used) == ({thread.name for thread in model._threads} if gpus else set())
    assert set(used.values()) == gpus


@pytest.fixture
def encoding(sub_models):
    """Holds the text encoder at names of more than two letters until it is set."""
    let_go, entered, encode = threading.Event(), threading.Event(), sub_models.text_encoder

    def wait(model, input_ids):
        if input_ids.max() > 2:
            entered.set()
            let_go.wait()
        return encode(model, input_ids)

    sub_models.text_encoder = wait
    let_go.entered = entered
    yield let_go
    let_go.set()


ON_CPU = dict.fromkeys(ENGINES, "aoti") | {"text_encoder": "onnxruntime"}


def test_a_new_name_keeps_no_other_frame_waiting_where_the_cpu_encodes_it(start, sub_models, encoding):
    """Beside packages on a GPU. What came for known names meanwhile is answered, and the new name is counted once."""
    counted = [("sam3_text_cache_total", "sam3_r28", result) for result in ("hit", "miss")]
    before = [MetricFamily.told.get(key, 0) for key in counted]
    model = start("GPU", "1", engines=ON_CPU)
    places = {name: (engine, device) for engine, name, _, device in sub_models.opened}
    assert places["sam3_text_encoder"] == ("onnxruntime", None)
    assert places["sam3_decoder_r28_q6"] == ("aoti", 1)
    known, new = job(1, ("aa",)), job(1, ("aa", "bbb"))
    asked = [request(job(1, ("aa",))), request(new), request(known)]
    model.execute(asked[:1])
    until(lambda: asked[0].sent, *model._threads)
    model.execute(asked[1:2])
    encoding.entered.wait()
    model.execute(asked[2:])
    until(lambda: asked[2].sent, *model._threads)
    assert asked[1].sent == [], "its name is being encoded"
    encoding.set()
    model.finalize()
    assert [len(answers(one, each)[0].scores) for one, each in zip(asked[1:], (new, known), strict=True)] == [3, 1]
    assert new.stage_ms["text"] > 0
    assert [MetricFamily.told[key] - was for key, was in zip(counted, before, strict=True)] == [2, 2]


def test_a_name_that_cannot_be_encoded_is_told_to_its_frames_alone(start, sub_models):
    def failing(*_, **__):
        raise RuntimeError("no such kernel")

    model, good = start("GPU", "1", engines=ON_CPU), request(job(1, ("aa",)))
    model.execute([good])
    until(lambda: good.sent, *model._threads)
    sub_models.text_encoder = failing
    bad, again = request(job(1, ("bbb",))), request(job(1, ("aa",)))
    model.execute([bad, again])
    model.finalize()
    assert response(bad).error().message() == "RuntimeError: no such kernel"
    assert len(answers(again, job(1, ("aa",)))[0].scores) == 1


def test_text_is_encoded_once_for_all_resolutions(start, sub_models):
    hits = ("sam3_text_cache_total", "sam3_r42", "hit")
    before = MetricFamily.told.get(hits, 0)
    model, small = start(), job(1, ("aa", "bbb"))
    model.execute([request(small)])
    large = replace(small, request=replace(small.request, frame=np.full((42, 42, 3), 1, np.uint8)))
    model.execute([request(large, of="sam3_r42", resolution=42)])
    model.finalize()
    parts = [part for part, _, _ in sub_models.calls]
    assert parts.count("vision_encoder") == 2
    assert parts.count("text_encoder") == 1
    assert MetricFamily.told[hits] - before == 2


def test_finalize_waits_for_the_batches_under_way(start, held):
    model, asked = start(), [request(job(1, ("bbb",))) for _ in range(6)]
    model.execute(asked)
    ending = threading.Thread(target=model.finalize)
    ending.start()
    held.entered.acquire()
    assert ending.is_alive(), "a batch is under way"
    assert [one.sent for one in asked] == [[]] * 6
    held.set()
    ending.join()
    assert [len(answers(one, job(1, ("bbb",)))[0].scores) for one in asked] == [2] * 6


def test_too_little_room_is_refused():
    with pytest.raises(MemoryError, match=r"at least 704 MB of work .*, got 703 MB; state more with --gpu-memory"):
        limit_memory(0, LEAST_MB - 1)


def test_nonsense_gets_an_error_and_the_next_batch_an_answer(start):
    model = start()
    cases = [
        ({"front": np.array([b"sam3_r1008"], object)}, "front: expected one of sam3_r28, sam3_r42, got 'sam3_r1008'"),
        ({"front": np.array([b"\xff"], object)}, "front: expected one of"),
        ({"names_per_frame": np.array([7], np.int32)}, "sam3_engine: expected input_ids (7, 5)"),
        ({"input_ids": np.full((1, 5), 1 << 30, np.int32)}, "sam3_engine: expected input_ids of 0 to"),
    ]
    for changes, sentence in cases:
        bad, good = request(job(1, ("bbb",)), **changes), request(job(1, ("bbb",)))
        model.execute([bad, good])
        assert response(bad).error().message().startswith(sentence)
        assert response(bad).error().code == TritonError.INVALID_ARG
    model.finalize()
    assert len(answers(good, job(1, ("bbb",)))[0].scores) == 2


def test_a_sub_model_that_fails_is_told_to_its_batch_alone(start, sub_models):
    decode = sub_models.decoder

    def failing(model, **inputs):
        if inputs["prompt_features"][0, 0, 0] == 4:
            raise RuntimeError("no kernel")
        return decode(model, **inputs)

    sub_models.decoder = failing
    model, bad, good = start(), job(1, ("four",)), job(1, ("bbb",))
    asked = [request(*jobs) for jobs in [(bad, bad), (good,)] * 2]
    for one in asked:
        model.execute([one])
        until(lambda one=one: one.sent, *model._threads)
    model.finalize()
    for failed, answered in zip(asked[0::2], asked[1::2], strict=True):
        assert [str(answer) for answer in answers(failed, bad, bad)] == ["RuntimeError: no kernel"] * 2
        assert len(answers(answered, good)[0].scores) == 2


def test_a_front_model_that_has_gone_does_not_stop_the_engine(start):
    """Its answer cannot be sent; the next batch's can."""

    class Gone(InferenceRequest):
        def send(self, response, flags):
            raise RuntimeError("the response sender has been closed")

    model, jobs = start(), [job(1, ("bbb",))]
    gone = Gone(inputs=request(*jobs).inputs())
    bad = Gone(inputs=request(*jobs, of="nobody").inputs())
    good = [request(*jobs) for _ in range(3)]
    model.execute([gone, bad, *good])
    model.finalize()
    assert [len(answers(one, *jobs)[0].scores) for one in good] == [2] * len(good)


def test_the_configuration_is_what_the_model_reads():
    """`render_engine` writes what `initialize` takes, for the CPU and for two GPUs."""
    fronts = {name: (variant, ENGINES) for name, variant in FRONTS.items()}
    assert "kind: KIND_CPU, count: 1" in pbtxt.render_engine(fronts, [])
    assert "kind: KIND_GPU, gpus: [ 0, 2 ], count: 1" in pbtxt.render_engine(fronts, [0, 2])
