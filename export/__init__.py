"""From a SAM3 checkpoint to what an engine runs: five sub-models, exported, checked against the checkpoint itself, and
laid out as a Triton repository."""
