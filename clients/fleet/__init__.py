"""Many cameras and servers at once: scheduling, tracks, zones, zoom, and an account of every frame."""
