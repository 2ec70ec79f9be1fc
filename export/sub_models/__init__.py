"""The five sub-models as torch modules, written the way an ONNX runtime or TensorRT runs them fastest."""
