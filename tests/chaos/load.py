"""Visitors: each request has an id of its own in target and body, and each answer is compared with what was asked."""
import asyncio
import itertools
import re
import socket

from echo import made_of

WAITS = [0, 0, 0, 0, 10, 50, 200]
SIZES = [0, 0, 100, 5000, 40000]
# What may become of a connection.
BREAKS = {"refused", "reset", "closed", "reset (kept)", "closed (kept)", "cut", "silence"}
CODE = re.compile(r'ptth-[a-z]+; error=[a-z_]+; details="([a-z0-9.-]+)"')


class Ended(Exception):
    """The connection ended where more was to come."""


class Wrong(Exception):
    """An answer that is not the one that was asked for, or not HTTP."""


class Line:
    """A visitor's connection. What was read before it broke is not lost, as it would be behind asyncio's streams."""

    def __init__(self, sock):
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.buffer = b""
        self.asked = 0
        # Whether anything of the present answer has come.
        self.heard = False

    @classmethod
    async def connect(cls, address):
        sock = socket.socket()
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    def close(self):
        self.sock.close()

    def quiet(self):
        """Whether the relay has neither said anything unasked nor closed. What it said is wrong."""
        try:
            data = self.buffer or self.sock.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if data:
            raise Wrong(f"bytes that nobody asked for: {data[:200]!r}")
        return False

    async def send(self, data):
        try:
            await self.loop.sock_sendall(self.sock, data)
        except OSError:
            pass  # There may be an answer all the same; where there is none, reading tells.

    async def more(self):
        data = await self.loop.sock_recv(self.sock, 65536)
        if not data:
            raise Ended
        self.heard = True
        self.buffer += data

    async def until(self, mark):
        while mark not in self.buffer:
            await self.more()
        part, _, self.buffer = self.buffer.partition(mark)
        return part

    async def exactly(self, size):
        while len(self.buffer) < size:
            await self.more()
        part, self.buffer = self.buffer[:size], self.buffer[size:]
        return part

    async def answer(self, method):
        """Status, fields, body."""
        status = 100
        while 100 <= status < 200:
            first, *rest = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            parts = first.split(" ", 2)
            if not parts[0].startswith("HTTP/1.") or len(parts) < 2:
                raise Wrong(f"no HTTP: {first!r}")
            status = int(parts[1])
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        if method == "HEAD" or status in (204, 304):
            return status, fields, b""
        if "content-length" in fields:
            return status, fields, await self.exactly(int(fields["content-length"]))
        if fields.get("transfer-encoding") != "chunked":
            raise Wrong(f"an answer without framing: {fields}")
        body = []
        while True:
            size = int(await self.until(b"\r\n"), 16)
            piece = await self.exactly(size + 2)
            if piece[-2:] != b"\r\n":
                raise Wrong(f"a chunk's end: {piece[-2:]!r}")
            if not size:
                return status, fields, b"".join(body)
            body.append(piece[:-2])


class Visitors:
    """Visitors of one relay. Some keep their connection, some make a new one for each request."""

    def __init__(self, books, rng, address, tunnels, patience=25, sizes=SIZES, waits=WAITS, behind=""):
        """`behind` stands behind whatever becomes of their connections: where that is not the relay's business."""
        self.books, self.rng, self.address, self.tunnels = books, rng, address, tunnels
        self.patience, self.sizes, self.waits, self.behind = patience, sizes, waits, behind
        self.going = True
        self.tasks = []

    def come(self, keep=10, change=6, pause=0.08):
        self.going = True
        kinds = itertools.chain(itertools.repeat(True, keep), itertools.repeat(False, change))
        self.tasks = [asyncio.create_task(self.visitor(keeps, pause)) for keeps in kinds]

    async def leave(self):
        """Each with the answer to what it has asked."""
        self.going = False
        await asyncio.gather(*self.tasks)

    async def visitor(self, keeps, pause):
        line = None
        while self.going:
            line, outcome = await self.ask(line)
            if line and not keeps:
                line.close()
                line = None
            # Who is refused does not knock at once.
            await asyncio.sleep(0.1 if outcome == "refused" else self.rng.uniform(0, pause))
        if line:
            line.close()

    async def ask(self, line=None, tunnel=None, method=None, patience=None, **wishes):
        """Asks for something, on this connection if it still stands. Gives the connection if it may be used again."""
        method = method or self.rng.choices(["GET", "HEAD", "POST"], [5, 1, 4])[0]
        tunnel = tunnel or self.rng.choice(self.tunnels)
        entry = self.books.ask(method)
        size = wishes.get("size", self.rng.choice(self.sizes))
        wait = wishes.get("wait", self.rng.choice(self.waits))
        target = f"/{entry.name}?wait={wait}&size={size}" + self.rng.choice(["", "&chunked=1"])
        said = f"{method} {target} HTTP/1.1\r\nHost: {tunnel}.localhost\r\n".encode()
        body = made_of(entry.name, size)
        if method == "POST" and self.rng.random() < 0.5:
            pieces = (body[start : start + 3001] for start in range(0, len(body), 3001))
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
            said += b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        elif method == "POST":
            said += b"Content-Length: %d\r\n\r\n" % len(body) + body
        else:
            said += b"\r\n"
        mine = Mine(line)
        try:
            going = self.exchange(mine, entry, said, body)
            outcome, stays = await asyncio.wait_for(going, patience or self.patience)
        except asyncio.TimeoutError:
            outcome, stays = "silence", False
        if mine.line and not stays:
            mine.line.close()
        if outcome in BREAKS:
            outcome += self.behind
        self.books.close(entry, outcome)
        return (mine.line if stays else None), outcome

    async def exchange(self, mine, entry, said, body):
        """The outcome, and whether the connection stays."""
        try:
            if mine.line and not mine.line.quiet():
                mine.drop()
            if not mine.line:
                mine.line = await Line.connect(self.address)
        except ConnectionRefusedError:
            return "refused", False
        except ConnectionError:
            # Let in by the system when nobody listens any more.
            return "reset", False
        except OSError as error:
            return f"unconnected ({error.strerror})", False
        except Wrong as error:
            return self.wrong(entry, error)
        line = mine.line
        line.asked += 1
        line.heard = False
        kept = "" if line.asked == 1 else " (kept)"
        await line.send(said)
        try:
            status, fields, answer = await line.answer(entry.method)
        except Ended:
            return ("cut" if line.heard else f"closed{kept}"), False
        except OSError:
            return ("cut" if line.heard else f"reset{kept}"), False
        except (Wrong, ValueError) as error:
            return self.wrong(entry, error)
        stays = fields.get("connection", "").lower() != "close"
        if status == 200:
            if fields.get("x-id") != entry.name or fields.get("x-method") != entry.method:
                return self.wrong(entry, f"another's answer: {fields}")
            if entry.method != "HEAD" and answer != body:
                return self.wrong(entry, f"another's body: {len(answer)} bytes, {answer[:80]!r}")
            return "200", stays
        code = CODE.fullmatch(fields.get("proxy-status", ""))
        if not code:
            return self.wrong(entry, f"{status} without a name: {fields}")
        return f"{status} {code[1]}", stays

    def wrong(self, entry, why):
        self.books.wrong.append(f"{entry.method} {entry.name}: {why}")
        return "wrong", False


class Mine:
    """The connection of a request: it is to be closed even when patience ends in the middle of making it."""

    def __init__(self, line):
        self.line = line

    def drop(self):
        self.line.close()
        self.line = None
