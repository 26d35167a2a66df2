#!/usr/bin/env bash
# Install llama.cpp in an environment of its own, from the prebuilt wheel of xllamacpp: scripts/install_llama_cpp.sh
# scripts/llama_cpp_test.py runs it.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x build/llama-cpp/bin/python ] || python3 -m venv build/llama-cpp
build/llama-cpp/bin/pip install -q xllamacpp==2026.10.11549
