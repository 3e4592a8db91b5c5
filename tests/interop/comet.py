"""The COMET fallback: curl as an agent of our relay; and our agent, with a relay written after the page of 2008."""
import ast
import base64
import concurrent.futures
import contextlib
import json
import socket
import subprocess
import tempfile
import time

from checks import Failed, same, that
from comet_relay import CometRelay
from programs import HOST, Started, free_port, listening, until
from upstream import Upstream
from visitors import Visitor

ALL_BYTES = bytes(range(256))


# --- curl as the agent ------------------------------------------------------------------------------------------------


class Curl:
    """An agent that is nothing but curl: each call is one POST to the queue."""

    def __init__(self, relay, name):
        self.url = "http://{}:{}/{}".format(*relay, name)

    def post(self, message=b"", *flags, kind="application/json"):
        """What the relay says to that: status, version, type, and the body."""
        report = "\n%{http_code} %{http_version} %{content_type}"
        flags = ["-H", f"Content-Type: {kind}".strip(), *flags, "--data-binary", "@-", "-w", report]
        command = ["curl", "-sS", "-m", "12", *flags, self.url]
        out = subprocess.run(command, input=message, capture_output=True)
        body, _, line = out.stdout.rpartition(b"\n")
        if out.returncode:
            raise Failed(f"curl ended with {out.returncode}: {out.stderr!r}, {body!r}")
        status, version, kind = line.decode().split(" ", 2)
        return int(status), version, kind, body

    def poll(self, message=b"", *flags, **more):
        """The same, when it has to be a message, or nothing."""
        status, _, kind, body = self.post(message, *flags, **more)
        same((status, kind.split(";")[0]), (200, "application/json"), f"answer ({body[:200]!r})")
        return json.loads(body)


def reply(message, body="", status=200, **more):
    fields = [["Content-Type", "text/plain"]]
    parts = {"message-id": message["message-id"], "http-version": "PTTH/1.0", "status": status, "reason": "OK"}
    return json.dumps({**parts, "headers": fields, "body": body, **more}).encode()


@contextlib.contextmanager
def asked(relay, name, method, target, body=None, fields=()):
    """A visitor whose answer is waited for in another thread. Gives what to wait for."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool, Visitor(relay, name, timeout=15) as visitor:
        yield pool.submit(visitor.ask, method, target, body, fields)


def curl_agent(program, flags, checks):
    with Started() as started:
        timeouts = ["--timeout", "poll=1s", "--timeout", "link-answer=3s", "--timeout", "link=3s"]
        relay = started.start([program, "--listen", f"{HOST}:0", *timeouts, *flags])
        title = "comet, curl " + (" ".join(flags) or "as agent")
        address = None
        with checks.check(f"{title}: the relay starts"):
            address = listening(relay)
        if address:
            exchanges(address, title, checks)
            if not flags:
                with checks.check(f"{title}: who asks for the upgrade gets it"):
                    with socket.create_connection(address, 5) as flipped:
                        flipped.sendall(b"POST /flip HTTP/1.1\r\nHost: x\r\nUpgrade: PTTH/1.0\r\n\r\n")
                        that(flipped.recv(4096).startswith(b"HTTP/1.1 101 "), "no 101")
            else:
                no_upgrade(address, title, checks)
            with checks.check(f"{title}: the relay still runs, and ends when asked to"):
                same(relay.stop(5), 0, "exit code")
        else:
            checks.say("\n  ".join(["The relay's last words:", *relay.lines[-5:]]))


def exchanges(relay, title, checks):
    curl = Curl(relay, "curl")

    with checks.check(f"{title}: nothing now is {{}}, when the hold is over"):
        start = time.monotonic()
        same(curl.poll(), {}, "message")
        that(0.5 < time.monotonic() - start < 3, f"it took {time.monotonic() - start:.1f} s")

    with checks.check(f"{title}: a visitor's GET is a message, and its answer the visitor's"):
        fields = [("X-Order", "first"), ("X-Order", "second"), ("X-Quote", "it's \"so\"")]
        with asked(relay, "curl", "GET", "/a%20b?c=%00", fields=fields) as waiting:
            message = curl.poll()
            seen = [message.get(name) for name in ("method", "request-uri", "body")]
            same(seen, ["GET", "/a%20b?c=%00", ""], "message")
            same(message.get("http-version"), "PTTH/1.0", "http-version")
            pairs = [tuple(pair) for pair in message["headers"] if pair[0].startswith("X-")]
            same([pair for pair in pairs if pair in fields], fields, "headers")
            same(curl.poll(reply(message, "rdlrow ,olleH")), {}, "what comes after the answer")
            answer = waiting.result(5)
            same((answer.status, answer.body), (200, b"rdlrow ,olleH"), "answer")
            same(answer.fields["Content-Type"], "text/plain", "Content-Type")

    with checks.check(f"{title}: an answer is a poll as well"):
        with asked(relay, "curl", "GET", "/1") as first, asked(relay, "curl", "GET", "/2") as second:
            messages = [curl.poll()]
            messages.append(curl.poll(reply(messages[0], "one")))
            same(curl.poll(reply(messages[1], "two")), {}, "after both")
            same(sorted(message["request-uri"] for message in messages), ["/1", "/2"], "messages")
            bodies = {first.result(5).body, second.result(5).body}
            same(bodies, {b"one", b"two"}, "answers")

    with checks.check(f"{title}: a visitor's POST with a body"):
        with asked(relay, "curl", "POST", "/", "caf\xe9 \N{SNOWMAN} \"'\\\n".encode()) as waiting:
            message = curl.poll()
            same((message["method"], message["body"]), ("POST", "caf\xe9 \N{SNOWMAN} \"'\\\n"), "message")
            curl.poll(reply(message, "thanks", 201))
            same((waiting.result(5).status, waiting.result(5).body), (201, b"thanks"), "answer")

    with checks.check(f"{title}: HEAD, 204 and 304"):
        for method, status in [("HEAD", 200), ("GET", 204), ("GET", 304)]:
            with asked(relay, "curl", method, "/") as waiting:
                message = curl.poll()
                same(message["method"], method, "method")
                curl.poll(reply(message, "" if status != 200 else "four", status))
                same((waiting.result(5).status, waiting.result(5).body), (status, b""), "answer")

    with checks.check(f"{title}: all byte values, as base64 in an answer"):
        with asked(relay, "curl", "GET", "/") as waiting:
            text = base64.b64encode(ALL_BYTES).decode()
            curl.poll(reply(curl.poll(), text, encoding="base64"))
            same(waiting.result(5).body, ALL_BYTES, "body")

    with checks.check(f"{title}: all byte values in a request, for an agent that reads base64"):
        accept = ("-H", "PTTH-Accept: base64")
        with asked(relay, "curl", "PUT", "/", ALL_BYTES) as waiting:
            message = curl.poll(b"", *accept)
            same((message["encoding"], base64.b64decode(message["body"])), ("base64", ALL_BYTES), "body")
            curl.poll(reply(message), *accept)
            same(waiting.result(5).status, 200, "status")

    for how, flags in [("HTTP/1.0", ["-0"]), ("Connection: close", ["-H", "Connection: close"])]:
        with checks.check(f"{title}: polls with {how}"):
            same(curl.poll(b"", *flags), {}, "nothing")
            with asked(relay, "curl", "GET", "/") as waiting:
                message = curl.poll(b"", *flags)
                same(curl.poll(reply(message, how), *flags), {}, "after the answer")
                same(waiting.result(5).body, how.encode(), "body")

    with checks.check(f"{title}: an answer as Python prints it, with the page's own bytes"):
        with asked(relay, "curl", "GET", "/") as waiting:
            text = (
                "{'message-id': '%s', 'http-version': 'PTTH/1.0', 'status': 200, 'reason': 'OK', 'headers': "
                "[['Content-type', 'text/plain'], ['Date', 'Tue, 13 May 2008 20:14:45 GMT']], 'body': 'rdlrow ,olleH'}"
            )
            curl.post((text % curl.poll()["message-id"]).encode())
            answer = waiting.result(5)
            same((answer.body, answer.fields["Date"]), (b"rdlrow ,olleH", "Tue, 13 May 2008 20:14:45 GMT"), "answer")
        # From here on it is spoken to in its own notation; `{}` is the same in both.
        with asked(relay, "curl", "GET", "/") as waiting:
            status, _, _, body = curl.post()
            that(body.startswith(b"{'message-id': '"), f"the next message is {body!r}")
            message = ast.literal_eval(body.decode())
            curl.poll(reply(message, "done"))
            same(waiting.result(5).body, b"done", "body")

    with checks.check(f"{title}: an answer to nothing is 404, one that can't be read 400"):
        same(curl.post(reply({"message-id": "NOBODYASKED"}))[0], 404, "status")
        with asked(relay, "curl", "GET", "/") as waiting:
            message = curl.poll()
            same(curl.post(b'{"message-id": ')[0], 400, "status")
            curl.poll(reply(message, "after all"))
            same(waiting.result(5).body, b"after all", "body")

    with checks.check(f"{title}: five visitors at once"):
        with contextlib.ExitStack() as stack:
            waiting = [stack.enter_context(asked(relay, "curl", "GET", f"/{i}")) for i in range(5)]
            message = curl.poll()
            for _ in range(5):
                message = curl.poll(reply(message, message["request-uri"]))
            same([answer.result(5).body for answer in waiting], [f"/{i}".encode() for i in range(5)], "bodies")

    with checks.check(f"{title}: a message that is never answered is the visitor's 504"):
        with asked(relay, "curl", "GET", "/") as waiting:
            message = curl.poll()
            same(waiting.result(8).status, 504, "status")
        same(curl.post(reply(message, "late"))[0], 404, "status of the late answer")

    with checks.check(f"{title}: a visitor's own JSON is not taken for an agent's"):
        with asked(relay, "curl", "POST", "/curl", b'{"a": 1}', [("Content-Type", "application/json")]) as waiting:
            message = curl.poll()
            same((message["request-uri"], message["body"]), ("/curl", '{"a": 1}'), "message")
            curl.poll(reply(message, "yes"))
            same(waiting.result(5).body, b"yes", "body")


def no_upgrade(relay, title, checks):
    with checks.check(f"{title}: the page's own exchange, upgrade refused"):
        curl = Curl(relay, "")
        with concurrent.futures.ThreadPoolExecutor(1) as pool, Visitor(relay) as visitor:
            waiting = pool.submit(visitor.ask, "GET", "/")
            message = curl.poll(b"", "-H", "Accept-Encoding: identity", "-H", "Upgrade: PTTH/1.0", kind="")
            same((message["method"], message["request-uri"]), ("GET", "/"), "message")
            same(curl.poll(reply(message, "rdlrow ,olleH")), {}, "what comes after the answer")
            same(waiting.result(5).body, b"rdlrow ,olleH", "body")


# --- our agent --------------------------------------------------------------------------------------------------------


def our_agent(program, dialect, checks):
    title = f"comet, our agent {'--dialect comet' if dialect else '(auto)'}"
    with Started() as started, tempfile.TemporaryDirectory() as folder:
        relay, upstream = CometRelay(), Upstream(folder)
        try:
            via = ["--via", f"http://{HOST}:{relay.port}", "--name", "demo"]
            agent = started.start([program, str(upstream.port), *via, *dialect])
            if not comes(agent, relay, dialect, title, checks):
                checks.say("\n  ".join(["The agent's last words:", *agent.lines[-5:]]))
                return
            relayed(agent, relay, upstream, title, checks)
            with checks.check(f"{title}: nothing that the relay could not read"):
                same(relay.complaints, [], "complaints")
            with checks.check(f"{title}: when the relay is gone and back, so is the agent"):
                relay.stop()
                relay = CometRelay(relay.port)
                until("the agent polls", lambda: relay.polls, 12)
                same(relay.ask("GET", "/files/nope").status, 404, "status")
            with checks.check(f"{title}: the agent ends when asked to"):
                same(agent.stop(5), 0, "exit code")
        finally:
            relay.stop()
            upstream.stop()


def comes(agent, relay, dialect, title, checks):
    """Does it speak COMET at all? If not, there is nothing more to see."""
    came = False
    with checks.check(f"{title}: it polls, and answers"):
        until("the agent polls", lambda: relay.polls or not agent.runs(), 5)
        that(agent.runs(), f"it ended: {agent.lines[:3]}")
        first = relay.polls[0]
        same(first.get("Upgrade"), None if dialect else "PTTH/1.0", "Upgrade in the first POST")
        that(first["path"] in ("/demo", "/"), f"the path is {first['path']}")

        answer = relay.ask("GET", "/echo?x=1", [("X-Order", "1"), ("X-Order", "2"), ("X-Latin", "caf\xe9")])
        same((answer.status, answer.reason), (200, "OK"), "answer")
        seen = json.loads(answer.body)
        same((seen["method"], seen["target"]), ("GET", "/echo?x=1"), "at the upstream")
        fields = [(name.lower(), value) for name, value in seen["headers"]]
        for pair in [("x-order", "1"), ("x-order", "2"), ("x-latin", "caf\xe9")]:
            that(pair in fields, f"{pair} is not in {fields}")
        if not dialect:
            # It says that it fell back.
            agent.wait_for(r"(?i)comet", seconds=3)
        came = True
    return came


def relayed(agent, relay, upstream, title, checks):
    with checks.check(f"{title}: POST, with every byte there and back"):
        length = [("Content-Length", str(len(ALL_BYTES)))]
        same(relay.ask("POST", "/mirror", length, ALL_BYTES).body, ALL_BYTES, "body")
        same(relay.ask("POST", "/mirror", [], ALL_BYTES).body, ALL_BYTES, "body, without a length of its own")

    with checks.check(f"{title}: HEAD, 204, 304, 404, 302"):
        same(relay.ask("HEAD", "/echo").body, b"", "body of a HEAD")
        for status in (204, 304, 404, 302):
            same(relay.ask("GET", f"/status/{status}").status, status, "status")

    with checks.check(f"{title}: fields in order, and twice"):
        fields = relay.ask("GET", "/twice").fields
        cookies = [value for name, value in fields if name.lower() == "set-cookie"]
        same(cookies, ["first=1", "second=2"], "Set-Cookie")

    with checks.check(f"{title}: a chunked answer is whole"):
        upstream.go.set()
        answer = relay.ask("GET", "/pieces")
        same(answer.body, b"firstsecond", "body")
        that("transfer-encoding" not in [name.lower() for name, _ in answer.fields], "Transfer-Encoding in a message")

    with checks.check(f"{title}: ten at once"):
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            answers = pool.map(lambda i: relay.ask("GET", f"/echo/{i}"), range(10))
            targets = [json.loads(answer.body)["target"] for answer in answers]
            same(targets, [f"/echo/{i}" for i in range(10)], "targets")

    with checks.check(f"{title}: an upstream that breaks off is no answer of 200"):
        status = relay.ask("GET", "/short").status
        that(status in (502, 504), f"the status is {status}")

    with checks.check(f"{title}: it polls on and on, and no faster than it is answered"):
        before = len(relay.polls)
        until("three polls more", lambda: len(relay.polls) >= before + 3, 8)
        start, before = time.monotonic(), len(relay.polls)
        until("two polls more", lambda: len(relay.polls) >= before + 2, 8)
        # Each is held for a second; a few may wait at the same time.
        that(time.monotonic() - start > 0.2, f"two polls in {time.monotonic() - start:.3f} s")

    with checks.check(f"{title}: what is no message ends nothing"):
        for text in ("{'message-id': ", "<html>"):
            relay.queue.put(text)
        same(relay.ask("GET", "/files/nope").status, 404, "status")


def play(relay, agent, checks):
    """All four at once: most of the time they wait for a poll to end."""
    jobs = [(curl_agent, relay, flags) for flags in ([], ["--no-upgrade"])]
    jobs += [(our_agent, agent, dialect) for dialect in (["--dialect", "comet"], [])]
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        running = [pool.submit(job, program, flags, checks) for job, program, flags in jobs]
    for job in running:
        job.result()
