"""Training: a `Run` in, a run directory out."""
