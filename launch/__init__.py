"""Trains runs: from the configuration of a run to its run directory, with checkpoints, log and trained weights."""
