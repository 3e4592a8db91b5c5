"""WebSocket through a tunnel: npm's ws on both ends, and Python's websockets as a client of it."""
import asyncio
import hashlib
import importlib
import json
import os
import pathlib
import socket
import tempfile

from checks import same, that
from programs import HOST, accepts, free_port, until, which
from tunnel import Tunnel
from upstream import Upstream
from visitors import Visitor, pattern

HERE = pathlib.Path(__file__).resolve().parent
OFFER = [
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
]
# What the key has to be answered with: RFC 6455 §1.3.
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


class Web:
    """web.js, started for a tunnel to lead to."""

    def __init__(self, started, modules):
        self.node = {**os.environ, "NODE_PATH": str(pathlib.Path(modules).resolve())}
        self.program = started.start(["node", HERE / "web.js"], env=self.node)
        self.port = int(self.program.wait_for(r"^listening \d+$").split()[1])


def by_node(tunnel, web, title, checks):
    client = tunnel.start(["node", HERE / "websocket.js", *tunnel.host.split(":")], env=web.node)
    with checks.check(f"{title}: the client gets to its end"):
        until("it ends", lambda: client.ended, 180)
        same(client.child.wait(5), 0, f"it said {client.lines[-5:]}, and its exit code")
    for what, wrong, seconds in map(json.loads, client.lines):
        if wrong:
            checks.fail(f"{title}: {what}: {wrong}")
        else:
            checks.succeed(f"{title}: {what} ({seconds:.1f} s)")
    with checks.check(f"{title}: the upstream saw a close with its code, and an end without one"):
        web.program.wait_for(r"^closed /echo 4001 ours$")
        web.program.wait_for(r"^closed /echo 1006 $")


def by_python(tunnel, web, library, checks):
    connect = importlib.import_module("websockets.asyncio.client").connect
    host, port = tunnel.address

    def client(path, **more):
        # By the relay's address: Python looks a name up, and not every machine knows what is under localhost.
        return connect(f"ws://{tunnel.host}{path}", host=host, port=port, proxy=None, max_size=None, **more)

    async def echoes():
        async with client("/echo") as connection:
            for message in ["", "olleh", "caf\xe9 \N{SNOWMAN}", pattern(1 << 20), b""]:
                await connection.send(message)
                same(await connection.recv(), message, "echo")
            await (await connection.ping(b"ours"))
            await connection.send(iter(["in ", "three ", "pieces"]))
            same(await connection.recv(), "in three pieces", "echo")

    async def many():
        async def one(i):
            async with client("/echo", compression=None if i % 2 else "deflate") as connection:
                for k in range(50):
                    await connection.send(f"{i} {k}")
                    same(await connection.recv(), f"{i} {k}", "echo")

        await asyncio.gather(*(one(i) for i in range(20)))

    async def closes():
        async with client("/close?code=4002&reason=theirs") as connection:
            await connection.send("go")
            await connection.wait_closed()
            same((connection.close_code, connection.close_reason), (4002, "theirs"), "close")
        connection = await client("/echo")
        await connection.close(4003, "by Python")
        web.program.wait_for("^closed /echo 4003 by Python$")

    async def bulk():
        async with client("/bulk", compression=None) as connection:
            piece = pattern(65536)
            for _ in range(256):
                await connection.send(piece)
            await connection.send("that was all")
            seen = json.loads(await connection.recv())
            same(seen, {"length": 256 << 16, "sha256": hashlib.sha256(piece * 256).hexdigest()}, "what came")
            for _ in range(256):
                same(len(await connection.recv()), 65536, "length")
            await connection.wait_closed()
            same((connection.close_code, connection.close_reason), (1000, "all"), "close")

    for what, play in [
        ("text, binary, a ping, fragments", echoes),
        ("twenty at once, half of them compressed", many),
        ("closes by either side", closes),
        ("16 MiB up and down", bulk),
    ]:
        with checks.check(f"websocket, Python's {library}: {what}"):
            asyncio.run(asyncio.wait_for(play(), 30))


def refused_and_kept(tunnel, web, checks):
    """A server that answers an offer as it would any request keeps the connection. So do we."""
    with tempfile.TemporaryDirectory() as folder:
        upstream = Upstream(folder)
        try:
            with checks.check("websocket: who is refused asks on, on the same connection"):
                tunnel.agent.stop(5)
                tunnel.begin_agent(upstream.port)
                with Visitor(tunnel.address, tunnel.name) as visitor:
                    for status in (401, 404, 200, 302):
                        answer = visitor.ask("GET", f"/status/{status}", fields=OFFER)
                        same((answer.status, answer.body), (status, f"this is {status}\n".encode()), "answer")
                        that(visitor.keeps(), "the visitor's connection ended")
                        same(visitor.ask("POST", "/mirror", b"olleh").body, b"olleh", "the next answer")
        finally:
            upstream.stop()


NGINX = """
daemon off;
pid {folder}/pid;
error_log {folder}/errors;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/answers;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map $http_upgrade $goes_on {{ default upgrade; "" close; }}
    server {{
        listen {host}:{port};
        location / {{
            proxy_pass http://{host}:{relay};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $goes_on;
            proxy_buffering off;
        }}
    }}
}}
"""


def behind_nginx(relay, agent, modules, checks):
    """As a relay stands on the internet that needs TLS: visitors and agents alike come through a proxy."""
    title = "websocket, nginx in front"
    with tempfile.TemporaryDirectory() as folder, Tunnel(relay, agent) as tunnel:
        with checks.check(f"{title}: the tunnel stands"):
            web = Web(tunnel, modules)
            tunnel.begin_relay("--trust-forwarded", HOST)
            port = free_port()
            config = pathlib.Path(folder, "nginx.conf")
            config.write_text(NGINX.format(folder=folder, host=HOST, port=port, relay=tunnel.address[1]))
            tunnel.start([which("nginx"), "-c", config, "-p", folder, "-e", f"{folder}/errors"])
            tunnel.address = HOST, port
            until("nginx listens", lambda: accepts(tunnel.address))
            tunnel.begin_agent(web.port)
        if tunnel.agent:
            by_node(tunnel, web, title, checks)


def by_polls(relay, agent, modules, checks):
    """A link that is a queue of messages has no word for it."""
    for dialect, path in (("comet", ""), ("ptth-relay", "7ZSFUKGV")):
        title = f"websocket over --dialect {dialect}"
        with Tunnel(relay, agent) as tunnel:
            with checks.check(f"{title}: 501, and requests go on"):
                web = Web(tunnel, modules)
                tunnel.begin_relay()
                tunnel.begin_agent(web.port, "--dialect", dialect, path=path)
                with Visitor(tunnel.address, tunnel.name) as visitor:
                    same(visitor.ask("GET", "/state").status, 200, "status before")
                    answer = visitor.ask("GET", "/echo", fields=OFFER)
                    same(answer.status, 501, "status")
                    that(b"dialect-limit" in answer.body, f"the page is {answer.body[:200]!r}")
                with Visitor(tunnel.address, tunnel.name) as visitor:
                    same(visitor.ask("GET", "/state").status, 200, "status afterwards")
                same(web.program.count("^open"), 0, "what was opened at the upstream")


def by_hand(tunnel, checks):
    """Frames cut anywhere: there is nothing between the bytes that a hop could wait for."""
    with checks.check("websocket: a frame that comes a byte at a time"):
        with socket.create_connection(tunnel.address, 10) as visitor:
            visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            fields = "".join(f"{name}: {value}\r\n" for name, value in OFFER)
            visitor.sendall(f"GET /echo HTTP/1.1\r\nHost: {tunnel.host}\r\n{fields}\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += received(visitor)
            that(head.startswith(b"HTTP/1.1 101 "), f"the answer is {head!r}")
            that(f"sec-websocket-accept: {ACCEPT}".lower() in head.decode().lower(), f"the answer is {head!r}")
            # `hello`, masked with zeros.
            for byte in b"\x81\x85\0\0\0\0hello":
                visitor.sendall(bytes([byte]))
            back = head.partition(b"\r\n\r\n")[2]
            while len(back) < 7:
                back += received(visitor)
            same(back, b"\x81\x05hello", "what came back")
            # A close without a code is answered by one, and then the upstream ends the connection.
            visitor.sendall(b"\x88\x80\0\0\0\0")
            same(received(visitor) + received(visitor), b"\x88\x00", "the close")
            same(visitor.recv(1), b"", "the end")


def received(visitor):
    """What is there, one byte at least."""
    data = visitor.recv(1)
    that(data, "the connection ended")
    return data


def play(relay, agent, modules, library, checks):
    failed = checks.failed
    with Tunnel(relay, agent) as tunnel:
        with checks.check("websocket: the tunnel stands"):
            web = Web(tunnel, modules)
            tunnel.open(web.port)
            with Visitor(tunnel.address, tunnel.name) as visitor:
                same(visitor.ask("GET", "/state").body, b'{"sockets":0,"streams":0}', "state")
        if tunnel.agent:
            by_node(tunnel, web, "websocket, npm's ws", checks)
            by_hand(tunnel, checks)
            if library:
                by_python(tunnel, web, library, checks)
            else:
                checks.skip("websocket, Python's websockets", "it is not installed")
            refused_and_kept(tunnel, web, checks)
            tunnel.ends_well("websocket", checks, failed)
    with Tunnel(relay, agent) as tunnel:
        with checks.check("websocket, three workers: the tunnel stands"):
            web = Web(tunnel, modules)
            tunnel.open(web.port, ["--workers", "3"])
        if tunnel.agent:
            by_node(tunnel, web, "websocket, npm's ws, three workers", checks)
    if which("nginx"):
        behind_nginx(relay, agent, modules, checks)
    else:
        checks.skip("websocket, nginx in front", "nginx is not installed")
    by_polls(relay, agent, modules, checks)
