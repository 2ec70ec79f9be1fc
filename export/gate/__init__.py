"""The check that every artifact passes before it is served: its outputs and detections beside those of transformers'
model."""
