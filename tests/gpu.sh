#!/usr/bin/env bash
# The slices of docs/gpu.md: what to run on a GPU that is there for half an hour, in calls of ten minutes at most.
#
#   bash tests/gpu.sh pack TEXT TASKS    before, where the project's .venv and a package index are: makes runs/carry
#   bash tests/gpu.sh a                  there, slices a to i; the same command continues a slice that was cut off
#
# TEXT: a file of documents (.jsonl, .jsonl.gz, .jsonl.zst). TASKS: a folder that `make eval-data` made.
# From the environment: PY, the Python there (python3); OUT, the folder that comes back (runs/gpu); WORK, a folder that
# stays between calls (/tmp/gpu); TOKENS, of each run of slice h (20M); UNCHECKED=1, time what slice a found wrong, too;
# REHEARSE=1, the same on a CPU, so small that its numbers mean nothing; DRY=1, print the commands and run none.
set -euo pipefail
cd "$(dirname "$0")/.."
slice=${1:?pack, or a slice from a to i}
PY=${PY:-python3} OUT=${OUT:-runs/gpu} WORK=${WORK:-/tmp/gpu} REHEARSE=${REHEARSE:-} DRY=${DRY:-}
CARRY=runs/carry
SITE=$WORK/site
CALL=${CALL:-570} # seconds that a slice may take, with a margin for what surrounds it

pack() { # TEXT TASKS
  local text=$1 tasks=$2 py=.venv/bin/python pins name pin new
  # what trains; what evaluates; what the identity of prepared text names
  local names="megatron-core hjson pydantic pydantic-core annotated-types typing-inspection gigatoken awkward awkward-cpp sentencepiece zstandard orjson deepspeed
    lm-eval datasets evaluate dill multiprocess more-itertools pytablewriter DataProperty mbstrdecoder pathvalidate tabledata
    tcolorpy typepy chardet sqlitedict word2number rouge-score sacrebleu nltk xxhash
    portalocker tabulate colorama lxml absl-py six protobuf datatrove loguru fasteners"
  local platforms=(--platform any --platform manylinux1_x86_64 --platform manylinux2014_x86_64)
  for n in 17 24 27 28 31 34; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
  [[ -f $text && -d $tasks && $text =~ \.jsonl(\.gz|\.zst)?$ ]] || {
    echo "error: pack takes a file (.jsonl, .jsonl.gz or .jsonl.zst) and a folder, not $text and $tasks" >&2
    exit 2
  }
  pins=$($py -m pip freeze)
  mkdir -p runs
  new=$(mktemp -d runs/carry.XXXXXX) # nothing of an earlier pack is left: pip refuses two versions of a package
  chmod 755 "$new"
  mkdir "$new/wheels" "$new/tasks"
  cp "$text" "$new/docs.jsonl${text##*.jsonl}"
  cp -r "$tasks"/. "$new/tasks"
  cp $CARRY/bench.jsonl "$new" 2>/dev/null || true
  rm -rf $CARRY
  mv "$new" $CARRY
  for name in $names; do
    pin=$(grep -i -m1 -E "^${name//[-_]/[-_]}==" <<<"$pins") || {
      echo "error: .venv has no $name" >&2
      exit 2
    }
    $py -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 \
      --abi none "${platforms[@]}" -d $CARRY/wheels "$pin" 2>/dev/null ||
      DS_BUILD_OPS=0 $py -m pip wheel -q --no-deps --no-build-isolation -w $CARRY/wheels "$pin"
  done
  $py -m data.prepare $CARRY/docs.jsonl* --vocab "${VOCAB:-50257}" --store $CARRY/data >/dev/null
  du -sh $CARRY/*
}
if [ "$slice" = pack ]; then
  pack "${2:?TEXT is missing}" "${3:?TASKS is missing}"
  exit
fi

texts=($CARRY/docs.jsonl*)
text=${texts[0]%\*}
export PYTHONPATH=$SITE:$PWD TORCHINDUCTOR_CACHE_DIR=$WORK/inductor PYTHONUNBUFFERED=1
small=() size_of_evaluation=1b3 one_step=1048576 size_of_study=125m tokens=${TOKENS:-20M} micro=8 micros=(8)
if [ -n "$REHEARSE" ]; then
  small=(--rehearse --size nano --micro-batch 2 4 --accumulate 1 --steps 1) size_of_evaluation=atto one_step=16384 size_of_study=femto tokens=1M
elif [ -z "$DRY" ] && [ "$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1)" -gt 100000 ]; then
  micro=16 micros=(16 8) # 1.3B with rotary needs 55 GB at 8 and 86 GB at 16, by estimate
fi

run() { # a command, until this slice's time is over; what it prints goes to a file that comes back
  echo "+ $*"
  local left=$((CALL - 25 - SECONDS))
  # at least a second: for timeout 0 is no limit
  [ -n "$DRY" ] || timeout -k 25 $((left > 1 ? left : 1)) "$@" 2>&1 | tee -a "$OUT/$slice.log"
}
kill_once() { # a study, when the first of its runs has a checkpoint
  "$@" >>"$OUT/$slice.log" 2>&1 &
  local study=$! checkpoints="$WORK/runs/$size_of_study*/*/checkpoints/*/checkpoint.json"
  until compgen -G "$checkpoints" >/dev/null; do
    if ! kill -0 $study 2>/dev/null; then
      echo "+ it ended before it had a checkpoint" | tee -a "$OUT/$slice.log"
      return
    fi
    sleep 0.2
  done
  kill -KILL $study
  touch "$WORK/killed"
  echo "+ killed after the first checkpoint: $(compgen -G "$checkpoints")" | tee -a "$OUT/$slice.log"
  sleep 5 # until the GPU is free
}
bench() {
  run "$PY" -m tests.bench_gpu --results "$WORK/bench.jsonl" --limit $((CALL - 80 - SECONDS)) "$@" "${small[@]}" \
    ${UNCHECKED:+--unchecked}
}

finish() { # pack what the runs and their report say of themselves
  sleep 1
  kill $mirror
  cp "$WORK"/*.trace.json.gz "$OUT" 2>/dev/null || true
  find "$WORK/runs" ablations/records -newer "$WORK/began-$slice" -type f -size -2M -not -path '*/data/*' \
    \( -name '*.json' -o -name '*.jsonl' -o -name '*.log' -o -name '*.md' \) -print0 |
    tar czf "$OUT/$slice.tgz" --null -T - 2>/dev/null || true
}

if [ -z "$DRY" ]; then
  mkdir -p "$OUT" "$WORK/runs"
  if [ ! -e "$SITE/ready" ] && compgen -G "$CARRY/wheels/*.whl" >/dev/null; then
    "$PY" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" $CARRY/wheels/*.whl
    touch "$SITE/ready"
  fi
  [ ! -d $CARRY/data ] || [ -d "$WORK/runs/data" ] || cp -r $CARRY/data "$WORK/runs/data"
  # a fresh machine: the rows that came back from the one before
  [ -e "$WORK/bench.jsonl" ] || cp $CARRY/bench.jsonl "$WORK" 2>/dev/null || true
  touch "$WORK/bench.jsonl" "$WORK/began-$slice"
  tail -n +1 -F "$WORK/bench.jsonl" >"$OUT/bench.jsonl" 2>/dev/null & # a row comes back when it is there
  mirror=$!
  trap finish EXIT
fi

rotary=(--positions rotary --precision bf16)
quiet="layout.wandb=disabled layout.keep=1"
case $slice in
  a)
    run "$PY" -c 'import torch, ablations.machine as m; print(torch.__version__, m.installed_gpus(), "GPUs", torch.cuda.is_available() and torch.cuda.get_device_properties(0))'
    checks=()
    for part in 1 2 3 4; do # most of the time is compilation, by one core
      bench --check --part $part/4 &
      checks+=($!)
    done
    complete=1
    for check in "${checks[@]}"; do wait "$check" || complete=; done
    [ -n "$complete" ]
    ;;
  b) bench "${rotary[@]}" --how engine --micro-batch "${micros[@]}" ;;
  c) bench --positions alibi none learned --precision bf16 --how engine --micro-batch $micro ;;
  d) bench --positions rotary alibi --precision bf16 --how bare --micro-batch $micro ;;
  e) bench "${rotary[@]}" --how engine --micro-batch $micro --profile ;;
  f) bench --positions rotary --precision fp8 --how engine bare --micro-batch $micro ;;
  g)
    run "$PY" -m launch.train --cell 0 POS=alibi SIZE=$size_of_evaluation SEEDS=1 TOKENS=$one_step "DATA=$text" "OUT=$WORK/runs" "SET=$quiet layout.micro_batch=4 layout.compile=never"
    [ -n "$DRY" ] || echo "+ evaluation begins $SECONDS s after the start" | tee -a "$OUT/$slice.log"
    for finished in "$WORK"/runs/$size_of_evaluation*/baseline,seed=1/done; do
      run "$PY" -m eval "${finished%/done}" --tasks suite --data $CARRY/tasks
    done
    [ -n "$DRY" ] || echo "+ and has ended $SECONDS s after the start" | tee -a "$OUT/$slice.log"
    ;;
  h)
    study=("$PY" -m launch.local POS=alibi SIZE=$size_of_study "TOKENS=$tokens" "DATA=$text" "OUT=$WORK/runs"
      "SET=$quiet train.batch=64 layout.save_every=25")
    [ -n "$DRY" ] || [ -e "$WORK/killed" ] || kill_once "${study[@]}"
    run "${study[@]}"
    ;;
  i)
    complete=1 # the second size is measured, whatever became of the first
    bench "${rotary[@]}" --how engine --size 14m --micro-batch 64 --accumulate 1 --compile auto reduce-overhead || complete=
    bench "${rotary[@]}" --how engine --size 125m --micro-batch 32 --accumulate 2 --compile auto reduce-overhead || complete=
    [ -n "$complete" ]
    ;;
  *)
    echo "error: $slice is none of pack, a, b, c, d, e, f, g, h, i" >&2
    exit 2
    ;;
esac
