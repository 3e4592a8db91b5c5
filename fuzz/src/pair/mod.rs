//! Visitors, a relay, an agent and its upstream, joined by wires that deliver what and when they are told: any order of
//! requests and answers in parts, of deliveries and turns, of deadlines and faults.
//!
//! What must hold: an upstream hears each request as it was said, none twice unless that is harmless, and nothing else; each
//! visitor hears the answers to its own requests, in their order and as they were said, or that they failed; as long as
//! nothing goes wrong all of them; no call of a machine is refused; and nothing waits that could go on.

mod bridge;
mod people;
mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use ptth_proto::conn::Config;
use ptth_proto::limits::{Limits, Wait};
use ptth_proto::time::Instant;

use crate::sound;
use bridge::{Exchange, Program};
use people::{Serving, Story, Visitor};
use wire::{At, End, Incoming, Kind, Life, Seat, Wire};

/// What relay and agent answer by themselves.
const PAGE: &[u8] = b"sorry\n";

const VISITORS: usize = 3;
/// Links at a time.
const LINKS: usize = 3;
/// Connections that one run may open: enough to come to everything, and few enough to be quick.
const WIRES: usize = 24;

/// How many operations there are.
pub(crate) const OPERATIONS: u8 = 22;
/// Those of them by which nothing can go wrong.
#[cfg(test)]
pub(crate) const FAIR: u8 = 19;

const JUNK: [&[u8]; 8] = [
    b"\r\n",
    b"0\r\n\r\n",
    b"x",
    b"GET /junk HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /junk HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /again HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n",
    b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 304 \r\n\r\n",
];

/// Whether this time passes although all is well.
fn is_fair(wait: Wait) -> bool {
    matches!(wait, Wait::Linger | Wait::Ping)
}

/// The whole of it.
#[derive(Debug)]
struct World {
    wires: Vec<Wire>,
    exchanges: Vec<Option<Exchange>>,
    visitors: [Visitor; VISITORS],
    serving: BTreeMap<usize, Serving>,
    stories: Vec<Story>,
    /// Nothing has gone wrong so far.
    fair: bool,
    /// An upstream has said what it was not asked: one that is asked in that moment is taken to have answered so.
    junk: bool,
    now: Instant,
    config: Config,
}

/// Each three bytes are an operation, whose it is, and how much.
pub fn pair(data: &[u8]) {
    let limits = Limits { buffer: 300, ..Limits::default() };
    let mut world = World {
        wires: Vec::new(),
        exchanges: Vec::new(),
        visitors: Default::default(),
        serving: BTreeMap::new(),
        stories: Vec::new(),
        fair: true,
        junk: false,
        now: Instant::default(),
        config: Config { limits, ..Config::default() },
    };
    world.dial(true);
    world.visit(0);
    for op in data.chunks_exact(3) {
        world.operate(op[0], op[1], op[2]);
        world.check();
    }
    world.finish();
}

impl World {
    fn operate(&mut self, what: u8, which: u8, arg: u8) {
        self.now = self.now + Duration::from_millis(1);
        let who = usize::from(which) % VISITORS;
        let upstreams: Vec<usize> = self.live(Kind::Upstream);
        let upstream = upstreams.get(usize::from(which) % upstreams.len().max(1)).copied();
        match (what % OPERATIONS, upstream) {
            (0, _) if self.wires.len() < WIRES && arg < 0x40 => self.visit_service(who),
            (0, _) if self.wires.len() < WIRES => self.visit(who),
            (1, _) if self.wires.len() < WIRES && self.count(Kind::Link) < LINKS => self.dial(which & 1 == 1),
            (2 | 3, _) => self.ask_as(who, which, arg),
            (4, _) => self.say_as(who, u64::from(arg) * 4),
            (5, _) => self.end_as(who, arg & 1 == 1),
            (6, Some(upstream)) => self.inform_at(upstream),
            (7 | 8, Some(upstream)) => self.respond_at(upstream, arg, which),
            (9, Some(upstream)) => self.say_at(upstream, u64::from(arg) * 4),
            (10, Some(upstream)) => self.end_at(upstream, arg & 1 == 1),
            (11 | 12, _) => {
                let live: Vec<usize> = (0..self.wires.len()).filter(|wire| !self.wires[*wire].is_over()).collect();
                let wire = live.get(usize::from(which >> 1) % live.len().max(1)).copied();
                if let Some(wire) = wire {
                    self.carry((wire, usize::from(which & 1)), usize::from(arg));
                }
            }
            (13, _) => drop(self.turn(Program::Relay)),
            (14, _) => drop(self.turn(Program::Agent)),
            (15 | 16, _) => drop(self.sweep()),
            (17, _) => {
                let links = self.live(Kind::Link);
                if let Some(link) = links.get(usize::from(which) % links.len().max(1)) {
                    self.ping((*link, 1));
                }
            }
            (18, _) => {
                let links = self.live(Kind::Link);
                let ours = |link: &&usize| self.wires[**link].ends[0].conn.is_ours();
                let link = links.iter().filter(ours).nth(usize::from(which) % links.len().max(1)).copied();
                if let Some(link) = link {
                    self.leave((link, 0));
                }
            }
            (19, _) if which & 1 == 0 => {
                if let Some((when, at)) = self.next_deadline() {
                    self.expire(when, at);
                }
            }
            (20, _) => self.go_wrong(which, arg),
            (21, Some(upstream)) if which & 1 == 1 => self.foul_at(upstream, JUNK[usize::from(arg) % JUNK.len()]),
            (21, _) if which > 0x80 => self.foul_as(who, JUNK[usize::from(arg) % JUNK.len()]),
            _ => {}
        }
    }

    fn live(&self, kind: Kind) -> Vec<usize> {
        (0..self.wires.len()).filter(|wire| self.wires[*wire].kind == kind && !self.wires[*wire].is_over()).collect()
    }

    /// Bytes of an end reach the other one; visitors and upstreams take them in at once.
    fn carry(&mut self, (wire, from): At, most: usize) -> bool {
        let mut happened = self.wires[wire].flush(from, self.now);
        happened |= self.wires[wire].deliver(from, most);
        match (self.wires[wire].kind, from) {
            (Kind::Visit | Kind::Service, 1) => {
                if let Some(who) = self.visitors.iter().position(|visitor| visitor.wire == Some(wire)) {
                    happened |= self.hear_as(who);
                }
            }
            (Kind::Upstream, 0) => happened |= self.hear_at(wire),
            _ => {}
        }
        happened
    }

    /// Everything once.
    fn sweep(&mut self) -> bool {
        let mut happened = false;
        for wire in 0..self.wires.len() {
            for from in [0, 1] {
                happened |= self.carry((wire, from), usize::MAX);
            }
        }
        happened |= self.turn(Program::Relay);
        happened |= self.turn(Program::Agent);
        happened
    }

    fn next_deadline(&self) -> Option<(Instant, (At, Wait))> {
        let ends = (0..self.wires.len()).flat_map(|wire| [(wire, 0), (wire, 1)]);
        let ours = ends.filter(|(wire, side)| !self.wires[*wire].ends[*side].is_dead());
        let deadlines = ours.filter_map(|at| {
            let wire = &self.wires[at.0];
            Program::at(wire.kind, at.1)?;
            self.deadline(at).map(|(when, wait)| (when, (at, wait)))
        });
        deadlines.min_by_key(|(when, _)| *when)
    }

    fn expire(&mut self, when: Instant, (at, wait): (At, Wait)) {
        self.now = self.now.max(when);
        self.fair &= is_fair(wait);
        self.late(at, wait);
    }

    /// Faults, and closing that a peer may not have expected.
    fn go_wrong(&mut self, which: u8, arg: u8) {
        let wire = usize::from(arg) % self.wires.len();
        let now = self.now;
        let Wire { kind, ends, .. } = &mut self.wires[wire];
        match which % 8 {
            0 => self.wires[wire].reset(),
            2 if *kind == Kind::Upstream => self.close_at(wire),
            // In a tunnel nobody can tell a connection that is closed from one whose direction has ended.
            1..=3 if ends.iter().any(|end| end.conn.is_tunnel()) => self.wires[wire].reset(),
            // A program closes nothing that is part of an exchange, but as that ends.
            side @ (1 | 2) if !matches!(ends[usize::from(side) - 1].seat, Seat::Exchange(_)) => {
                ends[usize::from(side) - 1].conn.close(now);
            }
            // Half closed: it has said its last, and still listens.
            3 if *kind == Kind::Visit && ends[0].life == Life::Open => ends[0].life = Life::Half,
            side @ (4 | 5) => ends[usize::from(side) - 4].conn.do_not_keep(),
            _ => return,
        }
        self.fair = false;
    }

    fn check(&self) {
        for end in self.wires.iter().flat_map(|wire| &wire.ends).filter(|end| end.life == Life::Open) {
            if end.incoming == Incoming::Open {
                sound(&end.conn, &self.config);
            }
        }
    }

    /// What is still there, for whom it may concern.
    fn show(&self) -> String {
        let mut text = String::new();
        for (number, wire) in self.wires.iter().enumerate().filter(|(_, wire)| !wire.is_over()) {
            text += &format!("\n{number} {:?} {:?}", wire.kind, self.serving.get(&number));
            for End { conn, seat, life, incoming, input, out, .. } in &wire.ends {
                let (input, out) = (input.escape_ascii(), out.escape_ascii());
                text += &format!("\n  {seat:?} {life:?} {incoming:?} in `{input}` out `{out}` {conn:?}");
            }
        }
        text + &format!("\n{:?}\n{:?}\n{:?}", self.exchanges, self.visitors, self.stories)
    }

    fn is_settled(&self) -> bool {
        self.exchanges.iter().all(Option::is_none) && self.visitors.iter().all(|visitor| visitor.asked.is_empty())
    }

    /// Everybody says the rest of what was begun, and everything arrives.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            let mut happened = self.sweep();
            for who in 0..VISITORS {
                happened |= self.complete_as(who);
            }
            for wire in self.live(Kind::Upstream) {
                happened |= self.complete_at(wire);
            }
            self.check();
            if happened {
                continue;
            }
            if self.is_settled() {
                let all = self.stories.iter().all(|story| story.answered);
                return assert!(all || !self.fair, "a request was lost: {}", self.show());
            }
            if self.count(Kind::Link) == 0 {
                self.dial(true);
                continue;
            }
            let next = self.next_deadline();
            let Some((when, which)) = next else { panic!("it hangs: {}", self.show()) };
            assert!(is_fair(which.1) || !self.fair, "{which:?} although nothing went wrong: {}", self.show());
            self.expire(when, which);
        }
        panic!("it never ends: {}", self.show());
    }
}
