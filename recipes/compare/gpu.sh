#!/usr/bin/env bash
# Draws groups of the table on a machine with a GPU and without network, for the minutes given:
#   gpu.sh MINUTES        from the repository's root, with the clips that pack.py wrote in
#                         work/gpu/clips, and the wheels of bundle.py in a part of work/gpu/parts
# Several processes share the GPU: noise is drawn on the processor, a stream a clip, and takes more
# time than the network. The scores go to OUT/table-songs.jsonl, for `table.py --merge`, after every
# batch; all ends a quarter of a minute before the time.
set -euo pipefail
started="$(date +%s)"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
cd "$root"
work="${WORK:-$root/work/gpu}"
out="${OUT:-$work/out}"
python="${PYTHON:-python3}"
parts="${PARTS:-8}"              # processes
together="${TOGETHER:-6}"        # clips in a batch; with gradients about 1 GiB a clip and process
groups="${PLAN_GROUPS:-8 9 10 11}"
plan="${PLAN:-recipes/compare/plan.yaml}"
known="${KNOWN:-recipes/compare/results/table-songs.jsonl}"
model="${MODEL:-default}" device="${DEVICE:-auto}" precision="${PRECISION:-float32}"
run="$work/run-table"
limit="$(awk -v minutes="${1:?gpu.sh MINUTES}" 'BEGIN { print int(60 * minutes) }')"
left() { # seconds until a quarter of a minute before the time
  echo "$((limit - ${RESERVE:-15} - ($(date +%s) - started)))"
}

collect() { # what there is, once each line
  if compgen -G "$run/table-*-songs.jsonl" >/dev/null; then
    LC_ALL=C sort -u "$run"/table-*-songs.jsonl >"$run/all" && cp "$run/all" "$out/table-songs.jsonl"
  fi
  tail -n +1 "$run"/*.log >"$out/table.log" 2>/dev/null || true
}

mkdir -p "$run" "$out"
if compgen -G "$work/parts/*/wheels/*.whl" >/dev/null && [ ! -d "$work/site" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
    --target "$work/site" "$work"/parts/*/wheels/*.whl
fi
export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
options=(--corpus "$work/clips" --plan "$plan" --model "$model" --device "$device")
options+=(--precision "$precision" --together "$together")
collect # of an earlier call: all processes must know the same, to share out the rest
for file in "$known" "$run/all"; do
  if [ -f "$file" ]; then
    options+=(--merge "$file")
  fi
done
for group in $groups; do
  options+=(--group "$group")
done
processes=()
trap 'kill "${processes[@]}" 2>/dev/null || true' EXIT
for part in $(seq "$parts"); do
  "$python" recipes/compare/table.py "${options[@]}" --share "$part/$parts" \
    --store "$run/store-$part" --out "$run/table-$part" \
    --minutes "$(awk -v seconds="$(left)" 'BEGIN { print seconds / 60 }')" \
    >"$run/table-$part.log" 2>&1 &
  processes+=($!)
done
if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=timestamp,utilization.gpu,memory.used --format=csv -l 2 \
    >"$out/gpu.csv" 2>/dev/null &
  processes+=($!)
fi
alive() { # of the processes that draw
  local pid
  for pid in "${processes[@]:0:$parts}"; do
    if kill -0 "$pid" 2>/dev/null; then
      return 0
    fi
  done
  return 1
}
while alive && [ "$(left)" -gt 0 ]; do
  sleep 1
  collect
done
kill "${processes[@]}" 2>/dev/null || true
sleep 1
collect
succeeded=0
for pid in "${processes[@]:0:$parts}"; do
  status=0
  wait "$pid" || status=$?
  if [ "$status" -eq 0 ] || [ "$status" -eq 143 ]; then # ended, or stopped for the time
    succeeded=1
  fi
done
if [ "$succeeded" -eq 0 ]; then
  tail -n 20 "$run/table-1.log" >&2
  exit 1
fi
echo "$(cat "$out/table-songs.jsonl" 2>/dev/null | wc -l) scores are in $out/table-songs.jsonl"
