#!/usr/bin/env bash
# Renders songs and trains on a machine with a GPU and without network, for the minutes given, the
# prior or, with RECIPE=regressor, the regressor:
#   gpu.sh MINUTES        from the repository's root, with what bundle.py collected in work/gpu/parts
# Called again on the same machine it goes on; on another one it goes on from the pieces of the last
# checkpoint, if they lie in work/gpu/pieces-RECIPE*. The pieces, the log and the curves go to OUT.
# "gpu.sh back 2" copies the second four pieces to OUT, where there are more than four.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
cd "$root"
work="${WORK:-$root/work/gpu}"
out="${OUT:-$work/out}"
python="${PYTHON:-python3}"
recipe="${RECIPE:-prior}"
run="$work/run-$recipe" pieces="$work/pieces-$recipe"
songs="${SONGS:-1200}"       # training songs wanted in all
valid="${VALID:-8}"          # validation songs
first="${FIRST:-96}"         # songs that are there before training starts
jobs="${JOBS:-$(($(nproc) > 3 ? $(nproc) - 2 : 1))}"
others="${OTHERS:-0}"        # parts beside the stems, for the regressor
case "$recipe" in
  prior) usual='{"channels": [64, 128], "width": 640, "depth": 8}' ;;
  regressor) usual='{"channels": [64, 128, 256, 384]}' ;;
  *)
    echo "RECIPE is prior or regressor, not $recipe" >&2
    exit 2
    ;;
esac
network="${NETWORK:-$usual}"
steps="${STEPS:-60000}" batch="${BATCH:-32}" seconds="${SECONDS_OF_CROP:-5.94}"
precision="${PRECISION:-bf16}" device="${DEVICE:-auto}" workers="${WORKERS:-8}"
started="$(date +%s)"

minutes_left() { # of the call, less the argument
  awk -v total="$1" -v less="$2" -v start="$started" -v now="$(date +%s)" \
    'BEGIN { left = total - less - (now - start) / 60; print (left > 0 ? left : 0) }'
}

back() { # copies four pieces, their index, log and curves
  mkdir -p "$out"
  cp "$pieces/pieces.json" "$run/log.jsonl" "$run/curves.png" "$out/"
  ls "$pieces/"step*.part | sort -V | tail -n "+$((4 * ($1 - 1) + 1))" | head -n 4 |
    while read -r piece; do cp "$piece" "$out/"; done
}

setup() {
  # The code as it is now, with the table of the sounds that travelled.
  rm -rf "$work/tree"
  mkdir -p "$work/tree" "$run" "$work/corpus"
  cp -r mgdm_audio recipes "$work/tree/"
  cp "$work/parts/sources.tsv" "$work/parts/others.tsv" "$work/tree/recipes/corpus/"
  if ! command -v mma >/dev/null || [ ! -e "$work/unpacked" ]; then
    tar --skip-old-files -xJf "$work/parts/files.tar.xz" -C /
    touch "$work/unpacked"
  fi
  if [ ! -d "$work/sources" ]; then
    mkdir -p "$work/sources"
    tar -xJf "$work/parts/sources.tar.xz" -C "$work/sources"
  fi
  if ! ldconfig -p | grep -q 'libfluidsynth\.so'; then
    mkdir -p /usr/local/lib/fluidsynth
    tar -xJf "$work/parts/libraries.tar.xz" -C /usr/local/lib/fluidsynth
    echo /usr/local/lib/fluidsynth >/etc/ld.so.conf.d/zz-fluidsynth.conf
    ldconfig
  fi
  if [ -d "$work/parts/wheels" ] && [ ! -d "$work/site" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
      --target "$work/site" "$work/parts/wheels/"*.whl
  fi
}

if [ "${1:?gpu.sh MINUTES, or gpu.sh back N}" = back ]; then
  back "${2:-1}"
  exit
fi
setup
export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" MGDM_CORPUS_SOURCES="$work/sources"
export PYTHONUNBUFFERED=1
tree="$work/tree"
if [ ! -f "$run/checkpoint.pt" ] && compgen -G "$pieces*/pieces.json" >/dev/null; then
  "$python" "$tree/recipes/prior/pieces.py" join "$pieces"*/ "$run/checkpoint.pt"
fi
render() { # SPLIT SONGS JOBS
  OMP_NUM_THREADS=1 "$python" "$tree/recipes/corpus/render.py" --split "$1" --songs "$2" \
    --out "$work/corpus/$1" --workers "$3"
}
render valid "$valid" "$jobs"
render train "$first" "$jobs"
if [ "$songs" -gt "$first" ]; then
  # Half of the cores are left to the data processes of the training.
  render train "$songs" "$(((jobs + 1) / 2))" >"$work/render.log" 2>&1 &
  renderer=$!
  trap 'kill "$renderer" 2>/dev/null || true' EXIT
fi
more=()
if [ "$recipe" = regressor ] && [ "$others" -gt 0 ]; then
  for split in "valid $valid" "train $others"; do
    OMP_NUM_THREADS=1 "$python" "$tree/recipes/corpus/others.py" --split ${split% *} \
      --songs ${split#* } --out "$work/others/${split% *}" --workers "$jobs"
  done
  more=(--others "$work/others")
fi
"$python" "$tree/recipes/$recipe/train.py" --corpus "$work/corpus" --out "$run" "${more[@]}" \
  --steps "$steps" --batch "$batch" --seconds "$seconds" --network "$network" \
  --precision "$precision" --device "$device" --workers "$workers" \
  --minutes "$(minutes_left "$1" "${RESERVE:-1}")" --save-minutes 1.5 --validate-minutes 3 \
  --score-minutes 8
"$python" "$tree/recipes/prior/pieces.py" split "$run/checkpoint.pt" "$pieces"
back 1
