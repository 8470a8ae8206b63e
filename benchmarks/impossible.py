"""What a benchmark raises that cannot be run here."""

from __future__ import annotations


class BenchmarkImpossible(Exception):
    """Something that the benchmark needs is not on this machine."""
