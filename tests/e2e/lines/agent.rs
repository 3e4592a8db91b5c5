//! An agent behind links of bare bytes: it runs the requests of a line at once, and answers in their order or sets aside.

mod aside;
mod turns;

use std::net::TcpListener;
use std::sync::Arc;

use super::Gate;
use crate::support::link::SWITCH_LINES;
use crate::support::upstream::{After, Asked, Upstream};
use crate::support::wire::{Wire, ok};
use crate::support::{Program, agent_command, eventually, locked};

/// An upstream that answers with the target; of those that begin with `/slow`, when it is told to.
struct Slow {
    upstream: Upstream,
    gate: Arc<Gate>,
}

impl Slow {
    fn start() -> Slow {
        Slow::start_with(|_, _| false)
    }

    /// One that does with some requests what `does` says.
    fn start_with(does: impl Fn(&mut Asked<'_>, &Gate) -> bool + Send + Sync + 'static) -> Slow {
        let gate = Arc::new(Gate::default());
        let told = Arc::clone(&gate);
        let upstream = Upstream::start(move |asked| {
            asked.body();
            if does(asked, &told) {
                return After::Close;
            }
            let target = asked.head.target().to_owned();
            if target.starts_with("/slow") {
                told.wait(&target);
            }
            let sent = asked.wire.try_send(ok(&target));
            locked(&told.answered).push(target);
            if sent.is_ok() { After::Keep } else { After::Close }
        });
        Slow { upstream, gate }
    }

    fn let_go(&self, target: &str) {
        self.gate.open(target);
    }

    /// How often this was asked for.
    fn asked(&self, target: &str) -> usize {
        self.upstream.requests().iter().filter(|head| head.target() == target).count()
    }

    fn wait_for_asked(&self, target: &str) {
        eventually("a request at the upstream", || (self.asked(target) > 0).then_some(()));
    }

    fn wait_for_answered(&self, target: &str) {
        let answered = || locked(&self.gate.answered).iter().any(|answered| answered == target).then_some(());
        eventually("an answer of the upstream", answered);
    }
}

/// A relay of bare bytes, and an agent that dials it.
struct ByHand {
    listener: TcpListener,
    agent: Program,
}

fn by_hand(upstream: &Upstream, args: &[&str]) -> ByHand {
    by_hand_with("2..4", upstream, args)
}

/// The same with so many links.
fn by_hand_with(links: &str, upstream: &Upstream, args: &[&str]) -> ByHand {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let via = format!("http://{}", listener.local_addr().unwrap());
    let mut command = agent_command(&[&upstream.address(), "--via", &via, "--links", links, "-v"]);
    let agent = Program::start(command.args(args));
    ByHand { listener, agent }
}

impl ByHand {
    /// The agent's next connection, turned.
    fn link(&self) -> Wire {
        let mut wire = Wire::new(self.listener.accept().unwrap().0);
        assert_eq!(wire.request_head().unwrap().unwrap().0.start, "POST / HTTP/1.1");
        wire.send(SWITCH_LINES);
        wire
    }
}

/// A request that others may follow, and that may follow others.
fn in_line(method: &str, target: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: demo\r\nPtth-Accept: aside\r\n\r\n")
}

/// GETs of these, in a line.
fn gets_in_line(targets: &[&str]) -> String {
    targets.iter().map(|target| in_line("GET", target)).collect()
}

/// Reads an answer, which says what it is the answer to.
fn answer_to(link: &mut Wire, target: &str) {
    let answer = link.response("GET");
    assert_eq!((answer.text().as_str(), answer.interim.len()), (target, 0));
}
