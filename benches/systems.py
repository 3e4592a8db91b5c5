"""What is measured: the programs of each tunnel, from its server to its client."""
import dataclasses
import re
import subprocess

from common import HOST, RELEASE, Process, free_address, free_port, nginx


@dataclasses.dataclass
class System:
    """What stands between the load generator and the origin: its programs, and the port that visitors come to.

    `prefix` stands before the paths of the files where visitors name a tunnel by path."""

    processes: list
    port: int
    prefix: str = ""


def straight(address):
    """The road between a tunnel's two ends, where there is none: the address to dial, and no programs."""
    return address, []


def origin_alone(folder, origin):
    return System([], origin)


def nginx_proxy(folder, origin):
    port = free_port()
    proxy = f"""
    upstream origin {{ server {HOST}:{origin}; keepalive 1024; keepalive_requests 1000000000; }}
    server {{
        listen {HOST}:{port} backlog=4096;
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            # Else a large body is written to a file on its way.
            proxy_max_temp_file_size 0;
        }}
    }}"""
    return System([nginx(folder / "nginx-proxy", port, proxy)], port)


def bare(folder, origin, more=()):
    port, middle = free_port(), free_port()
    hops = [(middle, origin), (port, middle)]
    return System([Process([BARE, f"{HOST}:{at}", f"{HOST}:{to}", *more], (HOST, at)) for at, to in hops], port)


def bare_splice(folder, origin):
    return bare(folder, origin, ["--splice"])


# `cargo build --release --example bare`
BARE = RELEASE / "examples/bare"


def bore(folder, origin, road=straight):
    # bore's control port is a constant: an address of its own keeps it away from any other bore.
    address, port = free_address(7835), free_port()
    server = f"bore server --bind-addr {address} --bind-tunnels {HOST}".split()
    server = Process(server, (address, 7835))
    (dialled, _), between = road((address, 7835))
    client = f"bore local {origin} --local-host {HOST} --to {dialled} --port {port}".split()
    return System([server, *between, Process(client)], port)


def rathole(folder, origin, road=straight):
    control, port = free_port(), free_port()
    (dialled, _), between = road((HOST, control))
    server, client = folder / "rathole-server.toml", folder / "rathole-client.toml"
    server.write_text(f"""[server]
bind_addr = "{HOST}:{control}"
default_token = "bench"
[server.services.web]
bind_addr = "{HOST}:{port}"
""")
    client.write_text(f"""[client]
remote_addr = "{dialled}:{control}"
default_token = "bench"
[client.services.web]
local_addr = "{HOST}:{origin}"
""")
    processes = [Process(["rathole", server], (HOST, control)), *between, Process(["rathole", client])]
    return System(processes, port)


def haproxy(folder, origin):
    control, port = free_port(), free_port()
    edge, backend = folder / "haproxy-edge.cfg", folder / "haproxy-backend.cfg"
    edge.write_text(f"""{HAPROXY}
frontend visitors
    bind {HOST}:{port} backlog 4096
    default_backend tunnel
frontend agents
    bind {HOST}:{control} proto h2
    tcp-request session attach-srv tunnel/agent
backend tunnel
    server agent rhttp@
""")
    backend.write_text(f"""{HAPROXY}
frontend requests
    bind rhttp@relay/edge
    default_backend origin
backend relay
    server edge {HOST}:{control} proto h2
backend origin
    server web {HOST}:{origin}
""")
    return System([Process(["haproxy", "-f", edge], (HOST, port)), Process(["haproxy", "-f", backend])], port)


# One thread and one connection between the two, which is its default: with more connections each request costs more, and with more
# threads than one, those that don't have the connection answer 503. So does the one, when the streams are all in use: by default
# there are a hundred.
HAPROXY = """global
    expose-experimental-directives
    nbthread 1
    tune.h2.max-concurrent-streams 2000
defaults
    mode http
    http-reuse always
    timeout connect 10s
    timeout client 1m
    timeout server 1m"""


def can_reverse():
    """Is there a HAProxy that has reverse HTTP?"""
    try:
        said = subprocess.run(["haproxy", "-v"], capture_output=True, text=True).stdout
    except OSError:
        return False
    version = re.search(r"version (\d+)\.(\d+)", said)
    return version is not None and (int(version[1]), int(version[2])) >= (2, 9)


def ptth(folder, origin):
    # Its agent is a file server and nothing else: it serves the origin's folder, and the origin has a rest. There is
    # one hop less than with the others.
    port = free_port()
    at = folder / "ptth"
    relay, server = at / "config/ptth_relay.toml", at / "config/ptth_server.toml"
    pages = [at / f"handlebars/relay/{page}.hbs" for page in PTTH_PAGES]
    pages += [at / f"handlebars/server/file_server_{page}.html" for page in ("dir", "root")]
    for file in (relay, server, *pages):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)  # It refuses a key that others may read.
    relay.write_text(f'port = {port}\n[[servers]]\nname = "bench"\ntripcode = "{PTTH_TRIPCODE}"\n')
    server.write_text(f"""name = "bench"
api_key = "{PTTH_KEY}"
relay_url = "http://{HOST}:{port}/7ZSFUKGV"
file_server_root = "{folder / 'files'}"
""")
    processes = [Process(["ptth_relay"], (HOST, port), at), Process(["ptth_server"], at=at)]
    return System(processes, port, "/frontend/servers/bench/files")


# What ptth_server's own tests have for a key, and the hash of it that its relay is given.
PTTH_KEY = "PlaypenCausalPlatformCommodeImproveCatalyze"
PTTH_TRIPCODE = "A9rPwZyY89Ag4TJjMoyYA2NeGOm99Je6rq1s0rg8PfY="
PTTH_PAGES = ["audit_log", "debug", "root", "server_list", "unregistered_servers"]


def our_relay(port, *more, cores=None):
    return Process([RELEASE / "ptth-relay", "--listen", f"{HOST}:{port}", *more], (HOST, port), cores=cores)


def our_agent(origin, via, *more, cores=None):
    # The name `default` answers to every Host, so the load generator needs no header that the others do not get.
    command = [RELEASE / "ptth-reverse", f"{HOST}:{origin}", "--via", via, "--name", "default", *more]
    return Process(command, cores=cores)


def ours(folder, origin, road=straight, path="", more=()):
    port = free_port()
    (dialled, _), between = road((HOST, port))
    return System([our_relay(port), *between, our_agent(origin, f"http://{dialled}:{port}{path}", *more)], port)


def ours_small(folder, origin):
    """With the agent of `make small`, if somebody has made it."""
    system = ours(folder, origin)
    system.processes[-1].command[0] = next(RELEASE.parent.glob("*/small/ptth-reverse"))
    return system


def ours_ptth(folder, origin):
    token = folder / "token"
    token.touch(0o600)
    token.write_text(PTTH_KEY)
    return ours(folder, origin, path="/7ZSFUKGV", more=["--dialect", "ptth-relay", "--token-file", token])


def ours_comet(folder, origin):
    return ours(folder, origin, more=["--dialect", "comet"])


SYSTEMS = {
    "origin": origin_alone,
    "nginx": nginx_proxy,
    "bare": bare,
    "bare-splice": bare_splice,
    "bore": bore,
    "rathole": rathole,
    "haproxy": haproxy,
    "ptth": ptth,
    "ours": ours,
    "ours-ptth": ours_ptth,
    "ours-comet": ours_comet,
}
TITLES = {
    "origin": "the origin alone",
    "nginx": "nginx as a reverse proxy (one hop)",
    "bare": "a bare pair of loops that copy",
    "bare-splice": "a bare pair of loops that splice",
    "bore": "bore (raw TCP)",
    "rathole": "rathole (raw TCP)",
    "haproxy": "HAProxy (reverse HTTP over HTTP/2)",
    "ptth": "ptth_relay and ptth_server (MessagePack, long polls)",
    "ours": "ours",
    "ours-ptth": "ours, as a ptth relay and agent",
    "ours-comet": "ours, COMET (JSON, long polls)",
}
# Where bodies travel as whole messages, the large one is too large for them.
SMALL_ONLY = {"ours-comet"}
# Who is there for the large body's sake.
LARGE_ONLY = {"bare-splice"}
