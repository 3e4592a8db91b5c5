#!/usr/bin/env python3
"""Measures reverse tunnels side by side on this machine's loopback.

One origin (nginx with files), one load generator (wrk; curl for the large body), and between them in turn: nothing,
nginx as a reverse proxy of one hop, bore, rathole, the ptth relay with its own file server, and ours in each of its
dialects. `benches/setup.sh` installs the others; ours is `cargo build --release`.

    benches/tunnels.py                              1 KiB, 64 connections
    benches/tunnels.py --bulk                       and one body of 1 GiB
    benches/tunnels.py --close                      a new connection for each request
    benches/tunnels.py --path /100k --conns 1       another file, another number of visitors
    benches/tunnels.py --all --write                every shape of load, into docs/bench/latest.md

The systems run in turn within each round, so that a slow minute of the machine hits all of them, and each figure is
the median of the rounds. CPU time and memory are those of the tunnel's own processes: neither the origin's nor the
load generator's. Everything shares the machine's cores, as it does wherever such figures are compared.
"""
import argparse
import dataclasses
import http.client
import os
import pathlib
import platform
import re
import resource
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOOLS = ROOT / "target/bench-tools/bin"
# Where `cargo build --release` puts ours.
RELEASE = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release"
PTTH = ROOT / "target/interop-tools/bin"
REPORT = ROOT / "docs/bench/latest.md"
# nginx is in /usr/sbin, which is not on everybody's PATH.
PATH = os.pathsep.join([str(TOOLS), str(PTTH), os.environ["PATH"], "/usr/sbin"])

HOST = "127.0.0.1"
FILES = {"/1k": 1 << 10, "/100k": 100 << 10, "/1g": 1 << 30}
SIZES = {"/1k": "1 KiB", "/100k": "100 KiB", "/1g": "1 GiB"}
READY_SECONDS = 15
MIB, GIB = 1 << 20, 1 << 30


class Trouble(Exception):
    """A system that cannot be measured. The others still are."""


# --- what is measured -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Process:
    """A program of a system. `listens` must accept before the next program is started; `at` is where it runs."""

    command: list
    listens: tuple = None
    at: pathlib.Path = None


@dataclasses.dataclass
class System:
    """What stands between the load generator and the origin: its programs, and the port that visitors come to.

    `prefix` stands before the paths of the files where visitors name a tunnel by path. Where bodies travel as whole
    messages, the large one is too large for them."""

    processes: list
    port: int
    prefix: str = ""
    whole: bool = False


def origin_alone(folder, origin):
    return System([], origin)


def nginx_proxy(folder, origin):
    port = free_port()
    proxy = f"""
    upstream origin {{ server {HOST}:{origin}; keepalive 1024; keepalive_requests 1000000000; }}
    server {{
        listen {HOST}:{port} backlog=4096;
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            # Else a large body is written to a file on its way.
            proxy_max_temp_file_size 0;
        }}
    }}"""
    return System([nginx(folder / "nginx-proxy", port, proxy)], port)


def bore(folder, origin):
    # bore's control port is a constant: an address of its own keeps it away from any other bore.
    address, port = free_address(7835), free_port()
    server = f"bore server --bind-addr {address} --bind-tunnels {HOST}"
    client = f"bore local {origin} --local-host {HOST} --to {address} --port {port}"
    return System([Process(server.split(), (address, 7835)), Process(client.split())], port)


def rathole(folder, origin):
    control, port = free_port(), free_port()
    server, client = folder / "rathole-server.toml", folder / "rathole-client.toml"
    server.write_text(f"""[server]
bind_addr = "{HOST}:{control}"
default_token = "bench"
[server.services.web]
bind_addr = "{HOST}:{port}"
""")
    client.write_text(f"""[client]
remote_addr = "{HOST}:{control}"
default_token = "bench"
[client.services.web]
local_addr = "{HOST}:{origin}"
""")
    return System([Process(["rathole", server], (HOST, control)), Process(["rathole", client])], port)


def ptth(folder, origin):
    # Its agent is a file server and nothing else: it serves the origin's folder, and the origin has a rest. There is
    # one hop less than with the others.
    port = free_port()
    at = folder / "ptth"
    relay, server = at / "config/ptth_relay.toml", at / "config/ptth_server.toml"
    pages = [at / f"handlebars/relay/{page}.hbs" for page in PTTH_PAGES]
    pages += [at / f"handlebars/server/file_server_{page}.html" for page in ("dir", "root")]
    for file in (relay, server, *pages):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)  # It refuses a key that others may read.
    relay.write_text(f'port = {port}\n[[servers]]\nname = "bench"\ntripcode = "{PTTH_TRIPCODE}"\n')
    server.write_text(f"""name = "bench"
api_key = "{PTTH_KEY}"
relay_url = "http://{HOST}:{port}/7ZSFUKGV"
file_server_root = "{folder / 'files'}"
""")
    processes = [Process(["ptth_relay"], (HOST, port), at), Process(["ptth_server"], at=at)]
    return System(processes, port, "/frontend/servers/bench/files")


# What ptth_server's own tests have for a key, and the hash of it that its relay is given.
PTTH_KEY = "PlaypenCausalPlatformCommodeImproveCatalyze"
PTTH_TRIPCODE = "A9rPwZyY89Ag4TJjMoyYA2NeGOm99Je6rq1s0rg8PfY="
PTTH_PAGES = ["audit_log", "debug", "root", "server_list", "unregistered_servers"]


def ours(folder, origin, via="", *more):
    # The name `default` answers to every Host, so the load generator needs no header that the others do not get.
    port = free_port()
    relay = [RELEASE / "ptth-relay", "--listen", f"{HOST}:{port}"]
    via = f"http://{HOST}:{port}{via}"
    agent = [RELEASE / "ptth-reverse", f"{HOST}:{origin}", "--via", via, "--name", "default", *more]
    return System([Process(relay, (HOST, port)), Process(agent)], port)


def ours_ptth(folder, origin):
    token = folder / "token"
    token.touch(0o600)
    token.write_text(PTTH_KEY)
    return ours(folder, origin, "/7ZSFUKGV", "--dialect", "ptth-relay", "--token-file", token)


def ours_comet(folder, origin):
    return dataclasses.replace(ours(folder, origin, "", "--dialect", "comet"), whole=True)


SYSTEMS = {
    "origin": origin_alone,
    "nginx": nginx_proxy,
    "bore": bore,
    "rathole": rathole,
    "ptth": ptth,
    "ours": ours,
    "ours-ptth": ours_ptth,
    "ours-comet": ours_comet,
}
TITLES = {
    "origin": "the origin alone",
    "nginx": "nginx as a reverse proxy (one hop)",
    "bore": "bore (raw TCP)",
    "rathole": "rathole (raw TCP)",
    "ptth": "ptth_relay and ptth_server (MessagePack, long polls)",
    "ours": "ours",
    "ours-ptth": "ours, as a ptth relay and agent",
    "ours-comet": "ours, COMET (JSON, long polls)",
}
# Whose figures are divided by whose.
PAIRS = [("ours", "rathole"), ("ours", "bore"), ("ours-ptth", "ptth"), ("ours-comet", "ptth")]


@dataclasses.dataclass
class Shape:
    """A shape of load."""

    path: str = "/1k"
    conns: int = 64
    close: bool = False
    bulk: bool = False

    def title(self):
        visitors = "1 connection" if self.conns == 1 else f"{self.conns} connections"
        kept = ", a new one for each request" if self.close else ""
        bulk = "; one body of 1 GiB" if self.bulk else ""
        return f"{SIZES[self.path]} bodies, {visitors}{kept}{bulk}"


ALL_SHAPES = [Shape(bulk=True), Shape(close=True), Shape(conns=1), Shape(path="/100k"), Shape(conns=1000)]


@dataclasses.dataclass
class Sample:
    """What one run of one system gave. The fields of the large body are None unless it was asked for."""

    requests_a_second: float
    cpu_us_a_request: float
    p50_ms: float
    p99_ms: float
    errors: int
    rss_mib: float
    others_percent: float
    gib_a_second: float = None
    cpu_s_a_gib: float = None


# --- programs: start, wait until ready, stop --------------------------------------------------------------------------


class Running:
    """Programs that we started. Leaving the `with` block ends them, by their ids, and nothing else."""

    def __init__(self, folder):
        self.folder = folder
        self.children = []
        self.logs = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in self.children:
            child.terminate()
        for child in self.children:
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def start(self, process):
        self.logs.append(self.folder / f"{pathlib.Path(process.command[0]).name}-{len(self.logs)}.log")
        with open(self.logs[-1], "wb") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self.children.append(subprocess.Popen(process.command, cwd=process.at, **streams))
        if process.listens:
            self.wait_until(lambda: accepts(process.listens))

    def wait_until(self, ready):
        end = time.monotonic() + READY_SECONDS
        while not ready():
            gone = [c for c in self.children if c.poll() is not None]
            if gone or time.monotonic() > end:
                why = f"{gone[0].args[0]} ended with {gone[0].returncode}" if gone else "it does not answer"
                raise Trouble("\n".join([why, *self.last_words()]))
            time.sleep(0.02)

    def last_words(self):
        return [line for log in self.logs for line in log.read_text(errors="replace").splitlines()[-5:]]

    def ids(self):
        """Our children and theirs: nginx answers in a worker that its master started."""
        ids = [child.pid for child in self.children]
        for pid in ids:
            ids.extend(int(pid) for pid in read(f"/proc/{pid}/task/{pid}/children").split())
        return ids

    def cpu_seconds(self):
        # schedstat counts nanoseconds where /proc/PID/stat counts clock ticks.
        stats = (read(f"/proc/{pid}/task/{task}/schedstat") for pid in self.ids() for task in tasks(pid))
        return sum(int(stat.split()[0]) for stat in stats if stat) / 1e9

    def peak_rss_mib(self):
        peaks = (re.search(r"VmHWM:\s+(\d+) kB", read(f"/proc/{pid}/status")) for pid in self.ids())
        return sum(int(peak[1]) for peak in peaks if peak) * 1024 / MIB


def read(path):
    """What the file says; nothing if the process that it told of is gone."""
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


def tasks(pid):
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def accepts(address):
    try:
        socket.create_connection(address, 1).close()
        return True
    except OSError:
        return False


def answers(system):
    """Does the small file come, whole, when a visitor asks for it?"""
    connection = http.client.HTTPConnection(HOST, system.port, timeout=1)
    try:
        connection.request("GET", system.prefix + "/1k")
        response = connection.getresponse()
        return response.status == 200 and len(response.read()) == FILES["/1k"]
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def free_address(port):
    for last in range(1, 255):
        with socket.socket() as probe:
            try:
                probe.bind((f"127.0.7.{last}", port))
                return f"127.0.7.{last}"
            except OSError:
                pass
    raise Trouble(f"no loopback address has port {port} free")


def nginx(folder, port, http_block):
    """nginx with one worker and nothing that would cost time beside the answer itself.

    With tcp_nopush head and file leave in one segment. Without it they are two, and now and then the second waits
    40 ms for the first one's acknowledgement: a tunnel would be measured by its luck with that.
    """
    folder.mkdir(exist_ok=True)
    # Started by root, its worker would be somebody else, who may not read our folder.
    user = "user root;" if os.geteuid() == 0 else ""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    scratch = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    config = folder / "nginx.conf"
    config.write_text(f"""daemon off; {user} worker_processes 1; worker_rlimit_nofile 16384;
pid {folder}/pid; error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; {scratch}
    {http_block}
}}
""")
    command = ["nginx", "-e", "stderr", "-p", folder, "-c", config]
    return Process(command, (HOST, port))


def nginx_origin(folder, port):
    files = folder / "files"
    files.mkdir()
    for path, size in FILES.items():
        with open(files / path.strip("/"), "wb") as file:
            file.truncate(size)
    return nginx(folder / "nginx-origin", port, f"server {{ listen {HOST}:{port} backlog=4096; root {files}; }}")


# --- one measurement --------------------------------------------------------------------------------------------------


def measure(make, folder, origin, origin_port, shape, seconds):
    with Running(folder) as running:
        system = make(folder, origin_port)
        for process in system.processes:
            running.start(process)
        running.wait_until(lambda: answers(system))

        wrk(system, shape, 1)  # Warm: connections made, buffers grown.
        before, machine, known = running.cpu_seconds(), machine_seconds(), known_seconds(running, origin)
        load = wrk(system, shape, seconds)
        cpu = running.cpu_seconds() - before
        others = machine_seconds() - machine - (known_seconds(running, origin) - known)
        if not load["requests"]:
            raise Trouble("\n".join(["no request was answered", *running.last_words()]))

        sample = Sample(
            requests_a_second=load["requests"] / load["seconds"],
            cpu_us_a_request=cpu / load["requests"] * 1e6,
            p50_ms=load["p50"],
            p99_ms=load["p99"],
            errors=load["errors"],
            rss_mib=0,
            others_percent=max(0, others) / load["seconds"] / os.cpu_count() * 100,
        )
        if shape.bulk and not system.whole:
            before = running.cpu_seconds()
            taken = fetch_large(system)
            sample.gib_a_second = FILES["/1g"] / GIB / taken
            sample.cpu_s_a_gib = (running.cpu_seconds() - before) / (FILES["/1g"] / GIB)
        sample.rss_mib = running.peak_rss_mib()
        return sample


def machine_seconds():
    """CPU time that the machine has spent, or that a hypervisor took from it, on all cores together."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, read("/proc/stat").split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def known_seconds(running, origin):
    """CPU time of all that belongs to the measurement: tunnel, origin, and the load generators that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return running.cpu_seconds() + origin.cpu_seconds() + ended.ru_utime + ended.ru_stime


def wrk_command(system, shape, seconds):
    close = ["-H", "Connection: close"] if shape.close else []
    url = f"http://{HOST}:{system.port}{system.prefix}{shape.path}"
    return ["wrk", "-t1", f"-c{shape.conns}", f"-d{seconds}s", "--timeout", "10s", "--latency", *close, url]


def wrk(system, shape, seconds):
    out = subprocess.run(wrk_command(system, shape, seconds), capture_output=True, text=True).stdout
    total = re.search(r"(\d+) requests in ([\d.]+\w+),", out)
    latency = {p: re.search(rf"(?m)^\s+{p}%\s+(\S+)", out) for p in ("50", "99")}
    if not total or not all(latency.values()):
        raise Trouble(f"wrk said: {out}")
    # Only if there were any: "Socket errors: connect 0, read 0, write 0, timeout 0", "Non-2xx or 3xx responses: 0".
    errors = re.findall(r"\d+", "".join(re.findall(r"Socket errors:(.*)", out)))
    refused = re.findall(r"Non-2xx or 3xx responses: (\d+)", out)
    return {
        "requests": int(total[1]),
        "seconds": milliseconds(total[2]) / 1e3,
        "p50": milliseconds(latency["50"][1]),
        "p99": milliseconds(latency["99"][1]),
        "errors": sum(map(int, errors + refused)),
    }


def milliseconds(text):
    value, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m|h)", text).groups()
    return float(value) * {"us": 1e-3, "ms": 1, "s": 1e3, "m": 60e3, "h": 3600e3}[unit]


def curl_command(system):
    url = f"http://{HOST}:{system.port}{system.prefix}/1g"
    return ["curl", "-s", "-o", "/dev/null", "-w", "%{size_download} %{time_total}", url]


def fetch_large(system):
    out = subprocess.run(curl_command(system), capture_output=True, text=True)
    size, taken = out.stdout.split()
    if int(size) != FILES["/1g"]:
        raise Trouble(f"the large body ended after {size} bytes, curl says {out.returncode}")
    return float(taken)


def medians(samples):
    columns = zip(*(dataclasses.astuple(sample) for sample in samples))
    result = Sample(*(None if None in column else statistics.median(column) for column in columns))
    # A median would hide the one round that failed.
    result.errors = sum(sample.errors for sample in samples)
    return result


# --- the table --------------------------------------------------------------------------------------------------------

COLUMNS = [
    ("req/s", "requests_a_second", "{:,.0f}"),
    ("CPU µs a request", "cpu_us_a_request", "{:.1f}"),
    ("p50 ms", "p50_ms", "{:.2f}"),
    ("p99 ms", "p99_ms", "{:.2f}"),
    ("errors", "errors", "{:.0f}"),
    ("GiB/s", "gib_a_second", "{:.2f}"),
    ("CPU s a GiB", "cpu_s_a_gib", "{:.2f}"),
    ("peak RSS MiB", "rss_mib", "{:.1f}"),
    ("others %", "others_percent", "{:.0f}"),
]
# Columns that say whether a row is worth anything; to divide them would say nothing.
DOUBTS = {"errors", "others_percent"}
# What the origin alone does not have: there is no process of a tunnel to count.
TUNNEL_ONLY = {"cpu_us_a_request", "cpu_s_a_gib", "rss_mib"}


def table(results):
    """The rows of a shape of load, the head first. Columns that nobody has a figure for are left out."""
    columns = [c for c in COLUMNS if any(getattr(sample, c[1]) is not None for sample in results.values())]
    yield ["system", *(title for title, _, _ in columns)]
    for name, sample in results.items():
        cells = [TITLES[name]]
        for _, field, form in columns:
            value = None if name == "origin" and field in TUNNEL_ONLY else getattr(sample, field)
            cells.append("" if value is None else form.format(value))
        yield cells


def ratios(results):
    """One system's figures divided by another's, one line a pair."""
    for name, rival in PAIRS:
        if rival not in results or name not in results:
            continue
        mine, theirs = vars(results[name]), vars(results[rival])
        fair = [(title, field) for title, field, _ in COLUMNS if field not in DOUBTS and mine[field] and theirs[field]]
        parts = [f"{title} × {mine[field] / theirs[field]:.2f}" for title, field in fair]
        yield f"{name} to {rival}: " + ", ".join(parts)


def plain(rows):
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])


def markdown(rows):
    head, *body = rows
    yield "| " + " | ".join(head) + " |"
    yield "|---" + "|---:" * (len(head) - 1) + "|"
    for row in body:
        yield "| " + " | ".join(row) + " |"


def report(measured, options):
    """What `--write` keeps: the figures, and everything that somebody needs to measure them again."""
    yield "# Measured"
    yield ""
    yield f"Written by `{shlex.join(['benches/tunnels.py', *sys.argv[1:]])}`; change nothing here by hand."
    yield ""
    yield f"Where: one machine of {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, loopback."
    yield f"How: medians of {options.rounds} rounds of {options.secs} s, the systems in turn within each round."
    yield ""
    yield "CPU time and memory are those of the tunnel's processes, both ends together. Errors (broken connections,"
    yield "timeouts, answers other than 2xx and 3xx) are summed. *Others* is what programs beside tunnel, origin and"
    yield "load generator took of the machine's CPU time meanwhile."
    yield ""
    yield "Versions: " + ", ".join(versions()) + "."
    for shape, results in measured:
        yield ""
        yield f"## {shape.title()}"
        yield ""
        for line in ratios(results):
            yield f"- {line}"
        yield ""
        yield from markdown(table(results))
        yield ""
        yield f"    {shlex.join(wrk_command(System([], 'PORT'), shape, options.secs))}"
        if shape.bulk:
            yield f"    {shlex.join(curl_command(System([], 'PORT')))}"
    yield ""
    yield "## What ran"
    yield ""
    yield "PORT stands for a port that the system chose."
    yield ""
    for command in commands():
        yield f"    {command}"


def versions():
    flags = {"nginx": "-v", "wrk": "-v", "curl": "-V", "bore": "-V", "rathole": "-V", "ptth_server": "-V"}
    flags[RELEASE / "ptth-relay"] = "-V"
    for program, flag in flags.items():
        try:
            out = subprocess.run([program, flag], capture_output=True, text=True)
        except OSError:
            continue
        found = re.search(r"\d+(\.\d+)+", out.stdout + out.stderr)
        yield f"{pathlib.Path(program).name} {found[0] if found else '?'}"


def commands():
    """Each system's commands, with nothing in them that is true of this run alone."""
    folder = pathlib.Path("FOLDER")
    with tempfile.TemporaryDirectory() as scratch:
        for make in SYSTEMS.values():
            for process in make(pathlib.Path(scratch), "PORT").processes:
                text = shlex.join(map(str, process.command)).replace(scratch, str(folder)).replace(f"{ROOT}/", "")
                yield re.sub(r"(127\.0\.0\.1:|--port )\d+", r"\1PORT", text)


# --- the whole run ----------------------------------------------------------------------------------------------------


def run(shape, names, options, folder, origin, origin_port):
    samples = {name: [] for name in names}
    for turn in range(options.rounds):
        for name in names:
            try:
                samples[name].append(measure(SYSTEMS[name], folder, origin, origin_port, shape, options.secs))
                say(f"  {turn + 1}/{options.rounds} {name}: {samples[name][-1].requests_a_second:,.0f} req/s")
            except (Trouble, OSError) as trouble:
                say(f"  {turn + 1}/{options.rounds} {name}: {trouble}")
    return {name: medians(kept) for name, kept in samples.items() if kept}


def say(text):
    print(text, file=sys.stderr, flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--path", default="/1k", choices=list(FILES), help="the file that is asked for (default /1k)")
    parser.add_argument("--conns", type=int, default=64, help="visitors' connections (default 64)")
    parser.add_argument("--close", action="store_true", help="a new connection for each request")
    parser.add_argument("--bulk", action="store_true", help="also one body of 1 GiB")
    parser.add_argument("--all", action="store_true", help="every shape of load that we have a goal for")
    parser.add_argument("--secs", type=int, default=5, help="seconds of load a system and round (default 5)")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument("--only", default=",".join(SYSTEMS), help=f"some of {','.join(SYSTEMS)}")
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.relative_to(ROOT)}")
    options = parser.parse_args()
    options.only = options.only.split(",")
    unknown = [name for name in options.only if name not in SYSTEMS]
    if unknown:
        parser.error(f"--only: there is no {', '.join(unknown)}")
    return options


def main():
    options = arguments()
    # So that an interrupted run, too, leaves through the `with` blocks that end our children.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # A thousand visitors need more descriptors than the usual soft limit; children inherit ours.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.environ["PATH"] = PATH
    for program in ("nginx", "wrk", "curl"):
        if not shutil.which(program):
            sys.exit(f"{program} is missing: run benches/setup.sh")

    shapes = ALL_SHAPES if options.all else [Shape(options.path, options.conns, options.close, options.bulk)]
    measured = []
    (ROOT / "target").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / "target") as scratch:
        folder, port = pathlib.Path(scratch), free_port()
        with Running(folder) as origin:
            origin.start(nginx_origin(folder, port))
            if any(shape.bulk for shape in shapes):
                fetch_large(System([], port))  # For nothing, so that the first system finds the file in memory too.
            for shape in shapes:
                say(f"{shape.title()}:")
                results = run(shape, options.only, options, folder, origin, port)
                measured.append((shape, results))
                print(f"\n{shape.title()} (medians of {options.rounds} rounds of {options.secs} s)\n")
                for line in [*ratios(results), *plain(table(results)), ""]:
                    print(line, flush=True)
    if options.write:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        REPORT.write_text("\n".join(report(measured, options)) + "\n")
        say(f"written: {REPORT.relative_to(ROOT)}")
    sys.exit(0 if all(len(results) == len(options.only) for _, results in measured) else 1)


if __name__ == "__main__":
    main()
