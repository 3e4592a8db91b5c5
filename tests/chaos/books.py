"""The books: what was asked, what came of it, and whether both sides say the same."""
import collections
import dataclasses

IDEMPOTENT = {"GET", "HEAD"}
# What a relay or an agent says of a request that nobody behind it has had.
UNHEARD = {"refused", "503 no-link", "503 links-busy", "503 tunnel-busy", "503 stopping", "502 upstream-refused"}


@dataclasses.dataclass
class Entry:
    """A request. `outcome` is a status, with its code when it is an error of ours, or what happened to the connection."""

    name: str
    method: str
    begun: float
    ended: float = None
    outcome: str = None


@dataclasses.dataclass
class Fault:
    """Something that we did to a program or to the wire, and what may come of it for requests in the meantime."""

    what: str
    excuses: frozenset
    begun: float
    over: float = None

    def explains(self, entry):
        return self.touches(entry) and entry.outcome in self.excuses

    def touches(self, entry):
        return entry.ended >= self.begun and (self.over is None or entry.begun <= self.over)


class Books:
    def __init__(self, clock, run):
        self.clock = clock
        self.start = clock()
        self.run = run
        self.entries = {}
        self.faults = []
        # What is wrong whatever was going on.
        self.wrong = []
        # How long it took until all was well again, by fault.
        self.back = collections.defaultdict(list)

    def ask(self, method):
        name = f"{self.run}-{len(self.entries)}"
        self.entries[name] = Entry(name, method, self.clock())
        return self.entries[name]

    def close(self, entry, outcome):
        if entry.outcome is not None:
            self.wrong.append(f"{entry.name}: {outcome} after {entry.outcome}")
        entry.outcome = outcome
        entry.ended = self.clock()

    def fault(self, what, excuses):
        self.faults.append(Fault(what, frozenset(excuses), self.clock()))
        return self.faults[-1]

    def over(self, fault, seconds):
        """A fault is behind us, and all is well since so many seconds after its end."""
        fault.over = self.clock()
        self.back[fault.what].append(seconds)

    def excuse(self, *outcomes):
        """Of the whole run."""
        self.faults.append(Fault("always", frozenset(outcomes), 0))

    def balance(self, journal, lines):
        """Everything that doesn't add up, between visitors, the upstream's journal, and the relay's access log."""
        wrong = list(self.wrong)
        for name, entry in self.entries.items():
            came, outcome = journal.came[name], entry.outcome
            who = f"{entry.method} {name}: {outcome}"
            if outcome is None:
                wrong.append(f"{who}: nothing came of it")
                continue
            if outcome == "200":
                if not journal.whole[name]:
                    wrong.append(f"{who}, but it never came to the upstream")
            elif not any(fault.explains(entry) for fault in self.faults):
                wrong.append(f"{who}, and nothing explains it ({self.about(entry)}; at the upstream {came} times)")
            if came > 1 and entry.method not in IDEMPOTENT:
                wrong.append(f"{who}, and it came to the upstream {came} times")
            if came and outcome in UNHEARD and entry.method not in IDEMPOTENT:
                wrong.append(f"{who}, but it came to the upstream")
            logged = lines.get(name, [])
            if len(logged) > 1:
                wrong.append(f"{who}, and the access log has it {len(logged)} times: {logged}")
            if outcome == "cut" and logged and logged[0] == "-":
                wrong.append(f"{who}, and the access log has no code for it")
        for name in journal.came.keys() - self.entries.keys():
            wrong.append(f"{name} came to the upstream, and nobody asked it")
        return wrong

    def about(self, entry):
        """When it was, and what was going on."""
        faults = [fault for fault in self.faults if fault.touches(entry)]
        faults = [f"{fault.what} {self.when(fault.begun)} to {self.when(fault.over)}" for fault in faults]
        return f"{self.when(entry.begun)} to {self.when(entry.ended)}; {', '.join(faults) or 'no fault'}"

    def when(self, time):
        return "the end" if time is None else f"{time - self.start:.3f}"

    def figures(self, journal):
        """One line."""
        outcomes = collections.Counter(entry.outcome for entry in self.entries.values())
        good = outcomes.pop("200", 0)
        parts = [f"{len(self.entries)} requests: {good} answered 200"]
        parts += [f"{count} {outcome}" for outcome, count in sorted(outcomes.items(), key=str)]
        again = sum(count > 1 for name, count in journal.came.items() if name in self.entries)
        if again:
            parts.append(f"{again} sent again")
        line = ", ".join(parts)
        waits = [entry.ended - entry.begun for entry in self.entries.values() if entry.ended]
        line += f"; longest wait {max(waits, default=0):.1f} s"
        if self.back:
            line += "; whole again within " + ", ".join(
                f"{max(times):.1f} s ({len(times)} × {what})" for what, times in sorted(self.back.items())
            )
        return line


def access_log(path):
    """The codes of each request's lines, by the id in its target."""
    lines = collections.defaultdict(list)
    for line in path.read_text().splitlines() if path.exists() else []:
        words = line.split()
        if len(words) == 11:
            lines[words[5].partition("?")[0].rpartition("/")[2]].append(words[10])
    return lines
