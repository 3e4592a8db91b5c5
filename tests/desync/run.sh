#!/bin/sh
# Feeds what could be read in two ways through a relay and an agent of ours to nginx, Node and Python, and odd answers back:
# see desync.py, to which all arguments go.
#
#     tests/desync/run.sh [--programs FOLDER] [--seed N] [--count N] [--dialect DIALECT] [--only WORDS] [PART…]
#
# Needs python3, node, nginx, and our programs: the newer ones of target/release and target/debug, unless --programs names
# their folder. nginx is installed where that can be done; a server that is not there is skipped, and that is said. The last
# line is `N passed, N failed`.
set -eu
cd "$(dirname "$0")/../.."

target=${CARGO_TARGET_DIR:-target}
relay=$(ls -t "$target/release/ptth-relay" "$target/debug/ptth-relay" 2>/dev/null | head -n 1)
programs=$(dirname "${relay:-none}")
if [ "${1-}" = --programs ]; then
    programs=$2
    shift 2
fi
for program in ptth-relay ptth-reverse; do
    if [ ! -x "$programs/$program" ]; then
        echo "no $programs/$program: run cargo build first" >&2
        exit 1
    fi
done

# nginx lives in /usr/sbin, which is not on everybody's PATH.
if ! PATH="$PATH:/usr/sbin" command -v nginx >/dev/null; then
    # RUNLEVEL=1 keeps the package from starting an nginx on port 80.
    { apt-get update -q && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends nginx; } >&2 ||
        echo "######## nginx can't be installed: what needs it is skipped ########" >&2
fi

exec python3 -B tests/desync/desync.py --programs "$programs" "$@"
