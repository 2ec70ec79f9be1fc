"""What the commands of this room share on a console: the refusal of a request, and libraries that keep quiet."""

from __future__ import annotations

import json
import logging
import warnings

from rich.console import Console
from rich.markup import escape


def refuse(prog: str, error: Exception, status: int) -> int:
    """Says on stderr and as JSON on stdout why a command ends; returns its exit status."""
    Console(stderr=True).print(f"[red]{prog}:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
    print(json.dumps({"ok": False, "error": str(error)}))
    return status


def silence() -> None:
    """Turns off what libraries print while they load, which would bury the sentence that matters."""
    warnings.filterwarnings("ignore")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def tell_account(name: str, sentences: list[str]) -> None:
    """Says on stderr what became of a checkpoint's weights."""
    for line in sentences:
        Console(stderr=True).print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True)
