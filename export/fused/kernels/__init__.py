"""Triton kernels for the few places where a library call moves far more bytes than the arithmetic needs.

Each file holds one operation: the kernel, and a `torch.library` operator around it that `torch.export` records and
ahead-of-time compilation packs. `export/fused/plain.py` has the same operations in PyTorch.
"""
