"""Fleets: many cameras on one or several servers, with scheduling, tracks, zones, zoom, and a count of every frame."""
