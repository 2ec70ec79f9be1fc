"""What Prometheus is told of the front models and of the engine model, on a server that nobody else asks."""

import urllib.request

import pytest

from clients.connection import Client
from clients.errors import InvalidRequest
from ensemble.server.embedded import EmbeddedServer
from ensemble.spec import STAGES
from tests.ensemble.drawn import CLASSES, FRAME
from tests.ensemble.waiting import until

pytestmark = pytest.mark.server
MODEL = "sam3_r252"


@pytest.fixture(scope="module")
def asked(repository):
    """A server that was asked for three frames and a broken one, and what was found in the last of the three."""
    with EmbeddedServer(repository) as server, Client(server.grpc_url, model=MODEL) as client:
        found = [client.detect(FRAME, CLASSES, mask_format="bits") for _ in range(3)][-1]
        with pytest.raises(InvalidRequest):
            client.detect(b"junk", CLASSES)
        with Client(server.grpc_url, model="sam3_r140") as other:
            other.detect(FRAME, CLASSES)
        yield server, found


def metrics(server):
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and not line.startswith("#")
    }


def test_prometheus_is_told(asked):
    server, found = asked
    model = f'model="{MODEL}"'
    expected = {
        f'sam3_frames_total{{{model},outcome="ok"}}': 3,
        f'sam3_frames_total{{{model},outcome="rejected"}}': 1,
        f'sam3_frames_total{{{model},outcome="failed"}}': 0,
        f"sam3_detections_total{{{model}}}": 3 * len(found),
        f"sam3_batch_frames_count{{{model}}}": 4,
        f'sam3_text_cache_total{{{model},result="miss"}}': len(CLASSES),
        f'sam3_text_cache_total{{{model},result="hit"}}': 2 * len(CLASSES),
        f'sam3_sub_model_calls_total{{{model},part="text_encoder"}}': 1,
        f'sam3_sub_model_calls_total{{{model},part="vision_encoder"}}': 3,
        **{f'sam3_stage_seconds_count{{{model},stage="{stage}"}}': 3 for stage in STAGES},
    }
    told = {}

    def there():
        """Figures come after the answers that they count."""
        told.update(metrics(server))
        return all(told.get(name, 0) >= value for name, value in expected.items())

    until(there)
    assert {name: told.get(name) for name in expected} == expected


def test_resolutions_share_the_text_features(asked):
    server, _ = asked
    until(lambda: metrics(server).get('sam3_text_cache_total{model="sam3_r140",result="hit"}', 0) == len(CLASSES))
    assert metrics(server).get('sam3_text_cache_total{model="sam3_r140",result="miss"}', 0) == 0
    assert 'sam3_sub_model_calls_total{model="sam3_r140",part="text_encoder"}' not in metrics(server)
