#!/usr/bin/env -S python3 -B
"""Measures reverse tunnels side by side on this machine's loopback.

One origin (nginx with files), one load generator (wrk; curl for the large body), and between them in turn: nothing,
nginx as a reverse proxy of one hop, a pair of loops that copy and understand nothing, bore, rathole, HAProxy if there is one that
has reverse HTTP, the ptth relay with its own file server, and ours in each of its dialects. `benches/setup.sh` installs the others
but HAProxy; ours, and the loops, are `cargo build --release --bins --example bare`.

    benches/tunnels.py                              1 KiB, 64 connections
    benches/tunnels.py --bulk                       and one body of 1 GiB
    benches/tunnels.py --close                      a new connection for each request
    benches/tunnels.py --path /100k --conns 1       another file, another number of visitors
    benches/tunnels.py --conns 1 --one-core         everything on one core, origin and load generator too
    benches/tunnels.py --all --rounds 1 --secs 1    every shape of load, shortly
    benches/tunnels.py --all --write                every shape of load, into docs/bench/latest.md and latest.svg

The systems run in turn within each of many short rounds, so that a slow minute of the machine hits all of them, and each figure
is the median of the rounds; one system is compared with another round by round. All stay up meanwhile. CPU time and memory are those
of the tunnel's own processes: neither the origin's nor the load generator's. Everything shares the machine's cores, as it does
wherever such figures are compared, or one of them.
"""
import argparse
import contextlib
import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

import charts
from common import CLOSE, CORES, FILES, GIB, HOST, MIB, REPORTS, ROOT, PAIRED, SIZES, Kept, Running, Trouble
from common import answers, in_turn, load_figures, medians, on, pin, prepare, ratio, stage, wrk, wrk_command
from common import markdown, say, show, table_of, write, written_by
from systems import BARE, LARGE_ONLY, SMALL_ONLY, SYSTEMS, TITLES, System, can_reverse

# Whose figures are divided by whose.
PAIRS = [("ours", rival) for rival in ("rathole", "bore", "haproxy", "bare", "nginx")]
PAIRS += [("ours-ptth", "ptth"), ("ours-comet", "ptth")]


@dataclasses.dataclass(frozen=True)
class Shape:
    """A shape of load."""

    path: str = "/1k"
    conns: int = 64
    close: bool = False
    bulk: bool = False
    one_core: bool = False

    def title(self):
        visitors = "1 connection" if self.conns == 1 else f"{self.conns} connections"
        kept = ", a new one for each request" if self.close else ""
        where = ", everything on one core" if self.one_core else ""
        return f"{SIZES[self.path]} bodies, {visitors}{kept}{where}"

    def cores(self):
        """Where everything runs, the origin and the load generator too; None is wherever the system puts it."""
        return CORES[:1] if self.one_core else None

    def goals(self):
        """What ours is to reach. That of the large body holds whatever else is asked for, but not on one core."""
        large = BULK_GOALS if self.bulk and not self.one_core else {}
        return GOALS.get(dataclasses.replace(self, bulk=False), {}) | large


ALL_SHAPES = [
    Shape(bulk=True),
    Shape(close=True),
    Shape(conns=1),
    Shape(conns=1, one_core=True),
    Shape(path="/100k"),
    Shape(conns=1000),
]

# What ours is to reach in each shape of load, both processes together: at least for what is better more, at most for the rest. They
# were set on a machine of 2 cores on which the origin alone answers some 65,000 requests a second of the first shape.
GOALS = {
    Shape(): {"rps": 45_000, "cpu_us": 15, "p50": 1.5, "p99": 3, "rss_mib": 8e6 / MIB},
    Shape(close=True): {"rps": 15_000, "cpu_us": 40},
    Shape(conns=1): {"rps": 8_000, "cpu_us": 60},
    Shape(path="/100k"): {"rps": 12_000, "cpu_us": 80},
    Shape(conns=1000): {"rps": 40_000, "cpu_us": 18, "p99": 60},
}
BULK_GOALS = {"gib_s": 1.5, "cpu_s_gib": 0.6}
MORE_IS_BETTER = {"rps", "gib_s"}

COLUMNS = [
    ("req/s", "rps", "{:,.0f}"),
    ("CPU µs a request", "cpu_us", "{:.1f}"),
    ("p50 ms", "p50", "{:.2f}"),
    ("p99 ms", "p99", "{:.2f}"),
    ("errors", "errors", "{:.0f}"),
    ("failed rounds", "failed", "{:.0f}"),
    ("GiB/s", "gib_s", "{:.2f}"),
    ("CPU s a GiB", "cpu_s_gib", "{:.2f}"),
    ("peak RSS MiB", "rss_mib", "{:.1f}"),
    ("others %", "others", "{:.0f}"),
]
# Columns that say whether a row is worth anything; to divide them would say nothing.
DOUBTS = {"errors", "failed", "others"}
# What the origin alone does not have: there is no process of a tunnel to count.
TUNNEL_ONLY = {"cpu_us", "cpu_s_gib", "rss_mib"}
# Who is in the picture, by a short name: beside those that poll, all others would look alike.
DRAWN = {
    "origin": "the origin alone",
    "nginx": "nginx (one hop)",
    "bare": "a bare pair of loops",
    "bore": "bore",
    "rathole": "rathole",
    "haproxy": "HAProxy",
    "ours": "ours",
}


# --- one measurement --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def standing(name, folder, origin_port, shape):
    """A system, and its programs as long as the block: warm, which is connections made and buffers grown."""
    with Running(folder, shape.cores()) as running:
        system = SYSTEMS[name](folder, origin_port)
        for process in system.processes:
            running.start(process)
        running.wait_until(lambda: answers(system.port, system.prefix))
        if name not in LARGE_ONLY:
            wrk(*load(system, shape, 1), cores=shape.cores())
        yield system, running


def load(system, shape, seconds):
    """What wrk is told."""
    return [system.port, system.prefix + shape.path, shape.conns, seconds, *(CLOSE if shape.close else [])]


def measure(name, system, running, origin, shape, seconds):
    figures = {}
    if name not in LARGE_ONLY:
        programs = {"cpu_us": running.ids()}
        figures = load_figures(running, origin, programs, *load(system, shape, seconds), cores=shape.cores())
    if shape.bulk and name not in SMALL_ONLY:
        before = running.cpu_seconds()
        taken = fetch_large(system, shape.cores())
        figures["gib_s"] = FILES["/1g"] / GIB / taken
        figures["cpu_s_gib"] = (running.cpu_seconds() - before) / (FILES["/1g"] / GIB)
    figures["rss_mib"] = running.peak_rss_mib()
    if not system.processes:
        figures = {key: value for key, value in figures.items() if key not in TUNNEL_ONLY}
    return figures


def curl_command(system, cores):
    url = f"http://{HOST}:{system.port}{system.prefix}/1g"
    return on(cores, ["curl", "-s", "-o", "/dev/null", "-w", "%{size_download} %{time_total}", url])


def fetch_large(system, cores=None):
    out = subprocess.run(curl_command(system, cores), capture_output=True, text=True)
    size, taken = out.stdout.split()
    if int(size) != FILES["/1g"]:
        raise Trouble(f"the large body ended after {size} bytes, curl says {out.returncode}")
    return float(taken)


# --- tables -----------------------------------------------------------------------------------------------------------


def table(results):
    return table_of("system", COLUMNS, {TITLES[name]: figures for name, figures in results.items()})


def ratios(measured, name, rival):
    """One system's figures divided by another's, a row for each shape; nothing if neither was measured."""
    both = [(shape, runs[name], runs[rival]) for shape, runs, _ in measured if runs.get(name) and runs.get(rival)]
    columns = [c for c in COLUMNS if c[1] not in DOUBTS and any(ratio(mine, theirs, c[1]) for _, mine, theirs in both)]
    if both:
        yield [f"{name} to {rival}", *(f"{title} ×" for title, _, _ in columns)]
    for shape, mine, theirs in both:
        yield [shape.title(), *(ratio(mine, theirs, key) for _, key, _ in columns)]


def goals(measured):
    """What ours is to reach, and what it did; nothing if there are no goals for what was measured."""
    rows = [(shape, results["ours"]) for shape, _, results in measured if "ours" in results and shape.goals()]
    if rows:
        yield ["to reach", "", "goal", "ours", ""]
    for shape, figures in rows:
        for title, key, form in COLUMNS:
            goal = shape.goals().get(key)
            if goal is not None:
                wanted = ("≥ " if key in MORE_IS_BETTER else "≤ ") + form.format(goal)
                reached = form.format(figures[key]) if key in figures else ""
                yield [shape.title(), title, wanted, reached, mark(figures, key, goal)]


def mark(figures, key, goal):
    """Whether a goal is met. A figure that came with errors, or is the median of some of the rounds only, meets none."""
    words = {"errors": "errors", "failed": "failed rounds"}
    doubts = [f"{word}: {figures[doubt]:.0f}" for doubt, word in words.items() if figures.get(doubt)]
    if doubts:
        return f"not met ({', '.join(doubts)})"
    met = key in figures and (figures[key] >= goal if key in MORE_IS_BETTER else figures[key] <= goal)
    return "met" if met else "not met"


def chart(measured):
    rows = []
    for shape, _, results in measured:
        row = []
        for title, key, form in COLUMNS[:2]:
            goal = shape.goals().get(key)
            row.append((title, [
                (DRAWN[name], figures[key], form.format(figures[key]), name == "ours", goal if name == "ours" else None)
                for name, figures in results.items() if name in DRAWN and key in figures
            ]))
        rows.append((shape.title(), [(title, figures) for title, figures in row if figures]))
    return charts.bars("Requests a second, and CPU time of both ends for each; a line is what ours is to reach", rows)


def report(measured, options):
    """What `--write` keeps: the figures, and everything that somebody needs to measure them again."""
    yield from written_by("Measured")
    yield f"How: medians of {options.rounds} rounds of {options.secs} s, the systems in turn within each round, all of them up."
    yield ""
    yield "CPU time and memory are those of the tunnel's processes, both ends together. Errors (broken connections,"
    yield "timeouts, answers other than 2xx and 3xx) are summed, and memory is the most of all rounds. *Others* is what programs"
    yield "beside tunnel, origin and load generator took of the machine's CPU time meanwhile."
    yield ""
    yield "## Ratios"
    yield ""
    yield PAIRED
    for name, rival in PAIRS:
        rows = list(ratios(measured, name, rival))
        if rows:
            yield ""
            yield from markdown(rows)
    yield ""
    yield "![Requests a second and CPU time by system](latest.svg)"
    yield ""
    yield "## To reach"
    yield ""
    yield from markdown(goals(measured))
    for shape, _, results in measured:
        yield ""
        yield f"## {shape.title()}{'; one body of 1 GiB' if shape.bulk else ''}"
        yield ""
        yield from markdown(table(results))
        yield ""
        close = CLOSE if shape.close else []
        yield f"    {shlex.join(wrk_command('PORT', shape.path, shape.conns, options.secs, *close, cores=shape.cores()))}"
        if shape.bulk:
            yield f"    {shlex.join(curl_command(System([], 'PORT'), shape.cores()))}"
    yield ""
    yield "## What ran"
    yield ""
    yield "PORT stands for a port that the system chose."
    yield ""
    for command in commands(options.only):
        yield f"    {command}"


def commands(names):
    """Each system's commands, with nothing in them that is true of this run alone."""
    folder = pathlib.Path("FOLDER")
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            for process in SYSTEMS[name](pathlib.Path(scratch), "PORT").processes:
                text = shlex.join(map(str, process.command)).replace(scratch, str(folder)).replace(f"{ROOT}/", "")
                yield re.sub(r"(127\.0\.0\.1:|--port )\d+", r"\1PORT", text)


# --- the whole run ----------------------------------------------------------------------------------------------------


def run(shape, names, options, folder, origin, origin_port):
    """Of each system, what its rounds show."""

    def one(name):
        with systems.using(name) as (system, running):
            return measure(name, system, running, origin, shape, options.secs)

    def said(figures):
        return f"{figures['rps']:,.0f} req/s" if "rps" in figures else f"{figures['gib_s']:.2f} GiB/s"

    pin(origin, shape.cores())
    with Kept(lambda name: standing(name, folder, origin_port, shape)) as systems:
        return in_turn([name for name in names if shape.bulk or name not in LARGE_ONLY], options.rounds, one, said=said)


def median(kept, failed):
    """The figures of a system; how many rounds there are none of, only if there are such."""
    return (medians(kept) if kept else {}) | ({"failed": failed} if failed else {})


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default="/1k", choices=list(FILES), help="the file that is asked for (default /1k)")
    parser.add_argument("--conns", type=int, default=64, help="visitors' connections (default 64)")
    parser.add_argument("--close", action="store_true", help="a new connection for each request")
    parser.add_argument("--bulk", action="store_true", help="also one body of 1 GiB")
    parser.add_argument("--one-core", action="store_true", help="everything on one core")
    parser.add_argument("--all", action="store_true", help="every shape of load that we have a goal for, and one core")
    parser.add_argument("--secs", type=int, default=2, help="seconds of load a system and round (default 2)")
    parser.add_argument("--rounds", type=int, default=12, help="(default 12)")
    parser.add_argument("--only", default=",".join(SYSTEMS), help=f"some of {','.join(SYSTEMS)}")
    parser.add_argument("--write", action="store_true", help=f"write {REPORTS.relative_to(ROOT)}/latest.md and latest.svg")
    options = parser.parse_args()
    options.only = options.only.split(",")
    unknown = [name for name in options.only if name not in SYSTEMS]
    if unknown:
        parser.error(f"--only: there is no {', '.join(unknown)}")
    return options


def main():
    options = arguments()
    prepare("nginx", "wrk", "curl", "taskset")
    if any(name.startswith("bare") for name in options.only) and not BARE.exists():
        sys.exit("bare is missing: run cargo build --release --example bare")
    if "haproxy" in options.only and not can_reverse():
        say("haproxy is left out: there is none, or none of 2.9 or newer")
        options.only.remove("haproxy")
    shapes = ALL_SHAPES if options.all else [Shape(options.path, options.conns, options.close, options.bulk, options.one_core)]
    measured = []
    with stage() as (folder, origin, port):
        if any(shape.bulk for shape in shapes):
            fetch_large(System([], port))  # For nothing, so that the first system finds the file in memory too.
        for shape in shapes:
            say(f"{shape.title()}:")
            runs = run(shape, options.only, options, folder, origin, port)
            results = {name: median(kept, options.rounds - len(kept)) for name, kept in runs.items()}
            measured.append((shape, runs, results))
            show(f"{shape.title()} (medians of {options.rounds} rounds of {options.secs} s)", table(results))
    for name, rival in PAIRS:
        rows = list(ratios(measured, name, rival))
        if rows:
            show("Ratios", rows)
    if list(goals(measured)):
        show("Goals", goals(measured))
    if options.write:
        write("latest.md", report(measured, options))
        write("latest.svg", [chart(measured)])
    sys.exit(1 if any("failed" in figures for _, _, results in measured for figures in results.values()) else 0)


if __name__ == "__main__":
    main()
