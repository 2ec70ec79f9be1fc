"""The engine model outside Triton, with stand-ins for its sub-models: batches under way, failures, what is shared."""

import json
import logging
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ensemble import engine as engine_module
from ensemble import pbtxt
from ensemble.engine import TritonPythonModel, Waiting
from ensemble.engines import LEAST_MB, limit_memory
from ensemble.handover import pack_jobs, unpack_answers
from ensemble.interfaces import engine
from tests.ensemble.fake_triton import HostTensor, InferenceRequest, MetricFamily, TritonError
from tests.ensemble.stand_ins import VARIANT, SubModels, job
from tests.ensemble.waiting import until

OTHER = replace(VARIANT, resolution=42)
FRONTS = {variant.front_name: variant for variant in (VARIANT, OTHER)}
ENGINES = {model.part: "onnxruntime" for model in VARIANT.sub_models}


@pytest.fixture
def sub_models(monkeypatch):
    """One stand-in for all the sub-models; it counts which files were opened."""
    made = SubModels()
    made.opened = []
    specs = {model.name: model for variant in FRONTS.values() for model in variant.sub_models}

    def open_sub_model(name, path, device_id):
        made.opened.append((name, path.parts[-3], path.name, device_id))
        return lambda inputs, outputs: made(specs[path.parts[-3]], inputs, outputs)

    monkeypatch.setattr(engine_module, "open_sub_model", open_sub_model)
    return made


@pytest.fixture
def start(sub_models, tmp_path):
    """Starts an engine model as Triton does; it is ended after the test."""
    started, logger = [], logging.getLogger("ensemble")
    before = logger.handlers, logger.level, logger.propagate

    def begin(kind="CPU", device_id="0"):
        fronts = {name: {"variant": variant.to_dict(), "engines": ENGINES} for name, variant in FRONTS.items()}
        told = {"fronts": json.dumps(fronts), "preprocess": "cpu"}
        parameters = {key: {"string_value": value} for key, value in told.items()}
        model = TritonPythonModel()
        model.initialize(
            {
                "model_name": "sam3_engine",
                "model_config": json.dumps({"parameters": parameters}),
                "model_repository": str(tmp_path),
                "model_version": "1",
                "model_instance_kind": kind,
                "model_instance_device_id": device_id,
            }
        )
        started.append(model)
        return model

    yield begin
    for model in started:
        if any(thread.is_alive() for thread in model._threads):
            model.finalize()
    logger.handlers, logger.level, logger.propagate = before


def request(*jobs, of="sam3_r28", resolution=28, **changes):
    arrays = pack_jobs(of, jobs, resolution) | changes
    return InferenceRequest(inputs=[HostTensor(name, array) for name, array in arrays.items()])


def response(request):
    (answered,) = request.sent
    return answered


def answers(request, *jobs):
    arrays = {tensor.name: response(request).tensors[tensor.name].as_numpy() for tensor in engine().outputs}
    return unpack_answers(arrays, jobs)


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


def test_instances_of_a_gpu_open_on_their_own(start, sub_models):
    start("GPU", "1")
    assert {device_id for *_, device_id in sub_models.opened} == {1}


def test_text_is_encoded_once_for_all_resolutions(start, sub_models):
    model, small = start(), job(1, ("aa", "bbb"))
    model.execute([request(small)])
    large = replace(small, request=replace(small.request, frame=np.full((42, 42, 3), 1, np.uint8)))
    model.execute([request(large, of="sam3_r42", resolution=42)])
    model.finalize()
    parts = [part for part, _, _ in sub_models.calls]
    assert parts.count("vision_encoder") == 2
    assert parts.count("text_encoder") == 1
    assert MetricFamily.told["sam3_text_cache_total", "sam3_r42", "hit"] == 2


@pytest.fixture
def held(sub_models):
    """Holds every batch in the vision encoder until it is set."""
    let_go, entered = threading.Event(), threading.Semaphore(0)
    encode = sub_models.vision_encoder

    def wait(model, pixel_values):
        entered.release()
        let_go.wait()
        return encode(model, pixel_values)

    sub_models.vision_encoder = wait
    let_go.entered = entered
    yield let_go
    let_go.set()


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
        until(lambda count=count: len(model._read._waiting) == count)


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


@pytest.mark.parametrize("together", [pytest.param(True, id="read together"), pytest.param(False, id="read apart")])
def test_what_waits_becomes_one_batch(start, sub_models, held, reading, together):
    """Of one front model, in the order of coming, as far as the largest batch goes; each gets its own answers. Whether
    pixels are read together or apart makes no difference."""
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
    until(lambda: asked[2].sent)
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
    until(lambda: bad.sent)
    model.execute([good])
    model.finalize()
    assert response(bad).error().message() == "RuntimeError: no room for pixels"
    assert response(bad).error().code != TritonError.INVALID_ARG
    assert len(answers(good, job(1, ("bbb",)))[0].scores) == 2


# ---- what waits
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


def test_execute_waits_when_too_much_waits(start, reading, monkeypatch):
    """Triton's queue holds the rest, with its timeouts; nothing is lost."""
    monkeypatch.setattr(engine_module, "MOST_WAITING", 2)
    model, asked = start(), [request(job(1, ("bbb",))) for _ in range(4)]
    model.execute(asked[:1])
    until(lambda: model._handed_over.empty)
    model.execute(asked[1:3])
    executing = threading.Thread(target=model.execute, args=(asked[3:],), daemon=True)
    executing.start()
    executing.join(0.05)
    assert executing.is_alive(), "one is being read and two wait"
    reading.release(100)
    executing.join()
    model.finalize()
    assert [len(answers(one, job(1, ("bbb",)))[0].scores) for one in asked] == [2] * 4


def test_too_little_room_is_refused():
    with pytest.raises(MemoryError, match=r"at least 512 MB of work .*, got 511 MB; state more with --gpu-memory"):
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
        until(lambda one=one: one.sent)
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
