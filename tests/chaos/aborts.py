#!/usr/bin/env python3
"""Visitors that leave before they have their answer, as fast as they are let in.

    aborts.py PORT FIRST COUNT SEED

Each leaves at one of five moments, half of them by RST. Some sixty are there at a time. They come from twenty addresses,
else the ports of one would not do. Prints how many left at which moment, a line for each.
"""
import collections
import random
import socket
import struct
import sys

RST = struct.pack("ii", 1, 0)
# How many of each kind stay until the next ones push them out. Those that wait and those whose body stops hold a link each:
# fewer than there are.
STAY = {"waiting": 12, "body": 8, "head": 40}
ADDRESSES = [f"127.0.0.{number}" for number in range(2, 22)]


def connect(port, source):
    sock = socket.socket()
    # The port is chosen when the other end is known: each address has all ports for each of them.
    sock.setsockopt(socket.IPPROTO_IP, 24, 1)
    sock.bind((source, 0))
    sock.settimeout(30)
    sock.connect(("127.0.0.1", port))
    return sock


def said(kind, number):
    """What a visitor says before it leaves."""
    host = "Host: alpha.localhost\r\n"
    name = f"abort-{number}"
    if kind == "head":
        return f"GET /{name} HTTP/1.1\r\n{host}X-Not-The-L".encode()
    if kind == "body":
        return f"POST /{name} HTTP/1.1\r\n{host}Content-Length: 20000\r\n\r\n".encode() + b"x" * 10000
    wishes = {"asked": "size=100", "answer": "size=300000", "waiting": "wait=60000"}[kind]
    return f"GET /{name}?{wishes} HTTP/1.1\r\n{host}\r\n".encode()


def main():
    port, first, count, seed = (int(word) for word in sys.argv[1:])
    rng = random.Random(seed)
    there = {kind: collections.deque() for kind in STAY}
    left = collections.Counter()

    def leave(sock, kind):
        by_reset = rng.random() < 0.5
        if by_reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        sock.close()
        left[f"{kind}, {'RST' if by_reset else 'FIN'}"] += 1

    for number in range(first, first + count):
        kind = rng.choices(["head", "asked", "answer", "waiting", "body"], [4, 3, 1, 1, 1])[0]
        try:
            sock = connect(port, ADDRESSES[number % len(ADDRESSES)])
            sock.sendall(said(kind, number))
            if kind == "answer" and not sock.recv(1000).startswith(b"HTTP/1.1 200"):
                kind = "answer, but an error came"
        except OSError as error:
            left[f"{kind}: {error}"] += 1
            continue
        if kind in STAY:
            there[kind].append(sock)
            if len(there[kind]) > STAY[kind]:
                leave(there[kind].popleft(), kind)
        else:
            leave(sock, kind)
    for kind, socks in there.items():
        for sock in socks:
            leave(sock, kind)
    for kind, times in left.items():
        print(times, kind)


if __name__ == "__main__":
    main()
