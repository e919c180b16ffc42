"""Studies on a Slurm cluster: how they are submitted, and when the job of a run is requeued."""
