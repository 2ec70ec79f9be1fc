"""SAM3 checkpoints: `load` takes those that people have, and a `Source` is one that was loaded."""

from export.checkpoint.error import CheckpointError
from export.checkpoint.loading import load
from export.checkpoint.random_weights import RANDOM, random_source
from export.checkpoint.source import Source, at_size
from export.checkpoint.tokenizer import fixed_length

__all__ = ["RANDOM", "CheckpointError", "Source", "at_size", "fixed_length", "load", "random_source"]
