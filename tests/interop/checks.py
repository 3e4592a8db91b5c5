"""One line for each check, and a count at the end."""
import contextlib
import sys
import threading
import time
import traceback


class Failed(Exception):
    """Something that we saw is not what we wanted to see."""


class Checks:
    def __init__(self):
        self.passed = 0
        self.failed = 0
        self.skipped = 0
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def check(self, what):
        """A check fails by raising; what it raised is the reason given."""
        start = time.monotonic()
        try:
            yield
        except Exception as error:
            self.fail(f"{what}: {reason(error)}")
        else:
            self.succeed(f"{what} ({time.monotonic() - start:.1f} s)")

    def succeed(self, line=None):
        with self.lock:
            self.passed += 1
            if line:
                self.say(f"passed  {line}")

    def fail(self, line, times=1):
        with self.lock:
            self.failed += times
            self.say(f"FAILED  {line}")

    def skip(self, part, why):
        """So loud that nobody takes what is left for all of it."""
        self.skipped += 1
        self.say(f"SKIPPED {part}: {why}")

    def end(self):
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        self.say(f"{self.passed} passed, {self.failed} failed{skipped}")
        return 1 if self.failed or not self.passed else 0

    @staticmethod
    def say(line):
        print(line)
        sys.stdout.flush()


def reason(error):
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"


def same(seen, wanted, what="this"):
    if seen != wanted:
        raise Failed(f"{what}: wanted {shorten(wanted)}, saw {shorten(seen)}")


def that(holds, what):
    if not holds:
        raise Failed(what)


def shorten(value):
    text = repr(value)
    return text if len(text) <= 600 else f"{text[:400]} … {text[-150:]} ({len(text)} characters)"
