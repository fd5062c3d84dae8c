"""Benchmarks of this library against other libraries and against the limits of the device."""
