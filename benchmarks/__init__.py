"""Benchmarks; see README.md. Run from the repository root: python -m benchmarks.bench_matcher."""
