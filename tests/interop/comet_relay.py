"""A relay of the COMET fallback as the Second Life page of 2008 has it: one queue for whoever posts, HTTP/1.0, and
messages as Python prints a dictionary. It has never heard of an upgrade: it answers one with a message.
"""
import ast
import collections
import http.server
import itertools
import queue
import threading

Reply = collections.namedtuple("Reply", "status reason fields body")


class CometRelay(http.server.ThreadingHTTPServer):
    """A request is put into the queue by `ask`, from another thread."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port=0, hold=1.0):
        super().__init__(("127.0.0.1", port), Handler)
        self.port = self.server_address[1]
        self.hold = hold
        self.queue = queue.Queue()
        self.waiting = {}
        self.numbers = itertools.count(1)
        # The heads of all requests that came, and what was wrong with them.
        self.polls = []
        self.complaints = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def ask(self, method, target, fields=(), body=b"", seconds=10):
        number = f"message-{next(self.numbers)}"
        message = {
            "message-id": number,
            "method": method,
            "request-uri": target,
            "http-version": "PTTH/1.0",
            "headers": [["Host", "127.0.0.1:65331"], *([name, value] for name, value in fields)],
            "body": body,
        }
        self.waiting[number] = queue.Queue()
        self.queue.put(notation(message))
        try:
            return self.waiting[number].get(timeout=seconds)
        finally:
            del self.waiting[number]

    def answered(self, text):
        """Takes an agent's answer in."""
        message = ast.literal_eval(text)
        if not message:
            return
        body = message.get("body", "").encode("latin-1")
        fields = [(name, value) for name, value in message.get("headers", [])]
        reply = Reply(message["status"], message.get("reason"), fields, body)
        if message["message-id"] in self.waiting:
            self.waiting[message["message-id"]].put(reply)
        else:
            self.complaints.append(f"an answer to nothing: {message['message-id']}")

    def handle_error(self, request, client_address):
        """An agent that goes away is no news."""

    def stop(self):
        self.shutdown()
        self.server_close()


def notation(value):
    """As Python 2 prints it: text is bytes, those beyond ASCII as `\\xNN`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{notation(k)}: {notation(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(notation, value)) + "]"
    if isinstance(value, str):
        value = value.encode("latin-1")
    return repr(value).removeprefix("b")


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each POST with the next message, or with `{}` when there is none for a while."""

    protocol_version = "HTTP/1.0"
    timeout = 60

    def do_POST(self):
        relay = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        relay.polls.append(dict(self.headers.items()) | {"path": self.path, "body": body})
        if body:
            try:
                relay.answered(body.decode("latin-1"))
            except (ValueError, SyntaxError, KeyError, TypeError) as error:
                relay.complaints.append(f"{error!r}: {body[:200]!r}")
        try:
            message = relay.queue.get(timeout=relay.hold)
        except queue.Empty:
            message = "{}"
        content = message.encode("latin-1")
        try:
            self.send_response(200)
            self.send_header("Content-type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            if message != "{}":
                relay.queue.put(message)

    def log_message(self, *_):
        pass
