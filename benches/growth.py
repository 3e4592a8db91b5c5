#!/usr/bin/env -S python3 -B
"""Measures what grows with the number of tunnels and visitors, from one to ten thousand.

    benches/growth.py                               everything: about twelve minutes
    benches/growth.py --rounds 1 --secs 1           shortly: about a minute and a half
    benches/growth.py --write                       into docs/bench/growth.md and growth.svg

Four curves, all with bodies of 1 KiB:

    idle tunnels     64 visitors of one tunnel, beside so many others that nobody asks for
    busy tunnels     64 visitors, each request for the next one of so many tunnels
    idle visitors    64 visitors, beside so many whose connections rest
    busy visitors    so many visitors of one tunnel

The tunnel that is asked is served by ptth-reverse and the origin. All other agents, and whoever rests, are one light
program (benches/crowd.py). Where it serves all tunnels, requests a second are its own: there, read what the relay spends on one.
"""
import sys

import charts
from common import HOST, PAIRED, Running
from common import answers, bench_parser, free_port, in_turn, load_figures, medians, prepare, ratio, rss_mib, stage, wrk
from common import markdown, say, show, table_of, write, written_by
from systems import our_agent, our_relay

VISITORS = 64
# Links of all busy tunnels together, at least: none of so many visitors then waits for a link.
LINKS = 2 * VISITORS
# wrk's clock runs while its visitors connect, which takes more than this many a second: they are given more time.
MANY = 1000
# All that a relay limits by default would be in the way of one address with ten thousand visitors, or of ten thousand tunnels beside
# one; and whoever rests is to stay.
LIMITS = ["tunnels", "connections", "address-connections", "tunnel-requests", "waiting"]
RELAY = [word for name in LIMITS for word in ("--limit", f"{name}=20000")] + ["--timeout", "idle=10m", "--quiet"]

COLUMNS = [
    ("req/s", "rps", "{:,.0f}"),
    ("relay: CPU µs a request", "relay_us", "{:.1f}"),
    ("× that of the first row", "grown", "{}"),
    ("both ends", "cpu_us", "{:.1f}"),
    ("p50 ms", "p50", "{:.2f}"),
    ("p99 ms", "p99", "{:.2f}"),
    ("errors", "errors", "{:.0f}"),
    ("relay: RSS MiB", "rss", "{:.1f}"),
    ("others %", "others", "{:.0f}"),
]
SPREAD = """
local asked, at = {}, 0
for n = 1, %d do asked[n] = "GET /1k HTTP/1.1\\r\\nHost: t" .. n .. ".localhost\\r\\n\\r\\n" end
function request() at = at %% #asked + 1 return asked[at] end
"""


# --- one measurement --------------------------------------------------------------------------------------------------


def idle_tunnels(stage, count, seconds):
    with Beside(stage) as running:
        if count > 1:
            running.crowd("agents", running.address, count - 1)
        return running.load(VISITORS, seconds)


def busy_tunnels(stage, count, seconds):
    with Beside(stage, agent=False) as running:
        running.crowd("agents", running.address, count, "--links", -(-LINKS // count))
        script = stage[0] / "spread.lua"
        script.write_text(SPREAD % count)
        return running.load(VISITORS, seconds, "-s", script)


def idle_visitors(stage, count, seconds):
    with Beside(stage) as running:
        running.crowd("visitors", running.address, count)
        return running.load(VISITORS, seconds)


def busy_visitors(stage, count, seconds):
    with Beside(stage) as running:
        return running.load(count, seconds)


CURVES = {
    "idle tunnels": idle_tunnels,
    "busy tunnels": busy_tunnels,
    "idle visitors": idle_visitors,
    "busy visitors": busy_visitors,
}


class Beside(Running):
    """A relay, and an agent of it unless others do its work."""

    def __init__(self, stage, agent=True):
        folder, self.origin, origin_port = stage
        super().__init__(folder)
        self.port, self.agent, self.origin_port = free_port(), agent, origin_port
        self.address = f"{HOST}:{self.port}"

    def __enter__(self):
        self.relay = self.start(our_relay(self.port, *RELAY))
        self.ends = [self.relay]
        if self.agent:
            agent = our_agent(self.origin_port, f"http://{self.address}")
            self.ends.append(self.start(agent, lambda: answers(self.port)))
        return self

    def load(self, visitors, seconds, *more):
        warm = 1
        if visitors > MANY:
            warm, seconds = 3, 3 * seconds
        wrk(self.port, "/1k", visitors, warm, *more)
        programs = {"relay_us": [self.relay]} | ({"cpu_us": self.ends} if self.agent else {})
        figures = load_figures(self, self.origin, programs, self.port, "/1k", visitors, seconds, *more)
        return figures | {"rss": rss_mib("VmRSS", self.relay)}


# --- tables and pictures ----------------------------------------------------------------------------------------------


def table(name, points):
    return table_of(name, COLUMNS, {f"{count:,}": figures for count, figures in points.items()})


def chart(measured):
    panels = []
    for caption, key in (("Requests a second", "rps"), ("The relay's CPU time for a request, µs", "relay_us")):
        named = {name: [(count, figures[key]) for count, figures in points.items()] for name, points in measured.items()}
        panels.append((caption, "tunnels or visitors", named))
    return charts.curves("From one tunnel or visitor to ten thousand", panels)


def report(measured, options):
    yield from written_by("Growth")
    yield f"How: medians of {options.rounds} rounds of {options.secs} s. 1 KiB bodies; {VISITORS} visitors, but where their number is what"
    yield "grows."
    yield ""
    yield PAIRED
    yield ""
    yield "![Requests a second and CPU time by the number of tunnels and visitors](growth.svg)"
    yield ""
    yield "Busy tunnels are served by one light program, which is what limits their requests a second: read what the relay"
    yield f"spends. Its own limits were raised: `{' '.join(RELAY)}`."
    for name, points in measured.items():
        yield ""
        yield f"## {name.capitalize()}"
        yield ""
        yield from markdown(table(name, points))


# --- the whole run ----------------------------------------------------------------------------------------------------


def run(name, stage, options):
    measure = CURVES[name]
    runs = in_turn(options.counts, options.rounds, lambda count: measure(stage, count, options.secs), "{:,}".format)
    least = runs[min(runs)]
    return {
        count: medians(kept) | ({} if kept is least else {"grown": ratio(kept, least, "relay_us")})
        for count, kept in runs.items()
        if kept
    }


def arguments():
    parser = bench_parser(__doc__, "growth.md and growth.svg", 2, "a point", rounds=7)
    parser.add_argument("--counts", default="1,10,100,1000,10000", help="(default 1,10,100,1000,10000)")
    parser.add_argument("--only", default=",".join(CURVES), help=f"some of {','.join(CURVES)}")
    options = parser.parse_args()
    options.counts = [int(count) for count in options.counts.split(",")]
    options.only = options.only.split(",")
    return options


def main():
    options = arguments()
    prepare("nginx", "wrk")
    measured = {}
    with stage() as here:
        for name in options.only:
            say(f"{name}:")
            measured[name] = run(name, here, options)
            show(f"{name} (medians of {options.rounds} rounds of {options.secs} s)", table(name, measured[name]))
    if options.write:
        write("growth.md", report(measured, options))
        write("growth.svg", [chart(measured)])
    sys.exit(0 if all(len(points) == len(options.counts) for points in measured.values()) else 1)


if __name__ == "__main__":
    main()
