"""Anything over TCP through a tunnel (`ptth-relay --tcp`): copies with half-close, ssh, PostgreSQL, Redis."""
import concurrent.futures
import getpass
import glob
import hashlib
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

from checks import Failed, same, that
from programs import HOST, Started, accepts, free_port, listening, until, which
from visitors import pattern, sha256

MIB = 1 << 20
NAMES = ["copy", "ssh", "sql", "redis", "refused", "polls", "nobody"]


class Tunnels(Started):
    """A relay with a port for each name, and the agents for them."""

    def __init__(self, relay, agent):
        super().__init__()
        self.programs = relay, agent
        self.relay = None
        self.address = None
        self.ports = {}

    def open(self, *flags):
        ports = [flag for name in NAMES for flag in ("--tcp", f"{HOST}:0={name}")]
        self.relay = self.start([self.programs[0], "--listen", f"{HOST}:0", *ports, *flags])
        self.address = listening(self.relay)
        for name in NAMES:
            line = self.relay.wait_for(rf"tcp://{re.escape(HOST)}:\d+ is the tunnel `{name}`")
            self.ports[name] = int(re.search(r"tcp://[\d.]+:(\d+)", line)[1])

    def begin_agent(self, name, upstream, *flags):
        via = "http://{}:{}".format(*self.address)
        agent = self.start([self.programs[1], str(upstream), "--via", via, "--name", name, *flags])
        agent.wait_for(rf"^http://{name}\.")
        return agent

    def memory(self):
        """Resident bytes of each program that still runs."""
        pids = [program.child.pid for program in self.started if program.child.poll() is None]
        status = [pathlib.Path(f"/proc/{pid}/status").read_text() for pid in pids]
        return [int(re.search(r"VmRSS:\s+(\d+)", text)[1]) * 1024 for text in status]

    def dial(self, name):
        visitor = socket.create_connection((HOST, self.ports[name]), 30)
        visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return visitor


# --- a server of our own ----------------------------------------------------------------------------------------------


class Peer:
    """Does what the first byte of a connection asks for. What came behind it, and how it ended, is kept."""

    def __init__(self):
        self.listener = socket.create_server((HOST, 0), backlog=512)
        self.port = self.listener.getsockname()[1]
        self.heard = []
        self.sent = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                role = self.ROLES.get(connection.recv(1))
                if role:
                    getattr(self, role)(connection)
            except OSError as error:
                self.heard.append(type(error).__name__)

    def echo(self, connection):
        while data := connection.recv(65536):
            connection.sendall(data)

    def hear(self, connection):
        """Answers when all is there, which only the other side's half-close can say."""
        hash, length = heard(connection)
        connection.sendall(f"{length} {hash}".encode())

    def speak(self, connection):
        """Says all, half-closes, and hears on."""
        for _ in range(64):
            connection.sendall(DATA)
            self.sent += len(DATA)
        connection.shutdown(socket.SHUT_WR)
        self.heard.append(heard(connection))

    def both(self, connection):
        """Both at once, each to its own end."""
        giving = threading.Thread(target=say, args=(connection,))
        giving.start()
        self.heard.append(heard(connection))
        giving.join()

    def reset(self, connection):
        """Ends it the hard way."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def wait(self, connection):
        """Nothing, until the other side has had enough."""
        connection.recv(1)
        self.heard.append("end")

    def stop(self):
        self.listener.close()

    ROLES = {b"E": "echo", b"H": "hear", b"S": "speak", b"B": "both", b"R": "reset", b"W": "wait"}


DATA = random.Random(4).randbytes(MIB)
ALL = hashlib.sha256(DATA * 64).hexdigest(), 64 * MIB


def say(connection):
    """All of it, and its end."""
    for _ in range(64):
        connection.sendall(DATA)
    connection.shutdown(socket.SHUT_WR)


def heard(connection):
    """Hash and length of all that comes, to its end."""
    hash, length = hashlib.sha256(), 0
    while data := connection.recv(65536):
        hash.update(data)
        length += len(data)
    return hash.hexdigest(), length


def ended(connection):
    """Nothing more comes, by whichever end."""
    try:
        same(connection.recv(1), b"", "what came")
    except ConnectionError:
        pass


def copies(tunnels, peer, title, checks):
    def one(size):
        body = pattern(size)
        with tunnels.dial("copy") as visitor:
            visitor.sendall(b"H" + body)
            visitor.shutdown(socket.SHUT_WR)
            same(visitor.recv(200).decode(), f"{size} {sha256(body)}", "answer")
            ended(visitor)

    def back(i):
        with tunnels.dial("copy") as visitor:
            body = pattern(256_000 + i)
            sending = threading.Thread(target=lambda: (visitor.sendall(b"E" + body), visitor.shutdown(socket.SHUT_WR)))
            sending.start()
            same(heard(visitor), (sha256(body), len(body)), "what came back")
            sending.join()

    with checks.check(f"{title}: 64 MiB up, whose end the server hears and answers"):
        with tunnels.dial("copy") as visitor:
            visitor.sendall(b"H")
            say(visitor)
            same(visitor.recv(200).decode(), f"{ALL[1]} {ALL[0]}", "answer")
            ended(visitor)

    with checks.check(f"{title}: 64 MiB down, whose end is heard while the other direction goes on"):
        peer.heard.clear()
        with tunnels.dial("copy") as visitor:
            visitor.sendall(b"S")
            same(heard(visitor), ALL, "what came")
            for _ in range(4):
                visitor.sendall(DATA)
            visitor.shutdown(socket.SHUT_WR)
            until("the server has heard all", lambda: peer.heard)
            same(peer.heard, [(hashlib.sha256(DATA * 4).hexdigest(), 4 * MIB)], "heard")

    with checks.check(f"{title}: 64 MiB both ways at once"):
        peer.heard.clear()
        with tunnels.dial("copy") as visitor:
            visitor.sendall(b"B")
            sending = threading.Thread(target=say, args=(visitor,))
            sending.start()
            same(heard(visitor), ALL, "what came")
            sending.join()
            until("the server has heard all", lambda: peer.heard)
            same(peer.heard, [ALL], "heard")

    with checks.check(f"{title}: all is said and ended before the tunnel's other end is there: 0 to 100,000 octets"):
        for size in (0, 1, 1000, 100_000):
            one(size)

    with checks.check(f"{title}: 200 connections one after another"):
        for size in range(200):
            one(size)

    with checks.check(f"{title}: 50 at once"):
        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            list(pool.map(back, range(50)))

    with checks.check(f"{title}: a visitor that doesn't read holds the server up, and gets all in the end"):
        before, memory = peer.sent, tunnels.memory()
        with tunnels.dial("copy") as visitor:
            visitor.sendall(b"S")
            until("the server is held up", lambda: peer.sent > before and standing(lambda: peer.sent))
            # How much the sockets on the way take is the system's affair, up to tens of MiB where it lets them; our part is small.
            that(peer.sent - before < ALL[1], f"{(peer.sent - before) // MIB} MiB went into somebody's memory")
            grown = [now - then for now, then in zip(tunnels.memory(), memory, strict=True)]
            that(max(grown) < 4 * MIB, f"relay or agents have grown by {max(grown) // 1024} KiB")
            same(heard(visitor), ALL, "what came")

    with checks.check(f"{title}: a reset ends the other side, whichever sends it"):
        with tunnels.dial("copy") as visitor:
            visitor.sendall(b"R")
            ended(visitor)
        peer.heard.clear()
        visitor = tunnels.dial("copy")
        visitor.sendall(b"W")
        # Not before the server is there.
        time.sleep(0.2)
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        visitor.close()
        until("the server heard of it", lambda: peer.heard)


def standing(value):
    """It is what it was half a second ago."""
    before = value()
    time.sleep(0.5)
    return value() == before


def nowhere(tunnels, peer, checks):
    refuses = lambda: tunnels.begin_agent("refused", free_port())  # noqa: E731
    polls = lambda: tunnels.begin_agent("polls", peer.port, "--dialect", "comet")  # noqa: E731
    for name, what, begin in [
        ("nobody", "without an agent", None),
        ("refused", "whose server refuses", refuses),
        ("polls", "whose agent polls", polls),
    ]:
        with checks.check(f"tcp: a tunnel {what} closes at once, and the log says why"):
            if begin:
                begin()
            before = len(tunnels.relay.lines)
            for first in (b"", b"olleh"):
                with tunnels.dial(name) as visitor:
                    # A request waits 10 s for an agent. Here nobody could be told that it does.
                    visitor.settimeout(5)
                    visitor.sendall(first)
                    ended(visitor)
            lines = lambda: tunnels.relay.lines[before:]  # noqa: E731
            until("a line of the log", lambda: any(f"`{name}`" in line for line in lines()), 3)


def agents(tunnels, agent, peer, checks):
    with checks.check("tcp: an agent that is killed takes its connections with it, and the next one serves"):
        with tunnels.dial("copy") as visitor:
            visitor.sendall(b"Eolleh")
            same(visitor.recv(5), b"olleh", "echo")
            agent.kill()
            ended(visitor)
        agent = tunnels.begin_agent("copy", peer.port)
        with tunnels.dial("copy") as visitor:
            visitor.sendall(b"Eolleh")
            same(visitor.recv(5), b"olleh", "echo")
    return agent


# --- ssh --------------------------------------------------------------------------------------------------------------


class Ssh:
    """sshd as the present user, with keys of its own."""

    def __init__(self, tunnels, folder):
        self.folder = folder / "ssh"
        self.folder.mkdir(mode=0o700)
        self.tunnels = tunnels
        for key in ("host", "visitor"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key])
        self.port = free_port()
        if os.getuid() == 0:
            # Where its unprivileged half lives. A service manager would have made it.
            pathlib.Path("/run/sshd").mkdir(exist_ok=True)
        config = {
            "ListenAddress": f"{HOST}:{self.port}",
            "HostKey": self.folder / "host",
            "AuthorizedKeysFile": self.folder / "visitor.pub",
            "PidFile": "none",
            "UsePAM": "no",
            "StrictModes": "no",
            "PermitRootLogin": "prohibit-password",
            "MaxStartups": "50",
            "Subsystem": "sftp internal-sftp",
        }
        (self.folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in config.items()))
        self.sshd = tunnels.start([which("sshd"), "-D", "-e", "-f", self.folder / "sshd_config"])
        until("sshd listens", lambda: accepts((HOST, self.port)))

    def flags(self, port_flag):
        options = ["BatchMode=yes", "StrictHostKeyChecking=accept-new", "LogLevel=ERROR", "IdentitiesOnly=yes"]
        options += [f"IdentityFile={self.folder / 'visitor'}", f"UserKnownHostsFile={self.folder / 'known'}"]
        flags = [flag for option in options for flag in ("-o", option)]
        return ["-F", "none", port_flag, str(self.tunnels.ports["ssh"]), *flags]

    def run(self, *command, data=b"", seconds=60):
        whole = ["ssh", *self.flags("-p"), f"{getpass.getuser()}@{HOST}", *command]
        return subprocess.run(whole, input=data, capture_output=True, timeout=seconds)

    def copy(self, source, target):
        run(["scp", "-q", *self.flags("-P"), source, target])


def by_ssh(tunnels, peer, folder, checks):
    with checks.check("tcp, ssh: the tunnel stands"):
        ssh = Ssh(tunnels, folder)
        tunnels.begin_agent("ssh", ssh.port)
        ran = ssh.run("echo olleh; echo rorre >&2; exit 7")
        same((ran.stdout, ran.stderr, ran.returncode), (b"olleh\n", b"rorre\n", 7), "what the command said, and its code")

    with checks.check("tcp, ssh: a file into a command, and back out of it"):
        body = pattern(5 * MIB)
        ran = ssh.run("cat", data=body)
        same((ran.returncode, sha256(ran.stdout)), (0, sha256(body)), "cat")

    with checks.check("tcp, ssh: scp of 50 MB there and back"):
        large = folder / "large"
        large.write_bytes((DATA * 50)[:50_000_000])
        remote = f"{getpass.getuser()}@{HOST}:{folder}"
        ssh.copy(large, f"{remote}/large-there")
        ssh.copy(f"{remote}/large-there", folder / "large-back")
        same(sha256((folder / "large-back").read_bytes()), sha256(large.read_bytes()), "file")

    with checks.check("tcp, ssh: ten at once, each with its own"):
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            for i, ran in enumerate(pool.map(lambda i: ssh.run(f"cat; exit {i}", data=pattern(100_000 + i)), range(10))):
                same((ran.returncode, len(ran.stdout)), (i, 100_000 + i), "what came back")

    with checks.check("tcp, ssh: a port forwarded through it, with half-close"):
        port = free_port()
        forward = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", f"{HOST}:{port}:{HOST}:{peer.port}"]
        forwarding = tunnels.start(["ssh", *ssh.flags("-p"), *forward, f"{getpass.getuser()}@{HOST}"])
        until("it forwards", lambda: accepts((HOST, port)))
        with socket.create_connection((HOST, port), 30) as visitor:
            visitor.sendall(b"H" + DATA)
            visitor.shutdown(socket.SHUT_WR)
            same(visitor.recv(200).decode(), f"{MIB} {sha256(DATA)}", "answer")
        forwarding.stop()


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def by_psql(tunnels, folder, checks):
    programs = pathlib.Path(sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1])
    # It refuses to run as root.
    other = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    data, port = folder / "data", free_port()
    data.mkdir(mode=0o700)
    if other:
        shutil.chown(data, "postgres", "postgres")
    environment = {**os.environ, "PGHOST": HOST, "PGPORT": str(tunnels.ports["sql"]), "PGUSER": "visitor"}
    environment |= {"PGDATABASE": "postgres", "PGPASSWORD": "secret", "PGCONNECT_TIMEOUT": "10"}

    def psql(script, data=None):
        command = [programs / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", script]
        return run(command, env=environment, input=data)

    with checks.check("tcp, psql: the tunnel stands"):
        (folder / "password").write_text("secret\n")
        (folder / "password").chmod(0o644)
        initdb = [programs / "initdb", "-D", data, "-U", "visitor", "-A", "scram-sha-256", "--pwfile", folder / "password"]
        run([*initdb, "--no-sync", "-E", "UTF8", "--locale", "C"], cwd=data, **other)
        settings = [f"listen_addresses={HOST}", f"port={port}", "unix_socket_directories=", "fsync=off"]
        flags = [flag for setting in settings for flag in ("-c", setting)]
        server = tunnels.start([programs / "postgres", "-D", data, *flags], cwd=data, **other)
        server.wait_for("ready to accept connections", seconds=30)
        tunnels.begin_agent("sql", port)
        same(psql("select 6 * 7"), b"42\n", "answer")

    with checks.check("tcp, psql: 100,000 rows in, and out again"):
        rows = b"".join(b"%d\tline %d\n" % (i, i * i) for i in range(100_000))
        psql("create table lines (number int primary key, line text)")
        psql("copy lines from stdin", rows)
        same(sha256(psql("copy (select * from lines order by number) to stdout")), sha256(rows), "rows")

    with checks.check("tcp, psql: a statement that is cancelled, over a connection of its own"):
        command = [programs / "psql", "-X", "-c", "select pg_sleep(60)"]
        sleeper = tunnels.start(command, env=environment)
        sleeping = "select count(*) from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active'"
        until("it sleeps", lambda: psql(sleeping) == b"1\n")
        sleeper.child.send_signal(signal.SIGINT)
        sleeper.wait_for("canceling statement due to user request")

    with checks.check("tcp, psql: pgbench, 8 clients of 10 transactions, each on a connection of its own"):
        pgbench = shutil.which("pgbench") or programs / "pgbench"
        run([pgbench, "-i", "-q"], env=environment)
        said = run([pgbench, "-c", "8", "-t", "10", "-C"], env=environment).decode()
        that("number of transactions actually processed: 80/80" in said, said)


# --- Redis ------------------------------------------------------------------------------------------------------------


def by_redis(tunnels, folder, checks):
    def cli(*command, data=None):
        return run(["redis-cli", "-h", HOST, "-p", str(tunnels.ports["redis"]), *command], input=data)

    with checks.check("tcp, redis-cli: the tunnel stands"):
        port = free_port()
        flags = ["--bind", HOST, "--port", str(port), "--save", "", "--dir", folder]
        server = tunnels.start(["redis-server", *flags])
        server.wait_for("Ready to accept connections")
        tunnels.begin_agent("redis", port)
        same((cli("set", "word", "olleh"), cli("get", "word")), (b"OK\n", b"olleh\n"), "answers")

    with checks.check("tcp, redis-cli: a value of 20 MB there and back"):
        value = (DATA * 20)[:20_000_000]
        same(cli("-x", "set", "large", data=value), b"OK\n", "answer")
        same(sha256(cli("--raw", "get", "large")), sha256(value + b"\n"), "value")

    with checks.check("tcp, redis-cli: 100,000 commands in one go"):
        said = cli("--pipe", data=b"".join(b"SET key:%d %d\r\n" % (i, i) for i in range(100_000)))
        that(b"errors: 0, replies: 100000" in said, said)

    with checks.check("tcp, redis-cli: what is published reaches who listens"):
        listener = tunnels.start(["redis-cli", "-h", HOST, "-p", str(tunnels.ports["redis"]), "subscribe", "news"])
        until("somebody listens", lambda: cli("pubsub", "numsub", "news").split()[-1] == b"1")
        same(cli("publish", "news", "olleh"), b"1\n", "listeners")
        listener.wait_for("olleh")
        listener.stop()

    with checks.check("tcp, redis-benchmark: 50 connections, pipelines of 16"):
        command = ["redis-benchmark", "-h", HOST, "-p", tunnels.ports["redis"], "-q", "-t", "set,get"]
        said = run([*command, "-n", "50000", "-c", "50", "-P", "16"])
        same(len(re.findall(rb"(?:SET|GET): [\d.]+ requests per second", said)), 2, f"figures in {said!r}")


# ----------------------------------------------------------------------------------------------------------------------


def run(command, seconds=60, **more):
    """What it says on stdout."""
    if more.get("input") is None:
        more = {name: value for name, value in more.items() if name != "input"} | {"stdin": subprocess.DEVNULL}
    command = [str(word) for word in command]
    ran = subprocess.run(command, capture_output=True, timeout=seconds, **more)
    if ran.returncode:
        raise Failed(f"{' '.join(command)} ended with {ran.returncode}: {ran.stderr[-400:].decode(errors='replace')}")
    return ran.stdout


def play(relay, agent, checks):
    failed = checks.failed
    with tempfile.TemporaryDirectory() as folder, Tunnels(relay, agent) as tunnels:
        folder = pathlib.Path(folder)
        # PostgreSQL, as another user, has its data below.
        folder.chmod(0o711)
        peer = Peer()
        try:
            copying = None
            with checks.check("tcp: the tunnel stands"):
                tunnels.open()
                copying = tunnels.begin_agent("copy", peer.port)
            if copying is None:
                return
            copies(tunnels, peer, "tcp", checks)
            nowhere(tunnels, peer, checks)
            copying = agents(tunnels, copying, peer, checks)
            if which("sshd") and which("ssh"):
                by_ssh(tunnels, peer, folder, checks)
            else:
                checks.skip("tcp, ssh", "OpenSSH is not installed")
            if glob.glob("/usr/lib/postgresql/*/bin/postgres"):
                by_psql(tunnels, folder, checks)
            else:
                checks.skip("tcp, psql", "PostgreSQL is not installed")
            if which("redis-server"):
                by_redis(tunnels, folder, checks)
            else:
                checks.skip("tcp, redis-cli", "Redis is not installed")
            with checks.check("tcp: relay and agent still run, and end when asked to"):
                that(tunnels.relay.runs() and copying.runs(), "one of them ended by itself")
                same((copying.stop(5), tunnels.relay.stop(5)), (0, 0), "exit codes of agent and relay")
            with Tunnels(relay, agent) as several:
                copying = None
                with checks.check("tcp, three workers: the tunnel stands"):
                    several.open("--workers", "3")
                    copying = several.begin_agent("copy", peer.port)
                if copying:
                    copies(several, peer, "tcp, three workers", checks)
        finally:
            peer.stop()
        if checks.failed > failed:
            checks.say("\n  ".join(["The relay's last words:", *tunnels.relay.lines[-10:]]))
