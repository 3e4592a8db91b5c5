#!/bin/sh
# Installs the ptth relay and its file server into target/interop-tools, and prints that folder's bin. Run again, it
# does nothing. Both are AGPL: they are run, and nothing of theirs is copied.
#
# Ends with 1, and the reason on stderr, where they cannot be had.
set -eu
cd "$(dirname "$0")/../.."
tools="$PWD/target/interop-tools"

RELAY=2.0.0
SERVER=2.1.0

say() {
    echo "setup-ptth: $*" >&2
}

# cargo install keeps a list of what it put there.
has() {
    [ -x "$tools/bin/$1" ] && grep -qsF "\"$1 $2 " "$tools/.crates.toml"
}

if ! has ptth_relay "$RELAY" || ! has ptth_server "$SERVER"; then
    if ! command -v pkg-config >/dev/null || ! pkg-config --exists openssl; then
        if [ "$(id -u)" != 0 ]; then
            say "missing: libssl-dev and pkg-config; install them, or run this as root"
            exit 1
        fi
        apt-get update -q >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends libssl-dev pkg-config >&2
    fi
fi

# A target folder that is set for our own build would get theirs too.
unset CARGO_TARGET_DIR

if ! has ptth_relay "$RELAY"; then
    cargo install --locked --root "$tools" --bin ptth_relay ptth_relay --version "$RELAY" >&2
fi

if ! has ptth_server "$SERVER"; then
    # Its lock file names an openssl-sys that does not know OpenSSL 3, and without its lock file other versions of what
    # reads and writes MessagePack come in, which is not what it was published with. Hence its sources, in a folder
    # where the lock file can be changed for those two alone.
    cargo info --quiet "ptth_server@$SERVER" >/dev/null
    sources=$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"ptth_server-$SERVER" | head -n 1)
    copy="$tools/ptth_server-$SERVER"
    rm -rf "$copy"
    mkdir -p "$copy"
    cp -R "$sources/." "$copy"
    # Else cargo takes it for a part of our workspace.
    grep -q '^\[workspace\]' "$copy/Cargo.toml" || printf '\n[workspace]\n' >>"$copy/Cargo.toml"
    (cd "$copy" && cargo update --quiet -p openssl -p openssl-sys) >&2
    cargo install --locked --root "$tools" --bin ptth_server --path "$copy" >&2
    rm -rf "$copy"
fi

echo "$tools/bin"
