"""One tunnel: a relay of ours, an agent of ours, and somebody else's server behind it."""
from checks import same, that
from programs import HOST, Started, listening


class Tunnel(Started):
    """Stands when `open` returned. Its address is the relay's, and what visitors come to is `url`."""

    def __init__(self, relay, agent, name="demo"):
        super().__init__()
        self.programs = relay, agent
        self.name = name
        self.address = None
        self.relay = self.agent = None

    def open(self, upstream, relay_flags=(), agent_flags=()):
        """To a port, or whatever else an agent takes for its upstream."""
        self.begin_relay(*relay_flags)
        self.begin_agent(upstream, *agent_flags)
        return self

    def begin_relay(self, *flags):
        self.relay = self.start([self.programs[0], "--listen", f"{HOST}:0", *flags])
        self.address = listening(self.relay)

    def begin_agent(self, upstream, *flags, path=""):
        via = "http://{}:{}/{}".format(*self.address, path).rstrip("/")
        agent = self.start([self.programs[1], str(upstream), "--via", via, "--name", self.name, *flags])
        # A path, where the agent can't know the relay's domain.
        agent.wait_for(r"^http://\S+$")
        self.agent = agent

    @property
    def host(self):
        return f"{self.name}.localhost:{self.address[1]}"

    @property
    def url(self):
        return f"http://{self.host}/"

    def ends_well(self, title, checks, failed_before):
        """The last check of a part. The programs' last words are of use if any of it failed."""
        with checks.check(f"{title}: relay and agent still run, and end when asked to"):
            that(self.relay.runs() and self.agent.runs(), "one of them ended by itself")
            same((self.agent.stop(5), self.relay.stop(5)), (0, 0), "exit codes of agent and relay")
        if checks.failed > failed_before:
            for name, program in (("relay", self.relay), ("agent", self.agent)):
                checks.say("\n  ".join([f"The {name}'s last words:", *program.lines[-10:]]))
