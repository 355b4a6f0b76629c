"""Benchmarks: `python -m genstab.bench layers`, `… step` and `… guards`."""
