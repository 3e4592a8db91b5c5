"""Chromium without a window, told what to do over a pair of pipes (the DevTools protocol, --remote-debugging-pipe)."""
import fcntl
import json
import os
import select
import signal
import subprocess
import time

from checks import Failed


class Chromium:
    """Leaving the `with` block ends it."""

    def __init__(self, program, folder):
        flags = ["--headless", "--remote-debugging-pipe", f"--user-data-dir={folder}/profile", "--no-first-run"]
        flags += ["--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server", "--disable-background-networking"]
        if os.getuid() == 0:
            # Its sandbox wants a user who isn't root.
            flags.append("--no-sandbox")
        self.number = 0
        self.session = None
        self.unread = b""
        self.events = []
        commands, self.commands = os.pipe()
        self.answers, answers = os.pipe()
        # Chromium reads descriptor 3 and writes 4. Ours go out of the way first, so that neither takes the other's place.
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (commands, answers)]

        def give():
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)

        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        # A group of its own: it has children, some of which outlive it for a moment.
        own = {"preexec_fn": give, "close_fds": False, "start_new_session": True}
        self.child = subprocess.Popen([program, *flags, "about:blank"], **quiet, **own)
        for end in (commands, answers, *theirs):
            os.close(end)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for end in (self.commands, self.answers):
            os.close(end)
        try:
            self.child.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()

    def open(self, url):
        """Loads a page into a tab of its own, to its end."""
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")
        wrong = self.call("Page.navigate", url=url).get("errorText")
        if wrong:
            raise Failed(f"{url}: {wrong}")
        self.event("Page.loadEventFired")

    def reload(self):
        self.call("Page.reload")
        self.event("Page.loadEventFired")

    def evaluate(self, script, seconds=30):
        """What the script gives, when a promise of it is kept."""
        options = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", seconds, **options)
        wrong = answer.get("exceptionDetails")
        if wrong:
            raise Failed(f"{script}: {wrong.get('exception', {}).get('description', wrong['text'])}")
        return answer["result"].get("value")

    def call(self, method, seconds=30, **parameters):
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.commands, json.dumps(command).encode() + b"\0")
        end = time.monotonic() + seconds
        while True:
            message = self.read(method, end)
            if message.get("id") == self.number:
                if "error" in message:
                    raise Failed(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    def event(self, method, words="", seconds=30):
        """Waits for one with these words in it, and forgets it and what came before it."""
        end = time.monotonic() + seconds
        while True:
            for i, message in enumerate(self.events):
                if message.get("method") == method and words in json.dumps(message.get("params")):
                    del self.events[: i + 1]
                    return
            self.events.append(self.read(f"{method} {words}", end))

    def read(self, what, end):
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.answers], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise Failed(f"no answer in time to {what}")
            data = os.read(self.answers, 65536)
            if not data:
                raise Failed(f"Chromium ended during {what}")
            self.unread += data
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)
