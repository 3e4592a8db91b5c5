//! Relay and agents of ours under a mixed load: each of many visitors has its own answer, and the upstream is asked once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::Gate;
use crate::support::random::Random;
use crate::support::upstream::{After, Asked, Upstream};
use crate::support::wire::{Wire, get, ok, post};
use crate::support::{Agent, Relay, eventually};

/// Visitors of the mixed load, and how often each asks.
const VISITORS: usize = 64;
const ASKED: usize = 60;

/// What a visitor of the mixed load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Small,
    Head,
    Large,
    /// Its answer comes when others have theirs.
    Slow,
    /// Of its answer the second half is made when the visitor has the first.
    Streaming,
    Post,
    /// It does not wait for the answer.
    Leaving,
}

impl Kind {
    fn random(random: &mut Random) -> Kind {
        match random.below(100) {
            0 => Kind::Large,
            1 => Kind::Slow,
            2 => Kind::Streaming,
            3..8 => Kind::Post,
            8..10 => Kind::Leaving,
            10..20 => Kind::Head,
            _ => Kind::Small,
        }
    }

    fn target(self, number: usize) -> String {
        format!("/{self:?}/{number}")
    }
}

/// What upstreams and visitors of the mixed load know of each other.
#[derive(Default)]
struct Mixed {
    answered: AtomicUsize,
    /// A visitor has gone home: there may be nobody to wait for.
    is_closing: AtomicBool,
    gate: Gate,
}

impl Mixed {
    fn serve(&self, asked: &mut Asked<'_>) -> After {
        let Some(body) = asked.body() else { return After::Close };
        let target = asked.head.target().to_owned();
        let before = self.answered.fetch_add(1, Ordering::Relaxed);
        let answer = match target.split('/').nth(1) {
            Some("Head") => format!("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nX-Target: {target}\r\n\r\n"),
            Some("Large") => ok(&(target.clone() + &"x".repeat(100_000))),
            Some("Slow") => {
                let others = || self.answered.load(Ordering::Relaxed) > before + 30;
                eventually("others", || (others() || self.is_closing.load(Ordering::Relaxed)).then_some(()));
                ok(&target)
            }
            Some("Streaming") => {
                let _ = asked.wire.try_send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n");
                self.gate.wait(&target);
                format!("{:x}\r\n{target}\r\n0\r\n\r\n", target.len())
            }
            _ => ok(&(target.clone() + &String::from_utf8_lossy(&body))),
        };
        if asked.wire.try_send(answer).is_ok() { After::Keep } else { After::Close }
    }

    fn visit(&self, visitor: &mut Wire, kind: Kind, target: &str) {
        let asked = get("demo", target);
        match kind {
            Kind::Head => {
                let answer = visitor.send(asked.replace("GET", "HEAD")).response("HEAD");
                assert_eq!(answer.head.get("X-Target"), Some(target));
            }
            Kind::Post => {
                let answer = visitor.send(post("demo", target, "an order")).response("POST");
                assert_eq!(answer.text(), format!("{target}an order"));
            }
            Kind::Streaming => {
                assert_eq!(visitor.send(asked).response_head("GET").unwrap().0.status(), 200);
                assert_eq!(visitor.body(5), b"begun");
                self.gate.open(target);
                assert_eq!(visitor.body(target.len()), target.as_bytes());
                visitor.rest(&mut Vec::new()).unwrap();
            }
            Kind::Small | Kind::Large | Kind::Slow => {
                let answer = visitor.send(asked).response("GET");
                assert!(answer.text().starts_with(target), "{target}: {}", answer.text());
            }
            Kind::Leaving => drop(visitor.send(asked)),
        }
    }
}

fn a_mixed_load(agents: usize, flags: &[&str]) {
    let seed = Random::seed();
    eprintln!("PTTH_TEST_SEED={seed}");
    let mut random = Random::seeded(seed);
    let mixed = Arc::new(Mixed::default());
    let upstreams: Vec<Upstream> = (0..agents)
        .map(|_| {
            let mixed = Arc::clone(&mixed);
            Upstream::start(move |asked| mixed.serve(asked))
        })
        .collect();
    let relay = Relay::start(&[&["--timeout", "link=60s"], flags].concat());
    let start = |upstream: &Upstream| Agent::start(&relay, "demo", &upstream.address(), &["-v"]);
    let agents: Vec<Agent> = upstreams.iter().map(start).collect();
    let visitors: Vec<_> = (0..VISITORS)
        .map(|number| {
            let kinds: Vec<Kind> = (0..ASKED).map(|_| Kind::random(&mut random)).collect();
            let (mixed, port) = (Arc::clone(&mixed), relay.port);
            thread::spawn(move || {
                let mut visitor = Wire::connect(port);
                for (at, kind) in kinds.iter().enumerate() {
                    mixed.visit(&mut visitor, *kind, &kind.target(number * ASKED + at));
                    if *kind == Kind::Leaving {
                        visitor = Wire::connect(port);
                    }
                }
                mixed.is_closing.store(true, Ordering::Relaxed);
                kinds
            })
        })
        .collect();
    let kinds: Vec<Kind> = visitors.into_iter().flat_map(|visitor| visitor.join().unwrap()).collect();

    let mut asked: Vec<String> = Vec::new();
    for upstream in &upstreams {
        asked.extend(upstream.requests().iter().map(|head| head.target().to_owned()));
    }
    for (number, kind) in kinds.into_iter().enumerate() {
        let times = asked.iter().filter(|target| **target == kind.target(number)).count();
        assert!(times == 1 || times == 0 && kind == Kind::Leaving, "{}: {times} times", kind.target(number));
    }
    // Or it was not what it is to show.
    assert!(agents.iter().any(|agent| agent.log().count("its answer was set aside") > 0));
    for agent in &agents {
        assert_eq!(agent.log().count("warning"), 0);
    }
}

#[test]
fn each_of_many_has_its_own_answer_and_the_upstream_is_asked_once() {
    a_mixed_load(1, &[]);
}

#[test]
fn each_of_many_has_its_own_answer_from_one_of_two_agents() {
    a_mixed_load(2, &[]);
}

#[test]
fn each_of_many_has_its_own_answer_through_several_workers() {
    a_mixed_load(2, &["--workers", "2"]);
}
