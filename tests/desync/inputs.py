"""What is fed in: the rows of fixtures/refuse, valid requests, and mutations of both."""
import collections
import random
import re

# `data` is sent, then the connection is ended if `closes`.
Input = collections.namedtuple("Input", "name data closes")

HOST = b"a.example"
# Bytes that one parser takes for white space, for a line end or for part of a name, and another does not.
ODD_BYTES = [b"\r", b"\n", b"\r\n", b"\0", b"\t", b" ", b"\x0b", b"\x0c", b"\x1f", b"\x7f", b"\x85", b"\xa0", b"_",
    b",", b";", b":"]
CANARY = b"GET /canary HTTP/1.1\r\nHost: a.example\r\n\r\n"


# --- fixtures ---------------------------------------------------------------------------------------------------------


def unescape(text):
    plain = {"r": b"\r", "n": b"\n", "\\": b"\\"}
    escape = lambda match: bytes.fromhex(match[1][1:]) if match[1][0] == "x" else plain[match[1]]  # noqa: E731
    parts = re.split(r"(\\(?:x[0-9a-fA-F]{2}|[rn\\]))", text)
    return b"".join(
        escape(re.fullmatch(r"\\(.*)", part)) if index % 2 else part.encode() for index, part in enumerate(parts)
    )


def spoken(file):
    """What each side of a fixture says, in order, and which of them close. fixtures/README.md has the format."""
    pieces, closes = [], set()
    for line in file.read_text().splitlines():
        kind, text = line[:1], line[1:]
        if kind and kind in "<>":
            if text.endswith("\\") and not text.endswith("\\\\"):
                data = unescape(text[:-1])
            else:
                data = unescape(text) + b"\r\n"
            if pieces and pieces[-1][0] == kind:
                pieces[-1][1] += data
            else:
                pieces.append([kind, data])
        elif line.startswith("!close"):
            closes.add(text.split()[1])
        elif line.startswith("!repeat"):
            _, times, more = line.split(" ", 2)
            pieces[-1][1] += unescape(more) * int(times)
    return pieces, closes


def fixtures(folder):
    """What visitors and agents say to a relay."""
    for file in sorted((folder / "refuse").glob("*.txt")):
        if not file.name.startswith(("response-", "link-")):
            pieces, closes = spoken(file)
            yield Input(file.stem, b"".join(data for side, data in pieces if side == ">"), ">" in closes)


# --- valid requests ---------------------------------------------------------------------------------------------------


class Request:
    """A request in parts that can be changed one by one."""

    def __init__(self, method, target, fields=(), body=b"", version=b"HTTP/1.1", host=HOST):
        self.method, self.target, self.version, self.body = method, target, version, body
        self.fields = ([[b"Host", b": ", host]] if host is not None else []) + [[n, b": ", v] for n, v in fields]
        self.eol = b"\r\n"

    def __bytes__(self):
        head = [b" ".join([self.method, self.target, self.version]), *(b"".join(field) for field in self.fields)]
        return self.eol.join(head) + self.eol * 2 + self.body

    def field(self, name):
        return next((field for field in self.fields if field[0].lower() == name), None)


def sized(method, target, body, *more, **kinds):
    return Request(method, target, [(b"Content-Length", b"%d" % len(body)), *more], body, **kinds)


def chunked(method, target, raw, *more, **kinds):
    return Request(method, target, [(b"Transfer-Encoding", b"chunked"), *more], raw, **kinds)


def corpus():
    """Anew each time, since they are changed. All are valid, and each is answered by any server."""
    keep = (b"Connection", b"keep-alive")
    h2c = [(b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", b"h2c"),
        (b"HTTP2-Settings", b"AAMAAABkAAQCAAAAAAIAAAAA")]
    websocket = [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"), (b"Sec-WebSocket-Version", b"13"),
                 (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ==")]
    return {
        "get": Request(b"GET", b"/get?x=1"),
        "get-fields": Request(b"GET", b"/fields", [(b"Accept", b"*/*"), (b"X-Latin", b"caf\xe9"), (b"X-Tab", b"a\tb"),
            (b"X-Empty", b"")]),
        "head": Request(b"HEAD", b"/head"),
        "delete": Request(b"DELETE", b"/delete"),
        "options": Request(b"OPTIONS", b"/options"),
        "post-length": sized(b"POST", b"/post", b"hello=world"),
        "post-empty": sized(b"POST", b"/empty", b""),
        "post-none": Request(b"POST", b"/none"),
        "post-lines": sized(b"POST", b"/lines", b"a\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n"),
        "post-chunked": chunked(b"POST", b"/chunked", b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"),
        "post-extensions": chunked(b"POST", b"/extensions", b"5;a=b\r\nhello\r\n1;c=\"d\"\r\n!\r\n0;e\r\n\r\n"),
        "post-trailers": chunked(b"POST", b"/trailers", b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
            (b"Trailer", b"X-Sum")),
        "put-zeros": chunked(b"PUT", b"/zeros", b"0005\r\nhello\r\n000\r\n\r\n"),
        "get-body": sized(b"GET", b"/get-body", b"GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n"),
        "get-chunked": chunked(b"GET", b"/get-chunked", b"3\r\nabc\r\n0\r\n\r\n"),
        "head-body": sized(b"HEAD", b"/head-body", b"abc"),
        "absolute": Request(b"GET", b"http://a.example/absolute?y"),
        "absolute-other-host": Request(b"GET", b"http://b.example/absolute", host=b"a.example"),
        "absolute-query": Request(b"GET", b"http://a.example?z"),
        "percent": Request(b"GET", b"/%2e%2e/%0d%0aX:%20y/%00?%23"),
        "slashes": Request(b"GET", b"//a.example//b"),
        "odd-characters": Request(b"GET", b"/a\"<>\\^`{|}b"),
        "expect": sized(b"POST", b"/expect", b"hello", (b"Expect", b"100-continue")),
        "h2c": Request(b"GET", b"/h2c", h2c),
        "h2c-body": sized(b"POST", b"/h2c-body", b"hello", *h2c),
        "websocket": Request(b"GET", b"/websocket", websocket, body=b"\x81\x05hello"),
        "close": Request(b"GET", b"/close", [(b"Connection", b"close")]),
        "named-by-connection": sized(b"POST", b"/named", b"hello", (b"Connection", b"Content-Length, Host, X-Mine"),
            (b"X-Mine", b"1")),
        "named-coding": chunked(b"POST", b"/named", b"1\r\na\r\n0\r\n\r\n", (b"Connection", b"Transfer-Encoding")),
        "options-0": Request(b"OPTIONS", b"*", [(b"Max-Forwards", b"0")]),
        "options-0-body": sized(b"OPTIONS", b"*", b"hello", (b"Max-Forwards", b"0")),
        "options-1-body": chunked(b"OPTIONS", b"/x", b"5\r\nhello\r\n0\r\n\r\n", (b"Max-Forwards", b"1")),
        "options-2-body": sized(b"OPTIONS", b"/x", b"hello", (b"Max-Forwards", b"2")),
        "trace-0": Request(b"TRACE", b"/x", [(b"Max-Forwards", b"0")]),
        "trace-0-body": sized(b"TRACE", b"/x", b"hello", (b"Max-Forwards", b"0")),
        "1.0": Request(b"GET", b"/1.0", version=b"HTTP/1.0"),
        "1.0-no-host": Request(b"GET", b"/1.0", version=b"HTTP/1.0", host=None),
        "1.0-keep": Request(b"GET", b"/1.0-keep", [keep], version=b"HTTP/1.0"),
        "1.0-post": sized(b"POST", b"/1.0-post", b"hello", keep, version=b"HTTP/1.0"),
        "underscores": Request(b"GET", b"/underscores", [(b"Content_Length", b"5"),
            (b"Transfer_Encoding", b"chunked")]),
        "forwarded": Request(b"GET", b"/forwarded", [(b"X-Forwarded-For", b"1.2.3.4"),
            (b"X_Forwarded_For", b"1.2.3.4"), (b"Via", b"1.1 x")]),
        "blank-line": Request(b"\r\nGET", b"/blank"),
    }


# --- mutations --------------------------------------------------------------------------------------------------------

CODINGS = [
    b"chunked ", b" chunked", b"\tchunked", b"chunked\t", b"\x0bchunked", b"chunked\x0b", b"chunked\x0c",
    b"\xa0chunked", b"chunked\x85", b"\"chunked\"",
    b"'chunked'", b"Chunked", b"CHUNKED", b"chunked,", b",chunked", b"chunked, chunked", b"chunked,identity",
    b"identity, chunked",
    b"gzip, chunked", b"chunked, gzip", b"identity", b"xchunked", b"chunked;q=1", b"chunked\0", b"chun\0ked",
    b"chunked\r\n ", b"\r\n chunked",
    b"\r\n\tchunked", b"chunked\n", b"chunked\r", b"", b"0", b"c\xc5\xbfhunked",
]
LENGTHS = [
    b"+5", b"-5", b"-0", b"05", b"0x5", b"5 ", b" 5", b"5 5", b"5,5", b"5, 5", b"5,6", b"5,", b",5", b"5;", b"5.0",
    b"5e0", b"5\x0b", b"\x0b5",
    b"5\0", b"5\t", b"5\xa0", b"\xb2", b"", b"0", b"1", b"4", b"6", b"99", b"4294967301", b"18446744073709551616",
    b"18446744073709551621", b"5_0",
    b"0b101", b"\"5\"", b"5\r\n ", b"\r\n 5", b"5\n", b"00000000000000000000000000000000005",
]
SIZES = [
    b"+5", b"-5", b"0x5", b" 5", b"5 ", b"5\t", b"\t5", b"5;", b"5;\n", b"5;a\r", b"5\r", b"5\n", b"5\r\r\n", b"5_",
    b"5,", b"5h", b"", b"g",
    b"00000000000000005", b"10000000000000005", b"ffffffffffffffff", b"FFFFFFFFFFFFFFFB", b"5;\0", b"5; a=\"\r\nx\"",
    b"5\x0b", b"5\xa0", b"5;\x7f", b"4", b"6", b"0",
]
TARGETS = [
    b"http://a.example/x", b"HTTP://A.EXAMPLE/x", b"https://a.example/x", b"http://a.example:80/x",
    b"http://a.example:/x", b"http://user@a.example/x",
    b"http:///x", b"http://a.example#f", b"http:/x", b"http:x", b"ftp://a.example/x", b"//a.example/x",
    b"a.example:80", b"a.example", b"*", b"/x#f", b"/#",
    b"#", b"?", b"/?", b"/%", b"/%zz", b"/%00", b"/%0d%0a", b"/..", b"/../x", b"/./x", b"/x y", b"/x\ty", b"/x\0y",
    b"/x\x0by", b"/x\x7f", b"/x\x85", b"/x\xa0",
    b"/\xe9", b"\\x", b"/\\x", b"", b"/x HTTP/1.1", b"/x HTTP/1.0", b"/frontend/servers/default/x",
    b"/frontend/servers/default//x",
    b"/frontend/servers/default", b"/frontend/servers/default?x", b"http://a.example/frontend/servers/default",
    b"/x\r", b"/x\n", b"http://a.example\\@b/",
    b"http://[::1]/x", b"http://[::1/x", b"http://a.example,b.example/", b"/7ZSFUKGV/x", b"*/x", b"http://a.example?",
    b"http://a.example/*",
]
HOSTS = [b"", b" ", b"a.example, b.example", b"a.example b", b"a.example:80", b"a.example:x", b"a.example/",
    b"user@a.example", b"a.example\t", b"\x0ba.example", b"[::1]",
         b"[::1", b"a_b", b"a.example\0", b"a.example\r\n b", b"a.example#", b"a.example?", b"\xe9.example",
         b"a.example:999999"]
MORE_FIELDS = [
    (b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"0"), (b"Content-Length", b"5"), (b"Host", b"b.example"),
    (b"Connection", b"close"),
    (b"Connection", b"keep-alive"), (b"Connection", b"Transfer-Encoding"), (b"Connection", b"Content-Length"),
    (b"Connection", b"Host"), (b"Expect", b"100-continue"),
    (b"Expect", b"200-ok"), (b"TE", b"trailers"), (b"Trailer", b"Content-Length"), (b"Upgrade", b"h2c"),
    (b"Upgrade", b"PTTH/1.0"), (b"HTTP2-Settings", b"AAMAAABk"),
    (b"Proxy-Connection", b"keep-alive"), (b"Keep-Alive", b"timeout=5"), (b"Content_Length", b"99"),
    (b"Transfer_Encoding", b"chunked"), (b"X", b"a\r\n b"),
    (b"X-HTTP-Method-Override", b"DELETE"), (b"Content-Encoding", b"chunked"), (b"Upgrade", b"websocket"),
    (b"Content-Length ", b"5"), (b" Content-Length", b"5"),
    (b"Transfer-Encoding\t", b"chunked"), (b"\x0bTransfer-Encoding", b"chunked"), (b"Transfer-Encoding\0", b"chunked"),
    (b"Trans\rfer-Encoding", b"chunked"),
    (b"X\nTransfer-Encoding", b"chunked"), (b"X: y\r\n\r\nGET /smuggled HTTP/1.1\r\nHost", b"a.example"), (b"", b"x"),
]
TRAILERS = [
    b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Host: b.example", b"Connection: close", b"X: y", b"X : y",
    b" X: y", b"X", b":", b"X: y\r", b"X: y\n",
    b"X: \0", b"Upgrade: h2c", b"Content_Length: 5", b"X-Forwarded-For: 1.2.3.4", b"GET /smuggled HTTP/1.1",
    b"Trailer: x", b"TE: trailers", b"Expect: 100-continue",
]
VERSIONS = [b"HTTP/1.0", b"HTTP/1.1", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.1 ", b"http/1.1", b"HTTP/1.10",
    b"HTTP/01.1", b"HTTP /1.1", b"", b"HTTP/1.", b"HTTP/1.1\t", b"HTTP/11"]
METHODS = [b"get", b"GET\t", b" GET", b"G\0ET", b"PRI", b"POST", b"HEAD", b"head", b"TRACE", b"PATCH", b"M-SEARCH",
    b"GE_T", b"GET ", b"CONNECT", b"X" * 40, b"\xe9", b"\nGET", b"\r\n\r\n\r\nGET"]


def change_field(rng, request, name, values):
    field = request.field(name)
    value = rng.choice(values)
    if field is None or rng.random() < 0.3:
        request.fields.insert(rng.randrange(len(request.fields) + 1), [name.title(), b": ", value])
    else:
        field[2] = value


def change_separator(rng, request):
    field = rng.choice(request.fields)
    field[1] = rng.choice([b":", b" : ", b" :", b"\t:", b":\t", b":  ", b":\r\n ", b":\x0b", b"\0:", b": \xa0", b"",
    b"::", b"\r\n:", b"\n:"])


def change_name(rng, request):
    field = rng.choice(request.fields)
    name = field[0]
    field[0] = rng.choice([
        name.upper(), name.lower(), name.swapcase(), name.replace(b"-", b"_"), name + b" ", b" " + name, b"\t" + name,
        name + b"\0", name[:3] + b"\r" + name[3:],
        name + b"\x85", name + b"\xa0", name + b"\r\n", b"X-" + name, name.replace(b"o", b"\xc2\xad"), b"\x0b" + name,
        name[:-1],
    ])


def double_field(rng, request):
    field = list(rng.choice(request.fields))
    if rng.random() < 0.5:
        field[0] = field[0].swapcase()
    request.fields.insert(rng.randrange(len(request.fields) + 1), field)


def add_field(rng, request):
    name, value = rng.choice(MORE_FIELDS)
    request.fields.insert(rng.randrange(len(request.fields) + 1), [name, b": ", value])


def both_framings(rng, request):
    change_field(rng, request, b"content-length", [b"0", b"3", b"5", b"6", b"%d" % len(request.body)])
    change_field(rng, request, b"transfer-encoding", [b"chunked", *CODINGS])


def change_chunks(rng, request):
    size = rng.choice(SIZES)
    ends = [b"\r\n"] * 8 + [b"\n", b"\r", b"", b"\r\r\n", b"\r\n\r\n", b"XX", b"\n\r"]
    one, two = rng.choice(ends), rng.choice(ends)
    last = rng.choice([b"0\r\n\r\n"] * 4 + [b"0\r\n", b"0\n\n", b"00\r\n\r\n", b"\r\n\r\n", b"0\r\n\n", b"0\r\n\r",
        b"-0\r\n\r\n", b"0 \r\n\r\n", b"0;x\r\n\r\n"])
    request.fields = [field for field in request.fields if field[0].lower() != b"content-length"]
    if not request.field(b"transfer-encoding"):
        request.fields.append([b"Transfer-Encoding", b": ", b"chunked"])
    request.body = size + one + b"hello" + two + last


def change_trailers(rng, request):
    trailers = b"".join(rng.choice(TRAILERS) + b"\r\n" for _ in range(rng.choice([1, 1, 2, 3])))
    request.fields = [field for field in request.fields if field[0].lower() not in (b"content-length",
        b"transfer-encoding")]
    request.fields.append([b"Transfer-Encoding", b": ", b"chunked"])
    request.body = b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n"


def change_start(rng, request):
    what = rng.choice(["target", "target", "target", "method", "version"])
    setattr(request, what, rng.choice({"target": TARGETS, "method": METHODS, "version": VERSIONS}[what]))


def change_line_ends(rng, request):
    request.eol = rng.choice([b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b"\x85", b"\x0b\r\n"])


CHANGES = [
    lambda rng, request: change_field(rng, request, b"content-length", LENGTHS),
    lambda rng, request: change_field(rng, request, b"transfer-encoding", CODINGS),
    lambda rng, request: change_field(rng, request, b"host", HOSTS),
    change_separator, change_name, double_field, add_field, both_framings, change_chunks, change_chunks,
    change_trailers, change_start, change_start,
    change_line_ends,
]


def change_bytes(rng, data, times=None):
    """Puts odd bytes where they hurt: at line ends, around colons and digits, or anywhere."""
    data = bytearray(data)
    for _ in range(times or rng.choice([1, 1, 1, 2, 3])):
        places = [match.start() for match in re.finditer(rb"[\r\n: ,0-9]", data)]
        at = rng.choice(places) if places and rng.random() < 0.7 else rng.randrange(len(data) + 1)
        odd = rng.choice(ODD_BYTES) if rng.random() < 0.8 else bytes([rng.randrange(256)])
        how = rng.randrange(4)
        if how == 0:
            data[at:at] = odd
        elif how == 1:
            data[at : at + 1] = odd
        elif how == 2:
            del data[at : at + rng.choice([1, 1, 2])]
        else:
            data[at:at] = data[at : at + rng.choice([1, 2, 8])]
    return bytes(data)


def inputs(folder, seed, count):
    """All fixtures, all valid requests alone and in pairs, and so many mutations."""
    refused = list(fixtures(folder))
    yield from refused
    valid = corpus()
    for name, request in valid.items():
        yield Input(f"valid {name}", bytes(request), False)
        yield Input(f"valid {name} and another", bytes(request) + CANARY, False)
    rng = random.Random(seed)
    small = [fixture for fixture in refused if len(fixture.data) < 4096]
    for number in range(count):
        what = rng.random()
        if what < 0.15:
            fixture = rng.choice(small)
            name, data = fixture.name, change_bytes(rng, fixture.data)
        else:
            requests = corpus()
            name = rng.choice(list(requests))
            request = requests[name]
            if what < 0.85:
                for _ in range(rng.choice([1, 1, 2, 3])):
                    change = rng.choice(CHANGES)
                    if request.fields or change not in (change_separator, change_name, double_field):
                        change(rng, request)
                data = bytes(request)
                if what > 0.75:
                    data = change_bytes(rng, data, 1)
            else:
                data = change_bytes(rng, bytes(request))
        # What is behind must neither vanish into what is in front of it nor come out twice.
        behind = rng.choice([b"", CANARY, CANARY, CANARY, bytes(rng.choice(list(corpus().values()))) + CANARY])
        yield Input(f"mutation {number} of {name}", data + behind, rng.random() < 0.2)
