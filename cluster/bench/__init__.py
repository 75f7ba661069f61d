"""Benchmarks: this project beside what one would otherwise use, on the same work, in the same run."""
