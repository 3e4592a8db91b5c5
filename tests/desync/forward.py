"""Inputs from a visitor: what comes out at the other end is the requests that a strict reading finds, or fewer, and all
that read it there agree."""
import collections
import multiprocessing
import re
import time
import traceback

from programs import until

import strict
from inputs import inputs
from tunnel import PATIENCE, Tunnel, Visitor, ask, code
from upstreams import ALL

# How long a visitor waits for an answer that may not come: only behind what is no whole request.
SILENCE = 0.25

# What one lane saw of one input.
Outcome = collections.namedtuple("Outcome", "keys refused wrong aborted codes")


def routed(message):
    """The request as it is to come out: its target in the origin form, without what names the tunnel."""
    method, target, body = message.key()
    absolute = re.fullmatch(rb"(?i:https?)://[^/?]*(.*)", target)
    path = absolute[1] if absolute else target
    path = re.sub(rb"^/frontend/servers/[A-Za-z0-9_-]{1,63}(?=[/?]|$)", b"", path)
    if absolute and not absolute[1] and method == b"OPTIONS":
        return method, b"*", body
    return method, path if path.startswith(b"/") or path == b"*" else b"/" + path, body


def is_part(keys, expected, left_out):
    """Whether these are the first of what was expected. So many may be left out: those that the upstream refused by
    their heads, and those that were for the relay itself."""
    for number, key in enumerate(keys):
        while number < len(expected) and expected[number] != key and left_out:
            expected, left_out = expected[:number] + expected[number + 1 :], left_out - 1
    return keys == expected[: len(keys)]


class Lane:
    """All inputs through one tunnel to one upstream."""

    def __init__(self, tunnel):
        self.tunnel = tunnel
        self.hop = self.link = 0
        self.number = 0

    def feed(self, given):
        wrong = []
        allowed, rest = strict.requests(given.data)
        methods = [message.start[0] for message in allowed]
        with Visitor(self.tunnel.address) as visitor:
            visitor.send(given.data)
            # Whoever has more to say than whole requests is answered too, and that shows where reading has ended.
            if rest and not given.closes:
                visitor.hear_answers([*methods, b"GET"], SILENCE)
            elif not given.closes:
                visitor.hear_answers(methods, PATIENCE)
            visitor.shut()
            if not visitor.hear_end():
                wrong.append("the visitor's connection stays open")
            answers = self.check_answers(visitor, methods, given, wrong)
        from_beyond = [answer for answer in answers if code(answer) is None]
        # Those that say how far they go may be answered by whom they reach (RFC 9110 §7.6.2), even before they are whole.
        near = given.data.lower().count(b"max-forwards")
        keys, refused, aborted = self.check_came_out(allowed, len(answers) - len(from_beyond), near, wrong)
        # A visitor that ends its side at once may be taken to have left; and what is not whole may be answered.
        if not len(keys) <= len(from_beyond) <= len(keys) + aborted + near and not given.closes:
            wrong.append(f"{len(keys)} requests came out, and {len(from_beyond)} answers came back")
        codes = [code(answer) or answer.start for answer in answers]
        return Outcome(keys, refused, wrong, aborted, codes)

    @staticmethod
    def check_answers(visitor, methods, given, wrong):
        """Each request has one answer, and a refusal is the last."""
        answers, rest = visitor.answers(methods)
        if rest.startswith("behind the last answer"):
            # What could not be read at all was answered once more.
            method = b"HEAD" if b"HEAD" in given.data else b"GET"
            for last in (b"GET", method):
                answers, rest = visitor.answers([*methods, last])
                if not rest:
                    break
        if rest and not visitor.reset:
            wrong.append(f"among the answers: {rest}")
        for answer in answers[:-1]:
            if not answer.keeps:
                wrong.append("an answer behind one that said it was the last")
        return answers

    def check_came_out(self, allowed, answered, near, wrong):
        """Everything up to the marker belongs to this input, of whose requests so many were answered on the way, and so
        many more may have been."""
        self.number += 1
        marker = b"/marker/%d" % self.number
        answer = ask(self.tunnel.address, marker)
        if answer.start != 200 or marker + b"\n" not in answer.body:
            wrong.append(f"the next visitor's answer is {answer.start} {answer.body[:200]!r}")
        seen = []

        def is_through():
            seen.extend(self.tunnel.server.seen())
            return any("key" in one and one["key"][1] == marker for one in seen)

        until("the upstream has understood the marker", is_through)
        lines = []

        def is_logged():
            lines.extend(self.tunnel.lines())
            return any(line[1] == marker for line in lines)

        until("the marker is in the agent's log", is_logged)
        keys, aborted = self.recorded(wrong, marker)
        if self.tunnel.link:
            self.recorded_on_link(wrong)
        # Those that were not whole are the upstream's to refuse, or to be silent about.
        understood = [one for one in seen if "key" in one and one["key"][1] != marker]
        refused = [one for one in seen if "refused" in one]
        meant = [line for line in lines if line[3] == "-" and line[1] != marker]
        if not len(keys) <= len(meant) <= len(keys) + aborted + near:
            wrong.append(f"the agent logged {len(meant)} requests, and {len(keys)} came out")
        expected = [routed(message) for message in allowed]
        if not is_part(keys, expected, aborted + answered + near):
            wrong.append(f"came out: {keys}, allowed: {expected}")
        if [one["key"] for one in understood] != keys:
            left = list(keys)
            for one in understood:
                if one["key"] not in left:
                    wrong.append(f"the upstream understood {one['key']}, which did not come out: {keys}")
                    break
                left.remove(one["key"])
            if len(left) > len(refused):
                wrong.append(f"the upstream understood {len(understood)} requests and refused {len(refused)} of {keys}")
        for one in understood:
            _, length, coding = one["framing"]
            if length and coding:
                wrong.append(f"two framings: {one}")
        return keys, len(refused), aborted

    def recorded(self, wrong, marker):
        keys, aborted = [], 0
        events = self.tunnel.hop.events
        while self.hop < len(events):
            what, wire, *more = events[self.hop]
            self.hop += 1
            if what == "request" and more[0].start[1] != marker:
                keys.append(more[0].key())
            elif what == "cut":
                aborted += 1
            elif what == "bad":
                wrong.append(f"to the upstream on connection {wire.number}: {more[0]}: {more[1][:300]!r}")
        return keys, aborted

    def recorded_on_link(self, wrong):
        events = self.tunnel.link.events
        while self.link < len(events):
            what, wire, *more = events[self.link]
            self.link += 1
            if what == "bad":
                wrong.append(f"down link {wire.number}: {more[0]}: {more[1][:300]!r}")


def run_lane(upstream, options, pipe):
    """A process of its own: results go home one by one."""
    try:
        with Tunnel(options.programs, upstream, options.dialect) as tunnel:
            lane = Lane(tunnel)
            for given in inputs(options.fixtures, options.seed, options.count):
                if options.only and options.only not in given.name:
                    continue
                try:
                    outcome = lane.feed(given)
                except Exception as error:
                    tunnel.check_alive()
                    outcome = Outcome([], 0, [f"{type(error).__name__}: {error}"], 0, [])
                pipe.send(outcome)
            pipe.send(("upstream connections", tunnel.hop.connections, tunnel.link.connections if tunnel.link else 0))
    except Exception:
        pipe.send(traceback.format_exc())
    finally:
        pipe.close()


def play(options, checks):
    lanes = {}
    for upstream in ALL:
        if not upstream.program():
            checks.skip(upstream.name, "it is not installed")
            continue
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.Process(target=run_lane, args=(upstream, options, theirs))
        process.start()
        theirs.close()
        lanes[upstream.name] = (process, ours)
    if len(lanes) < 2:
        return checks.fail("there are not two upstreams to compare")
    start = time.monotonic()
    fed = came_out = allowed = 0
    totals = {name: collections.Counter() for name in lanes}
    codes = collections.Counter()
    for given in inputs(options.fixtures, options.seed, options.count):
        if options.only and options.only not in given.name:
            continue
        outcomes = {name: pipe.recv() for name, (_, pipe) in lanes.items()}
        lost = {name: outcome for name, outcome in outcomes.items() if not isinstance(outcome, Outcome)}
        if lost:
            return checks.fail(f"{lost}")
        fed += 1
        wrong = [f"{name}: {what}" for name, outcome in outcomes.items() for what in outcome.wrong]
        keys = [outcome.keys for outcome in outcomes.values()]
        # What one upstream refuses by its head alone breaks off there only; and what is answered on the way before it is
        # whole ends the connection there, or not, as it comes.
        broken_off = {outcome.aborted for outcome in outcomes.values()}
        alike = len(broken_off) == 1 and b"max-forwards" not in given.data.lower()
        if any(key != keys[0] for key in keys) and alike and not given.closes:
            wrong.append(f"the lanes differ: {dict(zip(outcomes, keys))}")
        for name, outcome in outcomes.items():
            totals[name].update(
                out=len(outcome.keys), refused=outcome.refused, aborted=outcome.aborted, inputs=bool(outcome.keys)
            )
        came_out += len(keys[0])
        allowed += len(strict.requests(given.data)[0])
        codes.update(next(iter(outcomes.values())).codes)
        # Not every dialect can carry all of them, and those that can't say so.
        limited = any("dialect-limit" in outcome.codes for outcome in outcomes.values())
        if given.name.startswith("valid ") and not keys[0] and not limited and b"Max-Forwards" not in given.data:
            wrong.append(f"a valid request did not come out: {outcomes}")
        if wrong:
            checks.fail(f"{given.name}: {given.data[:1000]!r}{' and its end' * given.closes}: " + "; ".join(wrong))
        else:
            checks.succeed()
    for name, (process, pipe) in lanes.items():
        end = pipe.recv()
        process.join()
        total = totals[name]
        checks.say(
            f"        {name}: {total['out']} requests came out of {total['inputs']} inputs, {total['aborted']} were "
            f"broken off before their end, {total['refused']} of all refused there; {end[1]} connections, "
            f"{end[2]} links"
        )
    checks.say(
        f"        {fed} inputs, of which a strict reading makes {allowed} requests; {came_out} came out "
        f"({time.monotonic() - start:.0f} s); answers: {', '.join(f'{code} {n}' for code, n in codes.most_common())}"
    )

