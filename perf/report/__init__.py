"""Pages, plots and tables from measured rows."""
