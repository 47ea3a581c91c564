#!/usr/bin/env bash
# Renders songs and trains on a machine with a GPU and without network: the prior or, with
# RECIPE=regressor, the regressor. From the repository's root, with what bundle.py collected:
#   gpu.sh begin MINUTES   unpacks part 1, and renders and trains in the background
#   gpu.sh add PART        unpacks another part; songs are rendered with its sounds too from now on
#   gpu.sh end             waits for the end of the training, the minutes after its beginning, and
#                          copies the pieces of the checkpoint, the log and the curves to OUT
#   gpu.sh back 2          copies the second four pieces to OUT, where there are more than four
# A part is work/gpu/parts/PART. Begun again on the same machine, after its end, the training goes
# on; on another one it goes on from the pieces of the last checkpoint, if they lie in
# work/gpu/pieces-RECIPE*. Its batch, crops and network stay what they were: leave BATCH,
# SECONDS_OF_CROP and NETWORK out, or as they were.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
cd "$root"
work="${WORK:-$root/work/gpu}"
out="${OUT:-$work/out}"
python="${PYTHON:-python3}"
recipe="${RECIPE:-prior}"
run="$work/run-$recipe" pieces="$work/pieces-$recipe" tree="$work/tree"
count="${SONGS:-4000}"       # training songs at most
first="${FIRST:-12}"         # songs that are there before training starts
beside="${OTHERS:-0}"        # parts beside the stems, for the regressor
jobs="${JOBS:-$(($(nproc) > 7 ? $(nproc) - 6 : 1))}"  # that render songs; two render other parts
case "$recipe" in
  prior) usual='{"channels": [64, 128], "width": 640, "depth": 8}' ;;
  regressor) usual='{"channels": [64, 128, 224, 320, 448]}' ;;
  *)
    echo "RECIPE is prior or regressor, not $recipe" >&2
    exit 2
    ;;
esac
network="${NETWORK:-$usual}"
steps="${STEPS:-20000}" batch="${BATCH:-24}" seconds="${SECONDS_OF_CROP:-3.99}"
precision="${PRECISION:-bf16}" device="${DEVICE:-auto}"
workers="${WORKERS:-2}" resident="${RESIDENT:-30}"
more="${MORE:-}"             # further options of train.py
export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" MGDM_CORPUS_SOURCES="$work/sources"
export PYTHONUNBUFFERED=1

background() { # NAME COMMAND...: runs on after this call, its process group in NAME.pid
  local name="$1"
  shift
  setsid "$@" >>"$work/$name.log" 2>&1 </dev/null &
  echo $! >"$work/$name.pid"
}

running() { [ -f "$work/$1.pid" ] && kill -0 "$(cat "$work/$1.pid")" 2>/dev/null; }

stop() { # NAME: and all that it started
  if running "$1"; then
    kill -- "-$(cat "$work/$1.pid")" 2>/dev/null || true
    while running "$1"; do sleep 0.1; done
  fi
}

start_rendering() { # again, with the sounds that are there now
  stop songs
  background songs nice -n 10 bash "$0" songs
  if [ "$recipe" = regressor ] && [ "$beside" -gt 0 ]; then
    stop others
    background others nice -n 10 bash "$0" others
  fi
}

others() { # parts beside the stems
  OMP_NUM_THREADS=1 "$python" "$tree/recipes/corpus/others.py" --split train \
    --songs "$beside" --out "$work/others/train" --workers 2
}

songs() { # for training
  OMP_NUM_THREADS=1 "$python" "$tree/recipes/corpus/render.py" --split train \
    --songs "$count" --out "$work/corpus/train" --workers "$jobs"
}

wait_for() { # NAME FOLDER COUNT: songs in the index of what is rendered in the background
  local count=0 idle=0
  while true; do
    if [ -f "$2/index.jsonl" ]; then count="$(wc -l <"$2/index.jsonl")"; fi
    if [ "$count" -ge "$3" ]; then return; fi
    # It stops for a moment where it is begun again.
    if running "$1"; then idle=0; else idle=$((idle + 1)); fi
    if [ "$idle" -gt 100 ]; then
      echo "$2 has $count of the $3 songs to begin with, see $1.log" >&2
      return 1
    fi
    sleep 0.1
  done
}

train() { # MINUTES: from now to the end
  local started options=()
  started="$(date +%s)"
  if [ ! -f "$run/checkpoint.pt" ] && compgen -G "$pieces*/pieces.json" >/dev/null; then
    "$python" "$tree/recipes/prior/pieces.py" join "$pieces"*/ "$run/checkpoint.pt"
  fi
  wait_for songs "$work/corpus/train" "$first"
  if [ "$recipe" = regressor ] && [ "$beside" -gt 0 ]; then
    wait_for others "$work/others/train" "$((beside < 16 ? beside : 16))"
    options+=(--others "$work/others")
  fi
  # A run that goes on refuses others than it has: what is usual here is for a new one.
  local begun=false
  [ ! -f "$run/checkpoint.pt" ] || begun=true
  if ! $begun || [ -n "${BATCH:-}" ]; then options+=(--batch "$batch"); fi
  if ! $begun || [ -n "${SECONDS_OF_CROP:-}" ]; then options+=(--seconds "$seconds"); fi
  if ! $begun || [ -n "${NETWORK:-}" ]; then options+=(--network "$network"); fi
  left() {
    awk -v total="$1" -v start="$started" -v now="$(date +%s)" \
      'BEGIN { left = total - (now - start) / 60; print (left > 0.01 ? left : 0.01) }'
  }
  # Threads that wait for each other, and for a core that renders, cost more than they do.
  # shellcheck disable=SC2086  # a list of options
  OMP_NUM_THREADS=1 "$python" "$tree/recipes/$recipe/train.py" --corpus "$work/corpus" --out "$run" \
    --steps "$steps" --precision "$precision" --device "$device" --workers "$workers" \
    --resident "$resident" \
    --save-minutes 0.5 --validate-minutes 3 --score-minutes 3 --fit \
    --minutes "$(left "$1")" "${options[@]}" $more
}

back() { # N: copies the Nth four pieces, their index, log and curves
  mkdir -p "$out"
  cp "$pieces/pieces.json" "$run/log.jsonl" "$run/curves.png" "$out/"
  ls "$pieces/"step*.part | sort -V | tail -n "+$((4 * ($1 - 1) + 1))" | head -n 4 |
    while read -r piece; do cp "$piece" "$out/"; done
}

case "${1:-}" in
  begin)
    : "${2:?gpu.sh begin MINUTES}"
    if running train; then # two would write the same run folder
      echo "training is running (process $(cat "$work/train.pid")): gpu.sh end first" >&2
      exit 1
    fi
    rm -rf "$tree"
    mkdir -p "$tree" "$run" "$work/corpus" "$work/others"
    cp -r mgdm_audio recipes "$tree/"
    "$python" recipes/prior/unpack.py "$work/parts/1" "$work"
    start_rendering
    background train bash "$0" train "$2"
    ;;
  add)
    "$python" recipes/prior/unpack.py "$work/parts/${2:?gpu.sh add PART}" "$work"
    start_rendering
    ;;
  songs | others | train) "$@" ;;
  end)
    while running train; do sleep 0.5; done
    rm -f "$work/train.pid" # the number may become another process's
    stop songs
    stop others
    tail -n 30 "$work/train.log" >&2
    if [ ! -f "$run/checkpoint.pt" ]; then
      tail -n 20 "$work/songs.log" >&2
      exit 1
    fi
    "$python" "$tree/recipes/prior/pieces.py" split "$run/checkpoint.pt" "$pieces"
    back 1
    ;;
  back) back "${2:-1}" ;;
  *)
    echo "gpu.sh begin MINUTES | add PART | end | back N" >&2
    exit 2
    ;;
esac
