#!/bin/sh
# Programs that stop and die, wires that break, descriptors that run out, visitors that leave: README.md has the list.
#
#     tests/chaos/run.sh [--seed N] [SCENARIO…]
#
# Needs python3, and our programs: target/release, unless CARGO_TARGET_DIR says where else cargo builds. All in all it takes
# about eight minutes. A few lines for each scenario; the last line is `N passed, N failed`.
set -eu
cd "$(dirname "$0")/../.."

programs=${CARGO_TARGET_DIR:-target}/release
for program in ptth-relay ptth-reverse; do
    if [ ! -x "$programs/$program" ]; then
        echo "no $programs/$program: run cargo build --release first" >&2
        exit 1
    fi
done

exec python3 -B tests/chaos/chaos.py --programs "$programs" "$@"
