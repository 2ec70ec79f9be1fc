"""Single benchmarks: the whole server, engines, kernels, rewrites, accuracy, soak."""
