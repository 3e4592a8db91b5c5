"""Node and curl as visitors, Node and Python's http.server as upstreams: what is said around a body, and streams."""
import http.server
import json
import pathlib
import subprocess
import threading

from checks import Failed, same
from programs import HOST, Started, listening

HERE = pathlib.Path(__file__).resolve().parent
SCRIPT = HERE / "streaming.js"

HINTS = [[103, "</a.css>; rel=preload; as=style, </b.js>; rel=preload; as=script"], [102, None]]

# What Node's visitor sees of Node's server: the tunnel is to make no difference.
SEEN = {
    "hints": {"status": 200, "text": "hinted", "interim": HINTS},
    "trailers": {"status": 200, "text": "a body", "trailers": {"x-status": "0"}},
    "unasked": {"status": 200, "text": "a body", "trailers": {}},
    "sum": {"status": 200, "text": '{"length":14,"trailers":{"x-sum":"14"}}'},
    "wanted": {"status": 200, "text": "body", "interim": [[100, None]]},
    "unwanted": {"status": 413, "text": "not wanted", "interim": [], "connection": "close"},
    "early": {"status": 200, "text": "no need", "connection": "close"},
}
EVENTS = [": here\n\n", *(f"data: {n}\n\n" for n in range(1, 6))]


class Mirror(http.server.BaseHTTPRequestHandler):
    """The same body back. Leave to send one is given by the class itself."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def ask(port, case):
    out = subprocess.run(["node", SCRIPT, "ask", str(port), case], capture_output=True, text=True, timeout=20)
    if out.returncode or not out.stdout:
        raise Failed(f"node ended with {out.returncode}: {out.stderr}")
    return json.loads(out.stdout)


def node(port, title, checks):
    for case, wanted in SEEN.items():
        with checks.check(f"{title}: {case}"):
            seen = ask(port, case)
            same({part: seen.get(part) for part in wanted}, wanted, json.dumps(seen))
    with checks.check(f"{title}: each event arrives before the next is sent"):
        same(ask(port, "events"), EVENTS)


def curl(port, name, path, body):
    """Uploads when it is asked to, and not before. Gives all statuses, and the body that came."""
    fields = ["-H", f"Host: {name}.localhost", "-H", "Expect: 100-continue", "--expect100-timeout", "60"]
    command = ["curl", "-sS", "-m", "15", "-i", *fields, "--data-binary", "@-", f"http://{HOST}:{port}{path}"]
    out = subprocess.run(command, input=body, capture_output=True)
    if out.returncode:
        raise Failed(f"curl ended with {out.returncode}: {out.stderr!r}")
    statuses, rest = [], out.stdout
    while rest.startswith(b"HTTP/"):
        head, _, rest = rest.partition(b"\r\n\r\n")
        statuses.append(int(head.split(b" ")[1]))
    return statuses, rest


def play(relay, agent, checks):
    with Started() as started, http.server.ThreadingHTTPServer((HOST, 0), Mirror) as python:
        relay = started.start([relay, "--listen", f"{HOST}:0"])
        server = started.start(["node", SCRIPT, "serve"])
        threading.Thread(target=python.serve_forever, args=(0.05,), daemon=True).start()
        relay_port = listening(relay)[1]
        server_port = server.wait_for(r"^listening \d+").split(" ")[1]
        via = ["--via", f"http://{HOST}:{relay_port}", "--name"]
        started.start([agent, server_port, *via, "node"]).wait_for("^http://")
        started.start([agent, str(python.server_port), *via, "python"]).wait_for("^http://")
        node(relay_port, "streaming, node", checks)
        body = b"x" * 2_000_000
        with checks.check("streaming, http.server: curl hears the leave for its upload"):
            same(curl(relay_port, "python", "/", body), ([100, 200], body))
        with checks.check("streaming, node: curl hears that its upload is not wanted"):
            same(curl(relay_port, "node", "/sum", body), ([413], b"not wanted"))
        python.shutdown()
