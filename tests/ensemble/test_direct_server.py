"""A server of one resolution whose clients call the engine model, beside one with front models: the same answers."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from clients.connection import Client
from clients.errors import InvalidRequest
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError
from ensemble.spec import STAGES
from perf.sweep import metrics
from tests.ensemble.drawn import CLASSES, FRAME
from tests.ensemble.real_server import stubs
from tests.ensemble.waiting import until

pytestmark = pytest.mark.server
ALL = 0.9
"""Of a frame's time; the rest is between processes and threads."""


def encoded(kind):
    file = io.BytesIO()
    Image.fromarray(FRAME).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def direct(repository):
    with EmbeddedServer(repository, resolutions=[140], direct=True) as running:
        yield running


@pytest.mark.parametrize("form", ["frame", "JPEG", "PNG"])
def test_answers_are_those_of_front_models(server, direct, form):
    picture = FRAME if form == "frame" else encoded(form)
    found = []
    for url in (server.grpc_url, direct.grpc_url):
        with Client(url, model="sam3_r140", timeout=300) as client:
            found.append(client.detect(picture, CLASSES, threshold=0.2, mask_format="rle"))
    there, here = found
    assert len(here) == len(there) > 0
    np.testing.assert_allclose(here.boxes, there.boxes, atol=1e-5)
    np.testing.assert_allclose(here.scores, there.scores, atol=1e-5)
    np.testing.assert_array_equal(here.class_ids, there.class_ids)
    np.testing.assert_array_equal(here.masks, there.masks)


@pytest.mark.parametrize("how", ["front models", "direct"])
def test_the_stages_are_all_of_a_frames_time_however_it_is_answered(request, how):
    """Also of frames that wait: of three batches' worth that come at once, most do."""
    running = request.getfixturevalue("direct" if how == "direct" else "server")
    count = 24

    def stages():
        figures = metrics.scrape(running.metrics_url)
        return {s: metrics.value(figures, "sam3_stage_seconds_sum", model="sam3_r140", stage=s) for s in STAGES}

    def frames():
        labels = {"model": "sam3_r140", "stage": STAGES[-1]}
        return metrics.value(metrics.scrape(running.metrics_url), "sam3_stage_seconds_count", **labels)

    before, told = stages(), frames()
    with Client(running.grpc_url, model="sam3_r140", timeout=300) as client, ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda _: client.detect(FRAME, CLASSES), range(count)))
    until(lambda: frames() == told + count)
    took = {stage: seconds - before[stage] for stage, seconds in stages().items()}
    total = took.pop("total")
    assert ALL * total < sum(took.values()) <= total
    assert took["queue"] > 0


def test_a_bad_frame_is_its_senders(direct):
    assert stubs(direct, "sam3_engine") == []
    assert len(stubs(direct, "sam3_r140")) == 1
    with Client(direct.grpc_url, model="sam3_r140", timeout=300) as client:
        with pytest.raises(InvalidRequest, match="image"):
            client.detect(encoded("JPEG")[:300], CLASSES)
        with pytest.raises(InvalidRequest, match="tokens long"):
            client.detect(FRAME, ["dog " * 60])
        assert len(client.detect(FRAME, CLASSES, threshold=0.2)) > 0


@pytest.mark.parametrize("how", [{}, {"resolutions": [140], "sub_models": True}], ids=["two resolutions", "sub-models"])
def test_what_cannot_be_called_directly(repository, how):
    with pytest.raises(ServerError, match="leave out --direct"):
        EmbeddedServer(repository, direct=True, **how).start()
