"""A relay and an agent of ours in front of something, with a recorder on each hop between them."""
import contextlib
import re
import socket
import subprocess
import tempfile
import pathlib

from checks import Failed
from programs import HOST, Started, listening

import strict
from recorder import Recorder

KEY = "a key of this test"
# A visitor that asks and ends its side is served all the same; nothing here lasts longer than that.
PATIENCE = 10


class Tunnel(Started):
    """`upstream` makes a server that has a port; without one there is no agent either."""

    def __init__(self, programs, upstream, dialect="ptth/1.0", links="2..8", recorded=True):
        super().__init__()
        self.programs, self.upstream, self.dialect, self.links = programs, upstream, dialect, links
        self.recorded = recorded
        self.files = contextlib.ExitStack()

    def __enter__(self):
        self.folder = pathlib.Path(self.files.enter_context(tempfile.TemporaryDirectory(prefix="desync-")))
        try:
            self.begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        super().__exit__()
        self.files.close()

    def start_relay(self, *more):
        """A relay where nobody but our agent can claim a name: what is fed in may offer links too."""
        relay = self.programs / "ptth-relay"
        hashed = subprocess.run([relay, "hash-key"], input=KEY, text=True, capture_output=True, check=True).stdout
        agents = self.folder / "agents.toml"
        agents.write_text(f'[[agent]]\nnames = ["*"]\n{hashed}')
        (self.folder / "key").write_text(KEY)
        (self.folder / "key").chmod(0o600)
        self.relay = self.start([relay, "--listen", f"{HOST}:0", "--agents", agents, *more])
        self.address = listening(self.relay)

    def begin(self):
        self.start_relay()
        if self.upstream:
            self.start_agent()

    def start_agent(self):
        self.server = self.upstream(self, self.folder)
        self.hop = Recorder((HOST, self.server.port), "requests") if self.recorded else None
        # What an agent polls for is no HTTP: that hop has other readers.
        self.link = Recorder(self.address, "link") if self.recorded and self.dialect == "ptth/1.0" else None
        port = self.link.port if self.link else self.address[1]
        prefix = "/7ZSFUKGV" if self.dialect == "ptth-relay" else ""
        via = ["--via", f"http://{HOST}:{port}{prefix}", "--dialect", self.dialect, "--links", self.links]
        self.log = self.folder / "access.log"
        upstream = f"{HOST}:{(self.hop or self.server).port}"
        more = ["--access-log", self.log, "--token-file", self.folder / "key"]
        self.agent = self.start([self.programs / "ptth-reverse", upstream, *via, *more])
        self.agent.wait_for(r"^http://")
        self.logged = 0

    def lines(self):
        """The agent's access log since it was last read: (method, target, status, code) for each exchange."""
        with self.log.open("rb") as log:
            log.seek(self.logged)
            new = log.read()
        new = new[: new.rfind(b"\n") + 1]
        self.logged += len(new)
        for line in new.splitlines():
            _, _, _, _, method, target, status, _, _, _, code = line.split(b" ")
            yield method, target, int(status), code.decode()

    def check_alive(self):
        for program in self.started:
            if not program.runs():
                raise Failed(f"{program.child.args[0]} has ended: {program.lines[-5:]}")


class Visitor:
    """A connection of bytes."""

    def __init__(self, address):
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard = b""
        self.ended = False
        self.reset = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        try:
            self.socket.sendall(data)
        except OSError:
            self.reset = True

    def shut(self):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def hear(self, seconds):
        """Some more bytes. False when none came in time, or it is the end."""
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(1 << 17)
        except TimeoutError:
            return False
        except OSError:
            self.reset, data = True, b""
        self.heard += data
        self.ended = not data
        return bool(data)

    def answers(self, methods):
        return strict.responses(self.heard, methods, self.ended)

    def hear_answers(self, methods, seconds):
        """Goes on until so many answers are whole. True if they are."""
        while len(self.answers(methods)[0]) < len(methods):
            if not self.hear(seconds):
                return False
        return True

    def hear_end(self, seconds=PATIENCE):
        while not self.ended and self.hear(seconds):
            pass
        return self.ended


def code(answer):
    """The code of an answer that the relay or the agent made itself; None of one that came from beyond them."""
    status = answer.one(b"proxy-status")
    match = re.search(rb'details="([a-z0-9.-]+)"', status or b"")
    return match[1].decode() if match else None


def ask(address, target, host=b"marker.example"):
    """One GET on a connection of its own."""
    with Visitor(address) as visitor:
        visitor.send(b"GET %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, host))
        if not visitor.hear_answers([b"GET"], PATIENCE):
            raise Failed(f"no answer to {target!r} but {visitor.heard[:200]!r}")
        answers, rest = visitor.answers([b"GET"])
        if rest:
            raise Failed(f"an answer to {target!r} and {rest}")
        return answers[0]

