"""An upstream for our agent: a file server, and some answers that only a program can give."""
import http.server
import json
import os
import re
import threading
import urllib.parse


class Upstream(http.server.ThreadingHTTPServer):
    """Serves a folder as /files/…, on a port that the system chose."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder, label="upstream"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.label = label
        self.port = self.server_address[1]
        # What a handler waits for, and what it says has happened.
        self.go = threading.Event()
        self.asked = threading.Event()
        self.left = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that goes away is no news."""

    def stop(self):
        self.go.set()
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 65536
    timeout = 60

    def do_GET(self):
        path = urllib.parse.unquote(self.path.partition("?")[0], errors="surrogateescape")
        app = path.split("/")[1]
        try:
            getattr(self, f"app_{app}", self.app_echo)(path)
            self.wfile.flush()
        except OSError:
            self.server.left.set()
            self.close_connection = True

    do_HEAD = do_POST = do_GET

    def answer(self, status, fields=(), body=b""):
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(body)

    def app_files(self, path):
        """A file, or the part of it that is asked for."""
        file = os.path.join(self.server.folder, path.removeprefix("/files/"))
        if not os.path.isfile(file):
            return self.answer(404, body=b"there is no such file\n")
        about = os.stat(file)
        size, tag = about.st_size, f'"{about.st_size:x}-{about.st_mtime_ns:x}"'
        fields = [("ETag", tag), ("Accept-Ranges", "bytes"), ("Content-Type", "application/octet-stream")]
        if self.headers.get("If-None-Match") == tag:
            return self.answer(304, fields)
        start, end, status = 0, size, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, end, status = int(asked[1]), min(int(asked[2] or size) + 1, size), 206
            if start >= size:
                return self.answer(416, [("Content-Range", f"bytes */{size}")])
            fields.append(("Content-Range", f"bytes {start}-{end - 1}/{size}"))
        self.send_response(status)
        for name, value in [*fields, ("Content-Length", str(end - start))]:
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        with open(file, "rb") as content:
            content.seek(start)
            while start < end:
                piece = content.read(min(65536, end - start))
                self.wfile.write(piece)
                start += len(piece)

    def app_status(self, path):
        status = int(path.split("/")[2])
        fields = [("Location", "/files/hello.txt")] if 300 <= status < 400 else []
        self.answer(status, fields, f"this is {status}\n".encode())

    def app_echo(self, _path):
        """What arrived."""
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        seen = {
            "upstream": self.server.label,
            "method": self.command,
            "target": self.path,
            "headers": self.headers.items(),
            "body": body.decode("latin-1"),
        }
        self.answer(200, [("Content-Type", "application/json")], json.dumps(seen).encode())

    def app_mirror(self, _path):
        """The same body back."""
        self.answer(200, body=self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def app_twice(self, _path):
        twice = [("Set-Cookie", "first=1"), ("Set-Cookie", "second=2"), ("X-Twice", "a"), ("X-Twice", "b")]
        self.answer(200, twice, b"twice\n")

    def app_latin(self, _path):
        self.answer(200, [("X-Latin", "caf\xe9")], b"caf\xe9\n")

    def app_pieces(self, _path):
        """A piece, and another when we are told to."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\nfirst\r\n")
        self.wfile.flush()
        self.server.go.wait(20)
        self.wfile.write(b"6\r\nsecond\r\n0\r\n\r\n")

    def app_hold(self, _path):
        """Nothing until we are told to."""
        self.server.asked.set()
        self.server.go.wait(20)
        self.answer(200, body=b"held\n")

    def app_short(self, _path):
        """Half of what is promised."""
        self.send_response(200)
        self.send_header("Content-Length", "200000")
        self.end_headers()
        self.wfile.write(b"x" * 100000)
        self.close_connection = True

    def log_message(self, *_):
        pass
