"""Benchmarks against their baselines: `make bench`, or `python -m tests.bench --help`."""
