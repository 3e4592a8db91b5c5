"""The ptth pair (ptth_relay and ptth_server) and our programs, each in the place of one of theirs.

Every case is a function that asks something and says in a few words what it saw; it fails by raising. Cases that need
programs of their own stand in lanes: each lane of each column has its own relay and agent, and all lanes run at once,
since some of them wait out the 25 s of a poll or the 30 s of a visitor.
"""
import collections
import concurrent.futures
import dataclasses
import functools
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import threading
import time

from checks import Failed, reason, same, that
from programs import HOST, Started, accepts, free_port, listening, until
from upstream import Upstream
from visitors import Visitor, pattern, sha256

NAME = "aliens_wildland"
# What ptth_server's own tests have for a key, and the hash of it that a relay is given.
KEY = "PlaypenCausalPlatformCommodeImproveCatalyze"
TRIPCODE = "A9rPwZyY89Ag4TJjMoyYA2NeGOm99Je6rq1s0rg8PfY="

HELLO = b"hello from ptth\n"
MANY = pattern(20_000_000)
HUGE = 256 << 20
# The longest lane waits 30 s for the real relay's 504. Beyond this something hangs.
LIMIT_SECONDS = 120
LANES_AT_ONCE = 10


@dataclasses.dataclass(frozen=True)
class Column:
    title: str
    our_relay: bool
    our_agent: bool


OUR_AGENT = Column("real relay + our agent", False, True)
OUR_RELAY = Column("real agent + our relay", True, False)
REAL = Column("real pair (reference)", False, False)
COLUMNS = [OUR_AGENT, OUR_RELAY, REAL]


@dataclasses.dataclass
class Lane:
    """What is running when its cases begin."""

    agent: bool = True
    relay_flags: tuple = ()
    agent_flags: tuple = ()
    dialect: tuple = ("--dialect", "ptth-relay")


LANES = {
    "plain": Lane(),
    "bulk": Lane(),
    "death": Lane(),
    "stop": Lane(),
    "restart": Lane(),
    "two": Lane(agent=False),
    "idle": Lane(),
    "refused": Lane(agent=False, relay_flags=("--timeout", "link=2s")),
    "away": Lane(agent=False, relay_flags=("--timeout", "link=2s")),
    "early": Lane(agent=False),
    "auto": Lane(dialect=()),
    "query": Lane(relay_flags=("--ptth-query",)),
    "throttled": Lane(agent_flags=("--throttle-upload",)),
}

Case = collections.namedtuple("Case", "title lane columns run")
CASES = []


def case(title, lane="plain", columns=COLUMNS):
    return lambda run: CASES.append(Case(title, lane, columns, run)) or run


# --- programs ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Tools:
    """Where the programs are, and a folder to write in."""

    relay: pathlib.Path
    agent: pathlib.Path
    real: pathlib.Path
    folder: pathlib.Path


class Pair(Started):
    """A relay and its agents, as the column has them."""

    def __init__(self, tools, column, lane):
        super().__init__()
        self.tools, self.column, self.lane = tools, column, lane
        self.address = (HOST, free_port())
        self.relay = self.agent = None
        self.upstreams = []
        self.upstream = self.serve("files") if column.our_agent else None

    def __exit__(self, *_):
        super().__exit__()
        for upstream in self.upstreams:
            upstream.stop()
        self.upstreams = []

    def start_relay(self):
        if self.column.our_relay:
            agents = self.write("agents.toml", f'[[agent]]\nnames = ["{NAME}"]\nhash = "{TRIPCODE}"\n')
            listen = ["--listen", "{}:{}".format(*self.address), "--agents", agents]
            self.relay = self.start([self.tools.relay, *listen, *self.lane.relay_flags])
            listening(self.relay)
        else:
            at = self.folder()
            server = f'[[servers]]\nname = "{NAME}"\ntripcode = "{TRIPCODE}"\n'
            self.write("config/ptth_relay.toml", f"port = {self.address[1]}\n{server}", at)
            for page in ("audit_log", "debug", "root", "server_list", "unregistered_servers"):
                self.write(f"handlebars/relay/{page}.hbs", "a page\n", at)
            # It listens on every address of the machine, and cannot be told otherwise.
            log = {**os.environ, "RUST_LOG": "ptth_relay=debug"}
            self.relay = self.start([self.tools.real / "ptth_relay"], cwd=at, env=log)
            until("ptth_relay listens", lambda: accepts(self.address) or self.ended(self.relay))

    def start_agent(self, name=NAME, key=KEY, root="files"):
        via = "http://{}:{}/7ZSFUKGV".format(*self.address)
        if self.column.our_agent:
            token = self.write("token", key, mode=0o600)
            upstream = self.upstream if root == "files" else self.serve(root)
            flags = ["--via", via, "--name", name, "--token-file", token, *self.lane.dialect, *self.lane.agent_flags]
            agent = self.start([self.tools.agent, str(upstream.port), *flags])
        else:
            at = self.folder()
            config = f'name = "{name}"\napi_key = "{key}"\nrelay_url = "{via}"\n'
            config += f'file_server_root = "{self.tools.folder / root}"\n'
            # It refuses a key that others may read.
            self.write("config/ptth_server.toml", config, at, mode=0o600)
            for page in ("dir", "root"):
                self.write(f"handlebars/server/file_server_{page}.html", "a page\n", at)
            log = {**os.environ, "RUST_LOG": "ptth_server=debug"}
            agent = self.start([self.tools.real / "ptth_server", *self.lane.agent_flags], cwd=at, env=log)
        self.agent = agent
        return agent

    def serve(self, root):
        """An upstream for our agent, of this folder."""
        self.upstreams.append(Upstream(self.tools.folder / root))
        return self.upstreams[-1]

    def folder(self):
        return pathlib.Path(tempfile.mkdtemp(dir=self.tools.folder))

    def write(self, name, text, at=None, mode=0o644):
        file = (at or self.folder()) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode)
        file.write_text(text)
        return file

    @staticmethod
    def ended(program):
        if not program.runs():
            raise Failed(f"{program.child.args[0]} ended with {program.child.returncode}: {program.lines[-3:]}")

    def visitor(self, **more):
        return Visitor(self.address, prefix=f"/frontend/servers/{NAME}", **more)

    def answers(self):
        """Does a visitor get the small file?"""
        if self.agent:
            self.ended(self.agent)
        try:
            with self.visitor(timeout=2) as visitor:
                return visitor.ask("GET", "/files/hello.txt").body == HELLO
        except (OSError, http.client.HTTPException):
            return False

    def ready(self, seconds=15):
        """Waits until the tunnel stands. Gives the seconds that it took."""
        start = time.monotonic()
        until("the tunnel answers", self.answers, seconds)
        return time.monotonic() - start


# --- what a visitor sees ----------------------------------------------------------------------------------------------


def hello(pair, visitor=None, target="/files/hello.txt"):
    """The small file, on a connection of its own or on this one."""
    with visitor or pair.visitor() as connection:
        answer = connection.ask("GET", target)
    same((answer.status, answer.body), (200, HELLO), "answer")
    return answer


def framing(answer):
    return "chunked" if answer.fields["Transfer-Encoding"] else f"length {answer.fields['Content-Length']}"


@case("GET")
def get(pair):
    seen = framing(hello(pair))
    # The stock pair loses the length on its way. Ours need not, whichever end it is.
    if pair.column is not REAL:
        same(seen, f"length {len(HELLO)}", "framing")
    return f"200, {seen}"


@case("GET by host name", columns=[OUR_RELAY])
def by_host(pair):
    answer = hello(pair, Visitor(pair.address, name=NAME))
    return f"{answer.status}"


@case("the agent's URL", columns=[OUR_AGENT])
def url(pair):
    line = pair.agent.wait_for(r"^http://", seconds=5)
    same(line, "http://{}:{}/frontend/servers/{}/".format(*pair.address, NAME), "stdout")
    return "the relay's path for it"


@case("GET, `auto` chooses by the path", lane="auto", columns=[OUR_AGENT])
def auto(pair):
    hello(pair)
    return "200"


@case("a field with byte E9")
def latin(pair):
    with pair.visitor() as visitor:
        if not pair.column.our_agent:
            same(visitor.ask("GET", "/files/hello.txt", fields=[("X-Latin", "caf\xe9")]).status, 200, "status")
            return "200"
        seen = json.loads(visitor.ask("GET", "/echo", fields=[("X-Latin", "caf\xe9")]).body)
        same(dict(lower(seen["headers"]))["x-latin"], "caf\xe9", "the field at the upstream")
        answer = visitor.ask("GET", "/latin")
        same((answer.fields["X-Latin"], answer.body), ("caf\xe9", b"caf\xe9\n"), "the answer's field")
        return "there and back"


def lower(fields):
    return [(name.lower(), value) for name, value in fields]


@case("range")
def ranges(pair):
    with pair.visitor() as visitor:
        answer = visitor.ask("GET", "/files/hello.txt", fields=[("Range", "bytes=3-7")])
        same((answer.status, answer.body), (206, HELLO[3:8]), "answer")
        said = answer.fields["Content-Range"]
        # The stock agent takes the end of the part for the end of the file.
        whole = len(HELLO) if pair.column.our_agent else 8
        same(said, f"bytes 3-7/{whole}", "Content-Range")
        return f"206, {said}"


@case("416")
def unsatisfiable(pair):
    with pair.visitor() as visitor:
        answer = visitor.ask("GET", "/files/hello.txt", fields=[("Range", "bytes=900-")])
        same((answer.status, answer.fields["Content-Range"]), (416, f"bytes */{len(HELLO)}"), "answer")
        hello(pair, visitor)
        return f"416, {answer.fields['Content-Range']}"


@case("HEAD, then GET on the connection")
def head(pair):
    with pair.visitor(timeout=5) as visitor:
        answer = visitor.ask("HEAD", "/files/hello.txt")
        # The stock agent says 204.
        wanted = (200, str(len(HELLO))) if pair.column.our_agent else (204, None)
        same((answer.status, answer.fields["Content-Length"]), wanted, "answer")
        hello(pair, visitor)
        return f"{answer.status}"


@case("304, then GET on the connection")
def not_modified(pair):
    with pair.visitor(timeout=5) as visitor:
        tag = visitor.ask("GET", "/files/hello.txt").fields["ETag"]
        answer = visitor.ask("GET", "/files/hello.txt", fields=[("If-None-Match", tag)])
        same((answer.status, answer.body, answer.fields["ETag"]), (304, b"", tag), "answer")
        hello(pair, visitor)
        return "304"


@case("20 HEAD: connections of the agent", columns=[OUR_RELAY, REAL])
def heads(pair):
    """The stock agent promises a body for them that never comes: who waits for it is left with a connection each."""
    with pair.visitor(timeout=5) as visitor:
        for _ in range(20):
            same(visitor.ask("HEAD", "/files/hello.txt").status, 204, "status")
        hello(pair, visitor)
    if pair.column.our_relay:
        until("most of them are closed", lambda: sockets(pair.agent) <= 12, 5)
        return "no more than 12"
    return f"{sockets(pair.agent)}"


def sockets(program):
    folder = pathlib.Path(f"/proc/{program.child.pid}/fd")
    return sum(1 for link in folder.iterdir() if os.path.islink(link) and os.readlink(link).startswith("socket:"))


@case("404")
def missing(pair):
    with pair.visitor() as visitor:
        answer = visitor.ask("GET", "/files/nope.txt")
        same(answer.status, 404, "status")
        return f"404, {first_line(answer)}"


def first_line(answer):
    return answer.body.decode("latin-1").strip().partition("\n")[0]


@case("307 of a folder", columns=[OUR_RELAY, REAL])
def folder(pair):
    with pair.visitor() as visitor:
        answer = visitor.ask("GET", "/files/sub")
        same((answer.status, answer.fields["Location"]), (307, "sub/"), "answer")
        return "307 sub/"


@case("statuses that the protocol lacks", columns=[OUR_AGENT])
def statuses(pair):
    nearest = {200: 200, 201: 200, 301: 307, 302: 307, 401: 403, 403: 403, 418: 400, 500: 500, 502: 500, 503: 500}
    seen = {}
    with pair.visitor() as visitor:
        for status in nearest:
            answer = visitor.ask("GET", f"/status/{status}")
            seen[status] = answer.status
            same(answer.body, f"this is {status}\n".encode(), f"body of {status}")
            if 300 <= status < 400:
                same(answer.fields["Location"], "/files/hello.txt", f"Location of {status}")
    same(seen, nearest, "statuses")
    return " ".join(f"{status}→{became}" for status, became in seen.items() if status != became)


@case("204", columns=[OUR_AGENT])
def empty_status(pair):
    with pair.visitor() as visitor:
        answer = visitor.ask("GET", "/status/204")
        same((answer.status, answer.body), (204, b""), "answer")
        hello(pair, visitor)
        return "204"


@case("repeated fields in an answer", columns=[OUR_AGENT])
def repeated(pair):
    """The protocol has one value a name."""
    with pair.visitor() as visitor:
        fields = visitor.ask("GET", "/twice").fields
        same(fields.get_all("X-Twice"), ["a, b"], "X-Twice")
        same(fields.get_all("Set-Cookie"), ["first=1"], "Set-Cookie, which can't be joined")
        return "joined, but one Set-Cookie"


@case("fields of one hop, and a length without a body", columns=[OUR_AGENT])
def hop(pair):
    """The stock relay hands all of them on, and the length of a body that it drops."""
    fields = [("Connection", "keep-alive, X-Mine"), ("X-Mine", "1"), ("TE", "trailers"), ("X-Kept", "yes")]
    with pair.visitor(timeout=5) as visitor:
        seen = json.loads(visitor.ask("GET", "/echo", body=b"abc", fields=fields).body)
    names = dict(lower(seen["headers"]))
    same(names.get("x-kept"), "yes", "X-Kept")
    same([name for name in ("x-mine", "te", "x-apikey") if name in names], [], "fields of another hop")
    that(names.get("content-length", "0") == "0", f"Content-Length: {names.get('content-length')}")
    return "stay there"


@case("all 256 byte values")
def all_bytes(pair):
    with pair.visitor() as visitor:
        same(visitor.ask("GET", "/files/bytes.bin").body, bytes(range(256)), "body")
        return "256 bytes"


@case("a file of no bytes")
def no_bytes(pair):
    with pair.visitor() as visitor:
        answer = visitor.ask("GET", "/files/empty")
        same((answer.status, answer.body), (200, b""), "answer")
        hello(pair, visitor)
        return f"200, {framing(answer)}"


@case("a name in percent signs")
def percent(pair):
    with pair.visitor() as visitor:
        answer = visitor.ask("GET", "/files/sub/caf%C3%A9%20%25.txt")
        same((answer.status, answer.body), (200, b"coffee\n"), "answer")
        return "200"


@case("query string")
def query(pair):
    with pair.visitor() as visitor:
        if pair.column.our_agent:
            same(json.loads(visitor.ask("GET", "/echo?x=1").body)["target"], "/echo", "target at the upstream")
        else:
            same(visitor.ask("GET", "/files/sub/?x=1").status, 200, "status")
        return "dropped by the relay"


@case("query string, --ptth-query", lane="query", columns=[OUR_RELAY])
def query_kept(pair):
    """The stock agent refuses a query for a folder: so it has seen it."""
    with pair.visitor() as visitor:
        answer = visitor.ask("GET", "/files/sub/?x=1")
        same((answer.status, first_line(answer)), (400, "Query is invalid for this object"), "answer")
        same(visitor.ask("GET", "/files/hello.txt?x=1").body, HELLO, "body")
        return "reaches the agent"


@case("POST")
def post(pair):
    with pair.visitor() as visitor:
        answer = visitor.ask("POST", "/files/hello.txt", body=b"x=1", fields=[("Accept", "text/plain")])
        same(answer.status, 501 if pair.column.our_relay else 400, f"status ({first_line(answer)})")
    hello(pair)
    return f"{answer.status}, {first_line(answer)}"


@case("keep-alive: 20 requests")
def kept(pair):
    with pair.visitor() as visitor:
        start = time.monotonic()
        for i in range(20):
            same(visitor.ask("GET", f"/files/n/{i % 10}").body, numbered(i % 10), "body")
            that(visitor.keeps(), f"the connection ended after {i + 1} requests")
        return f"{(time.monotonic() - start) * 50:.1f} ms each"


def numbered(i):
    return f"number {i}\n".encode() * (i + 1)


@case("an HTTP/1.0 visitor")
def http10(pair):
    address = "http://{}:{}/frontend/servers/{}/files/hello.txt".format(*pair.address, NAME)
    out = subprocess.run(["curl", "-sS", "-m", "10", "-0", "-D", "-", address], capture_output=True)
    head, _, body = out.stdout.partition(b"\r\n\r\n")
    that(head.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")), f"the answer is {head!r}")
    same((body, out.returncode), (HELLO, 0), "body")
    that(b"chunked" not in head.lower(), "chunks for HTTP/1.0")
    return "200"


@case("20 MB", lane="bulk")
def many_bytes(pair):
    start = time.monotonic()
    with pair.visitor() as visitor:
        answer = visitor.ask("GET", "/files/20m")
        same((len(answer.body), sha256(answer.body)), (len(MANY), sha256(MANY)), "length and hash")
    return f"{len(MANY) / 1e6 / (time.monotonic() - start):.0f} MB/s"


@case("ten visitors at once", lane="bulk")
def ten(pair):
    def ask(i):
        with pair.visitor() as visitor:
            for _ in range(5):
                same(visitor.ask("GET", f"/files/n/{i}").body, numbered(i), "body")

    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        list(pool.map(ask, range(10)))
    return f"50 answers in {time.monotonic() - start:.2f} s"


@case("an answer in pieces, as they come", lane="bulk", columns=[OUR_AGENT])
def in_pieces(pair):
    pair.upstream.go.clear()
    with pair.visitor(timeout=5) as visitor:
        response = visitor.begin("GET", "/pieces")
        same(response.read(5), b"first", "the piece that is there")
        pair.upstream.go.set()
        same(response.read(), b"second", "the rest")
    return "not held back"


@case("an answer in pieces, as they come", lane="throttled", columns=[OUR_RELAY, REAL])
def throttled(pair):
    """The stock agent's own switch for it: 64 KiB a second."""
    with pair.visitor() as visitor:
        response = visitor.begin("GET", "/files/three")
        response.read(65536)
        start = time.monotonic()
        same(len(response.read()), 2 * 65536, "bytes of the rest")
        waited = time.monotonic() - start
        that(waited > 0.9, f"the rest came after {waited:.1f} s: the first piece was held back")
    return "not held back"


@case("upstream breaks off mid-body", lane="bulk", columns=[OUR_AGENT])
def short(pair):
    with pair.visitor() as visitor:
        why = cut(visitor, visitor.begin("GET", "/short"), "the truncated body was taken for whole")
    hello(pair)
    return why


def cut(visitor, response, otherwise):
    """Reads to the end, which must not be a good one."""
    try:
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}"
    raise Failed(f"{otherwise} ({len(body)} bytes, {response.headers.items()})")


# --- who comes and goes -----------------------------------------------------------------------------------------------


@case("visitor gone mid-body", lane="death")
def visitor_leaves(pair):
    if pair.upstream:
        pair.upstream.left.clear()
    for _ in range(5):
        with pair.visitor() as visitor:
            same(len(visitor.begin("GET", "/files/huge").read(65536)), 65536, "bytes")
    that(not pair.upstream or pair.upstream.left.wait(5), "the upstream is still asked for the body")
    start = time.monotonic()
    hello(pair)
    that(pair.agent.runs(), "the agent ended")
    return f"next one in {(time.monotonic() - start) * 1e3:.0f} ms"


@case("visitor gone before the answer", lane="death", columns=[OUR_AGENT])
def visitor_leaves_early(pair):
    upstream = pair.upstream
    upstream.go.clear(), upstream.asked.clear()
    with pair.visitor() as visitor:
        visitor.connection.request("GET", visitor.prefix + "/hold")
        that(upstream.asked.wait(5), "the upstream was not asked")
    upstream.go.set()
    hello(pair)
    that(pair.agent.runs(), "the agent ended")
    return "next one served"


@case("agent killed mid-body", lane="death")
def agent_dies(pair):
    with pair.visitor() as visitor:
        response = visitor.begin("GET", "/files/huge")
        same(len(response.read(65536)), 65536, "bytes")
        pair.agent.kill()
        why = cut(visitor, response, "the truncated body was taken for whole")
    pair.start_agent()
    return f"{why}; a new agent serves after {pair.ready():.1f} s"


@case("agent told to stop lets a request end", lane="stop", columns=[OUR_AGENT])
def agent_stops(pair):
    upstream = pair.upstream
    upstream.go.clear(), upstream.asked.clear()
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pair.visitor() as visitor:
        waiting = pool.submit(visitor.ask, "GET", "/hold")
        try:
            that(upstream.asked.wait(5), "the upstream was not asked")
            pair.agent.child.terminate()
            try:
                raise Failed(f"the agent ended with {pair.agent.child.wait(0.5)} over a request")
            except subprocess.TimeoutExpired:
                pass
        finally:
            upstream.go.set()
        same(waiting.result(10).body, b"held\n", "body")
    same(pair.agent.child.wait(5), 0, "exit code")
    return "and exits with 0"


@case("relay told to stop, and started again", lane="restart")
def relay_restarts(pair):
    # The stock relay takes SIGINT alone for a word; then it tells its agents.
    start = time.monotonic()
    code = pair.relay.stop(8, signal.SIGTERM if pair.column.our_relay else signal.SIGINT)
    if pair.column.our_relay:
        same(code, 0, "exit code")
        that(time.monotonic() - start < 5, "the relay waits for the agent's poll to end")
    ended = time.monotonic() - start
    pair.start_relay()
    return f"ended in {ended:.1f} s, tunnel back in {pair.ready(30):.1f} s"


@case("relay killed, and started again", lane="restart")
def relay_dies(pair):
    pair.relay.kill()
    pair.start_relay()
    return f"tunnel back in {pair.ready(30):.1f} s"


@case("two agents under one name", lane="two")
def two_agents(pair):
    agents = [pair.start_agent()]
    pair.ready()
    agents.append(pair.start_agent(root="other"))

    def ask(_):
        with pair.visitor() as visitor:
            answer = visitor.ask("GET", "/files/who.txt")
            same(answer.status, 200, "status")
            return answer.body.decode().strip()

    served = collections.Counter()
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        while len(served) < 2 or served.total() < 50:
            served.update(pool.map(ask, range(10)))
            that(time.monotonic() - start < 15, f"only one of them serves: {dict(served)}")
    that(all(agent.runs() for agent in agents), "an agent ended")
    return f"shared: {served['one']} and {served['two']}"


@case("idle for longer than a poll is held", lane="idle")
def idle(pair):
    if pair.column.our_agent:
        pair.relay.wait_for("Timed out http_listen", seconds=33)
    else:
        pair.agent.wait_for("long poll timed out on the server", seconds=33)
    start = time.monotonic()
    hello(pair)
    return f"then 200 in {(time.monotonic() - start) * 1e3:.0f} ms"


@case("visitor comes before the agent", lane="early")
def early(pair):
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pair.visitor() as visitor:
        visitor.connection.connect()
        waiting = pool.submit(visitor.ask, "GET", "/files/hello.txt")
        pair.start_agent()
        same(waiting.result(15).body, HELLO, "body")
        return "waits, 200"


@case("no agent at all", lane="away", columns=[OUR_RELAY, REAL])
def away(pair):
    start = time.monotonic()
    with pair.visitor(timeout=35) as visitor:
        answer = visitor.ask("GET", "/files/hello.txt", fields=[("Accept", "text/plain")])
    that(answer.status in (502, 503, 504), f"the visitor saw {answer.status}")
    return f"{answer.status} in {time.monotonic() - start:.0f} s, {first_line(answer)}"


@case("wrong key", lane="refused")
def wrong_key(pair):
    agent = refused(pair, pair.start_agent(key="wrong"))
    if pair.column.our_relay:
        with pair.visitor() as visitor:
            status = visitor.ask("GET", "/files/hello.txt").status
            that(status in (404, 502, 503, 504), f"the visitor saw {status}")
    agent.stop()
    pair.start_agent()
    pair.ready()
    return f"{last_words(agent)}; the right one gets in"


@case("unknown name", lane="refused")
def unknown_name(pair):
    agent = refused(pair, pair.start_agent(name="nobody"))
    with Visitor(pair.address, prefix="/frontend/servers/nobody") as visitor:
        answer = visitor.ask("GET", "/files/hello.txt", fields=[("Accept", "text/plain")])
        that(answer.status in (404, 502, 503), f"the visitor saw {answer.status}")
    return f"{last_words(agent)}; visitor: {answer.status}"


REFUSAL = r"(?i)\b40[13]\b|credential|X-ApiKey"


def refused(pair, agent):
    """The agent says why it isn't let in, and does not insist."""
    agent.wait_for(REFUSAL, seconds=10)
    if pair.column.our_agent:
        pair.relay.stays_below("Denied http_listen", 6, seconds=3)
    return agent


def last_words(agent):
    said = [line for line in agent.lines if re.search(REFUSAL, line)][-1]
    return f"“{said.partition('ERROR ')[2] or said}”"


# --- all of it --------------------------------------------------------------------------------------------------------


def write_files(folder):
    files, other = folder / "files", folder / "other"
    contents = {"hello.txt": HELLO, "bytes.bin": bytes(range(256)), "20m": MANY, "empty": b"", "who.txt": b"one\n"}
    contents |= {f"n/{i}": numbered(i) for i in range(10)}
    contents |= {"sub/caf\xe9 %.txt": b"coffee\n", "three": bytes(3 * 65536)}
    everything = {files / name: content for name, content in contents.items()}
    everything |= {other / "hello.txt": HELLO, other / "who.txt": b"two\n"}
    for file, content in everything.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        # The stock agent takes a file that only its owner may read for its own configuration, and refuses it.
        file.chmod(0o644)
    with open(files / "huge", "wb") as huge:
        huge.truncate(HUGE)


class Table:
    """What each case gave in each column: what it saw, and what was wrong with that."""

    def __init__(self, columns):
        self.columns = columns
        self.cells = {}
        self.lock = threading.Lock()

    def put(self, one, column, text, error=None):
        """The first word on a cell is the last."""
        with self.lock:
            self.cells.setdefault((one.title, column), (text, error))

    def text(self, title, column):
        if (title, column) not in self.cells:
            return "–"
        text, error = self.cells[title, column]
        if column is REAL:
            return text if error is None else f"no: {text}"
        return f"ok: {text}" if error is None else f"FAIL: {text}"

    def rows(self):
        yield ["case", *(column.title for column in self.columns)]
        for title in dict.fromkeys(one.title for one in CASES):
            cells = [shorten(self.text(title, column)) for column in self.columns]
            if set(cells) != {"–"}:
                yield [title, *cells]

    def lines(self):
        rows = list(self.rows())
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            yield " | ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


def shorten(text, size=60):
    text = " ".join(text.split())
    return text if len(text) <= size else text[: size - 1] + "…"


def run_lane(pair, cases, table):
    """Runs the cases that need this pair. When it doesn't come about, that is the result of each."""
    left = list(cases)
    with pair:
        try:
            pair.start_relay()
            if pair.lane.agent:
                pair.start_agent()
                pair.ready()
            while left:
                text, error = run_case(pair, left[0])
                table.put(left.pop(0), pair.column, text, error)
        except Exception as failure:
            for one in left:
                table.put(one, pair.column, str(failure), reason(failure) + heard(pair))


def run_case(pair, one):
    try:
        return one.run(pair), None
    except Exception as failure:
        return str(failure) or type(failure).__name__, reason(failure) + heard(pair)


def heard(pair):
    """The last lines of what is ours in this lane."""
    ours = [pair.column.our_relay and pair.relay, pair.column.our_agent and pair.agent]
    return "".join(f"\n    {line}" for program in ours if program for line in program.lines[-6:])


def run_all(jobs):
    """Runs all jobs, some at once; whether they ended in time."""
    waiting, lock = list(jobs), threading.Lock()

    def work():
        while True:
            with lock:
                if not waiting:
                    return
                job = waiting.pop(0)
            job()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(LANES_AT_ONCE)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + LIMIT_SECONDS
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def play(relay, agent, real, checks, columns=COLUMNS, only=""):
    """All cases whose title has the word, in these columns."""
    wanted = [one for one in CASES if only in one.title]
    table, jobs, pairs = Table(columns), [], []
    with tempfile.TemporaryDirectory(prefix="ptth-", ignore_cleanup_errors=True) as scratch:
        tools = Tools(relay, agent, real, pathlib.Path(scratch))
        write_files(tools.folder)
        # Those that wait longest go first.
        for lane in sorted(LANES, key=lambda name: name not in ("idle", "away")):
            for column in columns:
                cases = [one for one in wanted if one.lane == lane and column in one.columns]
                if cases:
                    pairs.append(Pair(tools, column, LANES[lane]))
                    jobs.append(functools.partial(run_lane, pairs[-1], cases, table))
        try:
            done = run_all(jobs)
        finally:
            # Nothing to do where all went well; else, this ends what still runs.
            for pair in pairs:
                pair.__exit__()
    tell(table, wanted, done, checks)


def tell(table, wanted, done, checks):
    for one in wanted:
        for column in set(one.columns).intersection(table.columns):
            table.put(one, column, "not done in time", f"not done within {LIMIT_SECONDS} s")
    checks.say("")
    for line in table.lines():
        checks.say(line)
    checks.say("")
    if not done:
        checks.say(f"Not all lanes came to their end within {LIMIT_SECONDS} s.")
    # One word for those that fail for the same reason, as all of a lane do when it doesn't come about.
    failed = collections.defaultdict(list)
    for one in wanted:
        for column in table.columns:
            if column is REAL or column not in one.columns:
                continue
            error = table.cells[one.title, column][1]
            if error is None:
                checks.succeed()
            else:
                failed[column.title, error].append(one.title)
    for (title, error), titles in failed.items():
        checks.fail(f"ptth, {title}: {'; '.join(titles)}: {error}", times=len(titles))
