"""The sub-models for one GPU without TensorRT: the same results in fewer passes over memory."""
