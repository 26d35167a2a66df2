#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Start the model of this bundle and prove that it answers as its weights should: sudo ./install.sh [--check]
#
# Nothing is started, and no image is loaded, before every file has the digest in SHA256SUMS. --check stops after this.
# COMPOSE names another Compose program. QCOMPRESS_BIND and QCOMPRESS_PORT are the address and port of the server.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
cd "$here"
compose=${COMPOSE:-docker compose}
port=${QCOMPRESS_PORT:-8000}
seconds=${QCOMPRESS_START_SECONDS:-1800}

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit 1
}

for tool in sha256sum python3 find; do
    command -v "$tool" >/dev/null || fail "$tool is missing; install it"
done

[ -z "$(find . ! -type f ! -type d)" ] || fail "there is a link or a special file in the bundle; copy the bundle again"
sha256sum --check --quiet --strict SHA256SUMS || fail "a file was changed or is missing; copy the bundle again"
further=$(find . -type f ! -path ./SHA256SUMS ! -path ./receipt.json ! -path ./model.sig | sed 's|^\./||' | LC_ALL=C sort | while read -r name; do
    cut -c 67- SHA256SUMS | grep -Fqx -- "$name" || printf '%s ' "$name"
done)
[ -z "$further" ] || fail "not listed in SHA256SUMS: $further; copy the bundle again"
echo "every file has its digest"
[ "${1:-}" != --check ] || exit 0

program=${compose%% *}
command -v "$program" >/dev/null || fail "$program is missing; install it"
needed=$(python3 -c 'import json; print(json.load(open("bundle.json"))["predicted"]["bytes"]["needed"] // 1024)')
if python3 -c 'import json, sys; sys.exit(not json.load(open("bundle.json"))["board"]["unified_memory"])'; then
    available=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
    [ "${available:-$needed}" -ge "$needed" ] || fail "the model needs $needed kB of memory, $available kB are available"
elif command -v nvidia-smi >/dev/null; then
    free=$(nvidia-smi --query-gpu=memory.free --format=csv,noheader,nounits | awk '{ sum += $1 } END { print sum * 1024 }')
    [ "${free:-0}" -ge "$needed" ] || fail "the model needs $needed kB of GPU memory, $free kB are free"
fi

archives=$(find image -name '*.tar' -exec du -k {} + 2>/dev/null | awk '{ sum += $1 } END { print sum + 0 }')
room=$(df -Pk . | awk 'NR == 2 { print $4 }')
[ "$room" -ge $((2 * archives + 2000000)) ] || fail "$room kB of disk are free; images and compiled kernels need more"

for file in image/*.tar; do
    [ ! -e "$file" ] || "$program" load --input "$file"
done
$compose up --detach

echo "waiting for http://127.0.0.1:$port/health"
waited=0
until python3 -c "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:$port/health', timeout=5)" 2>/dev/null; do
    [ "$waited" -lt "$seconds" ] || fail "no answer after $seconds s; see: $compose logs model"
    sleep 5
    waited=$((waited + 5))
done
if ! python3 smoke.py --url "http://127.0.0.1:$port"; then
    $compose stop
    fail "the model does not answer as its weights should, so it was stopped; receipt.json has the figures"
fi
