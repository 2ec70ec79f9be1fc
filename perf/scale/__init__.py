"""How many servers a day of cameras needs, by simulation."""
