"""The small SAM3: the checkpoint itself, the scenes it knows, and how it was trained and evaluated."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
