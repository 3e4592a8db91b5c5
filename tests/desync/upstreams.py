"""Three servers that nobody here wrote, each of which says what it understood: a dictionary for each request, with
`refused` in it when it did not take it, in the order in which it was done with them."""
import hashlib
import http.server
import json
import pathlib
import re
import shutil
import threading

from checks import Failed
from programs import HOST, accepts, free_port, until

HERE = pathlib.Path(__file__).resolve().parent

NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 512; }}
http {{
    log_format seen escape=json '{{"method":"$request_method","target":"$request_uri","line":"$request",'
        '"status":"$status","bytes":"$request_length","length":"$http_content_length",'
        '"coding":"$http_transfer_encoding","host":"$http_host","upgrade":"$http_upgrade",'
        '"passed":"$upstream_status","body":"$request_body"}}';
    access_log {folder}/seen.log seen;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_body_buffer_size 1m;
    client_max_body_size 0;
    client_header_buffer_size 16k;
    large_client_header_buffers 8 128k;
    keepalive_requests 1000000;
    # It reads a body only for somebody: for the one behind it, which says what it was asked.
    server {{
        listen {host}:{port};
        location / {{
            proxy_pass http://unix:{folder}/inner.sock;
            proxy_http_version 1.1;
            proxy_set_header Host inner;
        }}
    }}
    server {{
        listen unix:{folder}/inner.sock;
        access_log off;
        large_client_header_buffers 8 128k;
        location / {{ return 200 "$request_method $request_uri\\n"; }}
    }}
}}
"""


class Nginx:
    name = "nginx"

    @staticmethod
    def program():
        return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

    def __init__(self, started, folder):
        self.port = free_port()
        self.log = folder / "seen.log"
        self.read = 0
        conf = folder / "nginx.conf"
        conf.write_text(NGINX.format(folder=folder, host=HOST, port=self.port))
        program = started.start([self.program(), "-p", folder, "-c", conf, "-e", folder / "error.log"])
        until("nginx listens", lambda: accepts((HOST, self.port)) or not program.runs())

    def seen(self):
        """What it has understood since it was last asked."""
        with self.log.open("rb") as log:
            log.seek(self.read)
            new = log.read()
        new = new[: new.rfind(b"\n") + 1]
        self.read += len(new)
        for line in new.splitlines():
            seen = json.loads(line.decode("latin-1"), strict=False)
            if not seen["line"]:
                continue
            if not seen["passed"] or seen["passed"] == "-":
                seen["refused"] = seen["status"]
            yield understood(seen, seen["host"], seen["length"], seen["coding"])


class Node:
    name = "node"

    @staticmethod
    def program():
        return shutil.which("node")

    def __init__(self, started, _folder):
        self.child = started.start([self.program(), HERE / "upstream.js"])
        self.port = int(re.search(r"\d+$", self.child.wait_for("^listening on"))[0])
        self.read = 1

    def seen(self):
        while self.read < len(self.child.lines):
            line = self.child.lines[self.read]
            self.read += 1
            if not line.startswith("{"):
                raise Failed(f"node said {line!r}")
            seen = json.loads(line)
            fields = seen.get("headers", {})
            yield understood(seen, fields.get("host"), fields.get("content-length"), fields.get("transfer-encoding"))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 65536
    timeout = 60

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def answer(self):
        body = self.body()
        if body is None:
            self.close_connection = True
            return
        # `path` has fewer slashes than were sent.
        method, target, _ = self.requestline.split(" ")
        seen = {"method": method, "target": target, "body": body.decode("latin-1")}
        fields = self.headers
        self.server.understood.append(
            understood(seen, fields.get("Host"), fields.get("Content-Length"), fields.get("Transfer-Encoding"))
        )
        page = f"{method} {target}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if method != "HEAD":
            self.wfile.write(page)
        self.wfile.flush()

    def body(self):
        """The whole of it; None when it breaks off."""
        if self.headers.get("Transfer-Encoding") is None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            return body if len(body) == length else None
        body = b""
        while True:
            line = self.rfile.readline()
            if not line:
                return None
            size = int(line, 16)
            if size == 0:
                break
            body += self.rfile.read(size)
            self.rfile.readline()
        while True:
            line = self.rfile.readline()
            if not line:
                return None
            if line == b"\r\n":
                return body

    def send_error(self, code, *_):
        self.server.understood.append({"refused": str(code)})
        super().send_error(code)

    def log_message(self, *_):
        """It says what it understood."""


class Python(http.server.ThreadingHTTPServer):
    name = "python"
    daemon_threads = True
    request_queue_size = 128

    @staticmethod
    def program():
        return "http.server"

    def __init__(self, _started, _folder):
        super().__init__((HOST, 0), Handler)
        self.port = self.server_address[1]
        self.understood = []
        self.read = 0
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, _request, _address):
        """A client that goes away is no news."""

    def seen(self):
        while self.read < len(self.understood):
            self.read += 1
            yield self.understood[self.read - 1]


def understood(seen, host, length, coding):
    if "refused" in seen:
        return {"refused": seen["refused"]}
    body = hashlib.sha256(seen["body"].encode("latin-1")).hexdigest()[:16]
    framing = (host or "", length or "", coding or "")
    return {"key": (seen["method"].encode("latin-1"), seen["target"].encode("latin-1"), body), "framing": framing}


ALL = [Nginx, Node, Python]
