"""Simulated error rates and power of the verdicts, and docs/statistics.md, which they are for."""
