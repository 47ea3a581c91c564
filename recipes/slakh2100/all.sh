#!/usr/bin/env bash
# The whole recipe: prepares Slakh2100, separates the test tracks with each preset, scores, reports.
#   all.sh SOURCE WORK [PRESET...]
# SOURCE is the archive or an unpacked folder. The published models have to be imported before
# (README.md). With TRAIN=conf/joint.yaml (a path from here or from this script's folder) a joint prior
# is trained instead and takes the place of the presets' model; isdm, which needs four, is then not
# among the presets by default. A track that breaks a sampler is left out and counted as missing. PREPARE, TRAINING, SEPARATE and REPORT hold further
# options of the commands.
set -euo pipefail
source=$1 work=$2
shift 2
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python}"
if [ $# -eq 0 ]; then
  set -- mgdm dps pgdm ddnm msdm
  if [ -z "${TRAIN:-}" ]; then
    set -- "$@" isdm
  fi
fi
# What is missing is said before hours of work.
if [ -n "${TRAIN:-}" ]; then
  [ -f "$TRAIN" ] || TRAIN="$here/$TRAIN"
  [ -f "$TRAIN" ] || { echo "no such file: $TRAIN" >&2; exit 2; }
elif [[ "${SEPARATE:-}" != *--model* ]]; then
  "$python" "$here/presets.py" "$@"
fi
"$python" "$here/prepare.py" "$source" --out "$work/data" ${PREPARE:-}
model=()
if [ -n "${TRAIN:-}" ]; then
  "$python" "$here/train.py" "$TRAIN" --data "$work/data" --out "$work/prior" ${TRAINING:-}
  "$python" "$here/export.py" "$work/prior/checkpoint.pt" "$work/model" --data "$work/data"
  model=(--model "$work/model")
fi
for preset in "$@"; do
  name="$(basename "$preset" .yaml)"
  "$python" "$here/separate.py" "$preset" --data "$work/data" --out "$work/stems/$name" \
    ${model[@]+"${model[@]}"} ${SEPARATE:-} || [ $? -eq 3 ] # 3: but tracks that were left out
  "$python" "$here/evaluate.py" "$preset" --data "$work/data" --out "$work/stems/$name" \
    --results "$work/results"
done
"$python" "$here/report.py" "$@" --results "$work/results" ${REPORT:-}
