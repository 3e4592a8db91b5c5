#!/usr/bin/env -S python3 -B
"""Many agents or many visitors in one program, so light that what is measured is the relay.

    benches/crowd.py agents 127.0.0.1:PORT 1000 --links 2     tunnels t1 to t1000, each of two links
    benches/crowd.py visitors 127.0.0.1:PORT 1000             each asks for /1k once, and stays

says `ready` when all are there, and stays until it is ended. The agents answer every GET with a body of 1 KiB, and the relay's
questions whether they are there (docs/links.md).
"""
import argparse
import resource
import select
import signal
import socket
import sys

BODY = bytes(1024)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n" + BODY
HERE = b"HTTP/1.1 204 No Content\r\n\r\n"
HEAD_END = b"\r\n\r\n"
# At so many at once the relay's queue of connections never overflows.
ON_THEIR_WAY = 256
# So many come from one address: a relay takes 4096 from each by default, and one address has no more than 28,000 ports.
FROM_ONE_ADDRESS = 4000


class Crowd:
    """Connections, each of which begins by saying something and is there when the answer has come."""

    def __init__(self, relay, firsts):
        self.relay, self.firsts = relay, firsts
        self.poll, self.there, self.coming = select.epoll(), {}, {}

    def run(self):
        for n, first in enumerate(self.firsts):
            self.come(n, first)
            while len(self.coming) >= ON_THEIR_WAY:
                self.turn()
        while self.coming:
            self.turn()
        print("ready", flush=True)
        while True:
            self.turn()

    def come(self, n, first):
        peer = socket.socket()
        # Else the port is chosen for any destination, and there are too few.
        peer.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        peer.bind((f"127.0.9.{1 + n // FROM_ONE_ADDRESS}", 0))
        peer.connect(self.relay)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setblocking(False)
        peer.send(first)
        self.coming[peer.fileno()] = (peer, b"")
        self.poll.register(peer, select.EPOLLIN)

    def turn(self):
        for descriptor, _ in self.poll.poll():
            if descriptor in self.there:
                self.hear(self.there[descriptor])
            else:
                self.greet(descriptor)

    def greet(self, descriptor):
        peer, heard = self.coming[descriptor]
        heard += self.recv(peer)
        if not self.welcome(heard):
            self.coming[descriptor] = peer, heard
            return
        del self.coming[descriptor]
        self.there[descriptor] = peer

    def recv(self, peer):
        data = peer.recv(65536)
        if not data:
            sys.exit("the relay closed a connection")
        return data


# Of <linux/in.h>; Python's socket has no name for it.
IP_BIND_ADDRESS_NO_PORT = 24


class Agents(Crowd):
    def __init__(self, relay, count, links, ping):
        said = b"Ptth-Accept: ping\r\n" if ping else b""
        offer = b"POST /t%d HTTP/1.1\r\nHost: relay\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\nContent-Length: 0\r\n%s\r\n"
        super().__init__(relay, [offer % (1 + n % count, said) for n in range(count * links)])

    def welcome(self, heard):
        if not heard.endswith(HEAD_END):
            return False
        if not heard.startswith(b"HTTP/1.1 101"):
            sys.exit(f"an agent was refused: {heard}")
        return True

    def hear(self, peer):
        heard = self.recv(peer)
        while not heard.endswith(HEAD_END):
            heard += peer.recv(65536)
        if heard.startswith(b"OPTIONS"):
            peer.send(HERE)
        else:
            peer.send(ANSWER * heard.count(HEAD_END))


class Visitors(Crowd):
    def __init__(self, relay, count):
        super().__init__(relay, [b"GET /1k HTTP/1.1\r\nHost: localhost\r\n\r\n"] * count)

    def welcome(self, heard):
        head, end, body = heard.partition(HEAD_END)
        if end and not head.startswith(b"HTTP/1.1 200"):
            sys.exit(f"a visitor was refused: {head}")
        return len(body) == len(BODY)

    def hear(self, peer):
        self.recv(peer)


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("who", choices=["agents", "visitors"])
    parser.add_argument("relay", type=address)
    parser.add_argument("count", type=int)
    parser.add_argument("--links", type=int, default=1, help="of each tunnel (default 1)")
    parser.add_argument("--silent", action="store_true", help="agents that don't say `ping`, and are not asked")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.who == "agents":
        crowd = Agents(options.relay, options.count, options.links, not options.silent)
    else:
        crowd = Visitors(options.relay, options.count)
    crowd.run()


if __name__ == "__main__":
    main()
