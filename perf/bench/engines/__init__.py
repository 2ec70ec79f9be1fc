"""SAM3's parts on one GPU, engine beside engine, and TensorRT's plans among them."""
