"""Visitors of a tunnel, and bodies to tell apart."""
import collections
import hashlib
import http.client

Answer = collections.namedtuple("Answer", "status reason fields body")


class Visitor:
    """One visitor's connection to one tunnel. Asks again on the same connection as long as the relay keeps it.

    The tunnel is named by the host, or by a prefix of the path.
    """

    def __init__(self, relay, name=None, prefix="", timeout=20):
        self.connection = http.client.HTTPConnection(*relay, timeout=timeout)
        self.host = f"{name}.localhost" if name else "{}:{}".format(*relay)
        self.prefix = prefix

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def begin(self, method, target, body=None, fields=(), chunked=False):
        """Asks, and gives the response as soon as its head is there."""
        self.connection.putrequest(method, self.prefix + target, skip_host=True, skip_accept_encoding=True)
        self.connection.putheader("Host", self.host)
        for field, value in fields:
            self.connection.putheader(field, value)
        if chunked:
            self.connection.putheader("Transfer-Encoding", "chunked")
        elif body is not None:
            self.connection.putheader("Content-Length", str(len(body)))
        self.connection.endheaders(pieces(body) if chunked else body, encode_chunked=chunked)
        return self.connection.getresponse()

    def ask(self, method, target, body=None, fields=(), chunked=False):
        response = self.begin(method, target, body, fields, chunked)
        return Answer(response.status, response.reason, response.headers, response.read())

    def keeps(self):
        """http.client forgets its socket when the answer said that the connection ends."""
        return self.connection.sock is not None


def pieces(body, size=7001):
    return (body[i : i + size] for i in range(0, len(body), size))


def pattern(size):
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def sha256(body):
    return hashlib.sha256(body).hexdigest()
