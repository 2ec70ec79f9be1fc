"""The demonstration (`python -m demo`): nine films play as cameras of one server, timed, drawn, and judged by what was
drawn."""
