# shellcheck shell=bash
# Jean Zay (IDRIS), 8 A100 of 80 GB in each node; after BigScience's scripts of 2022. Not tried there.

export SBATCH_ACCOUNT=abc@a100 # yours: see idrproj
export SBATCH_CONSTRAINT=a100
export SBATCH_QOS=qos_gpu_a100-t3 # 20 hours
export SBATCH_TIMELIMIT=20:00:00
export SBATCH_GPUS_PER_NODE=8
export SBATCH_CPUS_PER_GPU=8 # 64 cores in a node
export SBATCH_HINT=nomultithread
export SBATCH_SIGNAL=B:USR1@600
export NODE_MTBF_HOURS=10000 # untuned

if [ -n "${SLURM_JOB_ID:-}" ]; then # in a job
  export TMPDIR=${JOBSCRATCH:-/tmp} WANDB_MODE=offline HF_HUB_OFFLINE=1 # compute nodes have no internet
fi
