"""Plans of TensorRT for RTX: built on any machine, with or without a GPU, for the graphics cards that they are told."""
