"""The engine model outside Triton, for tests: how it is started with stand-ins for its sub-models, asked and answered.
Its fixtures are those of this folder."""

import json
import logging
import threading
from dataclasses import replace

import pytest

from ensemble import engine as engine_module
from ensemble.engine import TritonPythonModel
from ensemble.handover import pack_jobs, unpack_answers
from ensemble.interfaces import VIDEO_OUTPUTS, engine
from tests.ensemble.fake_triton import HostTensor, InferenceRequest
from tests.ensemble.stand_ins import VARIANT, SubModels

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
    monkeypatch.setattr(engine_module, "use_gpu", lambda device_id: None)  # there is none
    return made


@pytest.fixture
def start(sub_models, tmp_path):
    """Starts an engine model as Triton does; it is ended after the test."""
    started, logger = [], logging.getLogger("ensemble")
    before = logger.handlers, logger.level, logger.propagate

    def begin(kind="CPU", device_id="0", engines=ENGINES, gpus=()):
        fronts = {name: {"variant": variant.to_dict(), "engines": engines} for name, variant in FRONTS.items()}
        told = {"fronts": json.dumps(fronts), "preprocess": "cpu"}
        parameters = {key: {"string_value": value} for key, value in told.items()}
        config = {"parameters": parameters, "instance_group": [{"count": 1, "gpus": list(gpus)}]}
        model = TritonPythonModel()
        model.initialize(
            {
                "model_name": "sam3_engine",
                "model_config": json.dumps(config),
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
    arrays = {
        tensor.name: response(request).tensors[tensor.name].as_numpy()
        for tensor in engine().outputs
        if tensor.name not in VIDEO_OUTPUTS
    }
    return unpack_answers(arrays, jobs)


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
