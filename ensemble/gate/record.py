"""The record of what passed the gate on this machine, in a folder beside the repository: `REPOSITORY.here`.

It belongs to the machine and not to the repository, which may be copied or read-only. Where it cannot be written,
artifacts are measured again at each start.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensemble.gate.compare import OutputCheck
from ensemble.gate.machine import said

FILE = "passed.json"
log = logging.getLogger(__name__)


def beside(repository: Path) -> Path:
    """The folder of what this machine adds to a repository."""
    repository = repository.resolve()
    return repository.parent / f"{repository.name}.here"


@dataclass
class Record:
    """`passed`: of each model what was measured, in the order in which it was; `files`: of each artifact's file its
    size, its time and its hash, so that gigabytes are hashed once and not at each start."""

    folder: Path
    passed: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, repository: Path) -> Record:
        """An empty one where there is none, or none that can be read."""
        folder = beside(repository)
        try:
            data = json.loads((folder / FILE).read_text())
            return cls(folder, dict(data["passed"]), dict(data["files"]))
        except FileNotFoundError:
            return cls(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s) and is begun anew: artifacts are measured again", folder / FILE, error)
            return cls(folder)

    def write(self) -> None:
        """Where the folder cannot be written, the log says what that means."""
        data = json.dumps({"passed": self.passed, "files": self.files}, indent=2) + "\n"
        try:
            self.folder.mkdir(exist_ok=True)
            partial = self.folder / f"{FILE}.partial"
            partial.write_text(data)
            partial.replace(self.folder / FILE)
        except OSError as error:
            log.warning(
                "what passed the gate cannot be noted in %s (%s): artifacts are measured again at the next start;"
                " make %s writable",
                *(self.folder, error.strerror, self.folder.parent),
            )

    def digests(self, folder: Path) -> dict[str, str]:
        """Hashes of an artifact's files in its version folder, by name."""
        found = {}
        for path in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix != ".py"):
            key, stat = str(path.resolve()), path.stat()
            known = self.files.get(key, {})
            if (known.get("size"), known.get("mtime_ns")) != (stat.st_size, stat.st_mtime_ns):
                known = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256(path)}
                self.files[key] = known
            found[path.name] = known["sha256"]
        return found

    def note(
        self,
        model: str,
        digests: Mapping[str, str],
        on: Mapping[str, str],
        truths: str,
        checks: Sequence[OutputCheck],
        more: Mapping[str, Any],
    ) -> None:
        """Adds what passed, in the place of an earlier entry for the same conditions."""
        entry = {
            "on": dict(on),
            "files": dict(digests),
            "truths": truths,
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "outputs": {c.output: {"cosine": c.cosine, "relative_error": c.relative} for c in checks},
            **more,
        }
        others = [e for e in self.passed.get(model, []) if e.get("on") != entry["on"]]
        self.passed[model] = [*others, entry]

    def entry(self, model: str, on: Mapping[str, str]) -> dict[str, Any] | None:
        """What was noted of a model under these conditions."""
        return next((e for e in self.passed.get(model, []) if e.get("on") == dict(on)), None)


def why_measure(
    manifest: Mapping[str, Any],
    digests: Mapping[str, str],
    on: Mapping[str, str],
    truths: str,
    entry: Mapping[str, Any] | None,
) -> str | None:
    """Why an artifact is not believed under the conditions `on`, as the end of a sentence; None where it is.

    It is where it passed here, by the record, or at its export under the same conditions, by its manifest.
    """
    if entry and entry["files"] == dict(digests) and entry["truths"] == truths:
        return None
    why = why_unfit(manifest, digests)
    if why is None and not manifest.get("files"):
        return "its manifest does not name its file"
    made_on = None if why else manifest["gate"].get("on")
    if made_on not in (None, dict(on)):
        return f"it was measured on {said(made_on)}, and this is {said(dict(on))}"
    return why


def why_unfit(manifest: Mapping[str, Any], digests: Mapping[str, str]) -> str | None:
    """Why an artifact cannot be believed on any machine by its manifest, as the end of a sentence; None where it passed
    when it was exported, and its files are still those, if the manifest names them."""
    if not manifest.get("gate"):
        return "it was built on a machine that could not run it"
    if any(digests.get(name) != digest for name, digest in (manifest.get("files") or {}).items()):
        return "its file is not the one that its manifest names"
    return None


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
