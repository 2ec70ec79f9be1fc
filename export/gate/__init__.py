"""The check that every artifact passes before it is served: its outputs and detections, compared with those of
transformers' model."""
