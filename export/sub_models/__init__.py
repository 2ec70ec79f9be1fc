"""The five sub-models of SAM3 as torch modules, written the way that ONNX Runtime or TensorRT runs them fastest."""
