"""Where the time of one resolution goes, kernel by kernel."""
