"""The outputs of all cameras: files, and events to webhooks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.fleet.webhook import Webhook
from clients.outputs.files import CocoResults, Drawing, JsonLines
from clients.outputs.output import Output
from clients.outputs.records import answer_record, wall_clock

if TYPE_CHECKING:  # the fleet's configuration reads this package
    from clients.fleet.camera import Camera
    from clients.fleet.request import Answer


class Outputs:
    """A handler for `run_fleet` that never raises because of a file or a receiver.

    `record` makes the JSON line of an answer; `append` keeps the lines that a file has already. A video plays at the
    camera's configured frame rate, else at its source's.
    """

    def __init__(
        self,
        cameras: Sequence[Camera],
        record: Callable[[Camera, Answer], dict[str, Any]] = answer_record,
        append: bool = True,
    ) -> None:
        self.record = record
        self.files: dict[Path, Output] = {}
        self.webhooks = {c.config.webhook: Webhook(c.config.webhook) for c in cameras if c.config.webhook}
        for camera in cameras:
            for path in camera.config.outputs:
                make: Callable[[], Any] = partial(_drawing, path, camera)  # with the first frame, which tells the rate
                if path.suffix == ".jsonl":
                    make = partial(JsonLines, path, append)
                elif path.suffix == ".json":
                    make = partial(CocoResults, path)
                self.files.setdefault(path, Output(str(path), make))

    async def open(self) -> list[str]:
        """Opens what can be opened before the first frame; what is wrong with it, a sentence for each file."""
        early = [file for path, file in self.files.items() if path.suffix in (".json", ".jsonl")]
        await asyncio.gather(*(file.open() for file in early))
        return [f"{file.name} cannot be written ({file.error})" for file in early if file.error]

    async def __call__(self, camera: Camera, answer: Answer) -> None:
        found = answer.found if answer.usable else None
        for path in camera.config.outputs:
            if path.suffix == ".jsonl":
                await self.files[path].write(self.record(camera, answer))
            elif found is not None and path.suffix == ".json":
                await self.files[path].write(answer.frame.index, found)
            elif found is not None:
                await self.files[path].write(answer.frame, found, answer.tracks)
        if camera.config.webhook:
            for event in answer.events:
                about = {"camera": camera.config.name, "frame": answer.frame.index, "captured": wall_clock(answer)}
                self.webhooks[camera.config.webhook].send(about | event)

    async def close(self) -> dict[str, Any]:
        """Completes all files. The account: `outputs` with what each has written and lost, and where there are webhooks
        how many events were sent and how many were lost."""
        everything: list[Output | Webhook] = [*self.files.values(), *self.webhooks.values()]
        await asyncio.gather(*(each.close() for each in everything))
        account: dict[str, Any] = {"outputs": [each.record() for each in everything]}
        if self.webhooks:
            account["events_sent"] = sum(webhook.sent for webhook in self.webhooks.values())
            account["events_lost"] = sum(webhook.lost for webhook in self.webhooks.values())
        return account


def _drawing(path: Path, camera: Camera) -> Drawing:
    return Drawing(path, camera.config.fps or camera.reader.source_fps)
