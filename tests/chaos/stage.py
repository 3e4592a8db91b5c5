"""The programs of a scenario: started, stopped, killed and looked at by their ids."""
import asyncio
import contextlib
import dataclasses
import os
import pathlib
import resource
import signal
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(ROOT / "tests/interop"))

from books import Books, access_log  # noqa: E402
from checks import Failed  # noqa: E402
from echo import Journal  # noqa: E402
from load import Visitors  # noqa: E402
from programs import HOST, Program  # noqa: E402

# Event loops that a relay has.
WORKERS = min(os.cpu_count() or 1, 8)
# How much more memory a program may have after a scenario than before it: what the allocator keeps, and the tables that have
# grown once, in each loop.
MARGIN_MB = 4.0 * WORKERS
# How long until all is well again at most, and until connections that nobody needs any more are closed.
WHOLE_SECONDS = 15
SETTLE_SECONDS = 20

# Patience of a test's length. An agent waits less for its upstream than the relay for the agent, so that the hop that failed
# says so.
RELAY = {
    "link": "4s", "link-answer": "7s", "head": "5s", "body": "5s", "idle": "6s", "write": "5s", "drain": "5s", "linger": "1s",
    "ping": "1s", "pong": "2s", "silence": "4s", "half-close": "500ms",
    "poll": "2s",
}
AGENT = {
    "answer": "5s", "body": "6s", "write": "6s", "connect": "3s", "upgrade": "5s", "backoff": "100ms", "backoff-max": "1s",
    "spare": "1s", "upstream-idle": "1s", "drain": "5s", "linger": "1s", "ping": "1s", "silence": "4s",
}  # fmt: skip


@dataclasses.dataclass
class Size:
    """What a program has."""

    megabytes: float
    descriptors: int


class Node:
    """A program that may be killed and started anew."""

    def __init__(self, name, command, **more):
        self.name, self.command, self.more = name, command, more
        self.program = None
        # What those before this one have said.
        self.said = []

    def start(self):
        if self.program:
            self.said += self.program.lines
        self.program = Program([str(word) for word in self.command], **self.more)

    async def hear(self, pattern, times=1, seconds=15):
        return await asyncio.to_thread(self.program.wait_for, pattern, times, seconds)

    @property
    def pid(self):
        return self.program.child.pid

    def pause(self):
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self):
        os.kill(self.pid, signal.SIGCONT)

    async def kill(self):
        await asyncio.to_thread(self.program.kill)

    async def end(self, seconds=15):
        """By SIGTERM. Its exit code."""
        code = await asyncio.to_thread(self.program.stop, seconds)
        if code != 0:
            raise Failed(f"{self.name} ended with {code} after SIGTERM")

    def size(self):
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        # A few pipes for long bodies are kept for the next ones, as the load left them.
        files = [name for name in files_of(self.pid) if not name.startswith("pipe:")]
        return Size(kilobytes / 1024, len(files))

    def lines(self):
        return self.said + self.program.lines


class Stage:
    """A relay, agents, and the upstream that they share. Leaving it ends them all."""

    def __init__(self, options, name):
        self.options, self.name = options, name
        self.folder = options.folder / name
        self.folder.mkdir()
        self.clock = asyncio.get_running_loop().time
        self.books = Books(self.clock, name)
        self.rng = options.rng(name)
        self.nodes = []
        self.agents = []
        self.before = {}
        self.relay = self.upstream = self.visitors = None

    async def __aenter__(self):
        return self

    async def __aexit__(self, kind, error, _):
        for node in self.nodes:
            with contextlib.suppress(ProcessLookupError):
                node.program.kill()
            (self.folder / f"{node.name}.log").write_text("\n".join(node.lines()) + "\n")

    async def start(self, agents=("alpha", "alpha", "beta"), relay_timeouts=(), agent_timeouts=(), **more):
        """All programs, then visitors without any fault, so that each has grown to its size, and a look at it."""
        await self.start_upstream()
        await self.start_relay(relay_timeouts, **more.get("relay", {}))
        at = await more["between"](self.at) if "between" in more else self.at
        flags = ["--links", more.get("links", "2..32"), *more.get("flags", ())]
        for number, tunnel in enumerate(agents):
            await self.start_agent(f"agent-{number}", tunnel, at, agent_timeouts, flags, **more.get("agent", {}))
        self.visitors = Visitors(self.books, self.rng, self.at, sorted(set(agents)), **more.get("load", {}))
        await self.grow(**more.get("crowd", {}))

    async def grow(self, seconds=3, **crowd):
        self.visitors.come(**crowd)
        await asyncio.sleep(seconds)
        await self.visitors.leave()
        # Until what was opened for them is closed again: twice the same, with a look of the agents at their links in between.
        sizes = None
        end = self.clock() + SETTLE_SECONDS
        while sizes != self.descriptors():
            if self.clock() > end:
                raise Failed(f"descriptors don't come to rest: {self.descriptors()}")
            sizes = self.descriptors()
            await asyncio.sleep(2.5)
        self.before = {node.name: node.size() for node in self.measured()}

    def measured(self):
        return [self.relay, *self.agents]

    def descriptors(self):
        return {node.name: node.size().descriptors for node in self.measured()}

    async def start_upstream(self):
        journal = self.folder / "journal"
        command = [sys.executable, "-B", HERE / "echo.py", "--journal", journal]
        self.upstream = Node("upstream", command)
        self.nodes.append(self.upstream)
        self.upstream.start()
        self.upstream_port = listening_at(await self.upstream.hear("listening"))[1]
        command += ["--port", self.upstream_port]

    async def start_relay(self, timeouts=(), descriptors=None):
        flags = ["--access-log", self.folder / "access.log", *timeouts_of(RELAY, timeouts)]
        self.relay = Node("relay", [self.options.program("ptth-relay"), *flags, "--listen", f"{HOST}:0"], **limited(descriptors))
        self.nodes.append(self.relay)
        self.relay.start()
        self.at = listening_at(await self.relay.hear("listening on"))
        # Whoever comes next is found where this one was.
        self.relay.command[-1] = "{}:{}".format(*self.at)

    async def start_agent(self, name, tunnel, at, timeouts=(), flags=(), path="", descriptors=None):
        flags = [*flags, *timeouts_of(AGENT, timeouts)]
        via = "http://{}:{}".format(*at) + path
        command = [self.options.program("ptth-reverse"), self.upstream_port, "--via", via, "--name", tunnel, *flags]
        agent = Node(name, command, **limited(descriptors))
        self.nodes.append(agent)
        self.agents.append(agent)
        agent.start()
        await agent.hear("^http://")

    async def restart(self, node):
        node.start()
        await node.hear("listening on http" if node in (self.relay, self.upstream) else "^http://")

    async def whole(self, since=None, visitors=None):
        """Waits until each tunnel has served a GET and a POST three times in a row. Gives the seconds until the first time."""
        visitors = visitors or self.visitors
        begun = self.clock() if since is None else since
        first, times = None, 0
        while times < 3:
            asked = self.clock()
            wishes = {"size": 100, "wait": 0}
            asks = [self.ask(visitors, tunnel, method, wishes) for tunnel in visitors.tunnels for method in ("GET", "POST")]
            good = set(await asyncio.gather(*asks)) == {"200"}
            first, times = (first or self.clock(), times + 1) if good else (None, 0)
            if self.clock() - begun > WHOLE_SECONDS and not good:
                self.books.wrong.append(f"not whole again after {self.clock() - begun:.1f} s: {self.books.faults[-1].what}")
                return self.clock() - begun
            if not good:
                await asyncio.sleep(max(0.0, asked + 0.1 - self.clock()))
        return first - begun

    @staticmethod
    async def ask(visitors, tunnel, method, wishes):
        line, outcome = await visitors.ask(None, tunnel, method, **wishes)
        if line:
            line.close()
        return outcome

    async def settle(self):
        """Waits until each program has as many descriptors as before, and says what it has now."""
        wanted = {name: size.descriptors for name, size in self.before.items()}
        end = self.clock() + SETTLE_SECONDS
        while self.descriptors() != wanted and self.clock() < end:
            await asyncio.sleep(0.1)
        wrong, parts = [], []
        for node in self.measured():
            before, after = self.before[node.name], node.size()
            parts.append(
                f"{node.name} {before.megabytes:.1f} to {after.megabytes:.1f} MB, "
                f"{before.descriptors} to {after.descriptors} descriptors"
            )
            if after.descriptors != before.descriptors:
                wrong.append(f"{node.name} has {after.descriptors} descriptors, had {before.descriptors}: {open_files(node.pid)}")
            if after.megabytes > before.megabytes + MARGIN_MB:
                wrong.append(f"{node.name} has {after.megabytes:.1f} MB, had {before.megabytes:.1f}")
        return wrong, "; ".join(parts)

    async def end(self, *figures):
        """The figures, and all that is wrong."""
        wrong, sizes = await self.settle()
        journal = Journal(self.folder / "journal")
        wrong = self.books.balance(journal, access_log(self.folder / "access.log")) + wrong
        for node in self.nodes:
            panics = [line for line in node.lines() if "panicked" in line]
            wrong += [f"{node.name}: {line}" for line in panics]
        return [self.books.figures(journal), *figures, sizes], wrong


def timeouts_of(patience, more):
    own = [f"{name}={time}" for name, time in patience.items()]
    return [word for pair in [*own, *more] for word in ("--timeout", pair)]


def open_files(pid):
    """What a process has open, for whoever looks for the one too many."""
    return ", ".join(sorted(files_of(pid)))


def files_of(pid):
    names = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        # One may be closed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return names


def limited(descriptors):
    if not descriptors:
        return {}
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))}


def listening_at(line):
    host, _, port = line.partition("http://")[2].partition(",")[0].partition(":")
    return host, int(port)
