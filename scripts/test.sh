#!/usr/bin/env bash
# Installs what the tests need into .venv and runs them; arguments go to pytest (-m slow, a file).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh test
.venv/bin/python -m ruff check .
.venv/bin/python -m mypy
.venv/bin/python -m pytest -q "$@"
