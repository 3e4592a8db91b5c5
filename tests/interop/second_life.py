#!/usr/bin/env python3
"""Plays the client of the 2008 description of Reverse HTTP, octet by octet, against a relay.

    python3 -B second_life.py HOST:PORT

That client is older than every rule that came later: its POST has neither `Connection: Upgrade` nor a length, and its
name is nothing but the path `/`. It has no second connection and no second request.
"""
import http.client
import re
import socket
import sys
import threading

from checks import Checks, same, that

ASK = b"POST / HTTP/1.1\r\nHost: localhost:9999\r\nAccept-Encoding: identity\r\nUpgrade: PTTH/1.0\r\n\r\n"

ANSWER = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-type: text/plain\r\n"
    b"Date: Tue, 13 May 2008 20:14:45 GMT\r\n"
    b"Content-Length: 15\r\n"
    b"\r\n"
    b"rdlrow ,olleH\r\n"
)


class Client:
    """The dialling side of the transcript."""

    def __init__(self, relay):
        self.socket = socket.create_connection(relay, 10)
        self.kept = b""

    def ask(self):
        self.socket.sendall(ASK)
        return self.head()

    def head(self):
        """The next head, its blank line included. What came behind it is kept."""
        while b"\r\n\r\n" not in self.kept:
            piece = self.socket.recv(65536)
            that(piece, f"the relay closed the connection after {self.kept!r}")
            self.kept += piece
        head, self.kept = self.kept.split(b"\r\n\r\n", 1)
        return head + b"\r\n\r\n"

    def close(self):
        self.socket.close()


class Visitor(threading.Thread):
    """Asks for `/` as the transcript's request has it. A thread, since the answer waits for the client's turn."""

    def __init__(self, relay):
        super().__init__(daemon=True)
        self.relay = relay
        self.result = None
        self.error = None
        self.start()

    def run(self):
        connection = http.client.HTTPConnection(*self.relay, timeout=10)
        try:
            connection.request("GET", "/", headers={"accept": "text/plain;q=1,*/*;q=0"})
            response = connection.getresponse()
            self.result = (response.status, response.reason, response.headers, response.read())
        except Exception as error:
            self.error = error
        finally:
            connection.close()

    def answer(self):
        self.join(12)
        if self.error:
            raise self.error
        that(self.result, "the visitor still waits")
        return self.result


def play(relay, checks):
    client = Client(relay)
    visitor = None
    try:
        with checks.check("second life: a POST without Connection is answered 101"):
            head = client.ask()
            that(head.startswith(b"HTTP/1.1 101 "), f"the answer is {head!r}")
            # The words of the description: "the server may respond with an Upgrade: PTTH/1.0 header".
            that(re.search(rb"(?i)\r\nupgrade: PTTH/1\.0\r\n", head), f"no Upgrade in {head!r}")

        with checks.check("second life: a visitor's GET arrives reversed, and whole"):
            visitor = Visitor(relay)
            head = client.head()
            that(head.startswith(b"GET / HTTP/1.1\r\n"), f"the request is {head!r}")
            that(re.search(rb"(?i)\r\nhost:", head), f"no Host in {head!r}")
            that(b"text/plain;q=1,*/*;q=0\r\n" in head, f"the visitor's accept is not in {head!r}")
            that(not re.search(rb"(?i)\r\n(transfer-encoding|upgrade):", head), f"a field too many in {head!r}")
            same(client.kept, b"", "octets behind the request")

        with checks.check("second life: the visitor gets all 15 octets of the answer"):
            client.socket.sendall(ANSWER)
            status, reason, fields, body = visitor.answer()
            same((status, reason), (200, "OK"), "status")
            same(body, b"rdlrow ,olleH\r\n", "body")
            same(fields["Content-Length"], "15", "Content-Length")
            same(fields["Content-type"], "text/plain", "Content-type")
            same(fields["Date"], "Tue, 13 May 2008 20:14:45 GMT", "Date")

        with checks.check("second life: a second request comes down the same connection"):
            visitor = Visitor(relay)
            that(client.head().startswith(b"GET / HTTP/1.1\r\n"), "the second request is another")
            client.socket.sendall(ANSWER)
            same(visitor.answer()[3], b"rdlrow ,olleH\r\n", "body")
    finally:
        client.close()

    with checks.check("second life: when the client is gone, a visitor is told so"):
        status = Visitor(relay).answer()[0]
        that(status in (502, 503, 504), f"the visitor saw {status}")


if __name__ == "__main__":
    host, port = sys.argv[1].split(":")
    tally = Checks()
    play((host, int(port)), tally)
    sys.exit(tally.end())
