"""Models larger than memory: python -m bench.residency."""
