"""Children of ours: started, listened to, and ended by their ids."""
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

from checks import Failed

HOST = "127.0.0.1"


class Program:
    """A child of ours whose lines a thread collects, so that it never waits for a reader."""

    def __init__(self, command, **more):
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.child = subprocess.Popen(command, text=True, errors="replace", **pipes, **more)
        self.lines = []
        self.ended = False
        self.news = threading.Condition()
        threading.Thread(target=self.collect, daemon=True).start()

    def collect(self):
        for line in self.child.stdout:
            with self.news:
                self.lines.append(plain(line.rstrip("\n")))
                self.news.notify_all()
        with self.news:
            self.ended = True
            self.news.notify_all()

    def wait_for(self, pattern, times=1, seconds=10):
        """The last line, when so many match."""
        with self.news:
            enough = lambda: self.count(pattern) >= times  # noqa: E731
            self.news.wait_for(lambda: enough() or self.ended, seconds)
            if not enough():
                why = f"{self.child.args[0]} said {self.lines[-5:]}"
                raise Failed(f"no line like {pattern!r} ({times} of them) in {seconds} s: {why}")
            return [line for line in self.lines if re.search(pattern, line)][-1]

    def stays_below(self, pattern, times, seconds):
        """Fails when so many more lines match before the seconds are over."""
        with self.news:
            before = self.count(pattern)
            if self.news.wait_for(lambda: self.count(pattern) - before >= times, seconds):
                raise Failed(f"{times} lines like {pattern!r} in less than {seconds} s")

    def count(self, pattern):
        return sum(1 for line in self.lines if re.search(pattern, line))

    def runs(self):
        return self.child.poll() is None

    def kill(self):
        self.child.kill()
        self.child.wait()

    def stop(self, seconds=3, how=signal.SIGTERM):
        """Its exit code; None if it had to be killed."""
        self.child.send_signal(how)
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None


class Started:
    """Everything that we started. Leaving the `with` block ends it."""

    def __init__(self):
        self.started = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for program in self.started:
            program.child.terminate()
        for program in self.started:
            program.stop()

    def start(self, command, **more):
        self.started.append(Program(command, **more))
        return self.started[-1]


def plain(line):
    """Without what colours it."""
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


def which(program):
    """Where it is; servers are not in everybody's path."""
    return shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def accepts(address):
    try:
        socket.create_connection(address, 1).close()
        return True
    except OSError:
        return False


def until(what, condition, seconds=10):
    """What the condition gave when it held; asked for again and again."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed(f"not in {seconds} s: {what}")
        time.sleep(0.02)


def listening(relay, seconds=10):
    """The address of a relay of ours, which says it when it listens."""
    line = relay.wait_for(r"listening on http://127\.0\.0\.1:\d+", seconds=seconds)
    return HOST, int(re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)[1])
