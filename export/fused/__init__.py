"""The five sub-models again, for one GPU without TensorRT: the same results with fewer passes over memory."""
