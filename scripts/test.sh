#!/usr/bin/env bash
# Run linter, type checker and tests, with one process per core, on a machine without any setup:
#   scripts/test.sh [pytest options]
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest -n "${TEST_PROCESSES:-auto}" --dist loadgroup "$@"
