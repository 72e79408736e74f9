"""Measurements, each beside its baseline in one run, as ratios with spread. `python -m benchmarks [name …]`."""
