"""The demonstration (`python -m demo`): eight films play as eight cameras of one server, timed, scored and drawn."""
