"""The small tracker: drawn clips, the network on the small checkpoint's frozen trunk, training and evaluation."""
