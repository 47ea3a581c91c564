#!/usr/bin/env bash
# Figures of docs/uncertainty.md and docs/restoration.md on the test songs, one after another.
#
#   bash recipes/restoration/figures.sh CORPUS [MINUTES]
#
# CORPUS has the split test; each of the four steps begins nothing after MINUTES (30). Given again,
# it goes on where it was; the tables in recipes/restoration/results say how many clips they have.
set -euo pipefail
cd "$(dirname "$0")/../.."
corpus=$1 minutes=${2:-30}
python=.venv/bin/python
[ -x "$python" ] || python=python
out=recipes/restoration/results
work=work/restoration
mkdir -p "$out" "$work"
export OMP_NUM_THREADS=1

"$python" -m recipes.restoration.features --data "$corpus/test" --out "$work/features.jsonl" \
    --clips 8 --seconds 4 --tasks known,redo,also,panned --minutes "$minutes" > "$out/features.md"
"$python" recipes/compare/honesty.py --corpus "$corpus" --split test --list small --no-silence --samples 4 \
    --method ding --preset fast --set warm_start=regressor --set warm_sigma=1.0 \
    --precision bfloat16 --minutes "$minutes" --out "$out/samples" > /dev/null
"$python" -m recipes.restoration.features --data "$corpus/test" --out "$work/repairs.jsonl" \
    --clips 8 --seconds 3 --precision float32 --minutes "$minutes" \
    --tasks "clip mix,gap mix,clip drums,gap drums,bits mix,lowpass mix,bits drums,lowpass drums" \
    > "$out/repairs.md"
"$python" -m recipes.restoration.restore --data "$corpus/test" --out "$out/restoration.jsonl" \
    --preset fast --precision bfloat16 --minutes "$minutes" \
    > "$out/restoration.md"
cat "$out"/{features,samples,repairs,restoration}.md
