"""Runs TensorRT plans in this process: those of TensorRT for RTX, whose kernels are finished here, and TensorRT's own.

Needs CuPy for GPU memory and streams, and no PyTorch.
"""
