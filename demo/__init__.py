"""The demonstration: eight films become eight cameras of one server, and what comes back is drawn, timed and scored.
`python -m demo --help`.
"""
