"""The page's fleet writes the outputs and posts the events that its configuration asks for, as any fleet does."""

import asyncio
import json
import signal

import numpy as np
import pytest
from PIL import Image

from clients.dashboard import app
from clients.dashboard.load import Load
from clients.dashboard.web import listen
from clients.fleet.config import read_config
from tests.clients.answering import answering


def configured(folder, url, output):
    """A fleet of one camera, which looks at one picture again and again, and has a zone that is the whole frame."""
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(folder / "picture.png")
    zone = {"name": "all", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]], "seconds": 2}
    camera = {"name": "yard", "source": "picture.png", "classes": ["blue square", "red circle"], "loop": True}
    camera |= {"zones": [zone], "webhook": url, "output": output}
    (folder / "cameras.yaml").write_text(json.dumps({"cameras": [camera]}))
    return folder / "cameras.yaml"


async def test_the_pages_fleet_writes_its_outputs(tmp_path, receiver, detections, monkeypatch):
    url, posts, _ = receiver
    config = read_config(configured(tmp_path, url, ["{name}.jsonl", "{name}.png"]))
    monkeypatch.setattr(app, "open_pool", lambda _: answering(detections()))
    with listen("127.0.0.1", 0) as listener:
        serving = asyncio.create_task(app.serve(config, Load([]), listener, ""))
        while not posts:
            assert not serving.done(), serving
            await asyncio.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)
        account = await serving
    lines = [json.loads(line) for line in (tmp_path / "yard.jsonl").read_text().splitlines()]
    assert [line["outcome"] for line in lines] == ["answered"] * account["answered"]
    assert {(post["camera"], post["zone"]) for post in posts} == {("yard", "all")}
    assert account["events_sent"] == len(posts) == sum(len(line.get("events", ())) for line in lines)
    assert Image.open(tmp_path / "yard.png").size == (64, 48)
    assert [output["lost"] for output in account["outputs"]] == [0, 0, 0]


@pytest.mark.parametrize(("output", "status"), [("fine/yard.jsonl", 0), ("picture.png/yard.jsonl", 1)])
def test_the_exit_status_tells_of_outputs_that_were_lost(
    tmp_path, receiver, detections, monkeypatch, capsys, output, status
):
    path = configured(tmp_path, receiver[0], output)

    class Pool:
        """Ends the page as a user would, once frames are answered."""

        def __init__(self):
            self.pool, self.asked = answering(detections()), 0

        def __getattr__(self, name):
            return getattr(self.pool, name)

        async def acquire(self, *asked):
            self.asked += 1
            if self.asked == 5:
                signal.raise_signal(signal.SIGTERM)
            return await self.pool.acquire(*asked)

    monkeypatch.setattr(app, "open_pool", lambda _: Pool())
    assert app.main(["--config", str(path), "--port", "0", "--metrics"]) == status
    account = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert bool(account["outputs"][0]["lost"]) == bool(status)
    assert account["answered"] > 0
