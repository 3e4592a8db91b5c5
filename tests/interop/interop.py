#!/usr/bin/env python3
"""Programs of other people against ours. `run.sh` installs what this needs, and starts it.

    interop.py [--programs FOLDER] [--modules FOLDER] [--python FOLDER] [--ptth FOLDER] [PART…]

Parts: npm, comet, ptth, streaming, websocket, browser, git, tcp. A part whose programs are not there is skipped, and said to be.
"""
import argparse
import importlib.metadata
import pathlib
import shutil
import signal
import sys

import browser
import comet
import git
import npm
import ptth
import second_life
import streaming
import tcp
import websocket
from checks import Checks

PARTS = ["npm", "comet", "ptth", "streaming", "websocket", "browser", "git", "tcp"]
COLUMNS = {"our-agent": ptth.OUR_AGENT, "our-relay": ptth.OUR_RELAY, "real": ptth.REAL}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--programs", type=pathlib.Path, required=True, help="where ptth-relay and ptth-reverse are")
    parser.add_argument("--modules", type=pathlib.Path, help="node_modules with reverse-http, ws and vite")
    parser.add_argument("--python", type=pathlib.Path, help="where Python's websockets is")
    parser.add_argument("--ptth", type=pathlib.Path, help="where ptth_relay and ptth_server are")
    names = ",".join(COLUMNS)
    parser.add_argument("--columns", default=names, help=f"ptth: some of the table's columns {names} (default: all)")
    parser.add_argument("--case", default="", metavar="WORDS", help="ptth: only cases with this in their title")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)")
    options = parser.parse_args()
    options.columns = options.columns.split(",")
    for given, known, what in [(options.parts, PARTS, "part"), (options.columns, COLUMNS, "column")]:
        unknown = set(given).difference(known)
        if unknown:
            parser.error(f"there is no {what} {', '.join(unknown)}")
    options.columns = [COLUMNS[name] for name in options.columns]
    return options


def has(options, module):
    return options.modules is not None and (options.modules / module / "package.json").exists()


def library(options):
    """Python's websockets with its version, once it can be imported."""
    if options.python is None:
        return None
    sys.path.append(str(options.python))
    return f"websockets {importlib.metadata.version('websockets')}"


def main():
    options = arguments()
    relay, agent = options.programs / "ptth-relay", options.programs / "ptth-reverse"
    checks = Checks()
    # So that an interrupted run, too, leaves through the `with` blocks that end our children.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    for part in options.parts or PARTS:
        if part == "npm":
            if has(options, "reverse-http"):
                npm.play(relay, options.modules, checks, also=[second_life.play])
            else:
                checks.skip("npm", "reverse-http is not installed")
        elif part == "comet":
            comet.play(relay, agent, checks)
        elif part == "ptth":
            if options.ptth:
                ptth.play(relay, agent, options.ptth, checks, options.columns, options.case)
            else:
                checks.skip("ptth", "ptth_relay and ptth_server are not installed")
        elif part == "streaming":
            if shutil.which("node"):
                streaming.play(relay, agent, checks)
            else:
                checks.skip("streaming", "node is not installed")
        elif part == "websocket":
            if has(options, "ws"):
                websocket.play(relay, agent, options.modules, library(options), checks)
            else:
                checks.skip("websocket", "npm's ws is not installed")
        elif part == "browser":
            chromium = shutil.which("chromium")
            if chromium and has(options, "ws"):
                browser.play(relay, agent, chromium, options.modules, checks)
            else:
                checks.skip("browser", "chromium or npm's ws is not installed")
        elif part == "git":
            if shutil.which("git"):
                git.play(relay, agent, checks)
            else:
                checks.skip("git", "git is not installed")
        elif part == "tcp":
            tcp.play(relay, agent, checks)
    sys.exit(checks.end())


if __name__ == "__main__":
    main()
