#!/usr/bin/env -S python3 -B
"""Measures what the programs keep in memory: idle agents, a relay under idle links and idle visitors, both ends under load.

    benches/memory.py                       everything: about two minutes
    benches/memory.py --links 1000 --visitors 1000 --secs 1
    benches/memory.py --write               into docs/bench/memory.md

Memory is RSS, as /proc has it; of it, *own* are pages that are not a file's, which programs would share. What the kernel
keeps for a connection is not in it. The links are those of real agents, several programs, and have all been asked once
whether anybody is there; the visitors have each asked for 1 KiB once, and stay.
"""
import argparse
import os
import time

from common import CLOSE, CROWD_SECONDS, HOST, MIB, RELEASE, REPORTS, ROOT, Process, Running, Trouble
from common import answers, free_port, prepare, rss_mib, stage, wrk
from common import markdown, show, write, written_by
from systems import SYSTEMS, TITLES, our_agent, our_relay, ours_small

# As many descriptors as one process is usually allowed; the relay needs some for itself.
LINKS = 19_900
# A relay takes 4096 links of one tunnel.
LINKS_OF_AN_AGENT = 3_980
VISITORS = 10_000
# A relay asks after 10 s whether an agent is there, and links that wait for it are asked one by one.
ASKED_SECONDS = 13
# MB of design are 10^6 bytes.
GOALS = {"link": 4.0, "links": 100e6 / MIB, "agent": 3e6 / MIB, "load": 8e6 / MIB}


def mib(value):
    return f"{value:.1f}"


def kept(*ids):
    """RSS now, and what of it is their own."""
    return rss_mib("VmRSS", *ids), rss_mib("RssAnon", *ids)


def goal(value, limit):
    return [mib(limit), "met" if value <= limit else "not met"]


# --- what is measured -------------------------------------------------------------------------------------------------


def idle(here):
    """Both ends of each tunnel, as they stand when one visitor has been served."""
    yield ["idle", "server or relay: RSS MiB", "own", "client or agent: RSS MiB", "own", "to reach", ""]
    folder, _, origin_port = here
    systems = {TITLES[name]: SYSTEMS[name] for name in ("rathole", "bore", "ours")}
    if any(RELEASE.parent.glob("*/small/ptth-reverse")):
        systems["ours, with the agent of `make small`"] = ours_small
    for title, make in systems.items():
        with Running(folder) as running:
            system = make(folder, origin_port)
            server, client = [running.start(process) for process in system.processes]
            running.wait_until(lambda: answers(system.port))
            agent = kept(client)
            mark = goal(agent[0], GOALS["agent"]) if title.startswith("ours") else ["", ""]
            yield [title, *map(mib, kept(server)), *map(mib, agent), *mark]


def many_links(here, links):
    """A relay under idle links of real agents."""
    yield ["idle links", "relay: RSS MiB", "own", "KiB for each", "agents: KiB for each", "to reach", ""]
    folder, _, origin_port = here
    port = free_port()
    with Running(folder) as running:
        relay = running.start(our_relay(port))
        before = kept(relay)
        yield ["0", *map(mib, before), "", "", "", ""]
        agents = []
        # One agent after the other: of connections that have not said yet whose they are, one address has 4096 at most.
        for begin in range(0, links, LINKS_OF_AN_AGENT):
            end = min(begin + LINKS_OF_AN_AGENT, links)
            command = [RELEASE / "ptth-reverse", f"{HOST}:{origin_port}", "--via", f"http://{HOST}:{port}"]
            command += ["--name", f"t{begin}", "--links", f"{end - begin}..{end - begin}"]
            agents.append(running.start(Process(command)))
            running.wait_until(lambda end=end: descriptors(relay) >= end, CROWD_SECONDS)
        time.sleep(ASKED_SECONDS)
        after = kept(relay)
        each, theirs = (after[0] - before[0]) * 1024 / links, rss_mib("RssAnon", *agents) * 1024 / links
        mark = [f"≤ {GOALS['link']:.0f} KiB for each", "met" if each <= GOALS["link"] else "not met"]
        yield [f"{links:,}", *map(mib, after), f"{each:.2f}", f"{theirs:.2f}", *mark]
        if links == LINKS:
            yield ["", *map(mib, after), "", "", *goal(after[0], GOALS["links"])]


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def many_visitors(here, visitors):
    """A relay under idle visitors."""
    yield ["idle visitors", "relay: RSS MiB", "own", "KiB for each"]
    folder, _, origin_port = here
    port = free_port()
    with Running(folder) as running:
        relay = running.start(our_relay(port, "--timeout", "idle=10m"))
        running.start(our_agent(origin_port, f"http://{HOST}:{port}"), lambda: answers(port))
        before = kept(relay)
        yield ["0", *map(mib, before), ""]
        running.crowd("visitors", f"{HOST}:{port}", visitors)
        after = kept(relay)
        yield [f"{visitors:,}", *map(mib, after), f"{(after[0] - before[0]) * 1024 / visitors:.2f}"]


LOADS = [
    ("64 visitors, 1 KiB", "/1k", 64, []),
    ("64 visitors, 1 KiB, a new connection for each request", "/1k", 64, CLOSE),
    ("64 visitors, 100 KiB", "/100k", 64, []),
    ("16 visitors, 10 MiB", "/10m", 16, []),
    ("1000 visitors, 1 KiB", "/1k", 1000, []),
]


def under_load(here, seconds):
    """The most that both ends of each tunnel have had, and what of it is left when nobody asks any more."""
    yield ["under load", "", "at most, both ends: RSS MiB", "after it", "to reach", ""]
    folder, _, origin_port = here
    for title, path, visitors, more in LOADS:
        for name in ("rathole", "bore", "ours"):
            first = name == "ours" and title == LOADS[0][0]
            try:
                most, left = loaded(SYSTEMS[name], folder, origin_port, seconds, path, visitors, more)
            except Trouble as trouble:
                mark = [mib(GOALS["load"]), "not met"] if first else ["", ""]
                yield [title, TITLES[name], str(trouble).partition("\n")[0], "", *mark]
                continue
            yield [title, TITLES[name], mib(most), mib(left), *(goal(most, GOALS["load"]) if first else ["", ""])]


def loaded(make, folder, origin_port, seconds, path, visitors, more):
    with Running(folder) as running:
        system = make(folder, origin_port)
        for process in system.processes:
            running.start(process)
        running.wait_until(lambda: answers(system.port))
        done = wrk(system.port, path, visitors, seconds, *more)
        if done["errors"]:
            raise Trouble(f"{done['errors']} errors: whoever refuses requests needs little memory")
        return running.peak_rss_mib(), rss_mib("VmRSS", *running.ids())


# --- the whole run ----------------------------------------------------------------------------------------------------


def report(tables):
    yield from written_by("Memory")
    yield ""
    yield "RSS of the programs; *own* is what of it is no file's. Goals are in MiB but where they say something else."
    for rows in tables:
        yield ""
        yield from markdown(rows)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", type=int, default=LINKS, help=f"idle links (default {LINKS})")
    parser.add_argument("--visitors", type=int, default=VISITORS, help=f"idle visitors (default {VISITORS})")
    parser.add_argument("--secs", type=int, default=4, help="seconds of each load (default 4)")
    parser.add_argument("--write", action="store_true", help=f"write {REPORTS.relative_to(ROOT)}/memory.md")
    return parser.parse_args()


def main():
    options = arguments()
    prepare("nginx", "wrk")
    tables = []
    with stage() as here:
        for measured in (
            idle(here),
            many_links(here, options.links),
            many_visitors(here, options.visitors),
            under_load(here, options.secs),
        ):
            tables.append(list(measured))
            show(tables[-1][0][0], tables[-1])
    if options.write:
        write("memory.md", report(tables))


if __name__ == "__main__":
    main()
