# shellcheck shell=bash
# The options of a site's Slurm, as the environment variables that sbatch reads (see "INPUT ENVIRONMENT VARIABLES" in its
# manual). Copy this file to launch/site.sh and edit it; delete the lines that your site does not need. The jobs and
# `make ... ON=slurm` read launch/site.sh by themselves; before a plain sbatch give `source launch/site.sh`. SITE=name
# chooses another file of this folder.

export SBATCH_PARTITION=gpu
export SBATCH_TIMELIMIT=24:00:00
export SBATCH_GPUS_PER_NODE=8 # a rank on each; without GPUs, one rank on each node
export SBATCH_EXCLUSIVE=user  # whole nodes
export SBATCH_SIGNAL=B:USR1@300 # seconds of warning before the time limit: more than a step and a save take
export NODE_MTBF_HOURS=17000    # mean time between failures of a node, for the interval of checkpoints; untuned: ask your site
