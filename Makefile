# Each target is one line to use; `make help` lists them.
.PHONY: help run test check small fmt bench cost interop desync chaos fixtures fuzz deny install clean
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Start a tunnel to the built-in page: a relay and an agent on this machine
	@cargo run --quiet --release --bin ptth-reverse -- hello

test: ## Run all tests (unit, fixtures, two machines on a fake wire, the built programs over loopback)
	cargo test --workspace

check: ## Everything else that must hold: format, lints, docs, no_std, fuzz targets
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
	$(NO_STD)
	cargo clippy --no-default-features --bin ptth-reverse -- -D warnings
	cargo build --package ptth-fuzz --bins

# Linking the protocol crate into a program without the standard library: had it or a dependency drawn std in, there would
# be two panic handlers and no program.
NO_STD = cargo build --release --manifest-path proto/no-std/Cargo.toml --target-dir target/no-std

# The standard library comes with what names the functions in a panic's backtrace, a sixth of such a program; without that and as
# small as the rest it has to be built here, which cargo still counts as unstable.
small: ## Build an agent of 0.6 MB, without a relay of its own (installs the source of the standard library)
	test -d $$(rustc --print sysroot)/lib/rustlib/src || rustup component add rust-src
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="-C force-unwind-tables=no" cargo build --profile small --bin ptth-reverse \
	  --no-default-features --target $$(rustc --print host-tuple) -Z build-std=std,panic_abort -Z build-std-features=
	@ls -l $${CARGO_TARGET_DIR:-target}/$$(rustc --print host-tuple)/small/ptth-reverse

fmt: ## Format the code
	cargo fmt --all

bench: ## Measure everything, beside nginx, bore, rathole and ptth, into docs/bench (installs them; an hour)
	benches/setup.sh
	cargo build --release --bins --example bare
	failed=0; for bench in "tunnels --all" roads growth memory workers shares; do set -- $$bench; name=$$1; shift; \
	  python3 -B benches/$$name.py "$$@" --write || failed=1; done; exit $$failed

cost: ## Count what a request costs: system calls and instructions of either program (needs strace and valgrind)
	cargo build --profile profiling
	benches/costs.py calls
	benches/costs.py instructions

interop: ## Let programs that nobody here wrote talk to ours and through ours (installs them: npm, pip, cargo, apt-get)
	cargo build
	tests/interop/run.sh
	tests/desync/run.sh

desync: ## Feed what could be read in two ways through a tunnel to nginx, Node and Python, and odd answers back
	cargo build
	tests/desync/run.sh

chaos: ## Stop, kill and starve programs, break wires, let visitors leave: every request is accounted for (ten minutes)
	cargo build --release
	tests/chaos/run.sh

fixtures: ## Write the generated fixtures anew (the printed table of legal moves)
	PTTH_FIXTURES=write cargo test --package ptth-proto --test table

fuzz: ## Fuzz each parser and machine for a minute (installs cargo-fuzz if it is missing)
	cargo fuzz --version > /dev/null 2>&1 || cargo install cargo-fuzz
	PTTH_CORPUS=write cargo test --quiet --package ptth-fuzz every_target_has_seeds
	sanitizer=$$($(SANITIZER)); for target in $$(cd fuzz/fuzz_targets && ls *.rs | sed 's/\.rs$$//'); do \
	  RUSTC_BOOTSTRAP=1 CARGO_PROFILE_RELEASE_LTO=off cargo fuzz run --sanitizer $$sanitizer $$target -- \
	    -max_total_time=$(FUZZ_SECONDS) -timeout=25 -print_final_stats=1 || exit 1; done

FUZZ_SECONDS = 60
# Our own code has nothing unsafe that the address sanitizer could find fault with, its dependencies have: where it can be linked
# it looks on. Not with link-time optimization, which loses symbols of the two together.
SANITIZER = mkdir -p target && echo 'fn main() {}' | RUSTC_BOOTSTRAP=1 rustc -Zsanitizer=address -o target/sanitized - \
	2> /dev/null && target/sanitized && echo address || echo none

deny: ## Check licences and advisories of the dependencies (needs cargo-deny)
	cargo deny check

install: ## Install both programs
	cargo install --path .

clean: ## Remove what was built
	cargo clean
