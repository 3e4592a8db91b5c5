#!/bin/sh
# Installs what the benches need and do not find: nginx, wrk, curl and strace from Debian's packages, bore,
# rathole and the ptth pair from their crates. Run again, it does nothing. What comes from crates goes to
# target/bench-tools and target/interop-tools, and nowhere else.
set -eu
cd "$(dirname "$0")/.."
tools="$PWD/target/bench-tools"

BORE=0.6.0
RATHOLE=0.5.0

missing=
for name in nginx wrk curl strace; do
    # nginx lives in /usr/sbin, which is not on everybody's PATH.
    PATH="$PATH:/usr/sbin" command -v "$name" >/dev/null || missing="$missing $name"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "setup: missing$missing; install them, or run this as root" >&2
        exit 1
    fi
    apt-get update -q
    # RUNLEVEL=1 keeps the package from starting an nginx on port 80: the bench starts its own.
    # shellcheck disable=SC2086
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $missing
fi

# Is the program in target/bench-tools of the wanted version?
has() {
    [ -x "$tools/bin/$1" ] && "$tools/bin/$1" --version 2>&1 | grep -qF "$2"
}

if ! has bore "$BORE"; then
    cargo install --locked --root "$tools" bore-cli --version "$BORE"
fi

if ! has rathole "$RATHOLE"; then
    # Without default features: those bring TLS and Noise, hence OpenSSL, and the bench measures plain TCP. Without
    # --locked: its lock file names a `time` that compilers since Rust 1.80 refuse.
    cargo install --root "$tools" rathole --version "$RATHOLE" --no-default-features --features server,client
fi

if ! tests/interop/setup-ptth.sh >/dev/null; then
    echo "setup: THE PTTH PAIR COULD NOT BE INSTALLED. The bench runs without it." >&2
fi
