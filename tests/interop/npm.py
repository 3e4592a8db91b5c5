"""npm's reverse-http against our relay."""
import collections
import concurrent.futures
import json
import os
import pathlib
import subprocess
import time

from checks import same, that
from programs import Started, listening
from visitors import Visitor, pattern, sha256

HERE = pathlib.Path(__file__).resolve().parent
MIB = 1 << 20


class Programs(Started):
    """A relay of ours, and agents for it."""

    def __init__(self, relay, modules):
        super().__init__()
        self.node = {**os.environ, "NODE_PATH": str(pathlib.Path(modules).resolve())}
        # Two requests wait in vain for an agent; that need not take the default of 10 s.
        self.relay = self.start([relay, "--listen", "127.0.0.1:0", "--timeout", "link=2s"])
        self.address = None

    def npm_agent(self, name, label="a"):
        """An agent for the name, or for each of several that commas separate. Its links stand when this returns."""
        relay = "{}:{}".format(*self.address)
        agent = self.start(["node", HERE / "npm-agent.js", relay, name, label], env=self.node)
        agent.wait_for("^connected ", times=len(name.split(",")))
        return agent


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


def play(relay, modules, checks, also=()):
    """All of it, and what else is to be played with the same relay."""
    with Programs(relay, modules) as programs:
        with checks.check("the relay says where it listens"):
            programs.address = listening(programs.relay)
        if programs.address:
            for part in (one_agent, several_agents, dead_agent, idle_close):
                part(programs, checks)
            for part in also:
                part(programs.address, checks)
        with checks.check("the relay still runs, and ends when asked to"):
            same(programs.relay.child.poll(), None, "exit code")
            same(programs.relay.stop(5), 0, "exit code")
        if checks.failed:
            checks.say("\n  ".join(["The relay's last words:", *programs.relay.lines[-20:]]))
