"""The small SAM3: how its scenes are drawn, how it was trained, how it is judged, and the checkpoint itself."""
