#!/usr/bin/env python3
"""What becomes of requests when programs stop, die, and run out, and when wires break. `run.sh` starts this.

    chaos.py --programs FOLDER [--seed N] [SCENARIO…]

README.md says what each scenario promises. A run prints its seed; the same seed makes the same faults in the same order.
"""
import argparse
import asyncio
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time

import scenarios  # It also finds the modules of tests/interop.
from checks import Checks, reason

NAMES = {scenario.__name__: scenario for scenario in scenarios.ALL}
# Of the lines that say what is wrong: more of the same don't help.
LINES = 12


class Options(argparse.Namespace):
    def program(self, name):
        return self.programs / name

    def rng(self, name):
        return random.Random(f"{self.seed} {name}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--programs", type=pathlib.Path, required=True, help="where ptth-relay and ptth-reverse are")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of all that is random")
    parser.add_argument("--aborts", type=int, default=100_000, help="visitors that leave")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"some of {', '.join(NAMES)} (default: all)")
    options = parser.parse_args(namespace=Options())
    unknown = set(options.scenarios) - NAMES.keys()
    if unknown:
        parser.error(f"there is no scenario {', '.join(unknown)}")
    return options


def main():
    options = arguments()
    # So that an interrupted run, too, leaves through the blocks that end our children.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    checks = Checks()
    checks.say(f"seed {options.seed}")
    for name in options.scenarios or NAMES:
        play(options, name, checks)
    sys.exit(checks.end())


def play(options, name, checks):
    begun = time.monotonic()
    options.folder = pathlib.Path(tempfile.mkdtemp(prefix="ptth-chaos-"))
    again = f"to repeat it: tests/chaos/run.sh --seed {options.seed} {name}; the logs are in {options.folder}"
    try:
        figures, wrong = asyncio.run(NAMES[name](options))
    except Exception as error:
        return checks.fail(f"{name}: {reason(error)}\n        {again}")
    for line in figures:
        checks.say(f"        {line}")
    title = f"{name} ({time.monotonic() - begun:.0f} s): {NAMES[name].__doc__}"
    if not wrong:
        shutil.rmtree(options.folder)
        return checks.succeed(title)
    lines = [*wrong[:LINES], f"{len(wrong)} in all; {again}"]
    return checks.fail("\n        ".join([title, *lines]))


if __name__ == "__main__":
    main()
