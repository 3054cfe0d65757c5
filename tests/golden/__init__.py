"""Golden trajectories: 30 steps of every method on a two-layer model, CPU, float32.

A change that should not move the numbers must leave them; one that should explains itself in its commit and runs
`python -m tests.golden`, which writes the files anew.
"""
