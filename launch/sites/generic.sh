# shellcheck shell=bash
# A site: what its Slurm wants to be told, as the variables that sbatch itself reads (see "INPUT ENVIRONMENT VARIABLES" in
# its manual). Copy to launch/site.sh and edit; delete what your site does not need. `source launch/site.sh` before a plain
# sbatch; `make ... ON=slurm` and the jobs read it by themselves. SITE=name chooses another file of this folder.

export SBATCH_PARTITION=gpu
export SBATCH_TIMELIMIT=24:00:00
export SBATCH_GPUS_PER_NODE=8 # a rank on each; without GPUs, one rank on each node
export SBATCH_EXCLUSIVE=user  # whole nodes
export SBATCH_SIGNAL=B:USR1@300 # seconds before the time limit: more than a step and a save take
export NODE_MTBF_HOURS=17000    # of one node, for the checkpoint interval; untuned: ask your site, or count
