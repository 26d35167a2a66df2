#!/usr/bin/env bash
# On a machine with a GPU, in at most 8 minutes on an H100: the tests that need it, then the measurements of gpu_day.py.
#   scripts/gpu_day.sh [--model FOLDER] [options of gpu_day.py]
# Nothing is downloaded: .venv must exist, with a torch for this GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
timeout 150 .venv/bin/python -m pytest -m gpu -q tests/core tests/quantize
tests=$?
PYTHONPATH="$PWD" timeout 480 .venv/bin/python scripts/gpu_day.py "$@" || exit 1
exit "$tests"
