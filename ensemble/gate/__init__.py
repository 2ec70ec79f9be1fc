"""The gate where artifacts are served: whether they compute what their checkpoint does, on this very machine.

The export stores what the checkpoint answers in fp32 on a few frames; here artifacts are run on the same inputs and
compared. NumPy is all that it needs.
"""
