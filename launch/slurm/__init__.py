"""Studies on a Slurm cluster: submission, and requeueing of the runs' jobs."""
