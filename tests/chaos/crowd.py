#!/usr/bin/env python3
"""A relay under a crowd: ten thousand connections that say nothing or drip, and what that costs everybody else.

Half of the crowd is idle. A quarter drips heads, a quarter bodies, a byte every two seconds each. The relay lets each of them go
by one of its deadlines or rates, and it comes again. The bodies go to a tunnel of their own: a request that is under way holds a
link, whoever sends it. Meanwhile others ask one thing after another, on connections that are kept and on new ones; each has to be
answered.

Prints what the others got without the crowd, with it, and after it; fails when a request of theirs did, when the crowd did not
get in, or when the relay has not let go of it afterwards.
"""
import argparse
import collections
import multiprocessing
import pathlib
import re
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time

from stage import files_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The crowd comes from so many addresses, none of which is that of the others.
ADDRESSES = [f"127.0.0.{n}" for n in range(2, 10)]
# One byte of each that drips in this time.
DRIP = 2.0
# Connections that the others keep, and how many requests there are for each one on a new connection.
KEPT = 8
FRESH = 10


class Program:
    """A child whose lines a thread collects."""

    def __init__(self, *command):
        self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.lines = []
        self.news = threading.Condition()
        threading.Thread(target=self.collect, daemon=True).start()

    def collect(self):
        for line in self.child.stderr:
            with self.news:
                self.lines.append(line.rstrip())
                self.news.notify_all()

    def wait_for(self, pattern):
        def found():
            return next((match for match in (re.search(pattern, line) for line in self.lines) if match), None)

        with self.news:
            match = self.news.wait_for(found, 20)
        if not match:
            sys.exit(f"{self.child.args[0]} never said {pattern!r}: {self.lines[-5:]}")
        return match

    def files(self):
        # A few pipes for long bodies are kept for the next ones, as the load left them.
        return sum(not name.startswith("pipe:") for name in files_of(self.child.pid))

    def memory(self):
        """Resident, in MiB."""
        status = pathlib.Path(f"/proc/{self.child.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def stop(self):
        self.child.terminate()
        return self.child.wait(60)


class Guest:
    """One of the crowd."""

    def __init__(self, number, port):
        self.address = ADDRESSES[number % len(ADDRESSES)]
        self.port = port
        # Idle, idle, head, body, and so on.
        self.kind = ("idle", "idle", "head", "body")[number // len(ADDRESSES) % 4]
        self.socket = None
        self.stands = False
        self.heard = b""

    def connect(self, selector):
        self.socket = socket.socket()
        self.socket.setblocking(False)
        # Many connections from one address: the port is chosen when the other end is known.
        self.socket.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        self.socket.bind((self.address, 0))
        self.socket.connect_ex(("127.0.0.1", self.port))
        self.stands = False
        self.heard = b""
        selector.register(self.socket, selectors.EVENT_WRITE, self)

    def greet(self):
        """The first words."""
        self.stands = True
        if self.kind == "head":
            self.say(b"GET / HTTP/1.1\r\nHost: demo.localhost\r\nX-Drip: ")
        if self.kind == "body":
            self.say(b"POST / HTTP/1.1\r\nHost: crowd.localhost\r\nContent-Length: 1000000\r\n\r\n")

    def say(self, text):
        try:
            self.socket.send(text)
        except OSError:
            pass  # Its end is read in a moment.

    def listen(self):
        """Whether it is still there."""
        try:
            heard = self.socket.recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.heard += heard
        return bool(heard)


def crowd(count, port, pipe):
    """A process of its own, until it is told to go: how many are in, and what they were told, whenever it is asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    guests = [Guest(number, port) for number in range(count)]
    dripping = [guest for guest in guests if guest.kind != "idle"]
    told = collections.Counter()
    waiting = collections.deque(guests)
    selector.register(pipe, selectors.EVENT_READ, None)
    began, dripped = time.monotonic(), 0
    while True:
        # Not all at once: they are a crowd, and no flood.
        for _ in range(min(100, len(waiting))):
            waiting.popleft().connect(selector)
        for key, _ in selector.select(0.02):
            guest = key.data
            if guest is None:
                if pipe.recv() == "go":
                    return
                pipe.send((sum(guest.stands for guest in guests), dict(told)))
            elif not guest.stands:
                selector.modify(guest.socket, selectors.EVENT_READ, guest)
                guest.greet()
            elif not guest.listen():
                status = guest.heard.split(b"\r\n", 1)[0].decode("latin-1") or "closed"
                told[f"{guest.kind}: {status}"] += 1
                selector.unregister(guest.socket)
                guest.socket.close()
                guest.stands = False
                waiting.append(guest)
        due = int((time.monotonic() - began) / DRIP * len(dripping))
        for n in range(dripped, due):
            guest = dripping[n % len(dripping)]
            if guest.stands:
                guest.say(b"x")
        dripped = due


class Others:
    """Those who want to be served: one thing after another, so that a time is that of a request and nothing else."""

    def __init__(self, port):
        self.port = port
        self.kept = [self.connect() for _ in range(KEPT)]
        self.failed = []

    def connect(self):
        wire = socket.create_connection(("127.0.0.1", self.port), 30)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return wire

    def ask(self, number):
        fresh = number % FRESH == 0
        slot = number % KEPT
        try:
            wire = self.connect() if fresh else self.kept[slot]
            wire.sendall(b"GET / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n")
            answer = b""
            while True:
                more = wire.recv(65536)
                answer += more
                head, end, body = answer.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
                if not more or end and length and len(body) >= int(length[1]):
                    break
            if not answer.startswith(b"HTTP/1.1 200 ") or not more:
                raise OSError(answer[:60].decode("latin-1") or "closed without an answer")
            if fresh:
                wire.close()
        except OSError as error:
            self.failed.append(str(error))
            if not fresh:
                self.kept[slot] = self.connect()

    def run(self, what, seconds, relay):
        """Asks for a while, prints what came of it, and gives how often it was."""
        times, failed, end = [], len(self.failed), time.monotonic() + seconds
        while (begin := time.monotonic()) < end:
            self.ask(len(times))
            times.append(time.monotonic() - begin)
        times.sort()
        at = lambda part: times[int(part * (len(times) - 1))] * 1000  # noqa: E731
        print(
            f"{what:8} {len(times):7} requests, {len(self.failed) - failed} failed, p50 {at(0.5):.2f} ms, p99 {at(0.99):.2f} ms, "
            f"longest {at(1):.0f} ms; relay: {relay.memory():.1f} MiB, {relay.files()} descriptors",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target/release", help="where the programs are")
    parser.add_argument("--crowd", type=int, default=10_000, help="how many (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=75, help="time with the crowd (default: %(default)s)")
    args = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < args.crowd * 1.5 + 500:
        sys.exit(f"{args.crowd} connections and their links need more than {most} descriptors: see `ulimit -Hn`")

    relay = Program(args.bin / "ptth-relay", "--listen", "127.0.0.1:0")
    port = int(relay.wait_for(r"listening on http://127\.0\.0\.1:(\d+)")[1])
    agents = []
    for name, links in [("demo", "2..64"), ("crowd", f"2..{args.crowd // 4 + 100}")]:
        via = ["--via", f"http://127.0.0.1:{port}", "--name", name]
        agents.append(Program(args.bin / "ptth-reverse", "hello", *via, "--links", links))
        agents[-1].wait_for("stands")
    problems = []
    try:
        others = Others(port)
        others.run("before", 10, relay)
        before = relay.files()
        pipe, end = multiprocessing.Pipe()
        guests = multiprocessing.Process(target=crowd, args=(args.crowd, port, end), daemon=True)
        guests.start()

        def there():
            pipe.send("how many")
            return pipe.recv()

        deadline = time.monotonic() + 60
        while there()[0] < args.crowd * 0.99 and time.monotonic() < deadline:
            time.sleep(0.5)
        print(f"the crowd: {there()[0]} connections stand")
        others.run("with it", args.seconds, relay)
        stand, told = there()
        if stand < args.crowd * 0.9:
            problems.append(f"of the crowd only {stand} are in")
        print(f"the crowd: {stand} connections stand; they were told")
        for what, times in sorted(told.items()):
            print(f"  {what}: {times} times")
        pipe.send("go")
        guests.join(30)
        deadline = time.monotonic() + 120
        # The links that the crowd had are let go one by one.
        while relay.files() > before + 10 and time.monotonic() < deadline:
            time.sleep(0.5)
        others.run("after", 10, relay)
        if relay.files() > before + 10:
            problems.append(f"{relay.files()} descriptors are open, {before} before the crowd")
        if others.failed:
            problems.append(f"{len(others.failed)} requests failed: {collections.Counter(others.failed).most_common(5)}")
        for line in relay.lines:
            if "warning" in line:
                print(f"  {line}")
    finally:
        for program in [*agents, relay]:
            if program.stop() != 0:
                problems.append(f"{program.child.args[0]} ended with {program.child.returncode}")
    for problem in problems:
        print(f"FAILED: {problem}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
