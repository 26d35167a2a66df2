#!/usr/bin/env bash
# Install TRL, with which scripts/bench_distill.py compares, in an environment of its own:
#   scripts/install_trl.sh [DIRECTORY]          default: build/trl
# A second run leaves the environment alone if TRL can be imported.
set -euo pipefail
into="${1:-$(dirname "$0")/../build/trl}"
if ! { [ -x "$into/bin/python" ] && "$into/bin/python" -W ignore -c "import trl" >/dev/null 2>&1; }; then
    "${PYTHON:-python3}" -m venv --clear "$into"
    pip=("$into/bin/python" -m pip --disable-pip-version-check -q)
    "${pip[@]}" install torch==2.13.0 # alone, because another package could require another build of torch
    "${pip[@]}" install torch==2.13.0 trl==1.16.0 transformers==5.19.0 datasets accelerate
fi
"$into/bin/python" -m pip --disable-pip-version-check list 2>/dev/null | grep -iE '^(torch|trl|transformers) '
