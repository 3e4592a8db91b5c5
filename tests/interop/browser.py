"""A browser through a tunnel: a page with all that pages do, and a dev server that loads it anew."""
import os
import pathlib
import re
import tempfile

from checks import same
from chromium import Chromium
from programs import until
from tunnel import Tunnel
from websocket import Web

# The functions of page.html.
CHECKS = {
    "text": "WebSocket: text there and back, and a clean close",
    "binary": "WebSocket: binary messages of all kinds of lengths",
    "megabyte": "WebSocket: messages of 1 MiB, binary and compressed text",
    "hundred": "WebSocket: 100 messages in order",
    "closes": "WebSocket: the page's close, the server's close, no close at all",
    "twenty": "WebSocket: 20 at once, and a request beside them",
    "protocol": "WebSocket: subprotocol and compression are agreed on",
    "refused": "WebSocket: one that is refused, and one behind it",
    "events": "event stream: each event as it comes, and on from there after a retry",
    "uploads": "fetch: uploads up to 5 MiB, and a form",
    "many": "fetch: 40 uploads at once",
    "images": "50 pictures of one page",
}


def page(tunnel, web, browser, checks):
    for name, what in CHECKS.items():
        with checks.check(f"browser: {what}"):
            browser.evaluate(f"run('{name}')")
            # As the page shows it: what is checked is what somebody would see.
            seen = browser.evaluate("document.querySelector('#results').lastChild.textContent")
            same(seen, f"{name}: passed", "the page")

    with checks.check("browser: what a page holds open ends when it is loaded anew, and can be had again"):
        state = "fetch('/state').then((answer) => answer.json())"
        for _ in range(3):
            browser.evaluate("checks.stay()")
            browser.reload()
            until("both are closed at the upstream", lambda: browser.evaluate(state) == {"sockets": 0, "streams": 0})

    with checks.check("browser: an agent that ends lets what is open end with it, and the next one serves the page"):
        browser.evaluate("window.socket = new Socket('/echo'); socket.opened.then(() => null)")
        tunnel.agent.kill()
        same(browser.evaluate("socket.closed"), [1006, "", False], "close")
        tunnel.begin_agent(web.port)
        browser.evaluate("checks.text()")


def dev_server(relay, agent, browser, modules, folder, checks):
    """Vite, as it comes: a module that changes is loaded anew by a WebSocket of its own."""
    site = pathlib.Path(folder, "site")
    site.mkdir()
    (site / "index.html").write_text("<!doctype html><p id=word></p><script type=module src=/main.js></script>\n")
    (site / "main.js").write_text("import { word } from './word.js'\ndocument.querySelector('#word').textContent = word\n")
    write = lambda word: (site / "word.js").write_text(f"export const word = '{word}'\n")  # noqa: E731
    write("first")
    shown = "document.querySelector('#word')?.textContent"
    with Tunnel(relay, agent, "vite") as tunnel:
        with checks.check("browser, Vite: the page and its modules"):
            vite = pathlib.Path(modules).resolve() / "vite" / "bin" / "vite.js"
            flags = ["--host", "127.0.0.1", "--port", "0", "--logLevel", "info", "--clearScreen", "false"]
            server = tunnel.start(["node", vite, site, *flags], env={**os.environ, "NO_COLOR": "1"})
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", server.wait_for(r"http://127\.0\.0\.1:\d+/", seconds=30))[1])
            tunnel.open(port)
            browser.open(tunnel.url)
            until("the first word", lambda: browser.evaluate(shown) == "first", 20)
            # Whom it doesn't know yet, it doesn't tell of changes.
            browser.event("Runtime.consoleAPICalled", "[vite] connected.")

        for word in ("second", "third"):
            with checks.check(f"browser, Vite: a change to a module is shown by itself ({word})"):
                write(word)
                until(f"the {word} word", lambda: browser.evaluate(shown) == word, 20)
                browser.event("Runtime.consoleAPICalled", "[vite] connected.")


def play(relay, agent, program, modules, checks):
    failed = checks.failed
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Tunnel(relay, agent) as tunnel:
        with checks.check("browser: the tunnel stands"):
            web = Web(tunnel, modules)
            tunnel.open(web.port)
        if not tunnel.agent:
            return
        with Chromium(program, folder) as browser:
            with checks.check("browser: the page loads"):
                browser.open(tunnel.url)
                same(browser.evaluate("document.title"), "Through a tunnel", "title")
            page(tunnel, web, browser, checks)
            if (modules / "vite").exists():
                dev_server(relay, agent, browser, modules, folder, checks)
            else:
                checks.skip("browser, Vite", "vite is not installed")
        tunnel.ends_well("browser", checks, failed)
