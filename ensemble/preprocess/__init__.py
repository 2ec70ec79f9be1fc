"""Frames of cameras to the vision encoder's batch, uint8 [B,3,R,R]: on the CPU or on a GPU."""
