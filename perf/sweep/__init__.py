"""perf_analyzer over resolutions, cameras and classes: one row a point."""
