"""The engines that an export can be made for: one module or folder each, with its record (`ENGINE`) in it.

A new engine is a record in `ensemble/spec.py`, one here, and a line in `registry.py`; nothing else in the export asks
for an engine's name.
"""
