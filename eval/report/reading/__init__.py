"""Run directories, read and checked for a report, and what follows from one run alone: scores, cost, curves, names."""
