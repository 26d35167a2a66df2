#!/usr/bin/env bash
# Install the other tools that the benchmarks run. Each gets its own environment, because their pins conflict:
#   scripts/install_peers.sh [--autoawq] [DIRECTORY]          default: build/peers
# A second run leaves an environment alone if its package can be imported.
set -euo pipefail
with_autoawq=
[ "${1:-}" = --autoawq ] && { with_autoawq=1; shift; }
into="${1:-$(dirname "$0")/../build/peers}"
python="${PYTHON:-python3}"
mkdir -p "$into"

ready() { # NAME MODULE
    [ -x "$into/$1/bin/python" ] && "$into/$1/bin/python" -W ignore -c "import $2" >/dev/null 2>&1
}
fresh() { # NAME: an empty environment with pip
    "$python" -m venv --clear "$into/$1"
}
pip() { # NAME ARGUMENTS...
    local name="$1"
    shift
    "$into/$name/bin/python" -m pip --disable-pip-version-check -q "$@"
}

if ! ready llmcompressor llmcompressor; then
    fresh llmcompressor
    pip llmcompressor install torch==2.13.0 # alone, because another package could require another build of torch
    pip llmcompressor install torch==2.13.0 llmcompressor==0.14.0.1
fi
if ! ready gptqmodel gptqmodel; then
    fresh gptqmodel
    pip gptqmodel install wheel setuptools torch
    BUILD_CUDA_EXT=0 pip gptqmodel install --no-build-isolation gptqmodel==7.7.0 optimum==2.3.0
fi
if ! ready trl trl; then
    fresh trl
    pip trl install torch==2.13.0
    pip trl install torch==2.13.0 trl==1.16.0 transformers==5.19.0 datasets accelerate
fi
if [ -n "$with_autoawq" ] && ! ready autoawq awq; then
    fresh autoawq
    pip autoawq install torch==2.13.0
    pip autoawq install torch==2.13.0 transformers==4.51.3 accelerate datasets zstandard wheel setuptools
    pip autoawq install --no-deps --no-build-isolation autoawq==0.2.9
fi

for name in "$into"/*/; do
    echo "$(basename "$name"): $("$name/bin/python" -m pip --disable-pip-version-check list 2>/dev/null |
        grep -iE '^(torch|llmcompressor|gptqmodel|autoawq|trl|transformers) ' | tr -s ' ' | paste -sd ',' -)"
done
