#!/usr/bin/env python3
"""An upstream that keeps a journal: which request came, which was answered, which was left by whoever asked.

    echo.py --journal FILE [--port N]

A target is /ID?wait=MS&size=N&chunked=1. The answer carries the id, and the request's own body, or else N bytes made of the
id. The journal is written a line at a time and without a buffer, so that what is in it survives SIGKILL.
"""
import argparse
import asyncio
import collections
import os
import resource
import signal
import urllib.parse

PIECE = 16384


def made_of(name, size):
    """Bytes that belong to one request and to no other."""
    line = name.encode() + b"\n"
    return (line * (size // len(line) + 1))[: max(size, len(line))]


class Journal:
    """What an upstream has written: how often each request came, and how many of those are still there."""

    def __init__(self, path):
        self.came = collections.Counter()
        self.whole = collections.Counter()
        self.over = collections.Counter()
        self.left = 0
        for line in path.read_text().splitlines() if path.exists() else []:
            what, name = line.split()
            if what == "came":
                self.came[name] += 1
            elif what == "whole":
                self.whole[name] += 1
            else:
                self.over[name] += 1
                self.left += what == "left"

    def open(self):
        return sum((self.came - self.over).values())


class Left(Exception):
    """Whoever asked is gone."""


class Upstream:
    def __init__(self, journal):
        self.journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what, name):
        os.write(self.journal, f"{what} {name}\n".encode())

    async def serve(self, reader, writer):
        try:
            while await self.exchange(reader, writer):
                pass
        except (OSError, EOFError, Left):
            pass
        finally:
            writer.close()

    async def exchange(self, reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        first, *rest = head.decode("latin-1").split("\r\n")
        method, target, _version = first.split(" ")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
        path, _, query = target.partition("?")
        wishes = dict(urllib.parse.parse_qsl(query))
        name = path.rpartition("/")[2]
        self.note("came", name)
        over = "left"
        try:
            body = await body_of(reader, fields)
            self.note("whole", name)
            await self.answer(reader, writer, method, name, body, wishes)
            over = "done"
        finally:
            self.note(over, name)
        return fields.get("connection", "").lower() != "close"

    async def answer(self, reader, writer, method, name, body, wishes):
        wait = int(wishes.get("wait", 0))
        if wait:
            await waits(reader, wait / 1000)
        if body is None:
            body = made_of(name, int(wishes.get("size", 0)))
        chunked = "chunked" in wishes
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        writer.write(f"HTTP/1.1 200 OK\r\nX-Id: {name}\r\nX-Method: {method}\r\n{framing}\r\n\r\n".encode())
        if method != "HEAD":
            for start in range(0, len(body), PIECE):
                piece = body[start : start + PIECE]
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                await writer.drain()
            if chunked:
                writer.write(b"0\r\n\r\n")
        await writer.drain()


async def waits(reader, seconds):
    """Until the time is over; there is nothing to be read in the meantime but the end."""
    try:
        if not await asyncio.wait_for(reader.read(1), seconds):
            raise Left
    except asyncio.TimeoutError:
        pass


async def body_of(reader, fields):
    """A request's body; None when it has none."""
    if "content-length" in fields:
        return await reader.readexactly(int(fields["content-length"]))
    if fields.get("transfer-encoding") != "chunked":
        return None
    pieces = []
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        pieces.append((await reader.readexactly(size + 2))[:-2])
        if not size:
            return b"".join(pieces)


async def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--journal", required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    upstream = Upstream(options.journal)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", options.port, backlog=4096, limit=1 << 20)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)
    print("listening on http://127.0.0.1:{}".format(server.sockets[0].getsockname()[1]), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
