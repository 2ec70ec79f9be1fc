"""The export of a SAM3 checkpoint: five sub-models, built for an engine, checked against the checkpoint itself, and
laid out as a Triton repository."""
