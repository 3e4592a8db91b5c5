#!/usr/bin/env python3
"""Counts what one request costs the relay and the agent, in what does not depend on the machine's mood: system calls
(strace) and instructions (callgrind). `docs/performance.md` has the budget and says how each figure is meant.

    benches/costs.py calls                     system calls for each request, at 1, 64 and 512 connections
    benches/costs.py instructions              instructions for each request, and which functions they are in
    benches/costs.py instructions --path /100k --top 40

The visitor and the upstream are this script's own, one process each, so that what they say is the same each time. The
count begins when the connections and the buffers of both programs are warm, and ends before anything is closed.
"""
import argparse
import collections
import contextlib
import os
import pathlib
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Where `cargo build --profile profiling` puts the programs.
PROGRAMS = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "profiling"
HOST = "127.0.0.1"
READY_SECONDS = 30
SIZES = {"/1k": 1 << 10, "/100k": 100 << 10}
# What curl and wrk send, and what nginx answers.
REQUEST = "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: costs/1\r\nAccept: */*\r\n\r\n"
POST = REQUEST[:-2].replace("GET", "POST") + "Content-Length: {length}\r\n\r\n"
ANSWER = (
    "HTTP/1.1 200 OK\r\nServer: costs/1\r\nDate: Sun, 22 Nov 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\n"
    "Content-Length: {length}\r\nLast-Modified: Sun, 22 Nov 2026 00:00:00 GMT\r\nConnection: keep-alive\r\n"
    'ETag: "6561a1b0-400"\r\nAccept-Ranges: bytes\r\n\r\n'
)


class Trouble(Exception):
    """What keeps us from counting."""


# --- the two ends -----------------------------------------------------------------------------------------------------


class Upstream:
    """A server that answers each request at once, in one write, until it is killed."""

    def __init__(self):
        listener = socket.create_server((HOST, 0), backlog=1024)
        self.port = listener.getsockname()[1]
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.serve(listener)
            finally:
                os._exit(1)
        listener.close()

    def serve(self, listener):
        answers = {path: ANSWER.format(length=size).encode() + bytes(size) for path, size in SIZES.items()}
        selector = selectors.EpollSelector()
        selector.register(listener, selectors.EVENT_READ)
        partial = collections.defaultdict(bytes)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    client, _ = listener.accept()
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    selector.register(client, selectors.EVENT_READ)
                    continue
                client = key.fileobj
                data = client.recv(1 << 16)
                if not data:
                    selector.unregister(client)
                    client.close()
                    continue
                data = partial.pop(client, b"") + data
                while data:
                    head, end, rest = data.partition(b"\r\n\r\n")
                    length = re.search(rb"\r\nContent-Length: (\d+)", head)
                    length = int(length[1]) if length else 0
                    if not end or len(rest) < length:
                        partial[client] = data
                        break
                    data = rest[length:]
                    client.sendall(answers[head.split(b" ", 2)[1].decode()])

    def stop(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Visitors:
    """Connections that each ask, take the whole answer, and ask again."""

    def __init__(self, port, path, body):
        self.port = port
        host = f"{HOST}:{port}"
        head = POST if body else REQUEST
        self.request = head.format(path=path, host=host, length=body).encode() + bytes(body)
        self.size = SIZES[path]
        self.sockets = []

    def come(self, many):
        for _ in range(many - len(self.sockets)):
            client = socket.create_connection((HOST, self.port))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets.append(client)

    def ask(self, requests):
        """Asks so many times in all, on all connections at once."""
        selector = selectors.EpollSelector()
        left = requests
        for client in self.sockets[:left]:
            selector.register(client, selectors.EVENT_READ, [None, 0])
            client.sendall(self.request)
            left -= 1
        due = requests
        while due:
            ready = selector.select(READY_SECONDS)
            if not ready:
                raise Trouble(f"{due} answers did not come")
            for key, _ in ready:
                data = key.fileobj.recv(1 << 18)
                if not data:
                    raise Trouble("the relay has closed a connection")
                state = key.data
                if state[0] is None:
                    if not data.startswith(b"HTTP/1.1 200 "):
                        raise Trouble(f"the relay answered {data[:200]}")
                    state[0] = data.index(b"\r\n\r\n") + 4 + self.size
                state[1] += len(data)
                if state[1] >= state[0]:
                    state[:] = [None, 0]
                    due -= 1
                    if left:
                        left -= 1
                        key.fileobj.sendall(self.request)
        selector.close()


# --- the programs -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tunnel(upstream, links, under, programs):
    """Relay and agent, each behind the command that `under` gives for its name. Gives the port and the processes."""
    port = free_port()
    # One worker: which of several a visitor comes to is chance, and what each counts would differ from run to run.
    relay = [programs / "ptth-relay", "--listen", f"{HOST}:{port}", "--workers", "1"]
    agent = [programs / "ptth-reverse", f"{HOST}:{upstream.port}", "--via", f"http://{HOST}:{port}"]
    agent += ["--name", "default", "--links", links]
    processes = {}
    try:
        for name, command in (("relay", relay), ("agent", agent)):
            out = subprocess.PIPE if name == "agent" else None
            processes[name] = subprocess.Popen([*under(name), *command], stdout=out, stderr=subprocess.DEVNULL)
            if name == "relay":
                wait_until(lambda: socket.create_connection((HOST, port), 1).close() or True, "the relay listens")
        if not processes["agent"].stdout.readline():
            raise Trouble("the agent has ended")
        yield port, processes
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            try:
                process.wait(READY_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port():
    with socket.create_server((HOST, 0)) as listener:
        return listener.getsockname()[1]


def wait_until(done, what):
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if done():
                return
        time.sleep(0.05)
    raise Trouble(f"waited in vain until {what}")


# --- system calls -----------------------------------------------------------------------------------------------------

GROUPS = {
    "recv": ("recvfrom", "read", "recvmsg", "readv"),
    "send": ("sendto", "write", "sendmsg", "writev"),
    "splice": ("splice", "tee"),
    "epoll_wait": ("epoll_wait", "epoll_pwait", "epoll_pwait2"),
    "epoll_ctl": ("epoll_ctl",),
}


def count_calls(args):
    print(f"System calls for each request ({describe(args)})\n")
    print("| connections | process | " + " | ".join(GROUPS) + " | others |")
    print("|" + "---|" * (len(GROUPS) + 3))
    for connections in args.connections:
        upstream = Upstream()
        try:
            links = f"{min(connections + 8, 1000)}..1000"
            with tunnel(upstream, links, lambda _: [], args.programs) as (port, processes):
                visitors = Visitors(port, args.path, args.body)
                visitors.come(connections)
                visitors.ask(max(20 * connections, args.warm_up))
                calls = {name: Trace(process.pid) for name, process in processes.items()}
                requests = max(args.requests, 20 * connections)
                visitors.ask(requests)
                for name, trace in calls.items():
                    print_calls(connections, name, trace.stop(), requests)
        finally:
            upstream.stop()


class Trace:
    """strace, attached to a process that runs."""

    def __init__(self, pid):
        self.out = tempfile.NamedTemporaryFile("r", prefix="ptth-calls-")
        command = ["strace", "-c", "-f", "-U", "calls,name", "-o", self.out.name, "-p", str(pid)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if "attached" in line:
                return
        raise Trouble("strace can't be attached")

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait()
        rows = (line.split() for line in self.out.read().splitlines())
        return {row[1]: int(row[0]) for row in rows if len(row) == 2 and row[0].isdigit() and row[1] != "total"}


def print_calls(connections, name, calls, requests):
    grouped = {group: sum(calls.pop(call, 0) for call in members) for group, members in GROUPS.items()}
    cells = [f"{count / requests:.3f}" for count in grouped.values()]
    others = ", ".join(f"{call} {count / requests:.3f}" for call, count in calls.items()) or "none"
    print(f"| {connections} | {name} | " + " | ".join(cells) + f" | {others} |", flush=True)


# --- instructions -----------------------------------------------------------------------------------------------------


def count_instructions(args):
    many = args.connections[0]
    print(f"Instructions for each request ({describe(args)}, {many} connections, {args.requests} requests)\n")
    upstream = Upstream()
    with tempfile.TemporaryDirectory(prefix="ptth-costs-") as folder:
        outs = {name: pathlib.Path(folder) / name for name in ("relay", "agent")}

        def under(name):
            return ["valgrind", "--tool=callgrind", "--dump-line=no", "-q", f"--callgrind-out-file={outs[name]}"]

        try:
            with tunnel(upstream, f"{many + 4}..{many + 8}", under, args.programs) as (port, processes):
                visitors = Visitors(port, args.path, args.body)
                visitors.come(many)
                visitors.ask(max(args.warm_up, 20 * many))
                control("--zero", processes)
                visitors.ask(args.requests)
                control("--dump", processes)
        finally:
            upstream.stop()
        # The first dump has the requests; what is dumped at the end of a process has how it stopped.
        profiles = {name: Profile(out.with_name(f"{name}.1")) for name, out in outs.items()}
    print("| process | instructions | clock reads | allocations |")
    print("|---|---|---|---|")
    for name, profile in profiles.items():
        counts = [profile.calls(what) / args.requests for what in ("clock_gettime", "malloc calloc realloc")]
        print(f"| {name} | {profile.total / args.requests:,.0f} | " + " | ".join(f"{n:.3f}" for n in counts) + " |")
    for name, profile in profiles.items():
        print(f"\n{name}: instructions for each request, by function (itself; with all that it calls; calls)\n")
        for function, own in profile.own.most_common(args.top):
            whole = profile.inclusive(function)
            print(
                f"{own / args.requests:9,.0f} {whole / args.requests:9,.0f} {profile.called[function] / args.requests:7.2f}"
                f"  {function}"
            )


def control(what, processes):
    for process in processes.values():
        done = subprocess.run(["callgrind_control", what, str(process.pid)], capture_output=True, text=True)
        if done.returncode or "OK" not in done.stdout:
            raise Trouble(f"callgrind_control {what}: {done.stdout}{done.stderr}")


class Profile:
    """A profile of callgrind: how many instructions each function took itself, and what it called how often."""

    def __init__(self, path):
        self.own = collections.Counter()
        self.below = collections.Counter()
        self.called = collections.Counter()
        names = {}
        function = callee = None
        for line in path.read_text().splitlines():
            if match := re.match(r"(c?)fn=\((\d+)\)(?: (.*))?", line):
                name = names.setdefault(match[2], match[3])
                if match[1]:
                    callee = name
                else:
                    function = name
            elif line.startswith("calls="):
                self.called[callee] += int(line[6:].split()[0])
            elif re.match(r"[+*\d-]", line):
                count = int(line.split()[1])
                if callee is None:
                    self.own[function] += count
                else:
                    self.below[function] += count
                callee = None
        self.total = sum(self.own.values())

    def inclusive(self, function):
        return self.own[function] + self.below[function]

    def calls(self, names):
        return sum(self.called[name] for name in self.called if name and name.split("@")[0] in names.split())


# --- the command line -------------------------------------------------------------------------------------------------


def describe(args):
    asks = f"POST of {args.body} bytes" if args.body else "GET"
    return f"{asks}, answers of {SIZES[args.path]} bytes"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["calls", "instructions"])
    parser.add_argument("--path", default="/1k", choices=SIZES, help="the size of the answers")
    parser.add_argument("--body", type=int, default=0, metavar="BYTES", help="POST so much instead of GET")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 64, 512], help="of visitors (instructions: the first of them)")
    parser.add_argument("--requests", type=int, default=2000, help="that are counted (calls: at least 20 a connection)")
    parser.add_argument("--warm-up", type=int, default=200, help="requests before the count begins")
    parser.add_argument("--top", type=int, default=25, help="functions to list")
    parser.add_argument("--programs", type=pathlib.Path, default=PROGRAMS, help="the folder that they are in")
    args = parser.parse_args()
    try:
        {"calls": count_calls, "instructions": count_instructions}[args.what](args)
    except Trouble as trouble:
        sys.exit(f"costs.py: {trouble}")


if __name__ == "__main__":
    main()
