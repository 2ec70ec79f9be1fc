"""`sam3-perf`: one entry point, a subcommand per question; each is a module with a `main` of its own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "sweep": ("perf.sweep.sweep", "measure a server with perf_analyzer over resolutions, cameras and classes"),
    "report": ("perf.report.report", "turn sweeps into a page of plots and Markdown tables"),
    "capacity": ("perf.capacity.capacity", "which resolution for my cameras and my GPU, and why"),
    "profile": ("perf.bench.profile.profile", "where the time of one resolution goes, kernel by kernel"),
    "peers": ("perf.bench.peers", "transformers' model and this server on the same frames"),
    "guide": ("perf.report.guide", "write the numbers of docs/resolution.md again"),
    "check": ("perf.capacity.check", "what the model behind `capacity` predicts for points that it has not seen"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hands the rest of the command line to the subcommand; 2 where there is none of that name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        return int(importlib.import_module(COMMANDS[arguments[0]][0]).main(arguments[1:]))
    help_wanted = not arguments or arguments[0] in ("-h", "--help")
    lines = ["usage: sam3-perf COMMAND [options]", ""]
    lines += [f"  {name:10} {what}" for name, (_, what) in COMMANDS.items()]
    lines += ["", "sam3-perf COMMAND --help explains one of them"]
    if not help_wanted:
        lines.insert(0, f"sam3-perf: expected one of {', '.join(COMMANDS)}, got {arguments[0]!r}")
    print("\n".join(lines), file=sys.stdout if help_wanted else sys.stderr)
    return 0 if help_wanted else 2


if __name__ == "__main__":
    sys.exit(main())
