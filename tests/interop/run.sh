#!/bin/sh
# Lets programs that we did not write talk to ours: npm's reverse-http and the transcript of 2008 (part npm), curl as an
# agent and a relay written after the page of 2008 (part comet), the ptth relay and server (part ptth), and Node, curl and
# Python's server at either end of a tunnel (part streaming).
#
#     tests/interop/run.sh [--programs FOLDER] [--columns our-agent,our-relay,real] [--case WORDS] [PART…]
#
# Needs python3 and curl, node for npm and streaming, npm for npm, cargo for ptth, and our programs: the newer ones of target/release and
# target/debug, unless --programs names their folder. What else a part needs is installed; where that fails, the part
# is skipped, and that is said. One line for each check, a table for ptth; the last one is `N passed, N failed`.
set -eu
cd "$(dirname "$0")/../.."

programs=
if [ "${1-}" = --programs ]; then
    programs=$2
    shift 2
else
    target=${CARGO_TARGET_DIR:-target}
    relay=$(ls -t "$target/release/ptth-relay" "$target/debug/ptth-relay" 2>/dev/null | head -n 1)
    programs=$(dirname "${relay:-none}")
fi
for program in ptth-relay ptth-reverse; do
    if [ ! -x "$programs/$program" ]; then
        echo "no $programs/$program: run cargo build first" >&2
        exit 1
    fi
done

# Is this part asked for? All are when none is named.
wanted() {
    case " $parts " in *" npm "* | *" comet "* | *" ptth "* | *" streaming "*) ;; *) return 0 ;; esac
    case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

loudly() {
    echo "######## $* ########" >&2
}

parts="$*"
if wanted npm; then
    version=1.3.0
    modules=target/interop/node_modules
    if ! grep -qs "\"version\": \"$version\"" "$modules/reverse-http/package.json"; then
        mkdir -p target/interop
        npm install --prefix target/interop --no-save --no-audit --no-fund "reverse-http@$version" >&2 || true
    fi
    if [ -e "$modules/reverse-http/package.json" ]; then
        set -- --modules "$modules" "$@"
    else
        loudly "npm's reverse-http can't be installed: what needs it is skipped"
    fi
fi
if wanted ptth; then
    if tools=$(tests/interop/setup-ptth.sh); then
        set -- --ptth "$tools" "$@"
    else
        loudly "ptth_relay and ptth_server can't be installed: what needs them is skipped"
    fi
fi

exec python3 -B tests/interop/interop.py --programs "$programs" "$@"
