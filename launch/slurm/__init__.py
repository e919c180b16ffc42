"""Studies on a Slurm cluster: submitting them, and what happens between two attempts of a run."""
