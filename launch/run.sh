#!/bin/bash
#SBATCH --job-name=megahour --nodes=1 --requeue --signal=B:USR1@300 --open-mode=append --output=/dev/null
signal='' run='' job='' && leave() {
  signal=$1 && [ -z "$run" ] || echo "Slurm sent $signal" >"$run/stop"
  case $signal:$([ -z "$job" ] || scontrol show job "$job") in
    TERM:*Reason=TimeLimit*) signal=LIMIT && trap '' TERM && scontrol requeue "$job" ;; # no time to wait for the ranks
  esac
}
trap 'leave USR1' USR1; trap 'leave TERM' TERM # first: until here a signal kills the script
#
# Trains one run of a study, a rank on each GPU (without GPUs: on each node), as often as it takes.
#
#   sbatch launch/run.sh                                     the baseline
#   sbatch --nodes=4 launch/run.sh position                  a study: submits itself as an array, an index for each run
#   sbatch --nodes=4 --array=0-3%1 launch/run.sh position    its runs 0 to 3 (`make plan` numbers them), one at a time
#   sbatch launch/run.sh POS=alibi SIZE=125m                 NAME=VALUE words as for `make ablation`
#   launch/run.sh position                                   without Slurm: training, evaluation and report, here
#
# The site's partition, account and so on: `source launch/site.sh` before (see launch/sites). Slurm's own log has to go to
# a folder that exists, so the script keeps it by itself: OUT/slurm/JOB.log; the ranks' is train.log in the run's folder.

if [ -n "${SLURM_JOB_ID:-}" ]; then # here $0 is a copy in Slurm's spool
  for _ in {1..30}; do # a controller that is busy may not answer at once
    self=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\(.*run\.sh\).*/\1/p' | head -n 1)
    [ -z "$self" ] || break
    sleep 10
  done
  [ -n "$self" ] || exit
  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} # in an array the bare id can mean all of it
  job=${job:-$SLURM_JOB_ID}
fi
elsewhere() { # requeue on another node: a node that lacks the code or cannot write fails run after run, in seconds
  echo "$SLURMD_NODENAME cannot run this job: another node is needed"
  had=$(scontrol show job "$job" | sed -n 's/.*ExcNodeList=\([^( ]*\).*/\1/p')
  trap '' USR1 TERM
  if ((${SLURM_RESTART_COUNT:-0} >= 3)) || ! scontrol requeue "$job"; then exit 1; fi
  scontrol update JobId="$job" ExcNodeList="$had${had:+,}$SLURMD_NODENAME"
  exit 1
}
cd "$(dirname "${self:-$0}")/.." || { [ -z "$job" ] || elsewhere; exit 1; }
site=${SITE:-launch/site.sh}
# shellcheck source=/dev/null
[ ! -e "$site" ] || . "$site"
python=${PYTHON:-.venv/bin/python}
export PYTHONUTF8=1 # files and arguments are UTF-8, whatever the locale
[ $# -gt 0 ] || set -- baseline SEEDS=1
case $1 in *=*) ;; *) set -- "STUDY=$1" "${@:2}" ;; esac
[ -n "${SLURM_JOB_ID:-}" ] || exec "$python" -m launch.local "$@"

out=runs && for word; do [[ $word != OUT=?* ]] || out=${word#OUT=}; done
mkdir -p "$out/slurm" || elsewhere
exec >>"$out/slurm/$job.log" 2>&1 || exit
"$python" -c '' || elsewhere
if [ -z "${SLURM_ARRAY_TASK_ID:-}" ] && [ "$*" != "STUDY=baseline SEEDS=1" ]; then
  exec "$python" -m launch.slurm.submit --like "$job" "$@"
fi
cell=${SLURM_ARRAY_TASK_ID:-0}
run=$("$python" -m launch.slurm.attempts start "$job" "$cell" "$@") || exit
[ -n "$run" ] || exit 0 # finished before

per_node=${SLURM_NTASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}} cpus=$((SLURM_CPUS_ON_NODE / per_node))
options=(--nodes="$SLURM_NNODES" --ntasks="$((SLURM_NNODES * per_node))" --ntasks-per-node="$per_node")
if ((cpus)); then options+=(--cpus-per-task="$cpus"); else options+=(--overcommit); fi
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT LOCAL_WORLD_SIZE=$per_node PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE
if [ -z "$signal" ]; then
  # shellcheck disable=SC2016 # the variables are expanded in each rank's shell
  srun "${options[@]}" --kill-on-bad-exit=1 --wait=60 --label bash -c \
    '"$1" -c "" || { echo "unfit: $SLURMD_NODENAME cannot run $1" && exit 77; }
     RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID exec "$@"' - \
    "$python" -m launch.train --cell "$cell" "$@" >>"$run/train.log" 2>&1 &
  srun=$!
  [ -z "$signal" ] || leave "$signal"
  while kill -0 $srun 2>/dev/null; do wait $srun; done # every signal ends a `wait`
  wait $srun
  code=$?
fi
trap '' USR1 TERM # a requeue sends SIGTERM to this job, also to the process that asks for the requeue
exec "$python" -m launch.slurm.attempts end "$job" "$run" --code "${code:-75}" --signal "$signal"
