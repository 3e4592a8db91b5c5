"""A TCP proxy with bad weather in it."""
import asyncio
import socket
import struct

PIECE = 16384
HOST = "127.0.0.1"


class Wire:
    """Passes everything on, until it is told to do otherwise:

    delay    each piece waits
    bytes    one byte at a time
    reset    a connection is reset after some bytes, both ends
    cut      a connection ends after some bytes, as if both ends had closed it
    """

    def __init__(self, rng):
        self.rng = rng
        self.weather = "fine"
        self.pairs = set()
        self.server = self.target = None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        if self.server:
            self.server.close()
        while self.pairs:
            for pair in self.pairs:
                pair.reset()
            await asyncio.sleep(0.01)

    async def start(self, target):
        """Gives where it listens."""
        self.target = target
        self.server = await asyncio.start_server(self.meet, HOST, 0, backlog=1024)
        return self.server.sockets[0].getsockname()

    async def meet(self, reader, writer):
        try:
            there = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = Pair(self, (reader, writer), there)
        self.pairs.add(pair)
        try:
            await pair.carry()
        finally:
            self.pairs.discard(pair)

    def hole(self):
        """From now on, what is connected stays so, and nothing passes any more; who connects anew is served."""
        for pair in self.pairs:
            pair.passes.clear()
        return len(self.pairs)


class Pair:
    def __init__(self, wire, here, there):
        self.wire, self.here, self.there = wire, here, there
        self.passes = asyncio.Event()
        self.passes.set()
        self.left = wire.rng.randrange(100, 60000)

    async def carry(self):
        ways = [(self.here[0], self.there[1]), (self.there[0], self.here[1])]
        pumps = [asyncio.create_task(self.pump(*way)) for way in ways]
        await asyncio.gather(*pumps, return_exceptions=True)
        for _, writer in (self.here, self.there):
            writer.close()

    async def pump(self, reader, writer):
        try:
            while True:
                data = await reader.read(PIECE)
                await self.passes.wait()
                if not data:
                    return writer.write_eof()
                await self.pass_on(data, writer)
        except OSError:
            self.reset()

    async def pass_on(self, data, writer):
        weather = self.wire.weather
        if weather == "delay":
            await asyncio.sleep(self.wire.rng.uniform(0, 0.05))
        elif weather == "bytes":
            for byte in data[:-1]:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            data = data[-1:]
        elif weather in ("reset", "cut"):
            if len(data) >= self.left:
                writer.write(data[: self.left])
                return self.reset() if weather == "reset" else self.close()
            self.left -= len(data)
        writer.write(data)
        await writer.drain()

    def close(self):
        for _, writer in (self.here, self.there):
            writer.close()

    def reset(self):
        self.passes.set()
        for _, writer in (self.here, self.there):
            sock = writer.get_extra_info("socket")
            if sock and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
