#!/usr/bin/env bash
# Installs the package into .venv and separates the example mix on the CPU.
# Arguments go to the command (--preset, --seed, ...).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh
echo "The stems of examples/mix.wav:"
.venv/bin/mgdm-audio separate examples/mix.wav -o separated --device cpu "$@"
