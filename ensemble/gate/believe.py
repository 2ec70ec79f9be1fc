"""Before a server starts: artifacts that are not yet believed on this machine are measured, and only then served.

Measuring is done in a process of its own (`ensemble/gate/cli.py`), which gives the GPU back when it ends.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemble.gate import truths
from ensemble.gate.machine import conditions
from ensemble.gate.record import Record, why_measure, why_unfit
from ensemble.server.gpu import Gpu
from ensemble.server.plans_check import ENGINE as PLANS
from ensemble.server.repository import Artifact, Served, build_command
from ensemble.server.requirements import ServerError
from ensemble.server.videos import VideoServed

log = logging.getLogger(__name__)
Cards = Mapping[int, Gpu | None]


@dataclass(frozen=True, slots=True)
class Doubt:
    """An artifact that is not believed on a GPU (None: on the CPU), and why."""

    served: Served
    part: str
    artifact: Artifact
    gpu: int | None
    why: str

    @property
    def said(self) -> str:
        return f"{self.artifact.model} is measured before it is served: {self.why}"


def believe(repository: Path, served: Sequence[Served], cards: Cards, videos: Sequence[VideoServed] = ()) -> None:
    """Measures what is not believed yet of these front models for pictures and for `videos`. Raises ServerError, with
    sub-model, output and figures, for what fails, and for what cannot be measured."""
    record = Record.read(repository)
    known = dict(record.files)
    found = list(doubts(served, cards, record, videos))
    if record.files != known:
        record.write()
    groups: dict[tuple[str, int | None], list[Doubt]] = {}
    for doubt in found:
        groups.setdefault((doubt.served.variant.front_name, doubt.gpu), []).append(doubt)
    for (front, number), group in groups.items():
        for doubt in group:
            log.info("%s", doubt.said)
        result = measure_apart(repository, front, [doubt.artifact.model for doubt in group], number)
        if not result.get("ok"):
            again = build_command([group[0].served], repository, force=True)
            raise ServerError(f"not served: {result['error']}. Build again with\n{again}")


def doubts(
    served: Sequence[Served], cards: Cards, record: Record, videos: Sequence[VideoServed] = ()
) -> Iterator[Doubt]:
    """What is not believed, each artifact once for each kind of GPU. Raises ServerError where there are no truths to
    measure by what was never run anywhere, or is not the file that passed. Artifacts of before there was a gate, whose
    manifests have no word of it, are not looked at; plans of TensorRT for RTX all have one."""
    seen: set[tuple[str, str]] = set()
    for one, pairs in _called(served, videos):
        path = one.folder / truths.FILE
        tracked = {model.part for model in one.variant.tracker_parts}
        known = {tracker: truths.made_from(path, tracker) if path.is_file() else None for tracker in (False, True)}
        for part, artifact in pairs:
            made_from = known[part in tracked]
            manifest = artifact.manifest
            if "gate" not in manifest and artifact.engine != PLANS:
                continue
            digests = record.digests(artifact.path.parent)
            if made_from is None:
                if why := why_unfit(manifest, digests):
                    raise ServerError(
                        f"{artifact.model} is not served: {why}; expected truths to measure it by in {path}, found none"
                        " that can be read. Write the repository again with\n"
                        f"{build_command([one], one.folder.parent, force=False)}"
                    )
                continue
            for number, card in cards.items() if artifact.on_gpu else [(None, None)]:
                on = conditions(artifact.engine, card)
                if (artifact.model, json.dumps(on)) in seen:
                    continue
                seen.add((artifact.model, json.dumps(on)))
                why = why_measure(manifest, digests, on, made_from, record.entry(artifact.model, on))
                if why:
                    yield Doubt(one, part, artifact, number, why)


def _called(
    served: Sequence[Served], videos: Sequence[VideoServed]
) -> Iterator[tuple[Served, list[tuple[str, Artifact]]]]:
    """Front models, each with parts and artifacts of it that are called: a tracker's may be of another resolution."""
    for one in served:
        yield one, [(model.part, a) for model, a in zip(one.variant.sub_models, one.artifacts, strict=True)]
    for video in videos:
        variant = video.tracking.variant
        parts = {model.name: model.part for model in (*variant.sub_models, *variant.tracker_parts)}
        yield video.tracking, [(parts[artifact.model], artifact) for artifact in video.own]


def measure_apart(repository: Path, front: str, models: Sequence[str], number: int | None) -> dict:
    """The JSON of `ensemble/gate/cli.py` for these sub-models of a front model; what it says on the way are log
    lines."""
    command = [sys.executable, "-m", "ensemble.gate.cli", str(repository), "--front", front, "--models", *models]
    command += ["--gpu", str(number)] if number is not None else []
    last: deque[str] = deque(maxlen=5)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    with process:
        assert process.stderr is not None, "it was opened as a pipe"
        assert process.stdout is not None, "it was opened as a pipe"
        for line in process.stderr:
            last.append(line.strip())
            log.info("%s", line.rstrip())
        answer = process.stdout.read().strip().splitlines()
    try:
        return json.loads(answer[-1])
    except (ValueError, IndexError):
        told = " | ".join(last) or "nothing"
        return {"error": f"measuring {', '.join(models)} ended with status {process.returncode}; it said last: {told}"}
