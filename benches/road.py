#!/usr/bin/env -S python3 -B
"""A long road for TCP connections: what goes in at one end comes out at the other after half of a round trip.

    benches/road.py 127.0.8.1:PORT 127.0.0.1:PORT --trip 50

takes connections at the first address and passes them on to the second. To connect costs a round trip, as it does where
the other end is far away: the kernel here says at once that a connection stands, so what its client sends meanwhile
sets out when a real one would have been there. Ends and breaks travel as bytes do.

It loses nothing and has no bandwidth, but a connection has at most WINDOW bytes under way in each direction, counted as
TCP does, until the news that they came is back.
"""
import argparse
import collections
import heapq
import select
import signal
import socket
import struct
import sys
import time

# What Linux's send buffer grows to by default.
WINDOW = 4 << 20
READ = 256 << 10
# What travels behind the last byte.
END, BREAK = "end", "break"
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class Way:
    """One direction of a connection."""

    def __init__(self, source, target, begin):
        self.source, self.target = source, target
        self.begin = begin  # Nothing sets out before this.
        self.road = collections.deque()  # Bytes, or what comes behind them, each with its time of arrival.
        self.news = collections.deque()  # How many bytes came, each with the time at which their sender knows.
        self.out = 0  # Bytes of which the sender doesn't know yet that they came.
        self.readable = self.writable = True  # As far as we know.
        self.over, self.ended = False, False  # Is there nothing more to be read; has the end arrived?
        self.full, self.woken = False, False  # Does it wait for news; is there a timer for that?


class Connection:
    """Two ways. The server's socket is there when the client's request to connect has arrived."""

    def __init__(self, road, client):
        self.road, self.client, self.server = road, client, None
        self.there, self.back = Way(client, None, time.monotonic() + road.trip), None
        road.watch(client, self)

    def arrive(self):
        if not self.client:
            return
        try:
            self.server = socket.create_connection(self.road.to)
        except OSError:
            return self.close(True)
        self.server.setblocking(False)
        self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.there.target, self.back = self.server, Way(self.server, self.client, 0)
        self.road.watch(self.server, self)
        self.deliver(self.there)

    def event(self, descriptor, events):
        source, target = (self.there, self.back) if descriptor == self.client.fileno() else (self.back, self.there)
        if events & ~select.EPOLLOUT:
            source.readable = True
            self.read(source)
        if events & ~select.EPOLLIN and target:
            target.writable = True
            self.deliver(target)

    def read(self, way):
        while way.readable and not way.over:
            now = time.monotonic()
            while way.news and way.news[0][0] <= now:
                way.out -= way.news.popleft()[1]
            if way.out >= WINDOW:
                way.full = True
                return self.wake_up(way)
            try:
                what = way.source.recv(min(READ, WINDOW - way.out)) or END
            except BlockingIOError:
                way.readable = False
                return
            except OSError:
                what = BREAK
            way.over = what in (END, BREAK)
            if not way.over:
                way.out += len(what)
                what = memoryview(what)
            due = max(now, way.begin) + self.road.trip / 2
            way.road.append((due, what))
            self.road.at(due, lambda: self.deliver(way))

    def wake_up(self, way):
        def wake():
            way.full = way.woken = False
            if self.client:
                self.read(way)

        if way.news and not way.woken:
            way.woken = True
            self.road.at(way.news[0][0], wake)

    def deliver(self, way):
        now = time.monotonic()
        while self.client and way.target and way.writable and way.road and way.road[0][0] <= now:
            due, what = way.road.popleft()
            if what is BREAK:
                self.close(True)
            elif what is END:
                self.end(way)
            else:
                self.send(way, due, what, now)
        if way.full:
            self.wake_up(way)

    def send(self, way, due, what, now):
        try:
            sent = way.target.send(what)
        except BlockingIOError:
            sent, way.writable = 0, False
        except OSError:
            # Whoever sent this hears of it as late as of anything else.
            way.road.clear()
            way.over = True
            self.road.at(now + self.road.trip / 2, lambda: self.close(True))
            return
        if sent < len(what):
            way.road.appendleft((due, what[sent:]))
        if sent:
            way.news.append((now + self.road.trip / 2, sent))

    def end(self, way):
        way.ended = True
        try:
            way.target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # It has broken: that is read on its other way.
        if self.there.ended and self.back.ended:
            self.close(False)

    def close(self, broken):
        for end in (self.client, self.server):
            if end:
                self.road.forget(end)
                if broken:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.close()
        self.client = self.server = None


class Road:
    def __init__(self, listen, to, trip):
        self.to, self.trip = to, trip
        self.connections = {}  # By the descriptors of both ends.
        self.timers, self.serial = [], 0
        self.poll = select.epoll()
        self.listener = socket.create_server(listen, backlog=4096)
        self.listener.setblocking(False)
        self.poll.register(self.listener, select.EPOLLIN)

    def watch(self, end, connection):
        self.connections[end.fileno()] = connection
        self.poll.register(end, EVENTS)

    def forget(self, end):
        del self.connections[end.fileno()]

    def at(self, when, call):
        self.serial += 1
        heapq.heappush(self.timers, (when, self.serial, call))

    def run(self):
        while True:
            wait = max(0, self.timers[0][0] - time.monotonic()) if self.timers else None
            for descriptor, events in self.poll.poll(wait):
                if descriptor == self.listener.fileno():
                    self.accept()
                elif descriptor in self.connections:
                    self.connections[descriptor].event(descriptor, events)
            now = time.monotonic()
            while self.timers and self.timers[0][0] <= now:
                heapq.heappop(self.timers)[2]()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except BlockingIOError:
                return
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # To the far end and back, and there again: then its program has the connection, and what was sent at once.
            self.at(time.monotonic() + 1.5 * self.trip, Connection(self, client).arrive)


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("listen", type=address, help="where connections come in")
    parser.add_argument("to", type=address, help="where they go")
    parser.add_argument("--trip", type=float, required=True, help="milliseconds there and back")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    Road(options.listen, options.to, options.trip / 1e3).run()


if __name__ == "__main__":
    main()
