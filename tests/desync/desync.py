#!/usr/bin/env python3
"""Can anybody be made to see one request where another sees two? What visitors send goes through a relay and an agent
of ours to three servers that nobody here wrote (part requests); and upstreams and agents answer with too much, too
little, or something else (parts upstream and agent).

    desync.py --programs FOLDER [--seed N] [--count N] [--dialect DIALECT] [--only WORDS] [PART…]
"""
import argparse
import pathlib
import signal
import sys

HERE = pathlib.Path(__file__).resolve().parent
# Behind ours: both have a file for a tunnel.
sys.path.append(str(HERE.parent / "interop"))

import answers  # noqa: E402
import forward  # noqa: E402
from checks import Checks  # noqa: E402

PARTS = {"requests": forward.play, "upstream": answers.play_upstream, "agent": answers.play_agent}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--programs", type=pathlib.Path, required=True, help="where ptth-relay and ptth-reverse are")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations (default: 1)")
    about = "mutated requests (default: 1500), and a fifth as many answers"
    parser.add_argument("--count", type=int, default=1500, help=about)
    dialects = ["ptth/1.0", "comet", "ptth-relay"]
    parser.add_argument("--dialect", default=dialects[0], choices=dialects, help="of the agent (default: ptth/1.0)")
    parser.add_argument("--only", default="", metavar="WORDS", help="only inputs with this in their name")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)")
    options = parser.parse_args()
    unknown = set(options.parts).difference(PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}")
    options.programs = options.programs.resolve()
    options.fixtures = HERE.parent.parent / "fixtures"
    return options


def main():
    options = arguments()
    checks = Checks()
    # So that an interrupted run, too, leaves through the `with` blocks that end our children.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    checks.say(f"        seed {options.seed}, {options.count} mutations")
    for part in options.parts or PARTS:
        PARTS[part](options, checks)
    sys.exit(checks.end())


if __name__ == "__main__":
    main()
