"""Samples that are trained and measured, items that are scored, and the benchmarks they come from."""
