"""Smaller and faster weights from a checkpoint, with the price of each measured."""
