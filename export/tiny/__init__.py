"""The small SAM3: how its scenes are drawn, how it was trained, how it is judged, and the checkpoint itself."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
