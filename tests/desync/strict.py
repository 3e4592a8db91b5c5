"""A reader of HTTP/1 messages that takes nothing on which two readers could differ (RFC 9112), and shares nothing with
ours.

It says what an input may mean at most, and whether what our programs write can be misunderstood.
"""
import collections
import hashlib
import re

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
FIELD = re.compile(rb"(%s):[ \t]*(|[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)[ \t]*" % TOKEN)
REQUEST = re.compile(rb"(%s) ([!-~]+) HTTP/1\.([01])" % TOKEN)
STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
HOST = rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~%!$&'()*+;=]*)(?::[0-9]{0,5})?"
TARGET = re.compile(rb"/[^#]*|(?i:https?)://(?!:|/|\?|#)%s(?:[/?][^#]*)?" % HOST)
SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")

# What a trailer would change after the fact, and what speaks of one hop only.
FRAMING = {b"content-length", b"transfer-encoding", b"host"}
ONE_HOP = {
    b"connection", b"http2-settings", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade",
}  # fmt: skip


class Refused(Exception):
    """Not a message, or one that can be read in two ways."""


class More(Exception):
    """The message is not whole yet."""


class Message(collections.namedtuple("Message", "start version fields body trailers keeps")):
    """`start` is (method, target), or the status. Names in lower case; the body without its coding."""

    def all(self, name):
        return [value for field, value in self.fields if field == name]

    def one(self, name):
        values = self.all(name)
        return values[0] if len(values) == 1 else None

    def key(self):
        """What readers must agree on."""
        return (*self.start, hashlib.sha256(self.body).hexdigest()[:16])


def lines(data, at, what):
    """The lines up to an empty one, and where the message goes on."""
    found = []
    while True:
        end = data.find(b"\n", at)
        line = data[at:] if end < 0 else data[at : end + 1]
        whole = line.removesuffix(b"\r\n") if end >= 0 else line.removesuffix(b"\r")
        if b"\r" in whole or b"\n" in whole:
            raise Refused(f"a line of the {what} does not end in CRLF")
        if end < 0:
            raise More
        at = end + 1
        if not whole:
            return found, at
        found.append(bytes(whole))


def fields(found):
    parsed = []
    for line in found:
        match = FIELD.fullmatch(line)
        if not match:
            raise Refused(f"no field: {line[:80]!r}")
        parsed.append((match[1].lower(), match[2]))
    return parsed


def values(parsed, name):
    return [value for field, value in parsed if field == name]


def listed(parsed, name):
    return [element.strip(b" \t").lower() for value in values(parsed, name) for element in value.split(b",")]


def length(parsed):
    found = values(parsed, b"content-length")
    if not found:
        return None
    if len(found) > 1 or not re.fullmatch(rb"[0-9]+", found[0]) or int(found[0]) >= 1 << 64:
        raise Refused(f"Content-Length {found}")
    return int(found[0])


def is_chunked(parsed, version):
    found = values(parsed, b"transfer-encoding")
    if not found:
        return False
    if [value.lower() for value in found] != [b"chunked"]:
        raise Refused(f"Transfer-Encoding {found}")
    if version == 0:
        raise Refused("Transfer-Encoding in HTTP/1.0")
    if values(parsed, b"content-length"):
        raise Refused("Content-Length and Transfer-Encoding")
    return True


def keeps(parsed, version):
    options = listed(parsed, b"connection")
    return b"close" not in options if version == 1 else b"keep-alive" in options


def counted(data, at, size):
    if len(data) - at < size:
        raise More
    return bytes(data[at : at + size]), at + size


def chunks(data, at):
    """The body, its trailers, and where the message ends."""
    body = b""
    while True:
        end = data.find(b"\n", at)
        line = bytes(data[at:] if end < 0 else data[at:end])
        if end < 0:
            if b"\r" in line[:-1]:
                raise Refused("a lone CR in the line of a chunk")
            raise More
        match = SIZE.fullmatch(line[:-1])
        if not line.endswith(b"\r") or not match:
            raise Refused(f"no size of a chunk: {line[:40]!r}")
        at, size = end + 1, int(match[1], 16)
        if size == 0:
            found, at = lines(data, at, "trailers")
            return body, fields(found), at
        piece, at = counted(data, at, size)
        body += piece
        behind = bytes(data[at : at + 2])
        if not b"\r\n".startswith(behind[:2]):
            raise Refused(f"a chunk is longer than it says: {behind!r}")
        if len(behind) < 2:
            raise More
        at += 2


def request(data, at=0, blank=0):
    """The request that begins at `at`, and where it ends. So many empty lines may be in front of it."""
    for _ in range(blank):
        at += 2 if data[at : at + 2] == b"\r\n" else 0
    if not data[at:].strip(b"\r"):
        raise More
    found, at = lines(data, at, "head")
    match = REQUEST.fullmatch(found[0]) if found else None
    if not match:
        raise Refused(f"no request line: {found[:1]!r}")
    method, target, version = match[1], match[2], int(match[3])
    parsed = fields(found[1:])
    asterisk = method == b"OPTIONS" and target == b"*"
    authority = method == b"CONNECT" and re.fullmatch(HOST + rb"(?<=[0-9])", target)
    if method == b"CONNECT" and not authority or not (authority or asterisk or TARGET.fullmatch(target)):
        raise Refused(f"target {target[:80]!r}")
    hosts = values(parsed, b"host")
    if len(hosts) > 1 or len(hosts) < version or hosts and not re.fullmatch(HOST, hosts[0]):
        raise Refused(f"Host {hosts}")
    body, trailers = b"", []
    size = length(parsed)
    if is_chunked(parsed, version):
        body, trailers, at = chunks(data, at)
    elif size is not None:
        body, at = counted(data, at, size)
    return Message((method, target), version, parsed, body, trailers, keeps(parsed, version)), at


def requests(data, blank=2):
    """All that a connection's bytes may mean, and what the rest of them is: '' when there is none."""
    found, at = [], 0
    while True:
        try:
            message, at = request(data, at, blank)
        except More:
            return found, "incomplete" if data[at:].strip(b"\r\n") else ""
        except Refused as refused:
            return found, str(refused)
        found.append(message)
        if not message.keeps:
            return found, "behind the last request" if data[at:] else ""


def response(data, at, method, ended):
    """The response that begins at `at`, and where it ends; `ended` when no more bytes come."""
    found, at = lines(data, at, "head")
    match = STATUS.fullmatch(found[0]) if found else None
    if not match:
        raise Refused(f"no status line: {found[:1]!r}")
    version, status = int(match[1]), int(match[2])
    parsed = fields(found[1:])
    goes_on = keeps(parsed, version)
    body, trailers = b"", []
    bodiless = status < 200 or status == 204
    if bodiless or method == b"HEAD" or status == 304:
        # Its end is its head's, whatever that says of a body. But who says so may send one.
        says = [name for name, value in parsed if name in FRAMING and value != b"0"]
        # An interim answer does not say how things go on behind the final one.
        goes_on = (goes_on or status < 200) and len(says) < (1 if bodiless else 2)
        if status >= 200:
            length(parsed)
        return Message(status, version, parsed, body, trailers, goes_on), at
    size, chunked = length(parsed), is_chunked(parsed, version)
    if chunked:
        body, trailers, at = chunks(data, at)
    elif size is not None:
        body, at = counted(data, at, size)
    elif ended:
        body, at, goes_on = bytes(data[at:]), len(data), False
    else:
        raise More
    return Message(status, version, parsed, body, trailers, goes_on), at


def responses(data, methods, ended=True):
    """Final responses to requests of these methods, and what the rest is."""
    found, at = [], 0
    for method in methods:
        goes_on = True
        while True:
            try:
                message, at = response(data, at, method, ended)
            except More:
                return found, "incomplete" if at < len(data) else ""
            except Refused as refused:
                return found, str(refused)
            if message.start == 101:
                return found, "a 101"
            goes_on = goes_on and message.keeps
            if message.start >= 200:
                found.append(message._replace(keeps=goes_on))
                break
    return found, f"behind the last answer: {bytes(data[at:at + 40])!r}" if data[at:] else ""


def check_written(message):
    """What a request has to be beyond that, once one of our programs has written it for the next hop."""
    if message.version != 1:
        raise Refused(f"HTTP/1.{message.version}")
    if message.one(b"host") is None:
        raise Refused("no Host")
    if not re.fullmatch(rb"/[^#]*|\*", message.start[1]):
        raise Refused(f"target {message.start[1][:80]!r} is not in the origin form")
    # What is said to the next hop alone, and named as that.
    said = {name for name, _ in message.fields} & ONE_HOP - {b"connection"}
    if message.one(b"transfer-encoding") == b"chunked":
        said.remove(b"transfer-encoding")
    options = set(listed(message.fields, b"connection"))
    if said != options - {b"close"} or not said <= {b"upgrade", b"te"}:
        raise Refused(f"fields of another hop: {said}, and Connection: {options}")
    if said & {b"te"} and message.one(b"te") != b"trailers" or b"h2c" in listed(message.fields, b"upgrade"):
        raise Refused(f"TE: {message.all(b'te')}, Upgrade: {message.all(b'upgrade')}")
    late = (FRAMING | ONE_HOP).intersection(name for name, _ in message.trailers)
    if late:
        raise Refused(f"trailers that speak of framing: {late}")
