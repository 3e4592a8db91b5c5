#!/usr/bin/env -S python3 -B
"""Measures whether the workers of a relay are in each other's way: each may use a share of a core and no more, so that the machine
has time for all of them and for everything else, and as many workers as there are serve as many times the requests if none waits for
another.

    benches/shares.py                           a minute and a half
    benches/shares.py --rounds 1 --secs 1       shortly
    benches/shares.py --write                   into docs/bench/shares.md

Needs to be root, and a Linux where the `cpu` controller of cgroup v1 can be written to: it takes single threads.
"""
import contextlib
import os
import pathlib
import sys
import time

from common import HOST, Running, Trouble
from common import answers, bench_parser, free_port, in_turn, load_figures, medians, prepare, read, stage, tasks, wrk
from common import markdown, say, show, table_of, write, written_by
from systems import our_agent, our_relay

GROUPS = pathlib.Path("/sys/fs/cgroup/cpu")
# A quota is a millisecond at least: 5% of this.
PERIOD_US = 20_000
COUNTS = [1, 2, 4, 8]
VISITORS = 256
READY_SECONDS = 5
COLUMNS = [
    ("to one worker: req/s ×", "share", "{:.2f}"),
    ("req/s", "rps", "{:,.0f}"),
    ("relay: cores in use", "cores", "{:.2f}"),
    ("relay: CPU µs a request", "relay_us", "{:.1f}"),
    ("p50 ms", "p50", "{:.1f}"),
    ("errors", "errors", "{:.0f}"),
    ("others %", "others", "{:.0f}"),
]


@contextlib.contextmanager
def shares(count):
    """So many groups of which each has a share of a core; gone behind the block."""
    groups = [GROUPS / f"ptth-bench-{os.getpid()}-{n}" for n in range(count)]
    try:
        for group in groups:
            group.mkdir()
        yield groups
    finally:
        for group in groups:
            if group.exists():
                group.rmdir()


def limit(relay, groups, share):
    """Gives each worker's thread a group of its own."""
    until = time.monotonic() + READY_SECONDS
    while len(threads := workers_of(relay)) < len(groups):
        if time.monotonic() > until:
            raise Trouble(f"the relay has {len(threads)} workers where it was to have {len(groups)}")
        time.sleep(0.01)
    for thread, group in zip(threads, groups, strict=True):
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(PERIOD_US * share // 100))
        (group / "tasks").write_text(thread)


def workers_of(relay):
    """The threads of its workers: the first, and those that are called so. Others look names up."""
    return [task for task in tasks(relay) if int(task) == relay or read(f"/proc/{relay}/task/{task}/comm") == "worker\n"]


def measure(here, workers, options):
    folder, origin, origin_port = here
    port = free_port()
    with shares(workers) as groups, Running(folder) as running:
        relay = running.start(our_relay(port, "--workers", str(workers)))
        running.start(our_agent(origin_port, f"http://{HOST}:{port}"), lambda: answers(port))
        limit(relay, groups, options.share)
        wrk(port, "/1k", VISITORS, 1)
        figures = load_figures(running, origin, {"relay_us": [relay]}, port, "/1k", VISITORS, options.secs)
        return figures | {"cores": figures["rps"] * figures["relay_us"] / 1e6}


def run(here, options):
    runs = in_turn(COUNTS, options.rounds, lambda workers: measure(here, workers, options))
    return {workers: medians(kept) for workers, kept in runs.items() if kept}


def table(results):
    share = {n: {"share": figures["rps"] / results[1]["rps"]} for n, figures in results.items() if 1 in results}
    return table_of("workers", COLUMNS, {str(n): figures | share.get(n, {}) for n, figures in results.items()})


def report(results, options):
    yield from written_by("Shares of a core")
    yield f"How: 1 KiB, {VISITORS} connections; each worker may use {options.share}% of a core; medians of {options.rounds} rounds of"
    yield f"{options.secs} s, the numbers of workers in turn within each round."
    yield ""
    yield from markdown(table(results))


def arguments():
    parser = bench_parser(__doc__, "shares.md", 5, "a number of workers")
    parser.add_argument("--share", type=int, default=5, help="percent of a core that a worker may use (default 5)")
    return parser.parse_args()


def main():
    options = arguments()
    prepare("nginx", "wrk")
    if not os.access(GROUPS / "tasks", os.W_OK):
        say("left out: no cgroup v1 `cpu` controller that could be written to")
        return
    with stage() as here:
        results = run(here, options)
    show(f"Shares of a core (medians of {options.rounds} rounds of {options.secs} s)", table(results))
    if options.write:
        write("shares.md", report(results, options))
    sys.exit(0 if len(results) == len(COUNTS) else 1)


if __name__ == "__main__":
    main()
