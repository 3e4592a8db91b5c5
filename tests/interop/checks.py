"""One line for each check, and a count at the end."""
import contextlib
import sys
import time
import traceback


class Failed(Exception):
    """Something that we saw is not what we wanted to see."""


class Checks:
    def __init__(self):
        self.passed = 0
        self.failed = 0

    @contextlib.contextmanager
    def check(self, what):
        """A check fails by raising; what it raised is the reason given."""
        start = time.monotonic()
        try:
            yield
        except Exception as error:
            self.failed += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.say(f"FAILED  {what}: {type(error).__name__}: {error} ({where.name}, line {where.lineno})")
        else:
            self.passed += 1
            self.say(f"passed  {what} ({time.monotonic() - start:.1f} s)")

    def end(self):
        self.say(f"{self.passed} passed, {self.failed} failed")
        return 1 if self.failed or not self.passed else 0

    @staticmethod
    def say(line):
        print(line)
        sys.stdout.flush()


def same(seen, wanted, what="this"):
    if seen != wanted:
        raise Failed(f"{what}: wanted {shorten(wanted)}, saw {shorten(seen)}")


def that(holds, what):
    if not holds:
        raise Failed(what)


def shorten(value):
    text = repr(value)
    return text if len(text) <= 600 else f"{text[:400]} … {text[-150:]} ({len(text)} characters)"
