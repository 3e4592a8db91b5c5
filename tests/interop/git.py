"""git over HTTP through a tunnel, to `git http-backend` behind a small server: clone, fetch, push, shallow and many at once."""
import base64
import concurrent.futures
import http.server
import os
import pathlib
import random
import subprocess
import tempfile
import threading

from checks import Failed, same, that
from tunnel import Tunnel
from visitors import Visitor

KEY = "Basic " + base64.b64encode(b"dev:secret").decode()


class Backend(http.server.ThreadingHTTPServer):
    """Runs `git http-backend` for each request (RFC 3875). Who pushes has to say who it is."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.port = self.server_address[1]
        self.seen = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that goes away is no news."""

    def stop(self):
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 65536

    def do_GET(self):
        path, _, query = self.path.partition("?")
        chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        self.server.seen.append((self.command, self.path, "chunked" if chunked else self.headers.get("Content-Length")))
        user = self.headers.get("Authorization")
        if "git-receive-pack" in self.path and user != KEY:
            for _ in self.body(chunked):
                pass
            return self.refuse()
        environment = {
            **ENVIRONMENT,
            "GIT_PROJECT_ROOT": str(self.server.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GATEWAY_INTERFACE": "CGI/1.1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "HTTP_GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        if user:
            environment["REMOTE_USER"] = "dev"
        if not chunked:
            environment["CONTENT_LENGTH"] = self.headers.get("Content-Length", "0")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(["git", "http-backend"], env=environment, **pipes) as backend:
            # Both ways at once: it answers before it has read all.
            feeding = threading.Thread(target=self.feed, args=(backend.stdin, chunked))
            feeding.start()
            self.give(backend.stdout)
            feeding.join()
        return None

    do_POST = do_GET

    def refuse(self):
        page = b"who are you?\n"
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="git"')
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def feed(self, stdin, chunked):
        try:
            with stdin:
                for piece in self.body(chunked):
                    stdin.write(piece)
        except BrokenPipeError:
            self.close_connection = True

    def body(self, chunked):
        left = int(self.headers.get("Content-Length") or 0)
        while chunked or left:
            if chunked:
                left = int(self.rfile.readline().partition(b";")[0], 16)
                if left == 0:
                    while self.rfile.readline().strip():
                        pass
                    return
            while left:
                piece = self.rfile.read(min(left, 65536))
                if not piece:
                    raise BrokenPipeError("the body ends in its middle")
                left -= len(piece)
                yield piece
            if chunked:
                self.rfile.readline()

    def give(self, stdout):
        status, fields = "200", []
        for line in iter(lambda: stdout.readline().strip().decode(), ""):
            name, _, value = line.partition(": ")
            if name.lower() == "status":
                status = value
            else:
                fields.append((name, value))
        # It gives the length of a file, and no length to what it makes as it goes.
        chunked = not any(name.lower() == "content-length" for name, _ in fields)
        self.send_response(int(status.split()[0]))
        for name, value in [*fields, *([("Transfer-Encoding", "chunked")] if chunked else [])]:
            self.send_header(name, value)
        self.end_headers()
        while piece := stdout.read1(65536):
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" if chunked else piece)
            self.wfile.flush()
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_):
        pass


# Nobody's own settings, and no question that nobody would answer.
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
}
for role in ("AUTHOR", "COMMITTER"):
    ENVIRONMENT |= {f"GIT_{role}_NAME": "Visitor", f"GIT_{role}_EMAIL": "visitor@example.org"}


def git(*command, folder=None, seconds=60):
    """What it says on stdout."""
    command = ["git", *map(str, command)]
    ran = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds)
    if ran.returncode:
        raise Failed(f"{' '.join(command)} ended with {ran.returncode}: {ran.stderr[-400:]}")
    return ran.stdout.strip()


def made(folder, random_bytes):
    """A repository of some MB: 60 commits, half of whose bytes can't be compressed."""
    git("init", "-q", "-b", "main", folder)
    for commit in range(60):
        (folder / f"noise-{commit}").write_bytes(random_bytes(100_000))
        (folder / "words").write_text("".join(f"{commit} {line}\n" for line in range(2000)))
        (folder / f"sub{commit % 7}").mkdir(exist_ok=True)
        (folder / f"sub{commit % 7}" / f"file-{commit}").write_text(f"{commit}\n" * commit)
        git("add", "-A", folder=folder)
        git("commit", "-qm", f"Commit {commit}", folder=folder)
    git("tag", "v1", "HEAD~20", folder=folder)
    git("branch", "side", "HEAD~10", folder=folder)


class Work:
    """Names for folders, and git with an address of its own that leads to the relay."""

    def __init__(self, tunnel, folder):
        self.folder = folder
        host, port = tunnel.address
        # So that no resolver has to know what is under localhost.
        self.flags = ["-c", f"http.curloptResolve={tunnel.name}.localhost:{port}:{host}"]
        self.url = f"{tunnel.url}served.git"
        self.push_url = self.url.replace("http://", "http://dev:secret@")

    def git(self, *command, folder=None):
        return git(*self.flags, *command, folder=folder)

    def clone(self, name, *flags):
        copy = self.folder / name
        self.git("clone", "-q", *flags, self.url, copy)
        return copy


def whole(copy, source, what="HEAD"):
    git("fsck", "--strict", folder=copy)
    same(git("rev-parse", what, folder=copy), git("rev-parse", what, folder=source), what)


def reading(work, served, checks):
    for version in (2, 1, 0):
        with checks.check(f"git: clone, protocol version {version}"):
            copy = work.clone(f"version-{version}", "-c", f"protocol.version={version}")
            whole(copy, served)
            same(git("rev-parse", "v1^{commit}", folder=copy), git("rev-parse", "v1^{commit}", folder=served), "tag")

    with checks.check("git: shallow clone, and the rest of it later"):
        copy = work.clone("shallow", "--depth", "1")
        same(git("rev-list", "--count", "HEAD", folder=copy), "1", "commits")
        work.git("fetch", "-q", "--depth", "5", folder=copy)
        same(git("rev-list", "--count", "HEAD", folder=copy), "5", "commits")
        work.git("fetch", "-q", "--unshallow", folder=copy)
        same(git("rev-list", "--count", "HEAD", folder=copy), "60", "commits")
        whole(copy, served)

    with checks.check("git: a clone without blobs, which come when they are looked at"):
        git("config", "uploadpack.allowFilter", "true", folder=served)
        copy = work.clone("partial", "--filter=blob:none", "--no-checkout")
        work.git("checkout", "-q", "HEAD", folder=copy)
        same(git("rev-parse", "HEAD^{tree}", folder=copy), git("write-tree", folder=copy), "tree")

    with checks.check("git: four clones at once"):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for copy in pool.map(lambda i: work.clone(f"at-once-{i}"), range(4)):
                whole(copy, served)


def writing(work, served, backend, random_bytes, checks):
    copy = None
    with checks.check("git: a push that says nobody is refused, and asks nobody"):
        copy = work.clone("writer")
        (copy / "small").write_text("small\n")
        git("add", "-A", folder=copy)
        git("commit", "-qm", "Small", folder=copy)
        try:
            work.git("push", "-q", "origin", "main", folder=copy)
        except Failed as refusal:
            that("could not read Username" in str(refusal) or "Authentication" in str(refusal), str(refusal))
        else:
            raise Failed("it went through")

    with checks.check("git: push"):
        work.git("push", "-q", work.push_url, "main", folder=copy)
        whole(served, copy, "main")

    for how, flags in [("with a length", ["http.postBuffer=16m"]), ("chunked", ["http.postBuffer=1"])]:
        with checks.check(f"git: push of 6 MB {how}"):
            (copy / "large").write_bytes(random_bytes(6_000_000))
            git("add", "-A", folder=copy)
            git("commit", "-qm", f"Large, {how}", folder=copy)
            backend.seen.clear()
            work.git("-c", *flags, "push", "-q", work.push_url, "main", folder=copy)
            whole(served, copy, "main")
            length = [length for method, _, length in backend.seen if method == "POST"][-1]
            if how == "chunked":
                same(length, "chunked", "length")
            else:
                that(int(length) > 6_000_000, f"the length is {length}")

    with checks.check("git: a new branch, a tag, and both taken away again"):
        work.git("push", "-q", work.push_url, "HEAD~1:refs/heads/new", "HEAD:refs/tags/v2", folder=copy)
        that("refs/tags/v2" in work.git("ls-remote", work.url), "the tag isn't there")
        work.git("push", "-q", "--delete", work.push_url, "new", "v2", folder=copy)
        that("refs/tags/v2" not in work.git("ls-remote", work.url), "the tag is still there")

    with checks.check("git: what was pushed is fetched by another"):
        other = work.folder / "version-2"
        work.git("pull", "-q", "--ff-only", folder=other)
        whole(other, served, "main")

    with checks.check("git: a push that is no fast-forward is refused by the other end, and says so"):
        other = work.folder / "version-1"
        git("commit", "-qm", "Aside", "--allow-empty", folder=other)
        try:
            work.git("push", "-q", work.push_url, "main", folder=other)
        except Failed as refusal:
            that("rejected" in str(refusal), str(refusal))
        else:
            raise Failed("it went through")


def by_polls(work, tunnel, backend, checks):
    """Whole answers only: what doesn't fit into a message is refused in words that git shows."""
    with checks.check("git over --dialect comet: a repository of some KB goes, one of MB says why not"):
        tunnel.agent.stop(5)
        tunnel.begin_agent(backend.port, "--dialect", "comet")
        same(work.git("ls-remote", work.url, "main").split()[1], "refs/heads/main", "branch")
        small = work.url.replace("served", "small")
        work.git("clone", "-q", small, work.folder / "by-polls")
        whole(work.folder / "by-polls", backend.folder / "small.git")
        try:
            work.clone("too-large")
        except Failed as refusal:
            that("502" in str(refusal), str(refusal))
        else:
            raise Failed("it went through")


def play(relay, agent, checks):
    failed = checks.failed
    random_bytes = random.Random(4).randbytes
    with tempfile.TemporaryDirectory() as folder, Tunnel(relay, agent) as tunnel:
        folder = pathlib.Path(folder)
        root = folder / "root"
        root.mkdir()
        backend = Backend(root)
        try:
            with checks.check("git: the tunnel stands"):
                made(folder / "source", random_bytes)
                git("clone", "-q", "--bare", folder / "source", root / "served.git")
                git("init", "-q", "-b", "main", folder / "little")
                git("commit", "-qm", "Nothing", "--allow-empty", folder=folder / "little")
                git("clone", "-q", "--bare", folder / "little", root / "small.git")
                tunnel.open(backend.port)
                with Visitor(tunnel.address, tunnel.name) as visitor:
                    same(visitor.ask("GET", "/served.git/HEAD").body, b"ref: refs/heads/main\n", "HEAD")
            if tunnel.agent:
                work = Work(tunnel, folder)
                reading(work, root / "served.git", checks)
                writing(work, root / "served.git", backend, random_bytes, checks)
                by_polls(work, tunnel, backend, checks)
                tunnel.ends_well("git", checks, failed)
        finally:
            backend.stop()
