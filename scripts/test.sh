#!/usr/bin/env bash
# Installs what the tests need into .venv and runs them; arguments go to pytest (-m slow, a file).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh test
# The tests' tensors are small: threads would mostly wait for each other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
.venv/bin/python -m ruff check .
.venv/bin/python -m mypy
.venv/bin/python -m pytest -q "$@"
