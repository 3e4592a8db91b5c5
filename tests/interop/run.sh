#!/bin/sh
# Lets agents that we did not write talk to our relay: npm's reverse-http, and the transcript of 2008.
#
#     tests/interop/run.sh [PTTH-RELAY]
#
# Needs node, npm and python3, and a built ptth-relay (unless named: the newer one of target/release and target/debug).
# One line for each check; the last one is `N passed, N failed`.
set -eu
cd "$(dirname "$0")/../.."

relay=${1:-$(ls -t target/release/ptth-relay target/debug/ptth-relay 2>/dev/null | head -n 1)}
if [ ! -x "$relay" ]; then
    echo "no ptth-relay: run cargo build first" >&2
    exit 1
fi

version=1.3.0
modules=target/interop/node_modules
if ! grep -qs "\"version\": \"$version\"" "$modules/reverse-http/package.json"; then
    mkdir -p target/interop
    npm install --prefix target/interop --no-save --no-audit --no-fund "reverse-http@$version" >&2
fi

exec python3 -B tests/interop/interop.py "$relay" "$modules"
