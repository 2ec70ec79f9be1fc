"""Measures: scripts that print tables and JSON; tests never assert wall-clock time."""
