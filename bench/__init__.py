"""Benchmarks: what this library takes, against others and against what the device allows."""
