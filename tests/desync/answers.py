"""Odd answers, from an upstream behind our agent (part upstream) and from an agent on a link of our relay (part agent):
a visitor has one answer or one named error, the next one has its own, and the odd connection is not used again."""
import collections
import contextlib
import random
import re
import socket
import threading

from checks import Failed
from programs import HOST

import strict
from inputs import CODINGS, LENGTHS, MORE_FIELDS, SIZES, change_bytes, spoken
from tunnel import KEY, PATIENCE, Tunnel, Visitor, code

# Between two pieces: the visitor has had its answer; the connection ends; it is reset.
LATE, END, RESET = "late", "end", "reset"
# How long an answer that is not whole may stay so, before whoever gives it ends.
SILENCE = 0.3

# `asks` is what the request has behind its Host: more fields, and a body, of which some may be missing.
Case = collections.namedtuple("Case", "name method pieces asks", defaults=[b"\r\n"])

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
PLANT = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nplanted"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
TRAILERS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
KEPT = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello"
HEAD_ONLY = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nhello"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
NOT_MODIFIED = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n"
WEBSOCKET = SWITCH.replace(b"PTTH/1.0", b"websocket")


def filling(size, behind):
    """An answer that fills a read of this size to the last byte, and what waits behind it."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
    body = size - len(head % size)
    return head % body + b"a" * body + behind


def with_fields(fields, status=b"200 OK", body=b"hello"):
    return b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n" + body


WRITTEN = {
    "whole": [OK],
    "whole, chunked": [CHUNKED],
    "whole, with trailers": [TRAILERS],
    "whole, until the end": [UNTIL_CLOSE, END],
    "whole, of HTTP/1.0": [b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"],
    "whole, of HTTP/1.0 and kept": [KEPT],
    "whole, and says close": [with_fields(b"Connection: close\r\nContent-Length: 5\r\n")],
    "whole, after others": [CONTINUE + HINTS + HINTS + OK],
    "no content": [NO_CONTENT],
    "not modified": [NOT_MODIFIED],
    "two in one write": [OK + PLANT],
    "two, chunked": [CHUNKED + PLANT],
    "two, with trailers": [TRAILERS + PLANT],
    "two, no content": [NO_CONTENT + PLANT],
    "two, not modified": [NOT_MODIFIED + PLANT],
    "two, says close": [with_fields(b"Connection: close\r\nContent-Length: 5\r\n", body=b"hello" + PLANT)],
    "two, the second late": [OK, LATE, PLANT],
    "two, the second late, chunked": [CHUNKED, LATE, PLANT],
    "two, and the end": [OK + PLANT, END],
    "two, the first of HTTP/1.0": [KEPT + PLANT],
    "an interim answer behind": [OK + CONTINUE],
    "an interim answer behind, late": [OK, LATE, CONTINUE],
    "a switch behind": [OK + SWITCH],
    "a switch behind, late": [OK, LATE, SWITCH],
    "a timeout behind, late": [OK, LATE,
        b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", END],
    "a byte behind": [OK + b"p"],
    "a line end behind": [OK + b"\r\n"],
    "a line end behind, late": [OK, LATE, b"\r\n"],
    "NUL behind": [OK + b"\0"],
    "the end behind": [OK, END],
    "the end behind, late": [OK, LATE, END],
    "a reset behind, late": [OK, LATE, RESET],
    "fills a read": [filling(4096, b"")],
    "fills a read, and more": [filling(4096, PLANT)],
    "fills a read, and one byte": [filling(4096, b"p")],
    "nearly fills a read, and more": [filling(4095, PLANT)],
    "fills a large read": [filling(4096 + 61440, b"")],
    "fills a large read, and more": [filling(4096 + 61440, PLANT)],
    "fills two large reads, and more": [filling(4096 + 65536, PLANT)],
    "fills another large read, and more": [filling(4096 + 61440 + 65536, PLANT)],
    "no content with a length": [b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"],
    "no content with a length of nothing": [b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"],
    "no content with a body": [b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello"],
    "no content with chunks": [b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
    "no content, and its chunks late": [b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", LATE,
        b"5\r\nhello\r\n0\r\n\r\n"],
    "not modified with a body": [NOT_MODIFIED + b"hello"],
    "an interim answer with a body": [b"HTTP/1.1 103 Early Hints\r\nContent-Length: 45\r\n\r\n" + PLANT + OK],
    "an interim answer with chunks": [CHUNKED.replace(b"200 OK", b"103 Early Hints") + OK],
    "interim answers, many": [HINTS * 2000 + OK],
    "interim answers, many, and the end": [HINTS * 2000, END],
    "interim answers, many, and a switch": [CONTINUE * 100 + SWITCH + PLANT],
    "a switch": [SWITCH],
    "a switch and more": [SWITCH + PLANT],
    "a switch to another protocol": [WEBSOCKET + b"\x81\x05hello"],
    "a switch with a body": [SWITCH.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nhello") + OK],
    "both framings": [with_fields(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        body=b"5\r\nhello\r\n0\r\n\r\n")],
    "both framings, and more": [with_fields(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        body=b"0\r\n\r\n" + PLANT)],
    "two lengths": [with_fields(b"Content-Length: 5\r\nContent-Length: 50\r\n", body=b"hello" + PLANT)],
    "two equal lengths": [with_fields(b"Content-Length: 5\r\nContent-Length: 5\r\n")],
    "a coding of HTTP/1.0": [CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + PLANT],
    "a field of two lines": [with_fields(b"X: a\r\n b\r\nContent-Length: 5\r\n")],
    "a CR in a field": [with_fields(b"X: a\rContent-Length: 0\r\nContent-Length: 5\r\n")],
    "a LF in the head": [with_fields(b"X: a\nContent-Length: 5\r\n")],
    "nothing, and the end": [END],
    "nothing, and a reset": [RESET],
    "half a head, and the end": [b"HTTP/1.1 200 OK\r\nContent-", END],
    "half a head, and a reset": [b"HTTP/1.1 200 OK\r\nContent-", RESET],
    "half a body, and the end": [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", END],
    "half a body, and a reset": [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", RESET],
    "half a chunk, and the end": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe", END],
    "no last chunk, and the end": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", END],
    "no end of the trailers, and the end": [CHUNKED[:-2], END],
    "until the end, which is a reset": [UNTIL_CLOSE, LATE, RESET],
    "a chunk too long": [CHUNKED.replace(b"hello", b"hello!") + PLANT],
    "trailers that frame": [CHUNKED[:-2] + b"Content-Length: 9\r\nTransfer-Encoding: gzip\r\n\r\n"],
    "garbage": [b"\x16\x03\x01\0\xa5\x01\0\0" * 9],
    "a request": [b"GET /planted HTTP/1.1\r\nHost: a.example\r\n\r\n"],
    "no version": [b"<html>planted</html>\r\n\r\n", END],
}
TO_HEAD = {
    "HEAD": [HEAD_ONLY],
    "HEAD, chunked": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"],
    "HEAD, no framing": [b"HTTP/1.1 200 OK\r\n\r\n"],
    "HEAD with a body": [OK],
    "HEAD with a planted body": [b"HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\n" + PLANT],
    "HEAD with a planted body, late": [b"HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\n", LATE, PLANT],
    "HEAD with chunks": [CHUNKED],
    "HEAD with chunks, late": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", LATE,
        b"5\r\nhello\r\n0\r\n\r\n"],
    "HEAD, both framings": [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"],
    "HEAD, two lengths": [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"],
}
# To an offer to go on with WebSocket: what is no 101 to just that.
OFFER = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TO_OFFER = {
    "an offer refused": [OK],
    "an offer refused, and more": [OK + PLANT],
    "an offer refused, and more late": [OK, LATE, PLANT],
    "an offer refused, and a switch": [OK + WEBSOCKET],
    "an offer, another protocol": [SWITCH + PLANT],
    "an offer, h2c": [WEBSOCKET.replace(b"websocket", b"h2c") + PLANT],
    "an offer, two protocols": [WEBSOCKET.replace(b"websocket", b"websocket, h2c") + PLANT],
    "an offer, no protocol": [b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n" + PLANT],
    "an offer, half a switch": [WEBSOCKET[:-2], END],
}
# To a request of which half the body is still to come: sent behind the answer, it could be taken for a request.
HALF = b"Content-Length: 10\r\n\r\nhello"
TO_HALF = {
    "an early answer": [OK],
    "an early answer, and more": [OK + PLANT],
    "an early answer, chunked": [CHUNKED],
    "an early answer until the end": [UNTIL_CLOSE, END],
    "an early answer that is none": [b"garbage\r\n\r\n"],
}

# The words of docs/links.md, in places where they are none.
ALIVE = b"HTTP/1.1 102 Processing\r\nPtth-Accept: ping\r\n\r\n"
LEAVING = b"HTTP/1.1 102 Processing\r\nConnection: close\r\n\r\n"
WORDS = {
    "signs of life": [ALIVE * 3 + OK],
    "signs of life, and the end": [ALIVE * 3, END],
    "signs of life behind": [OK + ALIVE],
    "signs of life behind, late": [OK, LATE, ALIVE],
    "a sign of life with a body": [ALIVE[:-2] + b"Content-Length: 45\r\n\r\n" + OK + PLANT],
    "the word of leaving": [LEAVING + OK],
    "the word of leaving, and more": [LEAVING + OK + PLANT],
    "the word of leaving behind": [OK + LEAVING],
    "the word of leaving behind, and more": [OK + LEAVING + PLANT],
    "the word of leaving behind, late": [OK, LATE, LEAVING],
    "the word of leaving behind, late, and more": [OK, LATE, LEAVING + PLANT],
    "the word of leaving with a body behind, late": [OK, LATE, LEAVING[:-2] + b"Content-Length: 45\r\n\r\n" + PLANT],
}


def fixtures(folder):
    """What upstreams and agents answer in fixtures/refuse."""
    for file in sorted((folder / "refuse").glob("response-*.txt")):
        pieces, closes = spoken(file)
        asked = [data for side, data in pieces if side == ">"]
        if asked and asked[0].startswith((b"GET ", b"HEAD ")):
            answer = b"".join(data for side, data in pieces if side == "<")
            yield Case(file.stem, asked[0].split(b" ")[0], [answer, END] if "<" in closes else [answer])
        elif file.name.startswith("response-link-"):
            # The first thing that an agent says is its offer.
            yield Case(file.stem, b"GET", [b"".join(asked[1:]), END] if ">" in closes else [b"".join(asked[1:])])


def mutations(rng, count):
    for number in range(count):
        method = rng.choice([b"GET", b"GET", b"GET", b"HEAD"])
        what = rng.random()
        if what < 0.5:
            name, pieces = rng.choice(list((TO_HEAD if method == b"HEAD" else WRITTEN).items()))
            # The long ones are about their length, and take long.
            pieces = [change_bytes(rng, p) if isinstance(p, bytes) and len(p) < 1000 else p for p in pieces]
        else:
            name, status = "fields", rng.choice([b"200 OK", b"200 OK", b"204 No Content", b"304 Not Modified",
                b"404 Not Found", b"100 Continue", b"205 Reset"])
            fields = [b"%s: %s\r\n" % rng.choice(MORE_FIELDS) for _ in range(rng.choice([0, 0, 1]))]
            if rng.random() < 0.7:
                fields.append(b"Content-Length: %s\r\n" % rng.choice([b"5"] * 10 + LENGTHS))
            if rng.random() < 0.5:
                fields.append(b"Transfer-Encoding: %s\r\n" % rng.choice([b"chunked"] * 10 + CODINGS))
            rng.shuffle(fields)
            body = b"%s\r\nhello\r\n0\r\n\r\n" % rng.choice([b"5"] * 5 + SIZES) if rng.random() < 0.5 else b"hello"
            pieces = [with_fields(b"".join(fields), status, body)]
        if isinstance(pieces[-1], bytes):
            # In one write: what comes in a second one may come when the next request is out.
            pieces = rng.choice([pieces, pieces, [*pieces[:-1], pieces[-1] + PLANT], [*pieces, LATE, PLANT]])
        yield Case(f"mutation {number} of {name}", method, pieces)


def cases(options):
    yield from written()
    yield from fixtures(options.fixtures)
    yield from mutations(random.Random(options.seed), options.count // 5)


def written():
    for name, pieces in [*WRITTEN.items(), *WORDS.items()]:
        yield Case(name, b"GET", pieces)
    for name, pieces in TO_HEAD.items():
        yield Case(name, b"HEAD", pieces)
    for name, pieces in TO_OFFER.items():
        yield Case(name, b"GET", pieces, OFFER)
    for name, pieces in TO_HALF.items():
        yield Case(name, b"POST", pieces, HALF)


class Odd:
    """Whoever is asked on connections and gives odd answers. Every /fine/N is answered well."""

    def __init__(self):
        self.news = threading.Condition()
        self.case = None
        # Which connection had which request; and which connections have ended.
        self.asked, self.ended = [], set()
        self.connections = 0
        # How far the visitor of the present case is.
        self.go = self.late = self.give_up = False

    def tell(self, **what):
        with self.news:
            self.__dict__.update(what)
            self.news.notify_all()

    def wait_for(self, what, condition, seconds=PATIENCE):
        with self.news:
            if not self.news.wait_for(condition, seconds):
                raise Failed(f"not in {seconds} s: {what}")

    def serve(self, connection, rest=b""):
        """Until the other side ends it, or an answer does."""
        with self.news:
            self.connections += 1
            number = self.connections
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while True:
                # Odd answers do not wait for a body.
                early = re.match(rb"(\S+) (/odd/\S+) (?s:.*?)\r\n\r\n(?:hello$)?", rest)
                try:
                    if early:
                        (method, target), end = early.groups(), early.end()
                    else:
                        message, end = strict.request(rest)
                        method, target = message.start
                except strict.More:
                    data = connection.recv(1 << 16)
                    if not data:
                        return
                    rest += data
                    continue
                rest = rest[end:]
                with self.news:
                    self.asked.append((number, target))
                    self.news.notify_all()
                if target == b"*":
                    connection.sendall(NO_CONTENT)
                elif target.startswith(b"/fine/"):
                    page = b"" if method == b"HEAD" else target
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(target), page))
                elif not self.answer(connection):
                    return
        except (OSError, strict.Refused, Failed):
            pass
        finally:
            with self.news:
                self.ended.add(number)
                self.news.notify_all()
            connection.close()

    def answer(self, connection):
        """False when that was the end of it."""
        self.wait_for("the case goes on", lambda: self.go)
        for piece in self.case.pieces:
            if piece == LATE:
                self.wait_for("the visitor has its answer", lambda: self.late or self.give_up)
            elif piece == END:
                connection.shutdown(socket.SHUT_WR)
                # Whoever ends hears on. A request that was on its way then goes elsewhere; behind an end that was seen
                # there is none.
                while data := connection.recv(1 << 16):
                    if LATE in self.case.pieces:
                        with self.news:
                            self.asked += [(self.connections, b"behind the end: " + data)]
                return False
            elif piece == RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                return False
            else:
                connection.sendall(piece)
        # Half an answer is given up when the visitor has waited long enough; one that was odd is closed by its taker.
        connection.settimeout(0.01)
        while True:
            try:
                data = connection.recv(1, socket.MSG_PEEK)
                connection.settimeout(None)
                return bool(data)
            except TimeoutError:
                if self.give_up:
                    return False


class OddUpstream(Odd):
    def __init__(self, *_):
        super().__init__()
        self.listener = socket.create_server((HOST, 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()


class OddAgent(Odd):
    """An agent by hand with one link, and a new one as soon as that is gone."""

    OFFER = (
        b"POST /default HTTP/1.1\r\nHost: relay\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n"
        b"Authorization: Bearer %s\r\nContent-Length: 0\r\n" % KEY.encode()
    )

    def __init__(self, relay, says=b""):
        super().__init__()
        self.relay, self.offer = relay, self.OFFER + says + b"\r\n"
        threading.Thread(target=self.dial, daemon=True).start()

    def dial(self):
        with contextlib.suppress(OSError):
            while True:
                connection = socket.create_connection(self.relay)
                connection.sendall(self.offer)
                heard = b""
                while b"\r\n\r\n" not in heard:
                    data = connection.recv(1 << 16)
                    if not data:
                        return
                    heard += data
                if not heard.startswith(b"HTTP/1.1 101 "):
                    return
                self.serve(connection, heard.partition(b"\r\n\r\n")[2])


class Judge:
    """Plays the cases one by one, with a visitor for the odd answer and one that comes after it."""

    def __init__(self, address, odd, codes):
        self.address, self.odd, self.codes = address, odd, codes
        self.counts = collections.Counter()

    def play(self, number, case):
        odd = self.odd
        data = b"".join(piece for piece in case.pieces if isinstance(piece, bytes))
        ends = END in case.pieces or RESET in case.pieces
        # The end of a connection tells that of a body, but its breaking does not; and whoever has given all of a case
        # ends too, when the visitor waits for more.
        answers, rest = strict.responses(data, [case.method], RESET not in case.pieces)
        is_odd = bool(rest) or not answers or not answers[0].keeps or ends or case.asks == HALF
        with odd.news:
            odd.case, odd.go, odd.late, odd.give_up = case, False, False, False
            asked_before = len(odd.asked)
        target = b"/odd/%d" % number
        with Visitor(self.address) as first, Visitor(self.address) as second:
            first.send(b"%s %s HTTP/1.1\r\nHost: a.example\r\n%s" % (case.method, target, case.asks))
            odd.wait_for("the odd one is asked", lambda: any(t == target for _, t in odd.asked[asked_before:]))
            fine = b"/fine/%d" % number
            request = b"GET %s HTTP/1.1\r\nHost: b.example\r\n\r\n" % fine
            # The next visitor waits for the first one's link already, unless what is odd comes late: once its request
            # is out, nobody could tell what comes then from its answer.
            if LATE not in case.pieces:
                second.send(request)
                second.hear(0.03)
            odd.tell(go=True)
            whole = first.hear_answers([case.method], SILENCE)
            odd.tell(late=True)
            if not whole:
                odd.tell(give_up=True)
                first.hear_answers([case.method], PATIENCE)
            self.check_first(case, first, answers, rest)
            if is_odd:
                what = f"the odd connection is closed ({rest or 'it does not go on'})"
                odd.wait_for(what, lambda: self.are_ended(target, asked_before))
            if LATE in case.pieces:
                second.send(request)
            if not second.hear_answers([b"GET"], PATIENCE):
                raise Failed(f"the next visitor has no answer but {second.heard[:200]!r}")
            self.check_fine(second, [b"GET"], fine)
            if case.asks == HALF:
                # Nobody could tell the rest of its request from the next one.
                if not first.hear_end():
                    raise Failed("the connection of a request that never was whole stays open")
                if first.answers([case.method])[1]:
                    raise Failed(f"two answers to it: {first.heard[-300:]!r}")
            elif not first.ended and first.answers([case.method])[0][-1].keeps:
                fine += b"/again"
                first.send(b"GET %s HTTP/1.1\r\nHost: a.example\r\n\r\n" % fine)
                first.hear_answers([case.method, b"GET"], PATIENCE)
                self.check_fine(first, [case.method, b"GET"], fine)
        if is_odd:
            odds = {connection for connection, t in odd.asked[asked_before:] if t == target}
            later = [t for connection, t in odd.asked[asked_before:] if connection in odds and t != target]
            # Others may have been there before it, but none behind it.
            for connection in odds:
                targets = [t for c, t in odd.asked if c == connection]
                if targets[-1] != target:
                    raise Failed(f"the odd connection was used again for {later}")
            self.counts["odd"] += 1
        else:
            self.counts["whole"] += 1

    def are_ended(self, target, since):
        return all(connection in self.odd.ended for connection, t in self.odd.asked[since:] if t == target)

    def check_first(self, case, first, answers, rest):
        heard, behind = first.answers([case.method])
        if not heard:
            # The end in the middle of an answer is the only way to say that it is not whole.
            if not first.ended or not first.heard and not first.reset:
                raise Failed(f"no answer but {first.heard[:200]!r}")
            if answers and not rest:
                raise Failed(f"a whole answer became {first.heard[:200]!r}")
            self.counts["cut off"] += 1
            return
        if behind:
            raise Failed(f"an answer, and {behind}")
        [answer] = heard
        named = code(answer)
        self.counts[named or "passed on"] += 1
        if named:
            if named not in self.codes:
                raise Failed(f"the error is {named}")
            # What fixtures/refuse has is refused for reasons that need not be those of framing.
            if answers and not rest and not case.name.startswith("response-"):
                raise Failed(f"a whole answer became {named}")
        elif not answers:
            raise Failed(f"what is no answer ({rest}) became one: {first.heard[:300]!r}")
        elif (answer.start, answer.body) != (answers[0].start, answers[0].body):
            wanted, seen = [(one.start, one.body[:100]) for one in (answers[0], answer)]
            raise Failed(f"the answer {wanted} became {seen}")

    @staticmethod
    def check_fine(visitor, methods, fine):
        answers, rest = visitor.answers(methods)
        if len(answers) != len(methods) or rest or answers[-1].start != 200 or answers[-1].body != fine:
            raise Failed(f"{fine!r} was answered {visitor.heard[-300:]!r} ({rest})")


def judge(options, checks, address, odd, codes, part, to_play):
    checked = Judge(address, odd, codes)
    for number, case in enumerate(to_play):
        if options.only and options.only not in case.name:
            continue
        try:
            checked.play(number, case)
            checks.succeed()
        except Exception as error:
            pieces = [piece if len(piece) < 1000 else piece[:100] + b"..." + piece[-100:] for piece in case.pieces]
            checks.fail(f"{part}: {case.name}: {case.method.decode()} {pieces}: {type(error).__name__}: {error}")
            odd.tell(go=True, late=True, give_up=True)
    counts = checked.counts
    kinds = ", ".join(f"{kind} {n}" for kind, n in counts.most_common() if kind not in ("odd", "whole"))
    checks.say(
        f"        {part}: {counts['odd']} odd answers, {counts['whole']} good ones, on {odd.connections} connections; "
        f"visitors saw: {kinds}"
    )


def play_upstream(options, checks):
    # A recorder between them would hide how a connection ends.
    with Tunnel(options.programs, OddUpstream, options.dialect, links="1..1", recorded=False) as tunnel:
        codes = {"upstream-protocol", "upstream-lost"}
        judge(options, checks, tunnel.address, tunnel.server, codes, "upstream", cases(options))


def play_agent(options, checks):
    codes = {"link-protocol", "link-lost"}
    with Tunnel(options.programs, None) as tunnel:
        odd = OddAgent(tunnel.address)
        judge(options, checks, tunnel.address, odd, codes, "agent", cases(options))
    with Tunnel(options.programs, None) as tunnel:
        odd = OddAgent(tunnel.address, says=b"Ptth-Accept: ping\r\n")
        judge(options, checks, tunnel.address, odd, codes, "agent that says ping", written())

