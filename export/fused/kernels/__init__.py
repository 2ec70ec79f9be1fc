"""Triton kernels for the GPU half, for the few places where a library call moves far more bytes than the arithmetic
needs.

Each file holds one operation: the kernel, a `torch.library` operator around it that `torch.export` carries and
ahead-of-time compilation packs, and the same mathematics in plain PyTorch (`plain_*`), which the tests compare it with.
Which of the two runs is chosen by name where a module is built.
"""
