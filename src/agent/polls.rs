//! An agent whose relay does not turn connections: it polls. What a poll brings is said at the far end of a pipe; the bridge has
//! the near end, as it has a link's, and knows nothing of polls. What the upstream answers comes back through the pipe and is
//! sent to the relay: in COMET with the next poll, all at once; in the `ptth` dialect as a request of its own, as it comes.
//!
//! ```text
//!   relay ──▶ poll's answer ──▶ far ═pipe═ near ──▶ bridge ──▶ upstream
//!   relay ◀── next request ◀─── far ═pipe═ near ◀── bridge ◀── upstream
//! ```
//!
//! A connection that polls is a *line*. It takes the place of a link in [`links`](super::links): idle while its poll is out,
//! busy while what it brought is being answered.
//!
//! This file has what is remembered of lines, requests and answers, and who is lost, gone, or told to stop. The rest is in `lines.rs`
//! (connections that poll), `jobs.rs` (requests, from the pipe to the upstream and back) and `answers.rs` (the way of those that do not
//! go with a poll).

mod answers;
mod jobs;
mod lines;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use mio::Token;
use ptth_proto::limits::Wait;
use ptth_proto::time::Instant;
use ptth_proto::wire::comet::{Notation, Style};
use ptth_proto::wire::head::Head;
use ptth_proto::wire::packed::Form;

use super::links::Size;
use super::{Agent, Ended, plain};
use crate::answer::{Answer, Code};
use crate::peer::{NO_KEY, Peer};
use crate::reactor::{Core, Loss};

/// Keys of peers of ours that are no lines; those of lines are places in [`Links`](super::links::Links).
pub(super) const FAR: usize = usize::MAX - 3;
pub(super) const ANSWER: usize = usize::MAX - 4;
/// The key of the near end of a pipe that belongs to no line.
const JOB: usize = usize::MAX - 5;

/// The stock relay has one poll of an agent at a time: a second one ends the first.
pub(super) const ONE: Size = Size { spare: 1, most: 1 };

/// How the agent reaches its relay at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By connections that are turned.
    Flip,
    /// By polls, with messages of COMET.
    Comet,
    /// By polls, with messages of the `ptth` dialect.
    Packed,
}

/// What a line is doing.
#[derive(Debug)]
enum Doing {
    /// Its poll is out.
    Polling(Came),
    /// What it brought is being answered.
    Serving,
    /// It waits until then before it polls again.
    Resting(Instant),
    /// It polls again as soon as one of the requests that are being answered is over: there are as many as there may be.
    Full,
}

/// What has come of an answer to a poll.
#[derive(Debug, Default)]
struct Came {
    status: u16,
    body: Vec<u8>,
    /// The relay is one of ours, and has said what it understands.
    ours: bool,
}

/// A connection that polls.
#[derive(Debug)]
struct Line {
    /// It is closed between two polls by relays that don't keep connections.
    conn: Option<Token>,
    address: SocketAddr,
    doing: Doing,
    /// The far end of its pipe.
    far: Option<Token>,
    /// An answer that the relay has not taken note of yet.
    reply: Option<Vec<u8>>,
    /// That answer was sent a second time.
    again: bool,
    /// Its first poll, which is not to be held: it asks whether the relay will have us.
    first: bool,
    /// It was to be turned, and its offer was answered like a poll.
    offered: bool,
    /// No other poll follows.
    last: bool,
    /// Its last polls that came back at once with nothing.
    unheld: u32,
    /// Our side of its connection ends as soon as the poll is sent.
    leaving: bool,
    since: Instant,
}

impl Line {
    /// One that has not polled yet.
    fn new(address: SocketAddr, now: Instant) -> Line {
        Line {
            conn: None,
            address,
            doing: Doing::Resting(now),
            far: None,
            reply: None,
            again: false,
            first: true,
            offered: false,
            last: false,
            unheld: 0,
            leaving: false,
            since: now,
        }
    }
}

/// A request that a poll has brought, by the far end of its pipe.
#[derive(Debug)]
struct Job {
    id: String,
    /// Whose it is; `None` in the `ptth` dialect, where answers go ways of their own.
    line: Option<usize>,
    near: Token,
    style: Style,
    form: Form,
    /// The response's head, once it is there.
    head: Option<Head>,
    body: Vec<u8>,
    /// Where the answer goes.
    to: Option<Token>,
    /// How much had been written there before it.
    before: u64,
}

/// All that belongs to polling.
#[derive(Debug)]
pub(super) struct Polls {
    lines: HashMap<usize, Line>,
    jobs: HashMap<Token, Job>,
    /// Connections that answers go out on, with the far end of the pipe that they come from, or nothing behind their end.
    answers: HashMap<Token, Option<Token>>,
    idle: Vec<Token>,
    spare: Vec<Token>,
    form: Form,
    notation: Notation,
    base64: bool,
    /// The link that is to show whether the upgrade can be had again.
    pub(super) attempt: Option<usize>,
    /// Where the last line went: answers go there too, also when no line stands.
    address: Option<SocketAddr>,
    said: HashSet<u16>,
    said_fields: bool,
}

impl Default for Polls {
    fn default() -> Self {
        Polls {
            lines: HashMap::new(),
            jobs: HashMap::new(),
            answers: HashMap::new(),
            idle: Vec::new(),
            spare: Vec::new(),
            form: Form::Stock,
            notation: Notation::Json,
            base64: false,
            attempt: None,
            address: None,
            said: HashSet::new(),
            said_fields: false,
        }
    }
}

impl Polls {
    /// Whether this place in the links is a line.
    pub(super) fn is_line(&self, link: usize) -> bool {
        self.lines.contains_key(&link)
    }

    /// Where the lines go.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Whether an answer is still on its way, or a request that the relay had sent before it could know that none is wanted.
    pub(super) fn is_owed(&self) -> bool {
        !self.jobs.is_empty() || !self.answers.is_empty() || self.lines.values().any(|line| line.last)
    }
}

impl Agent {
    /// A peer that belongs to polling was lost.
    pub(super) fn lost_polling(&mut self, core: &mut Core, token: Token, key: usize, loss: Loss) {
        match key {
            FAR if self.polls.jobs.contains_key(&token) => {
                let text = format!(
                    "The agent `{}` is connected, but its upstream {} had not answered when the relay's patience was over \
                     (--timeout link-answer). Where answers are sent as messages, they have to be whole by then.",
                    self.name,
                    self.upstream.target()
                );
                self.answer_alone(core, token, &Answer::new(Code::UPSTREAM_TIMEOUT, text));
            }
            FAR => core.drop_peer(token),
            ANSWER => self.answer_lost(core, token),
            link => match loss {
                Loss::Late(Wait::Linger) => self.end_line(core, link),
                // As long as nobody else's patience ends there is nothing wrong with a poll that is held.
                Loss::Late(Wait::Answer) => {
                    forget(core, token);
                    self.poll_or_lose(core, link);
                }
                Loss::Io(error) | Loss::Deaf(error) => {
                    let reason = format!("can't reach the relay {}: {}", self.via.url, plain(&error));
                    self.poll_failed(core, link, Ended::Unreachable, &reason);
                }
                Loss::Late(wait) => {
                    let reason = format!("the relay {} was silent for too long ({})", self.via.url, wait.name());
                    self.poll_failed(core, link, Ended::Unreachable, &reason);
                }
            },
        }
    }

    /// No new work: polls that are out end. The relay may be answering one in this moment, so that only our side of its
    /// connection is closed: what still comes is served.
    pub(super) fn stop_polling(&mut self, core: &mut Core) {
        let mut unused = Vec::new();
        for (link, line) in &mut self.polls.lines {
            line.last = true;
            let peer = line.conn.and_then(|conn| core.peer(conn));
            match (&line.doing, peer) {
                (Doing::Serving, _) => {}
                (Doing::Polling(_), Some(peer)) if line.reply.is_some() || !peer.is_connecting() => {
                    line.leaving = true;
                    peer.fed = true;
                    line.conn.inspect(|conn| core.touch(*conn));
                }
                _ => unused.push(*link),
            }
        }
        for link in unused {
            self.end_line(core, link);
        }
    }

    /// A peer that belongs to polling is out of the table.
    pub(super) fn polling_gone(&mut self, core: &mut Core, token: Token, peer: &Peer) {
        match peer.key {
            link if self.polls.is_line(link) => {
                let Some(line) = self.polls.lines.get_mut(&link).filter(|line| line.conn == Some(token)) else {
                    return;
                };
                line.conn = None;
                if let Doing::Polling(_) = line.doing {
                    let reason = format!("the relay {} has closed the connection", self.via.url);
                    self.poll_failed(core, link, Ended::Refused, &reason);
                }
            }
            FAR => {
                self.polls.spare.retain(|far| *far != token);
                if self.polls.jobs.remove(&token).is_some() {
                    self.job_is_over(core);
                }
            }
            ANSWER => {
                self.polls.idle.retain(|idle| *idle != token);
                self.polls.answers.remove(&token);
            }
            _ => {}
        }
    }
}

/// Drops a connection of which nothing more is to be heard.
fn forget(core: &mut Core, token: Token) {
    if let Some(peer) = core.peer(token) {
        peer.key = NO_KEY;
    }
    core.drop_peer(token);
}
