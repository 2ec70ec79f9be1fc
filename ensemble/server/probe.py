"""What a container is asked from inside: `python3 -m ensemble.server.probe ready`, or `alive`. Exit status 0: yes.

ready: each front model answers a frame, or, since a frame waits its turn, at least others meanwhile. alive: none of
them hangs, by the rules of `ensemble/server/supervision.py`; a server that is busy is alive. Standard library only.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from ensemble.server.health import Health
from ensemble.server.requirements import ServerError
from ensemble.server.supervision import SILENCE_S, Probe

SECONDS = {"ready": 10.0, "alive": SILENCE_S + 15.0}
POLL_S = 0.1


def ready(health: Health, seconds: float) -> None:
    """Raises ServerError where a front model answers nothing within so many seconds, or the frame with an error."""
    before = health.answered()
    probes = _probes(health)
    _wait(probes, seconds, lambda: False)
    answered = health.answered()
    for front, probe in probes.items():
        if probe.error:
            raise ServerError(probe.error)
        if probe.open and answered.get(front, 0) <= before.get(front, 0):
            raise ServerError(f"{front} does not answer: nothing for {seconds:.0f} s, and a frame is waiting")


def alive(health: Health, seconds: float) -> None:
    """Raises ServerError where a front model hangs, or answers the frame with an error. Whether it hangs shows only
    after `supervision.SILENCE_S`."""
    found: list[str] = []
    probes = _probes(health)

    def hanging() -> bool:
        found.extend(filter(None, (probe.look() for probe in probes.values())))
        return bool(found)

    _wait(probes, seconds, hanging)
    found += [probe.error for probe in probes.values() if probe.error]
    if found:
        raise ServerError(found[0])


def _probes(health: Health) -> dict[str, Probe]:
    if not health.fronts:
        raise ServerError("expected a server with a front model, got none: it is starting, or has ended")
    return {front: Probe(health, front) for front in health.fronts}


def _wait(probes: dict[str, Probe], seconds: float, ended: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while any(probe.open for probe in probes.values()) and time.monotonic() < deadline and not ended():
        time.sleep(POLL_S)


def main(argv: Sequence[str] | None = None) -> int:
    """0: yes; 1: no, and the reason is the line on standard output, which Kubernetes shows among a pod's events."""
    parser = argparse.ArgumentParser(prog="python3 -m ensemble.server.probe", description=__doc__)
    parser.add_argument("question", choices=SECONDS)
    parser.add_argument("--url", default="localhost:8000", help="of the server's HTTP; default %(default)s")
    parser.add_argument("--metrics-url", default="localhost:8002", help="default %(default)s")
    parser.add_argument("--seconds", type=float, help="to find out; default: 10 for ready, 75 for alive")
    options = parser.parse_args(argv)
    ask = {"ready": ready, "alive": alive}[options.question]
    try:
        ask(
            Health.ask(options.url, options.metrics_url),
            SECONDS[options.question] if options.seconds is None else options.seconds,
        )
    except ServerError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
