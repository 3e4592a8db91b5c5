#!/usr/bin/env -S python3 -B
"""Measures tunnels whose two ends are far from each other: 50 and 200 ms of round trip, one visitor and a hundred, small
bodies and large ones, ours beside rathole and bore.

    benches/roads.py                                  everything: about nine minutes
    benches/roads.py --rounds 1 --trips 50            shortly: about a minute and a half
    benches/roads.py --write                          into docs/bench/roads.md

The road between the ends is benches/road.py, which delays, charges a round trip for connecting, and loses nothing.
Visitors and origin are near their end of the tunnel. Each cell has programs of its own, which have rested before it: what
a visitor meets who comes after a while. The systems run in turn within each round, and each figure is the median of the
rounds. A request's time begins when its visitor sends it, or connects, if it is its first.
"""
import argparse
import dataclasses
import math
import selectors
import socket
import sys
import time

from common import FILES, HOST, MIB, REPORTS, ROOT, SIZES, Process, Running, Trouble
from common import answers, cpu_seconds, free_address, in_turn, medians, prepare, stage
from common import markdown, say, show, write, written_by
from systems import SYSTEMS, TITLES

RIVALS = ["rathole", "bore"]
# How long programs rest before a cell: longer than any of them takes to make ready for the next visitor.
REST_SECONDS = 1
# A cell that takes longer than this has failed.
PATIENCE_SECONDS = 60
# Within this nobody is ahead: the road alone is as uneven.
EVEN = 0.05


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number of visitors at once, each with so many requests one after another on one connection. `again`: so many times, with
    a rest before each."""

    visitors: int
    requests: int
    path: str = "/1k"
    again: int = 1

    def title(self):
        visitors = f"{self.visitors} visitor{'s' * (self.visitors > 1)}"
        if self.requests == 1 and self.path == "/1k":
            return f"{SIZES[self.path]}, {visitors} after a rest, one request"
        return f"{SIZES[self.path]}, {visitors}, {self.requests} request{'s' * (self.requests > 1)} each"


CELLS = [
    Cell(1, 1, again=3),
    Cell(100, 1, again=2),
    Cell(1, 20),
    Cell(100, 20),
    Cell(1, 5, "/10m"),
    # A GiB in all.
    Cell(100, 1, "/10m"),
]

COLUMNS = [
    ("median ms", "median", "{:.0f}"),
    ("p99 ms", "p99", "{:.0f}"),
    ("first byte: median ms", "first", "{:.0f}"),
    ("in all: req/s", "rps", "{:,.1f}"),
    ("MiB/s", "mib_s", "{:,.1f}"),
    ("road %", "road", "{:.0f}"),
    ("failed", "failed", "{:.0f}"),
]
MORE_IS_BETTER = {"rps", "mib_s"}
COMPARED = ["median", "p99", "rps"]


# --- visitors ---------------------------------------------------------------------------------------------------------


class Visitor:
    """Asks for a file some times over one connection, and notes how long each took."""

    def __init__(self, port, path, requests):
        self.size, self.left = FILES[path], requests
        self.request = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
        self.times = []  # Of each request, to the first byte and to the last.
        self.begin = time.monotonic()
        self.socket = socket.create_connection((HOST, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.ask()

    def ask(self):
        self.socket.send(self.request)
        self.head, self.body, self.first = b"", None, None

    def read(self, buffer):
        """Is it done?"""
        try:
            n = self.socket.recv_into(buffer)
        except BlockingIOError:
            return False
        if not n:
            raise Trouble(f"a connection ended where {self.left} answers were missing")
        now = time.monotonic()
        self.first = self.first or now - self.begin
        if self.body is None:
            self.head += buffer[:n]
            head, end, body = self.head.partition(b"\r\n\r\n")
            if not end:
                return False
            if not head.startswith(b"HTTP/1.1 200"):
                raise Trouble(head.decode(errors="replace").replace("\r\n", "; "))
            self.body = n = len(body)
        else:
            self.body += n
        if self.body < self.size:
            return False
        self.times.append((self.first, now - self.begin))
        self.left -= 1
        if self.left:
            self.begin = now
            self.ask()
        return not self.left


def visit(port, cell):
    """All visitors of a cell at once: the times of their requests, and how long all took together."""
    begin = time.monotonic()
    selector, buffer, times = selectors.DefaultSelector(), memoryview(bytearray(MIB)), []
    visitors = [Visitor(port, cell.path, cell.requests) for _ in range(cell.visitors)]
    try:
        for visitor in visitors:
            selector.register(visitor.socket, selectors.EVENT_READ, visitor)
        while selector.get_map():
            if time.monotonic() > begin + PATIENCE_SECONDS:
                raise Trouble(f"{len(selector.get_map())} visitors were still waiting after {PATIENCE_SECONDS} s")
            for key, _ in selector.select(1):
                if key.data.read(buffer):
                    selector.unregister(key.data.socket)
                    times.extend(key.data.times)
    finally:
        for visitor in visitors:
            visitor.socket.close()
    return times, time.monotonic() - begin


def rank(values, part):
    return sorted(values)[math.ceil(part * len(values)) - 1]


# --- one measurement --------------------------------------------------------------------------------------------------


def road(trip):
    """What stands between a server's address and its client. The client dials the same port at another address."""

    def between(address):
        host, port = address
        near = (free_address(port, "127.0.8"), port)
        command = [sys.executable, "-B", ROOT / "benches/road.py", f"{near[0]}:{port}", f"{host}:{port}", "--trip", str(trip)]
        return near, [Process(command, near)]

    return between


def measure(name, folder, origin_port, cell, trip):
    with Running(folder) as running:
        system = SYSTEMS[name](folder, origin_port, road(trip))
        ids = {process.name: running.start(process) for process in system.processes}
        running.wait_until(lambda: answers(system.port))
        times, seconds, on_road = [], 0, 0
        for _ in range(cell.again):
            time.sleep(REST_SECONDS)
            before = cpu_seconds(ids["python3"])
            more, taken = visit(system.port, cell)
            on_road += cpu_seconds(ids["python3"]) - before
            times, seconds = times + more, seconds + taken
    whole = [last for _, last in times]
    return {
        "median": rank(whole, 0.5) * 1e3,
        "p99": rank(whole, 0.99) * 1e3,
        "first": rank([first for first, _ in times], 0.5) * 1e3,
        "rps": len(times) / seconds,
        "mib_s": len(times) * FILES[cell.path] / MIB / seconds,
        "road": on_road / seconds * 100,
    }


# --- tables -----------------------------------------------------------------------------------------------------------


def table(measured, trip):
    yield [f"{trip} ms there and back", "", *(title for title, _, _ in COLUMNS)]
    for (cell, at), results in measured.items():
        if at == trip:
            for name, figures in results.items():
                cells = [form.format(figures[key]) if key in figures else "" for _, key, form in COLUMNS]
                yield [cell.title(), TITLES[name], *cells]


def ratios(measured):
    """Ours divided by each rival, and whether it is behind anywhere."""
    titles = {key: title for title, key, _ in COLUMNS}
    yield ["ours to", "", "there and back", *(f"{titles[key]} ×" for key in COMPARED), ""]
    for (cell, trip), results in measured.items():
        for rival in RIVALS:
            if "ours" in results and rival in results:
                shares = {key: share(results["ours"], results[rival], key) for key in COMPARED}
                written = ["" if value is None else f"{value:.2f}" for value in shares.values()]
                yield [rival, cell.title(), f"{trip} ms", *written, verdict(results["ours"], results[rival], shares)]


def share(mine, theirs, key):
    return mine[key] / theirs[key] if key in mine and key in theirs else None


def verdict(mine, theirs, shares):
    if mine["failed"] != theirs["failed"]:
        return "failed" if mine["failed"] > theirs["failed"] else "it failed"
    worse = [1 - value if key in MORE_IS_BETTER else value - 1 for key, value in shares.items() if value is not None]
    return "behind" if any(value > EVEN for value in worse) else "as good or better"


def report(measured, options):
    yield from written_by("Long roads")
    yield f"How: medians of {options.rounds} rounds, the systems in turn within each round."
    yield ""
    yield f"*Behind* is who is more than {EVEN:.0%} worse in one of the figures of a row. *Road %* is how much of a core the program"
    yield "that delays has used: above 90 it is what was measured. *Failed* counts rounds in which a visitor was not served."
    yield ""
    yield "## Ratios"
    yield ""
    yield from markdown(ratios(measured))
    for trip in options.trips:
        yield ""
        yield f"## {trip} ms"
        yield ""
        yield from markdown(table(measured, trip))


# --- the whole run ----------------------------------------------------------------------------------------------------


def run(cell, trip, options, folder, origin_port):
    said = "{median:.0f} ms, {rps:,.1f} req/s".format_map
    runs = in_turn(options.only, options.rounds, lambda name: measure(name, folder, origin_port, cell, trip), said=said)
    failed = {name: {"failed": options.rounds - len(kept)} for name, kept in runs.items()}
    return {name: (medians(kept) if kept else {}) | failed[name] for name, kept in runs.items()}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trips", default="50,200", help="milliseconds there and back (default 50,200)")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument("--only", default=",".join([*RIVALS, "ours"]), help=f"some of {','.join([*RIVALS, 'ours'])}")
    parser.add_argument("--cells", default=",".join(map(str, range(len(CELLS)))), help=cells_help())
    parser.add_argument("--write", action="store_true", help=f"write {REPORTS.relative_to(ROOT)}/roads.md")
    options = parser.parse_args()
    options.trips = [int(trip) for trip in options.trips.split(",")]
    options.only = options.only.split(",")
    options.cells = [CELLS[int(n)] for n in options.cells.split(",")]
    return options


def cells_help():
    return "some of " + "; ".join(f"{n}: {cell.title()}" for n, cell in enumerate(CELLS))


def main():
    options = arguments()
    prepare("nginx")
    measured = {}
    with stage() as (folder, _, port):
        for trip in options.trips:
            for cell in options.cells:
                say(f"{cell.title()}, {trip} ms:")
                measured[cell, trip] = run(cell, trip, options, folder, port)
            show(f"{trip} ms (medians of {options.rounds} rounds)", table(measured, trip))
    show("Ratios", ratios(measured))
    if options.write:
        write("roads.md", report(measured, options))
    sys.exit(0 if not any(figures["failed"] for results in measured.values() for figures in results.values()) else 1)


if __name__ == "__main__":
    main()
