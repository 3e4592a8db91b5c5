"""The scenarios. Each gives its figures, and what is wrong."""
import asyncio
import collections
import contextlib
import re
import sys

from echo import Journal
from load import Visitors
from stage import HERE, WORKERS, Stage
from wire import Wire

# What a request may come to while something is wrong with a program or a wire.
NO_AGENT = {"503 no-link", "503 links-busy"}
LINK_BREAKS = {"502 link-lost", "cut"} | NO_AGENT
LINK_SILENT = {"504 link-timeout"} | LINK_BREAKS
# A message that an agent has taken along when it dies is only missed when its answer is late; and an answer that comes while the
# relay is stopped is whole only some turns after it goes on.
MESSAGE_LATE = LINK_SILENT
UPSTREAM_GONE = {"502 upstream-refused", "502 upstream-lost", "cut"}
UPSTREAM_SILENT = {"504 upstream-timeout", "504 upstream-connect-timeout", "503 links-busy"}
CONNECTION_BREAKS = {"reset", "closed", "reset (kept)", "closed (kept)", "cut"}
RELAY_GONE = {"refused"} | CONNECTION_BREAKS | NO_AGENT


# --- programs that stop and die ---------------------------------------------------------------------------------------


async def stops(options):
    """SIGSTOP and SIGKILL of each program, at random moments under load."""
    async with Stage(options, "stops") as stage:
        await stage.start()
        return await faults(stage, 2, LINK_BREAKS, LINK_BREAKS)


async def comet(options):
    """The same, shorter, with agents that poll by COMET."""
    async with Stage(options, "comet") as stage:
        await stage.start(flags=["--dialect", "comet"])
        return await faults(stage, 1, MESSAGE_LATE, MESSAGE_LATE)


async def ptth(options):
    """The same with agents that poll by the ptth dialect."""
    async with Stage(options, "ptth") as stage:
        await stage.start(flags=["--dialect", "ptth-relay"], agent={"path": "/7ZSFUKGV"})
        return await faults(stage, 1, MESSAGE_LATE, MESSAGE_LATE)


async def faults(stage, times, agent_died, relay_late):
    """So many times each. What comes of an agent's death and of a relay's long stop is different where agents poll."""
    excuses = {
        pause: {"agent": (), "relay": (), "upstream": ()},
        # Its agents take a relay that is silent for gone, and a request may meet the end of a link.
        long_pause: {"agent": LINK_SILENT, "relay": relay_late, "upstream": UPSTREAM_SILENT},
        kill: {"agent": agent_died, "relay": RELAY_GONE, "upstream": UPSTREAM_GONE},
    }
    plan = [(what, which) for what, programs in excuses.items() for which in programs] * times
    stage.rng.shuffle(plan)
    stage.visitors.come()
    for what, which in plan:
        await asyncio.sleep(stage.rng.uniform(0.2, 1.2))
        node = {"agent": stage.rng.choice(stage.agents), "relay": stage.relay, "upstream": stage.upstream}[which]
        await what(stage, which, node, excuses[what][which])
    await stage.visitors.leave()
    return await stage.end()


async def pause(stage, which, node, excuses):
    """For so long that nobody's patience ends: nothing may come of it."""
    fault = stage.books.fault(f"{which} stopped", excuses)
    node.pause()
    await asyncio.sleep(stage.rng.uniform(0.2, 1.5))
    node.go_on()
    stage.books.over(fault, await stage.whole())


async def long_pause(stage, which, node, excuses):
    """For longer than anybody's patience."""
    fault = stage.books.fault(f"{which} stopped for long", excuses)
    node.pause()
    await asyncio.sleep(7)
    node.go_on()
    stage.books.over(fault, await stage.whole())


async def kill(stage, which, node, excuses):
    fault = stage.books.fault(f"{which} killed", excuses)
    await node.kill()
    await asyncio.sleep(stage.rng.uniform(0, 1.5))
    begun = stage.clock()
    await stage.restart(node)
    stage.books.over(fault, await stage.whole(begun))


# --- bad wires --------------------------------------------------------------------------------------------------------


async def wires(options):
    """Bad weather between agents and relay."""
    async with Stage(options, "wires") as stage, Wire(stage.rng) as wire:
        await stage.start(between=wire.start)
        for weather, seconds, excuses in [("delay", 4, ()), ("reset", 5, LINK_BREAKS), ("cut", 5, LINK_BREAKS)]:
            stage.visitors.come()
            await storm(stage, wire, weather, seconds, excuses)
            await stage.visitors.leave()
        stage.visitors.sizes = [0, 100]
        stage.visitors.come(keep=3, change=1)
        await storm(stage, wire, "bytes", 5, ())
        await stage.visitors.leave()
        stage.visitors.come()
        await asyncio.sleep(1)
        fault = stage.books.fault("black hole", LINK_SILENT)
        begun, deaf = stage.clock(), wire.hole()
        stage.books.over(fault, await stage.whole(begun))
        await asyncio.sleep(1)
        await stage.visitors.leave()
        return await stage.end(f"{deaf} links in the black hole")


async def visits(options):
    """Bad weather between visitors and relay, with other visitors beside them, who must not feel it."""
    async with Stage(options, "visits") as stage, Wire(stage.rng) as wire:
        await stage.start()
        # What becomes of their connections is the wire's doing; but never is an answer wrong, and nothing stays open.
        behind = " behind the wire"
        at = await wire.start(stage.at)
        outside = Visitors(stage.books, stage.rng, at, ["alpha", "beta"], patience=4, behind=behind)
        stage.visitors.come(keep=3, change=2)
        broken = {outcome + behind for outcome in CONNECTION_BREAKS}
        for weather, excuses in [("delay", ()), ("reset", broken), ("cut", broken)]:
            outside.come(keep=6, change=4)
            await storm(stage, wire, weather, 4, excuses, outside)
            await outside.leave()
        outside.sizes = [0, 100]
        outside.come(keep=3, change=1)
        await storm(stage, wire, "bytes", 4, (), outside)
        outside.sizes = [300000]
        await asyncio.sleep(1)
        fault = stage.books.fault("black hole", {"silence" + behind})
        wire.hole()
        await asyncio.sleep(2)
        stage.books.over(fault, await stage.whole(visitors=outside))
        await outside.leave()
        await stage.visitors.leave()
        return await stage.end()


async def storm(stage, wire, weather, seconds, excuses, visitors=None):
    fault = stage.books.fault(weather, excuses)
    wire.weather = weather
    await asyncio.sleep(seconds)
    wire.weather = "fine"
    stage.books.over(fault, await stage.whole(visitors=visitors))


# --- descriptors ------------------------------------------------------------------------------------------------------


async def descriptors(options):
    """A relay, then an agent, with fewer descriptors than there are visitors."""
    # An agent of a relay that is full can't make more links either. Where there are too many even to be refused, they are closed.
    full = {"503 too-many-connections", "closed", "reset"} | NO_AGENT
    figures, wrong = await short(options, "relay", {"relay": {"descriptors": 64}}, full)
    more = {"agent": {"descriptors": 28}}
    others = await short(options, "agent", more, {"502 upstream-unreachable", "503 links-busy"})
    return figures + others[0], wrong + others[1]


async def short(options, which, more, excuses):
    async with Stage(options, f"descriptors-{which}") as stage:
        await stage.start(agents=("alpha",), links="2..16", crowd={"keep": 2, "change": 1}, **more)
        stage.visitors.waits = [0, 100, 300]
        fault = stage.books.fault(f"{which} short of descriptors", excuses)
        stage.visitors.come(keep=20, change=100, pause=0.5)
        await asyncio.sleep(6)
        await stage.visitors.leave()
        stage.books.over(fault, await stage.whole())
        node = stage.relay if which == "relay" else stage.agents[0]
        # The lines of requests that failed are another matter.
        said = [line for line in node.lines() if "warning: " in line and "warning: request " not in line]
        kinds = collections.Counter(re.sub(r"[0-9.]+", "N", line) for line in said)
        figures, wrong = await stage.end(f"{which} gave {len(said)} warnings")
        # Each loop says it for itself.
        if not said or max(kinds.values()) > WORKERS:
            wrong.append(f"{which} gave these warnings: {kinds}")
        return figures, wrong


# --- visitors that leave ----------------------------------------------------------------------------------------------


async def aborts(options):
    """Visitors that leave before they have their answer."""
    async with Stage(options, "aborts") as stage:
        # A visitor's FIN may be half an end only: what such a one has asked goes on for a while.
        await stage.start(
            agents=("alpha", "alpha", "beta"), relay_timeouts=["half-close=50ms"], load={"waits": [0, 10]}, crowd={"seconds": 5}
        )
        stage.visitors.come(keep=3, change=1, pause=0.2)
        begun = stage.clock()
        half = options.aborts // 2
        leaving = [asyncio.create_task(leave(stage, first, half, options.seed)) for first in (0, half)]
        most = {node.name: 0.0 for node in stage.measured()}
        while not all(task.done() for task in leaving):
            await asyncio.wait(leaving, timeout=0.5)
            most = {node.name: max(most[node.name], node.size().megabytes) for node in stage.measured()}
        left = sum((task.result() for task in leaving), collections.Counter())
        seconds = stage.clock() - begun
        kinds = ", ".join(f"{times} {kind}" for kind, times in sorted(left.items()))
        await stage.visitors.leave()
        journal = stage.folder / "journal"
        end = stage.clock() + 10
        while Journal(journal).open() and stage.clock() < end:
            await asyncio.sleep(0.5)
        heard = Journal(journal)
        # The books are those of the visitors who stay; the others' are their ends at the upstream.
        strangers = [name for name in heard.came if name.startswith("abort-")]
        figures, wrong = await stage.end(
            f"{left.total()} visitors left in {seconds:.0f} s: {kinds}",
            f"{len(strangers)} of their requests came to the upstream, {heard.left} were left there, {heard.open()} still are",
            "most memory: " + ", ".join(f"{name} {size:.1f} MB" for name, size in most.items()),
        )
        wrong = [line for line in wrong if not line.startswith("abort-")]
        if heard.open():
            wrong.append(f"{heard.open()} requests are still at the upstream, whose visitors have left")
        return figures, wrong


async def leave(stage, first, count, seed):
    """So many of those visitors. How many left at which moment."""
    command = [sys.executable, "-B", HERE / "aborts.py", stage.at[1], first, count, seed]
    child = await asyncio.create_subprocess_exec(*map(str, command), stdout=asyncio.subprocess.PIPE)
    try:
        said, _ = await child.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
    lines = (line.partition(" ") for line in said.decode().splitlines())
    return collections.Counter({kind: int(times) for times, _, kind in lines})


# --- restarts ---------------------------------------------------------------------------------------------------------


async def restarts(options):
    """20 restarts of the only agent of a tunnel by SIGTERM: no request fails. 20 of the relay: none that was taken is lost."""
    async with Stage(options, "restarts") as stage:
        await stage.start(agents=("alpha", "beta"))
        stage.visitors.come()
        for _ in range(20):
            await restart(stage, "agent", stage.agents[0], ())
        for _ in range(20):
            # One that the system lets in between the relay's last look at its door and the door's end is reset.
            await restart(stage, "relay", stage.relay, {"refused", "reset", "503 stopping", "503 no-link"})
        await stage.visitors.leave()
        return await stage.end()


async def restart(stage, which, node, excuses):
    await asyncio.sleep(stage.rng.uniform(0.1, 0.5))
    fault = stage.books.fault(f"{which} restarted", excuses)
    begun = stage.clock()
    await node.end()
    await stage.restart(node)
    stage.books.over(fault, await stage.whole(begun))


# --- a crowd ----------------------------------------------------------------------------------------------------------


async def crowd(options):
    """10,000 connections that say nothing or drip, and others beside them."""
    command = [sys.executable, "-B", HERE / "crowd.py", "--bin", options.programs, "--seconds", "40"]
    child = await asyncio.create_subprocess_exec(*map(str, command), stdout=asyncio.subprocess.PIPE)
    try:
        said, _ = await child.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
    return said.decode().splitlines(), [f"crowd.py ended with {child.returncode}"] if child.returncode else []


ALL = [stops, wires, visits, descriptors, aborts, restarts, comet, ptth, crowd]
