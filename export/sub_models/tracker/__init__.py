"""The tracker of SAM3's video model as four functions without a memory: neck, step, memory encoder and seed.

Each is transformers' own computation, rewritten without changing its result: what is the same for all objects of a
frame is computed once a frame, what is the same for all frames is a constant, and N objects go through one call.
"""
