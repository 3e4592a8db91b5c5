"""A TCP proxy that keeps what is asked through it, and reads it strictly."""
import selectors
import socket
import threading

import strict


class Wire:
    """One connection through the proxy. `kind` says where its requests are: in what the dialling side sends, or, behind
    a 101, in what the listening side does."""

    def __init__(self, number, near, far, kind):
        self.number, self.near, self.far, self.kind = number, near, far, kind
        self.asked = bytearray()
        self.turned = kind == "requests"
        self.bad = False


class Recorder(threading.Thread):
    """Listens on a port of the system's choice. `events` has what was asked: ("request", wire, message),
    ("cut", wire, bytes) when a connection ends within a request, ("bad", wire, reason, bytes)."""

    def __init__(self, to, kind):
        super().__init__(daemon=True)
        self.to, self.kind = to, kind
        self.events = []
        self.connections = 0
        self.selector = selectors.DefaultSelector()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.start()

    def run(self):
        while True:
            for key, _ in self.selector.select():
                if key.data is None:
                    self.accept()
                elif key.fileobj.fileno() >= 0:
                    self.carry(key.fileobj, *key.data)

    def accept(self):
        near, _ = self.listener.accept()
        try:
            far = socket.create_connection(self.to)
        except OSError:
            near.close()
            return
        self.connections += 1
        wire = Wire(self.connections, near, far, self.kind)
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.selector.register(near, selectors.EVENT_READ, (wire, far, self.kind == "requests"))
        self.selector.register(far, selectors.EVENT_READ, (wire, near, self.kind == "link"))

    def carry(self, one, wire, other, asks):
        try:
            data = one.recv(1 << 17)
        except OSError:
            data = b""
        if data and asks:
            self.heard(wire, data)
        try:
            if data:
                other.sendall(data)
            else:
                other.shutdown(socket.SHUT_WR)
        except OSError:
            data = b""
        if not data:
            self.selector.unregister(one)
            wire.kind += "."
            # Whoever asks has ended: what is not whole now never will be.
            if asks and wire.asked and wire.turned and not wire.bad:
                self.events.append(("cut", wire, bytes(wire.asked)))
                wire.asked.clear()
            if wire.kind.endswith(".."):
                wire.near.close()
                wire.far.close()

    def heard(self, wire, data):
        wire.asked += data
        if not wire.turned:
            head, end, rest = bytes(wire.asked).partition(b"\r\n\r\n")
            if not end:
                return
            wire.asked = bytearray(rest)
            wire.turned = True
            # A refusal is no link.
            wire.bad = not head.startswith(b"HTTP/1.1 101")
        while wire.asked and not wire.bad:
            try:
                message, end = strict.request(wire.asked)
            except strict.More:
                return
            except strict.Refused as refused:
                wire.bad = True
                self.events.append(("bad", wire, str(refused), bytes(wire.asked)))
                return
            try:
                strict.check_written(message)
            except strict.Refused as refused:
                self.events.append(("bad", wire, str(refused), bytes(wire.asked[:end])))
            del wire.asked[:end]
            self.events.append(("request", wire, message))
