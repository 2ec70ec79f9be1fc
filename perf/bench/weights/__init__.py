"""What smaller weights save and what they cost: `sam3-perf bench weights`."""
