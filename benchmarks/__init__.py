"""Timings against the strongest public alternatives: `python -m benchmarks`."""
