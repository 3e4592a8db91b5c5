#!/usr/bin/env -S python3 -B
"""Measures the relay with one worker and with several, on the cores of everything else and on cores of its own.

    benches/workers.py                          everything: about six minutes
    benches/workers.py --rounds 1               shortly: three quarters of one
    benches/workers.py --write                  into docs/bench/workers.md

Where the relay has cores of its own, agent, origin and load generator have the rest, or the last one if it has all. The origin,
the agent and wrk each use one core at most, so that on few cores they are what limits requests a second: then read how many the
relay would answer if it had nothing to wait for, which is its workers by the CPU time of a request.
"""
import contextlib
import re
import sys

from common import CLOSE, CORES, HOST, PAIRED, Kept, Running
from common import answers, bench_parser, free_port, in_turn, load_figures, medians, pin, prepare, ratio, read, rss_mib, stage, tasks
from common import markdown, say, show, table_of, write, written_by, wrk
from systems import our_agent, our_relay

SHAPES = [
    ("1 KiB, 64 connections", "/1k", 64, []),
    ("1 KiB, 1000 connections", "/1k", 1000, []),
    ("1 KiB, 64 connections, a new one for each request", "/1k", 64, CLOSE),
    ("100 KiB, 64 connections", "/100k", 64, []),
]
COLUMNS = [
    ("req/s", "rps", "{:,.0f}"),
    ("relay: CPU µs a request", "relay_us", "{:.1f}"),
    ("relay alone: req/s", "alone", "{:,.0f}"),
    ("relay: cores in use", "cores", "{:.2f}"),
    ("relay: sleeps a request", "sleeps", "{:.2f}"),
    ("p50 ms", "p50", "{:.2f}"),
    ("p99 ms", "p99", "{:.2f}"),
    ("errors", "errors", "{:.0f}"),
    ("relay: peak RSS MiB", "rss_mib", "{:.1f}"),
    ("others %", "others", "{:.0f}"),
]
COMPARED = {"rps", "relay_us", "alone", "sleeps", "p99"}


def setups():
    """How many workers, on which cores, and where everything else is; None is wherever the system puts it."""
    most = len(CORES)
    counts = sorted({1, 2, most})
    yield from ((workers, None, None) for workers in counts)
    for workers in counts:
        yield workers, CORES[:workers], CORES[min(workers, most - 1) :]


def title(setup):
    workers, own, rest = setup
    counted = f"{workers} worker{'s' * (workers > 1)}"
    return f"{counted}; relay on {cores(own)}, the rest on {cores(rest)}" if own else f"{counted}; all on all cores"


def cores(some):
    if len(some) == 1:
        return f"core {some[0]}"
    without_gaps = some[-1] - some[0] == len(some) - 1
    return f"cores {some[0]}-{some[-1]}" if without_gaps else f"cores {','.join(map(str, some))}"


@contextlib.contextmanager
def standing(here, setup, shape):
    """A relay and its agent as long as the block, warm: their port, the relay's id, and both."""
    (folder, origin, origin_port), (workers, own, rest), (_, path, visitors, more) = here, setup, shape
    port = free_port()
    pin(origin, rest)
    with Running(folder) as running:
        relay = running.start(our_relay(port, "--workers", str(workers), cores=own))
        agent = our_agent(origin_port, f"http://{HOST}:{port}", cores=rest)
        running.start(agent, lambda: answers(port))
        wrk(port, path, visitors, 1, *more, cores=rest)
        yield port, relay, running


def measure(origin, setup, shape, seconds, port, relay, running):
    (workers, _, rest), (_, path, visitors, more) = setup, shape
    pin(origin, rest)
    slept = sleeps(relay)
    figures = load_figures(running, origin, {"relay_us": [relay]}, port, path, visitors, seconds, *more, cores=rest)
    return figures | {
        "alone": min(workers, len(CORES)) / figures["relay_us"] * 1e6,
        "cores": figures["rps"] * figures["relay_us"] / 1e6,
        "sleeps": (sleeps(relay) - slept) / figures["requests"],
        "rss_mib": rss_mib("VmHWM", relay),
    }


def sleeps(relay):
    """How often its threads have gone to sleep for want of work. Each time somebody has to wake them, and has to pay for it."""
    found = (re.search(r"(?m)^voluntary_ctxt_switches:\s+(\d+)", read(f"/proc/{relay}/task/{task}/status")) for task in tasks(relay))
    return sum(int(match[1]) for match in found if match)


def table(shape, runs):
    return table_of(shape[0], COLUMNS, {title(setup): medians(rounds) for setup, rounds in runs.items() if rounds})


def ratios(measured):
    """What several workers do, divided by what one does with the same cores for everybody."""
    yield ["to one worker", "", *(f"{column} ×" for column, key, _ in COLUMNS if key in COMPARED)]
    for shape, runs in measured:
        for (workers, own, rest), rounds in runs.items():
            one = next(kept for (n, o, _), kept in runs.items() if n == 1 and bool(o) == bool(own))
            if workers > 1:
                yield [shape[0], title((workers, own, rest)), *(ratio(rounds, one, key) for _, key, _ in COLUMNS if key in COMPARED)]


def report(measured, options):
    yield from written_by("Workers")
    yield f"How: medians of {options.rounds} rounds of {options.secs} s, the setups in turn within each round, all of them up."
    yield ""
    yield "*Relay alone* is how many requests a second its workers would answer if they had nothing to wait for: their"
    yield "number by the CPU time of a request. *Sleeps a request*: how often one of its threads went to sleep for want of work."
    yield ""
    yield PAIRED
    yield ""
    yield from markdown(ratios(measured))
    for shape, runs in measured:
        yield ""
        yield f"## {shape[0]}"
        yield ""
        yield from markdown(table(shape, runs))


def run(here, shape, options):
    """Of each setup, what its rounds show."""

    def one(setup):
        with relays.using(setup) as up:
            return measure(here[1], setup, shape, options.secs, *up)

    with Kept(lambda setup: standing(here, setup, shape)) as relays:
        return in_turn(setups(), options.rounds, one, title)


def main():
    options = bench_parser(__doc__, "workers.md", 1, "a setup", rounds=20).parse_args()
    prepare("nginx", "wrk", "taskset")
    if len(CORES) < 2:
        sys.exit("there is one core only: nothing to compare")
    measured = []
    with stage() as here:
        for shape in SHAPES:
            say(f"{shape[0]}:")
            measured.append((shape, run(here, shape, options)))
            show(f"{shape[0]} (medians of {options.rounds} rounds of {options.secs} s)", table(*measured[-1]))
    show("Ratios", ratios(measured))
    if options.write:
        write("workers.md", report(measured, options))
    sys.exit(0 if all(len(rounds) == options.rounds for _, runs in measured for rounds in runs.values()) else 1)


if __name__ == "__main__":
    main()
