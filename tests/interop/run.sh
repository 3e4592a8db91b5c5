#!/bin/sh
# Lets programs that we did not write talk to ours: npm's reverse-http and the transcript of 2008 (part npm), curl as an
# agent and a relay written after the page of 2008 (part comet), and the ptth relay and server (part ptth). Then it has other
# people's clients and servers talk to each other through both of ours: Node, curl and Python's server (part streaming), npm's
# ws and Python's websockets (part websocket), Chromium (part browser), git over HTTP (part git), ssh, PostgreSQL and Redis
# over TCP (part tcp).
#
#     tests/interop/run.sh [--programs FOLDER] [--columns our-agent,our-relay,real] [--case WORDS] [PART…]
#
# Needs python3 and curl, node for streaming, node and npm for npm, websocket and browser, cargo for ptth, and our programs:
# the newer ones of target/release and target/debug, unless --programs names their folder. What else a part needs is
# installed, Debian's packages with apt-get if this is root; where that fails, the part is skipped, and that is said. One line
# for each check, a table for ptth; the last one is `N passed, N failed`.
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

# Is one of these parts asked for? All are when none is named.
wanted() {
    named=no
    for word in $parts; do
        for part in npm comet ptth streaming websocket browser git tcp; do
            [ "$word" != "$part" ] || named=yes
        done
        for part in "$@"; do
            [ "$word" != "$part" ] || return 0
        done
    done
    [ "$named" = no ]
}

loudly() {
    echo "######## $* ########" >&2
}

# has MODULE VERSION: is npm's module there, in this version?
has() {
    grep -qs "\"version\": \"$2\"" "target/interop/node_modules/$1/package.json"
}

# debian PROGRAM PACKAGE: installs Debian's package unless its program is there. What it would start by itself is not.
debian() {
    PATH="$PATH:/usr/sbin" command -v "$1" >/dev/null && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        [ -n "${updated-}" ] || apt-get update -q >&2 || true
        updated=yes
        policy=/usr/sbin/policy-rc.d
        if [ -e "$policy" ]; then
            policy=
        else
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod +x "$policy"
        fi
        status=0
        DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$2" >&2 || status=$?
        [ -z "$policy" ] || rm -f "$policy"
        [ "$status" != 0 ] || return 0
    fi
    loudly "$2 can't be installed: what needs it is skipped"
}

parts="$*"
if wanted npm websocket browser; then
    # All in one go: npm takes away what an earlier one without --save put there.
    if ! has reverse-http 1.3.0 || ! has ws 8.23.0 || ! has vite 5.4.21; then
        mkdir -p target/interop
        npm install --prefix target/interop --no-save --no-audit --no-fund reverse-http@1.3.0 ws@8.23.0 vite@5.4.21 >&2 ||
            loudly "npm's reverse-http, ws and vite can't be installed: what needs them is skipped"
    fi
    set -- --modules target/interop/node_modules "$@"
fi
if wanted websocket; then
    if [ ! -e target/interop/python/websockets-15.0.1.dist-info ]; then
        python3 -m pip install --quiet --upgrade --target target/interop/python websockets==15.0.1 >&2 || true
    fi
    if [ -e target/interop/python/websockets ]; then
        set -- --python target/interop/python "$@"
    else
        loudly "Python's websockets can't be installed: what needs it is skipped"
    fi
    debian nginx nginx
fi
if wanted browser; then
    debian chromium chromium
fi
if wanted git; then
    debian git git
fi
if wanted tcp; then
    debian ssh openssh-client
    debian sshd openssh-server
    debian redis-server redis-server
    ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || debian postgres postgresql
fi
if wanted ptth; then
    if tools=$(tests/interop/setup-ptth.sh); then
        set -- --ptth "$tools" "$@"
    else
        loudly "ptth_relay and ptth_server can't be installed: what needs them is skipped"
    fi
fi

exec python3 -B tests/interop/interop.py --programs "$programs" "$@"
