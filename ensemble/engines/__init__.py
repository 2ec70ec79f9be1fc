"""What runs a sub-model: one module an engine."""
