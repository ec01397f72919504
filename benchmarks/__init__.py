"""Benchmarks: `make bench`. What they measure and how to read them is in docs/performance.md."""
