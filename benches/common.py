"""What all benches share: programs that are started and ended, the origin, the load generator, tables, words of reports."""
import argparse
import contextlib
import http.client
import math
import os
import pathlib
import platform
import random
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
REPORTS = ROOT / "docs/bench"
# nginx is in /usr/sbin, which is not on everybody's PATH.
PATH = os.pathsep.join([str(TOOLS), str(PTTH), os.environ["PATH"], "/usr/sbin"])

HOST = "127.0.0.1"
FILES = {"/1k": 1 << 10, "/100k": 100 << 10, "/10m": 10 << 20, "/1g": 1 << 30}
SIZES = {"/1k": "1 KiB", "/100k": "100 KiB", "/10m": "10 MiB", "/1g": "1 GiB"}
# Those that we may use: all of the machine's, or what `taskset` has left us.
CORES = tuple(sorted(os.sched_getaffinity(0)))
READY_SECONDS, CROWD_SECONDS = 15, 60
MIB, GIB = 1 << 20, 1 << 30


class Trouble(Exception):
    """A system that cannot be measured. The others still are."""


# --- programs: start, wait until ready, stop --------------------------------------------------------------------------


class Process:
    """A program to be started: `listens` must accept before the next one is, `at` is where it runs, `cores` are its own."""

    def __init__(self, command, listens=None, at=None, cores=None):
        self.command = on(cores, command)
        self.name = pathlib.Path(command[0]).name
        self.listens = listens
        self.at = at


def on(cores, command):
    """A command that keeps to these cores, if there are such."""
    return ["taskset", "-c", ",".join(map(str, cores)), *command] if cores else command


class Running:
    """Programs that we started, on these cores if any are named. Leaving the `with` block ends them, by their ids, and nothing
    else."""

    def __init__(self, folder, cores=None):
        self.folder = folder
        self.cores = cores
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

    def start(self, process, ready=None):
        """Starts a program and waits until it accepts or, if asked so, until `ready` says yes. Its id."""
        # Others of the same name may have theirs in the same folder.
        log, path = tempfile.mkstemp(".log", f"{process.name}-", self.folder)
        self.logs.append(pathlib.Path(path))
        with open(log, "wb") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            command = on(self.cores, process.command)
            self.children.append(subprocess.Popen(command, cwd=process.at, **streams))
        if process.listens:
            self.wait_until(lambda: accepts(process.listens))
        if ready:
            self.wait_until(ready)
        return self.children[-1].pid

    def wait_until(self, ready, seconds=READY_SECONDS):
        end = time.monotonic() + seconds
        while not ready():
            gone = [c for c in self.children if c.poll() is not None]
            if gone or time.monotonic() > end:
                why = f"{gone[0].args[0]} ended with {gone[0].returncode}" if gone else "it does not answer"
                raise Trouble("\n".join([why, *self.last_words()]))
            time.sleep(0.02)

    def has_lost_one(self):
        return any(child.poll() is not None for child in self.children)

    def crowd(self, *arguments):
        """A program that is many agents or visitors, and all of them there. Its id."""
        child = self.start(Process([sys.executable, "-B", ROOT / "benches/crowd.py", *map(str, arguments)]))
        log = self.logs[-1]
        self.wait_until(lambda: "ready" in read(log), CROWD_SECONDS)
        return child

    def last_words(self):
        return [line for log in self.logs for line in log.read_text(errors="replace").splitlines()[-5:]]

    def ids(self):
        return [child.pid for child in self.children]

    def cpu_seconds(self):
        return cpu_seconds(*self.ids())

    def peak_rss_mib(self):
        return rss_mib("VmHWM", *self.ids())


class Kept:
    """Things that stay as they are between their rounds: each is made when it is first asked for, and anew after it has failed.
    `make` gives the block that it lives in. Leaving ours ends them all."""

    def __init__(self, make):
        self.make, self.kept = make, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        while self.kept:
            self.end(next(iter(self.kept)))

    @contextlib.contextmanager
    def using(self, thing):
        try:
            if thing not in self.kept:
                with contextlib.ExitStack() as block:
                    self.kept[thing] = block.enter_context(self.make(thing)), block.pop_all()
            yield self.kept[thing][0]
        except (Trouble, OSError):
            self.end(thing)
            raise

    def end(self, thing):
        if thing in self.kept:
            _, block = self.kept.pop(thing)
            block.close()


def families(*ids):
    """Processes and their children: nginx answers in a worker that its master started."""
    ids = list(ids)
    for pid in ids:
        ids.extend(int(pid) for pid in read(f"/proc/{pid}/task/{pid}/children").split())
    return ids


def cpu_seconds(*ids):
    """CPU time of these processes, and of their children, with what threads have used that have ended."""
    return sum(map(cpu_clock, families(*ids)))


def cpu_clock(pid):
    """A process' own clock, as clock_getcpuclockid(3) makes its name: in nanoseconds, where /proc/PID/stat has clock ticks."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0


def rss_mib(line, *ids):
    """Memory of these processes and their children: VmRSS now, VmHWM at most until now, RssAnon of their own."""
    found = (re.search(rf"{line}:\s+(\d+) kB", read(f"/proc/{pid}/status")) for pid in families(*ids))
    return sum(int(match[1]) for match in found if match) * 1024 / MIB


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


def machine_seconds():
    """CPU time that the machine has spent, or that a hypervisor took from it, on all cores together."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, read("/proc/stat").split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Others:
    """What programs beside ours take of the machine's CPU time, from its making until it is asked."""

    def __init__(self, *ours):
        self.ours = ours
        self.begin = time.monotonic()
        self.machine, self.known = machine_seconds(), self.known_seconds()

    def known_seconds(self):
        """CPU time of all that belongs to the measurement: the programs, and the load generators that have ended."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return sum(running.cpu_seconds() for running in self.ours) + ended.ru_utime + ended.ru_stime

    def percent(self):
        others = machine_seconds() - self.machine - (self.known_seconds() - self.known)
        return max(0, others) / (time.monotonic() - self.begin) / os.cpu_count() * 100


def accepts(address):
    try:
        socket.create_connection(address, 1).close()
        return True
    except OSError:
        return False


def answers(port, prefix="", host=None):
    """Does the small file come, whole, when a visitor asks for it?"""
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", prefix + "/1k", headers={"Host": host} if host else {})
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


def free_address(port, net="127.0.7"):
    """A loopback address that has this port free."""
    for last in range(1, 255):
        with socket.socket() as probe:
            try:
                probe.bind((f"{net}.{last}", port))
                return f"{net}.{last}"
            except OSError:
                pass
    raise Trouble(f"no loopback address has port {port} free")


# --- the origin -------------------------------------------------------------------------------------------------------


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
    block = f"server {{ listen {HOST}:{port} backlog=4096; root {files}; }}"
    return nginx(folder / "nginx-origin", port, block)


def pin(running, cores):
    """Has these programs run on some cores, on all that we may use if none are named."""
    for pid in families(*running.ids()):
        os.sched_setaffinity(pid, cores or CORES)


# --- the load generator -----------------------------------------------------------------------------------------------


def wrk_command(port, path, conns, seconds, *more, cores=None):
    url = f"http://{HOST}:{port}{path}"
    # wrk counts what has come too late, so that half of a round is the most that it can see.
    timeout = f"{max(1, seconds // 2)}s"
    return on(cores, ["wrk", "-t1", f"-c{conns}", f"-d{seconds}s", "--timeout", timeout, "--latency", *more, url])


CLOSE = ["-H", "Connection: close"]


def wrk(port, path, conns, seconds, *more, cores=None):
    """Loads the system for some seconds: requests, errors, and how long one took in milliseconds."""
    command = wrk_command(port, path, conns, seconds, *more, cores=cores)
    out = subprocess.run(command, capture_output=True, text=True).stdout
    total = re.search(r"(\d+) requests in ([\d.]+\w+),", out)
    latency = {p: re.search(rf"(?m)^\s+{p}%\s+(\S+)", out) for p in ("50", "99")}
    if not total or not all(latency.values()):
        raise Trouble(f"wrk said: {out}")
    if not int(total[1]):
        raise Trouble("no request was answered")
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


def load_figures(running, origin, programs, *load, cores=None):
    """What some seconds of wrk show, which is told `load`. `programs` are the ids of those whose CPU time for a request is to be
    known, by what it is called."""
    others, before = Others(running, origin), {name: cpu_seconds(*ids) for name, ids in programs.items()}
    done = wrk(*load, cores=cores)
    if running.has_lost_one():
        raise Trouble("one of its programs has ended")
    taken = {name: cpu_seconds(*ids) - before[name] for name, ids in programs.items()}
    figures = {"rps": done["requests"] / done["seconds"], "others": others.percent()}
    figures |= {key: done[key] for key in ("requests", "p50", "p99", "errors")}
    return figures | {name: seconds / done["requests"] * 1e6 for name, seconds in taken.items()}


def milliseconds(text):
    value, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m|h)", text).groups()
    return float(value) * {"us": 1e-3, "ms": 1, "s": 1e3, "m": 60e3, "h": 3600e3}[unit]


def in_turn(things, rounds, measure, title=str, said="{rps:,.0f} req/s".format_map):
    """Measures things in turn, so many rounds: of each its figures, by the number of the round, without those in which it could not
    be measured. The order is shuffled, so that nobody always comes after the same one, and each second round has that of the one before
    the other way round, so that of any two neither is first more often. Another run has the same orders."""
    runs = {thing: {} for thing in things}
    order = list(runs)
    for turn in range(1, rounds + 1):
        if turn % 2:
            random.Random(turn).shuffle(order)
        else:
            order.reverse()
        for thing in order:
            try:
                runs[thing][turn] = figures = measure(thing)
                say(f"  {turn}/{rounds} {title(thing)}: {said(figures)}")
            except (Trouble, OSError) as trouble:
                say(f"  {turn}/{rounds} {title(thing)}: {trouble}")
    return runs


def medians(rounds):
    """The median of each figure of several rounds. One that a round has not is left out; errors are summed, for a median would hide
    the one round that failed; and a peak is that of all rounds, for programs may have stayed up."""
    runs, of_all = list(rounds.values()), {"errors": sum} | dict.fromkeys(PEAKS, max)
    result = {}
    for key in runs[0]:
        values = [run.get(key) for run in runs]
        if None not in values:
            result[key] = of_all.get(key, statistics.median)(values)
    return result


def paired(mine, theirs, key):
    """One's figure divided by another's, from the rounds that both have: the geometric mean of what each round says, and the ends of
    an interval of two standard errors either way, None where there are too few rounds. None if no round has both. Rounds with errors
    count for nobody: a 503 is quick."""
    pairs = [(mine[turn], theirs[turn]) for turn in mine if turn in theirs]
    both = [(a.get(key), b.get(key)) for a, b in pairs if not a.get("errors") and not b.get("errors")]
    # Logarithms, so that twice as much and half as much weigh the same, and who is divided by whom does not matter.
    logs = [math.log(a / b) for a, b in both if a and b and a > 0 and b > 0]
    if not logs:
        return None
    mean = statistics.fmean(logs)
    if len(logs) < FEWEST_PAIRS:
        return math.exp(mean), None, None
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - 2 * error), math.exp(mean + 2 * error)


def ratio(mine, theirs, key):
    """The same in words; a peak has one figure for all rounds, so there is no interval."""
    if key in PEAKS and mine and theirs:
        mine, theirs = ({1: medians(rounds)} for rounds in (mine, theirs))
    found = paired(mine, theirs, key)
    if found is None:
        return ""
    mean, *interval = (f"{value:.2f}" if value >= 0.1 else f"{value:#.2g}" for value in found if value is not None)
    return f"{mean} ({'–'.join(interval)})" if interval else mean


# From fewer rounds one cannot tell how much they differ.
FEWEST_PAIRS = 3
# What only grows while a program runs.
PEAKS = {"rss_mib"}
# How reports say what such a ratio is.
PAIRED = """Each ratio is the geometric mean of what every round says of the two; in brackets two standard errors either way. Where that
interval holds 1.00, no difference was found."""


# --- reports ----------------------------------------------------------------------------------------------------------


def table_of(corner, columns, results):
    """The rows of a table, the head first, from the figures of each row by its name. Columns that nobody has a figure for are left
    out."""
    columns = [c for c in columns if any(c[1] in figures for figures in results.values())]
    yield [corner, *(title for title, _, _ in columns)]
    for name, figures in results.items():
        yield [name, *(form.format(figures[key]) if key in figures else "" for _, key, form in columns)]


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


def written_by(title):
    """How each report begins."""
    command = shlex.join([f"benches/{pathlib.Path(sys.argv[0]).name}", *sys.argv[1:]])
    kernel = platform.release().split("-")[0]
    used = f" ({len(CORES)} of them used)" if len(CORES) < os.cpu_count() else ""
    yield f"# {title}"
    yield ""
    yield f"Written by `{command}`; change nothing here by hand. [How to read it](README.md)."
    yield ""
    control = read("/proc/sys/net/ipv4/tcp_congestion_control").strip()
    yield f"Where: one machine of {os.cpu_count()} cores{used}, Linux {kernel} with {control} for TCP, loopback. Versions:"
    yield f"{', '.join(versions())}."


def versions():
    flags = {"nginx": "-v", "wrk": "-v", "curl": "-V", "bore": "-V", "rathole": "-V", "haproxy": "-v", "ptth_server": "-V"}
    flags[RELEASE / "ptth-relay"] = "-V"
    for program, flag in flags.items():
        try:
            out = subprocess.run([program, flag], capture_output=True, text=True)
        except OSError:
            continue
        found = re.search(r"\d+(\.\d+)+", out.stdout + out.stderr)
        yield f"{pathlib.Path(program).name} {found[0] if found else '?'}"


def write(name, lines):
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / name).write_text("\n".join(lines) + "\n")
    say(f"written: {(REPORTS / name).relative_to(ROOT)}")


def say(text):
    print(text, file=sys.stderr, flush=True)


def show(title, rows):
    print(f"\n{title}\n")
    for line in plain(rows):
        print(line, flush=True)


# --- the whole run ----------------------------------------------------------------------------------------------------


def bench_parser(doc, written, secs, each, rounds=3):
    """The options that such a bench has at least."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secs", type=int, default=secs, help=f"seconds of load {each} and round (default {secs})")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"(default {rounds})")
    parser.add_argument("--write", action="store_true", help=f"write {REPORTS.relative_to(ROOT)}/{written}")
    return parser


def prepare(*programs):
    """What every bench does first; fails if a program is missing."""
    # So that an interrupted run, too, leaves through the `with` blocks that end our children.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Thousands of visitors need more descriptors than the usual soft limit; children inherit ours.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.environ["PATH"] = PATH
    for program in programs:
        if not shutil.which(program):
            sys.exit(f"{program} is missing: run benches/setup.sh")
    if not (RELEASE / "ptth-relay").exists():
        sys.exit("ours is missing: run cargo build --release")


@contextlib.contextmanager
def stage():
    """A scratch folder, and an origin that runs as long as the block: the folder, the origin, its port."""
    (ROOT / "target").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / "target") as scratch:
        folder, port = pathlib.Path(scratch), free_port()
        with Running(folder) as origin:
            origin.start(nginx_origin(folder, port))
            yield folder, origin, port
