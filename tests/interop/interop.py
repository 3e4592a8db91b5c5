#!/usr/bin/env python3
"""Agents of other people against our relay. `run.sh` installs what this needs, and starts it.

    interop.py PTTH-RELAY NODE_MODULES
"""
import collections
import concurrent.futures
import hashlib
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import second_life
from checks import Checks, Failed, same, that

HERE = pathlib.Path(__file__).resolve().parent
MIB = 1 << 20


# --- programs ---------------------------------------------------------------------------------------------------------


class Program:
    """A child of ours whose lines a thread collects, so that it never waits for a reader."""

    def __init__(self, command, **more):
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.child = subprocess.Popen(command, text=True, errors="replace", **pipes, **more)
        self.lines = []
        self.news = threading.Condition()
        threading.Thread(target=self.collect, daemon=True).start()

    def collect(self):
        for line in self.child.stdout:
            with self.news:
                self.lines.append(line.rstrip("\n"))
                self.news.notify_all()

    def wait_for(self, pattern, times=1, seconds=10):
        """The last line, when so many match."""
        with self.news:
            if not self.news.wait_for(lambda: self.count(pattern) >= times, seconds):
                said = f"{self.child.args[0]} said {self.lines[-5:]}"
                raise Failed(f"no line like {pattern!r} ({times} of them) in {seconds} s: {said}")
            return [line for line in self.lines if re.search(pattern, line)][-1]

    def count(self, pattern):
        return sum(1 for line in self.lines if re.search(pattern, line))

    def stop(self):
        self.child.terminate()
        try:
            self.child.wait(3)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


class Programs:
    """Everything that we started. Leaving the `with` block ends it, by id."""

    def __init__(self, relay, modules):
        self.started = []
        self.node = {**os.environ, "NODE_PATH": str(pathlib.Path(modules).resolve())}
        # Two requests wait in vain for an agent; that need not take the default of 10 s.
        self.relay = self.start([relay, "--listen", "127.0.0.1:0", "--timeout", "link=2s"])
        self.address = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for program in self.started:
            program.stop()

    def start(self, command, **more):
        self.started.append(Program(command, **more))
        return self.started[-1]

    def listening(self):
        line = self.relay.wait_for(r"listening on http://127\.0\.0\.1:\d+")
        self.address = ("127.0.0.1", int(re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)[1]))

    def npm_agent(self, name, label="a"):
        """An agent for the name, or for each of several that commas separate. Its links stand when this returns."""
        relay = "{}:{}".format(*self.address)
        agent = self.start(["node", HERE / "npm-agent.js", relay, name, label], env=self.node)
        agent.wait_for("^connected ", times=len(name.split(",")))
        return agent


# --- visitors ---------------------------------------------------------------------------------------------------------

Answer = collections.namedtuple("Answer", "status reason fields body")


class Visitor:
    """One visitor's connection to one tunnel. Asks again on the same connection as long as the relay keeps it."""

    def __init__(self, relay, name):
        self.connection = http.client.HTTPConnection(*relay, timeout=20)
        self.host = f"{name}.localhost"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def ask(self, method, target, body=None, fields=(), chunked=False):
        self.connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        self.connection.putheader("Host", self.host)
        for field, value in fields:
            self.connection.putheader(field, value)
        if chunked:
            self.connection.putheader("Transfer-Encoding", "chunked")
        elif body is not None:
            self.connection.putheader("Content-Length", str(len(body)))
        self.connection.endheaders(pieces(body) if chunked else body, encode_chunked=chunked)
        response = self.connection.getresponse()
        return Answer(response.status, response.reason, response.headers, response.read())

    def keeps(self):
        """http.client forgets its socket when the answer said that the connection ends."""
        return self.connection.sock is not None


def pieces(body, size=7001):
    return (body[i : i + size] for i in range(0, len(body), size))


def pattern(size):
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def sha256(body):
    return hashlib.sha256(body).hexdigest()


def seen(answer):
    """What the echo app says of the request that it saw."""
    same(answer.status, 200, f"status (body {answer.body[:200]!r})")
    return json.loads(answer.body)


def values(report, name):
    """The values of a field, as the agent saw them. Node lists names and values in turn."""
    names, contents = report["headers"][::2], report["headers"][1::2]
    return [value for field, value in zip(names, contents) if field.lower() == name.lower()]


# --- the checks -------------------------------------------------------------------------------------------------------


def one_agent(programs, checks):
    relay = programs.address
    with checks.check("npm: the agent's upgrade is accepted"):
        programs.npm_agent("one")

    with checks.check("npm: GET, target and fields as the visitor sent them"):
        with Visitor(relay, "one") as visitor:
            fields = [("X-Order", "first"), ("X-Order", "second"), ("X-Latin", "caf\xe9"), ("Cookie", "a=1; b=2")]
            report = seen(visitor.ask("GET", "/a%20b/c?q=%00&empty=", fields=fields))
            same((report["method"], report["url"]), ("GET", "/a%20b/c?q=%00&empty="), "request line")
            same(values(report, "X-Order"), ["first", "second"], "X-Order")
            same(values(report, "X-Latin"), ["caf\xe9"], "X-Latin")
            same(values(report, "Cookie"), ["a=1; b=2"], "Cookie")
            same(len(values(report, "Host")), 1, "number of Host fields")
            same((report["length"], values(report, "Transfer-Encoding")), (0, []), "body of a GET")

    with checks.check("npm: fields of one hop stay on their hop"):
        with Visitor(relay, "one") as visitor:
            hop = [("Connection", "close, X-Mine"), ("X-Mine", "1"), ("Keep-Alive", "timeout=9"), ("TE", "trailers")]
            answer = visitor.ask("GET", "/echo", fields=hop)
            report = seen(answer)
            same((values(report, "X-Mine"), values(report, "Keep-Alive")), ([], []), "fields that the agent saw")
            that("close" not in ",".join(values(report, "Connection")).lower(), "the visitor's close ended the link")
            same(answer.fields["Keep-Alive"], None, "the agent's Keep-Alive at the visitor")

    with checks.check("npm: HEAD has the length of a body that does not come"):
        with Visitor(relay, "one") as visitor:
            answer = visitor.ask("HEAD", "/big?size=12345")
            same((answer.status, answer.fields["Content-Length"], answer.body), (200, "12345", b""), "answer")
            same(seen(visitor.ask("GET", "/echo"))["method"], "GET", "the next request")

    with checks.check("npm: HEAD of a chunked answer"):
        with Visitor(relay, "one") as visitor:
            same(visitor.ask("HEAD", "/big?size=12345&chunked").body, b"", "body")
            same(seen(visitor.ask("GET", "/echo"))["method"], "GET", "the next request")

    with checks.check("npm: a chunked answer"):
        with Visitor(relay, "one") as visitor:
            answer = visitor.ask("GET", "/chunked/x")
            same(seen(answer)["url"], "/chunked/x", "url")
            that(visitor.keeps(), "the visitor's connection ended")

    with checks.check("npm: 204, and statuses with a reason of the agent's own"):
        with Visitor(relay, "one") as visitor:
            answer = visitor.ask("GET", "/none")
            same((answer.status, answer.body), (204, b""), "answer")
            same(answer.fields["Transfer-Encoding"], None, "Transfer-Encoding of a 204")
            that(visitor.keeps(), "the visitor's connection ended")
            for code in (201, 304, 404, 418, 500, 503):
                answer = visitor.ask("GET", f"/status?code={code}")
                same((answer.status, answer.reason, answer.body), (code, "As You Wish", b""), "answer")

    with checks.check("npm: two Set-Cookie stay two"):
        with Visitor(relay, "one") as visitor:
            same(visitor.ask("GET", "/twice").fields.get_all("Set-Cookie"), ["first=1", "second=2"], "Set-Cookie")

    for title, body in [("no octet", b""), ("five octets", b"olleh"), ("1 MiB", pattern(MIB))]:
        with checks.check(f"npm: POST with length, {title}"):
            with Visitor(relay, "one") as visitor:
                report = seen(visitor.ask("POST", "/echo", body))
                same((report["length"], report["sha256"]), (len(body), sha256(body)), "body")
                same(values(report, "Content-Length"), [str(len(body))], "Content-Length")

        with checks.check(f"npm: POST chunked, {title}"):
            with Visitor(relay, "one") as visitor:
                report = seen(visitor.ask("POST", "/echo", body, chunked=True))
                same((report["length"], report["sha256"]), (len(body), sha256(body)), "body")
                same(seen(visitor.ask("GET", "/next"))["url"], "/next", "the next request")

    with checks.check("npm: answers of 1 MiB, with length and chunked"):
        with Visitor(relay, "one") as visitor:
            same(sha256(visitor.ask("GET", f"/big?size={MIB}").body), sha256(pattern(MIB)), "with length")
            same(sha256(visitor.ask("GET", f"/big?size={MIB}&chunked").body), sha256(pattern(MIB)), "chunked")

    with checks.check("npm: 1 MiB out and the same 1 MiB back, with length and chunked"):
        with Visitor(relay, "one") as visitor:
            for how, chunked in [("with length", False), ("chunked", True)]:
                answer = visitor.ask("PUT", "/mirror", pattern(MIB), chunked=chunked)
                same(sha256(answer.body), sha256(pattern(MIB)), how)

    with checks.check("npm: curl uploads 3 MiB and expects 100-continue"):
        fields = ["-H", "Host: one.localhost", "-H", "Expect: 100-continue"]
        command = ["curl", "-sS", "-m", "20", *fields, "--data-binary", "@-", "http://{}:{}/echo".format(*relay)]
        out = subprocess.run(command, input=pattern(3 * MIB), capture_output=True)
        same((out.returncode, out.stderr), (0, b""), "curl")
        report = json.loads(out.stdout)
        same((report["length"], report["sha256"]), (3 * MIB, sha256(pattern(3 * MIB))), "body")

    with checks.check("npm: 500 requests on one visitor's connection"):
        with Visitor(relay, "one") as visitor:
            for i in range(500):
                same(seen(visitor.ask("GET", f"/n/{i}"))["url"], f"/n/{i}", "url")

    with checks.check("npm: 200 requests, each on a connection of its own"):
        for i in range(200):
            with Visitor(relay, "one") as visitor:
                same(seen(visitor.ask("POST", f"/n/{i}", str(i).encode()))["sha256"], sha256(str(i).encode()), "body")

    with checks.check("npm: a visitor who leaves in the middle of an answer hurts nobody"):
        with Visitor(relay, "one") as visitor:
            visitor.connection.putrequest("GET", f"/big?size={64 * MIB}", skip_host=True)
            visitor.connection.putheader("Host", "one.localhost")
            visitor.connection.endheaders()
            visitor.connection.sock.recv(1000)
        with Visitor(relay, "one") as visitor:
            same(seen(visitor.ask("GET", "/after"))["url"], "/after", "url")


def several_agents(programs, checks):
    relay = programs.address
    with checks.check("npm: four agents under one name"):
        for label in "abcd":
            programs.npm_agent("many", label)

    def ask(i):
        body = pattern(1000 + i)
        with Visitor(relay, "many") as visitor:
            report = seen(visitor.ask("POST", f"/slow/{i}?ms=100", body))
            same((report["url"], report["sha256"]), (f"/slow/{i}?ms=100", sha256(body)), "request")
            return report["agent"]

    with checks.check("npm: 20 requests at once are shared among the four"):
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            agents = collections.Counter(pool.map(ask, range(20)))
        same(sorted(agents), list("abcd"), "agents that answered")
        # 20 of 100 ms one after another are 2 s; four at a time are 0.5 s.
        taken = time.monotonic() - start
        that(taken < 1.5, f"they took {taken:.1f} s: one after another? {dict(agents)}")


def idle_close(programs, checks):
    """Node closes a connection that was idle for 5 to 6 s, and the module dials again at once."""
    relay = programs.address
    idle = None
    with checks.check("npm: after an idle close the agent is back and answers"):
        agent = programs.npm_agent("idle")
        with Visitor(relay, "idle") as visitor:
            same(seen(visitor.ask("GET", "/before"))["url"], "/before", "url")
        start = time.monotonic()
        agent.wait_for("^connected ", times=2, seconds=20)
        idle = time.monotonic() - start
        with Visitor(relay, "idle") as visitor:
            same(seen(visitor.ask("GET", "/after"))["url"], "/after", "url")

    # From 40 ms before the moment of closing to 40 ms after it, in steps of 2: some requests meet the close.
    offsets = [step / 500 for step in range(-20, 21)]
    names = [f"close-{i}" for i in range(len(offsets))]

    def meet(name, offset):
        with Visitor(relay, name) as visitor:
            seen(visitor.ask("GET", "/before"))
        time.sleep(idle + offset)
        with Visitor(relay, name) as visitor:
            return visitor.ask("GET", "/meet").status

    with checks.check(f"npm: {len(names)} requests at the moment of the close are all answered 200"):
        that(idle, "nobody knows when Node closes")
        agent = programs.npm_agent(",".join(names))
        with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
            statuses = collections.Counter(pool.map(meet, names, offsets))
        same(statuses, {200: len(names)}, "statuses")
        closed = agent.count("^connected ") - len(names)
        that(0 < closed < len(names), f"{closed} connections closed meanwhile: the moment was missed")


def dead_agent(programs, checks):
    relay = programs.address
    with checks.check("npm: an agent that is killed takes nobody's name with it"):
        old, new = programs.npm_agent("heir", "old"), programs.npm_agent("heir", "new")
        old.child.kill()
        old.child.wait()
        for _ in range(5):
            with Visitor(relay, "heir") as visitor:
                same(seen(visitor.ask("GET", "/echo"))["agent"], "new", "agent")

    with checks.check("npm: an agent that is killed over a request, whose visitor gets an error"):
        agent = programs.npm_agent("victim")
        with Visitor(relay, "victim") as visitor, concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(visitor.ask, "POST", "/slow?ms=9000", b"x")
            time.sleep(0.3)
            agent.child.kill()
            answer = waiting.result(10)
            that(answer.status in (502, 503, 504), f"the visitor saw {answer.status} {answer.body[:200]!r}")

    with checks.check("npm: a visitor of a name that nobody has gets an error"):
        with Visitor(relay, "nobody") as visitor:
            status = visitor.ask("GET", "/").status
            that(status in (404, 502, 503), f"the visitor saw {status}")


def main():
    relay, modules = sys.argv[1:]
    checks = Checks()
    # So that an interrupted run, too, leaves through the `with` block that ends our children.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    with Programs(relay, modules) as programs:
        with checks.check("the relay says where it listens"):
            programs.listening()
        if programs.address:
            for part in (one_agent, several_agents, dead_agent, idle_close):
                part(programs, checks)
            second_life.play(programs.address, checks)
        with checks.check("the relay still runs, and ends when asked to"):
            same(programs.relay.child.poll(), None, "exit code")
            programs.relay.child.terminate()
            same(programs.relay.child.wait(5), 0, "exit code")
        if checks.failed:
            print("The relay's last words:", *programs.relay.lines[-20:], sep="\n  ", file=sys.stderr)
    sys.exit(checks.end())


if __name__ == "__main__":
    main()
