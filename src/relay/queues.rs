//! Agents that poll. A request to a tunnel without a flipped link goes out as a message: it answers an agent's poll, and its
//! answer comes as a request of that agent's, maybe on another connection. The bridge knows nothing of that: to it, the near end
//! of a pipe is a link like any other. What is said at the far end is made into messages here, and the answers are said there.
//!
//! ```text
//!   visitor ──▶ bridge ──▶ near ═pipe═ far ──▶ message ──▶ poll's answer ──▶ agent
//!   visitor ◀── bridge ◀── near ═pipe═ far ◀────────── answer's request ◀── agent
//! ```
//!
//! What waits for what, and until when, is settled by [`ptth_proto::link::queue`]; how messages are written by
//! [`ptth_proto::wire::comet`] and [`ptth_proto::wire::packed`].
//!
//! This file has what is remembered of polls, messages and answers, which requests are an agent's, and whose time is over. The rest is
//! in `polls.rs` (who holds one), `letters.rs` (requests, on their way out) and `answers.rs`.

mod answers;
mod letters;
mod polls;

use std::collections::HashMap;
use std::time::Duration;

use mio::Token;
use ptth_proto::conn::Body;
use ptth_proto::http::framing::Framing;
use ptth_proto::limits::Wait;
use ptth_proto::link::queue::{Due, Id, Outstanding, Queue, Unwanted};
use ptth_proto::time::Instant;
use ptth_proto::wire::comet::{Notation, Style};
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::Head;
use ptth_proto::wire::packed::Form;

use super::Relay;
use super::agents::KeyHash;
use super::route::{Means, means};
use crate::answer::{Answer, Code};
use crate::bridge::{Claim, Order, answer_early, respond, stopping};
use crate::net::name::TunnelName;
use crate::peer::{NO_KEY, Peer, Seat};
use crate::reactor::{Core, Loss, Message};

/// Keys of the relay's own peers that are no links; those of links are their tunnels.
pub(super) const POLL: usize = usize::MAX - 1;
pub(super) const COMING: usize = usize::MAX - 2;
pub(super) const NEAR: usize = usize::MAX - 3;
pub(super) const FAR: usize = usize::MAX - 4;

/// Timer keys: a tunnel's own number is the timer of its going down, with this bit that of its polls and messages.
pub(super) const MAIL: usize = 1 << (usize::BITS - 2);
/// That of the messages that are out.
pub(super) const OUT: usize = 1 << (usize::BITS - 3);

/// How an agent's messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carriage {
    Comet(Style),
    Packed(Form),
}

impl Carriage {
    /// That of an agent that says so much of itself in this head.
    pub(super) fn comet(head: &Head) -> Carriage {
        let base64 = head.fields.lists(Name::PtthAccept, b"base64");
        Carriage::Comet(Style { notation: Notation::Json, base64 })
    }
}

/// An agent's request to be given messages, as it comes in. It names its tunnel: as long as it is not held, nobody keeps that
/// tunnel's place for it.
#[derive(Clone, Copy, Debug)]
struct Wish {
    name: TunnelName,
    carriage: Carriage,
    /// How its sender wrote what came with it.
    notation: Option<Notation>,
    who: Option<KeyHash>,
    hold: Duration,
}

/// One that is held.
#[derive(Clone, Copy, Debug)]
struct Poll {
    tunnel: usize,
    carriage: Carriage,
    /// Whose it is: only this agent may answer what it gets.
    who: Option<KeyHash>,
    until: Instant,
}

/// The polls and messages of a tunnel.
#[derive(Debug, Default)]
pub(super) struct Mail {
    queue: Queue<Token, Token>,
    /// The earliest timer that will look at the queue.
    armed: Option<Instant>,
    /// Messages that live, wherever they are.
    messages: usize,
    /// Bytes of them.
    bytes: usize,
    /// An agent is there, and counts as a link.
    present: bool,
    /// How an agent of this tunnel last wrote a message: so is written to those that have not written anything yet.
    notation: Notation,
}

/// Where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There is none: the pipe waits for the next one.
    Spare,
    /// Its request is still coming.
    Coming,
    /// In its tunnel's queue.
    Ready,
    /// With an agent.
    Out(Id),
    /// Its answer is coming, on this connection if it isn't there as a whole.
    Answered(Option<Token>),
}

/// A request on its way to an agent, by the far end of its pipe.
#[derive(Debug)]
struct Letter {
    tunnel: usize,
    near: Token,
    stage: Stage,
    /// Its ids on connections that broke behind it: an agent that had read it answers by one of them, whoever else has it by now.
    earlier: Vec<Id>,
    head: Head,
    /// Its request has no body, so that nothing of one was used up.
    bodiless: bool,
    body: Vec<u8>,
    /// Bytes counted for it.
    bytes: usize,
}

/// What an agent sends, on its way in.
#[derive(Debug)]
enum Coming {
    /// A POST that is an agent's if its body is a message.
    Undecided(TunnelName, Framing, Box<Head>),
    /// An answer that has to be whole.
    Whole(Wish, Box<Head>, Vec<u8>, Charge),
    /// An answer whose body goes on at once, into this pipe.
    Stream(Token),
}

/// What of an answer that is coming counts for its tunnel. As long as there is any, it counts as one of the tunnel's messages, and
/// keeps its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Charge {
    None,
    Bytes(usize, usize),
}

/// All polls and messages of one worker.
#[derive(Debug)]
pub(super) struct Queues {
    polls: HashMap<Token, Poll>,
    letters: HashMap<Token, Letter>,
    coming: HashMap<Token, Coming>,
    /// What was written to a connection, each up to which byte of it.
    handed: HashMap<Token, Vec<(Id, u64)>>,
    out: Outstanding<Token, Option<KeyHash>>,
    out_armed: Option<Instant>,
    /// Far ends of pipes that are used again.
    spare: Vec<Token>,
    /// Bytes of all messages.
    bytes: usize,
    secrets: Secrets,
    scratch: Vec<u8>,
    /// It was said that query strings are left out.
    said_query: bool,
    stopping: bool,
}

impl Queues {
    pub(super) fn new(worker: usize, secrets: Secrets) -> Queues {
        Queues {
            polls: HashMap::new(),
            letters: HashMap::new(),
            coming: HashMap::new(),
            handed: HashMap::new(),
            // At most 64 workers.
            out: Outstanding::new(worker as u8),
            out_armed: None,
            spare: Vec::new(),
            bytes: 0,
            secrets,
            scratch: Vec::new(),
            said_query: false,
            stopping: false,
        }
    }

    /// Bytes of all messages.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether this connection was given a message that is not answered yet; its answer may come on it.
    pub(super) fn has_given(&self, token: Token) -> bool {
        self.handed.contains_key(&token)
    }
}

/// What nobody can guess: hashes under a key that is random and stays here.
pub(super) struct Secrets {
    key: [u8; blake3::KEY_LEN],
    count: u64,
}

impl Secrets {
    /// A new key.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub(super) fn new() -> Result<Secrets, String> {
        let mut key = [0; blake3::KEY_LEN];
        getrandom::fill(&mut key).map_err(|error| format!("the system gives no random numbers: {error}"))?;
        Ok(Secrets { key, count: 0 })
    }

    fn next(&mut self) -> [u8; 10] {
        self.count += 1;
        let hash = blake3::keyed_hash(&self.key, &self.count.to_le_bytes());
        let mut secret = [0; 10];
        secret.copy_from_slice(&hash.as_bytes()[..10]);
        secret
    }
}

/// Says nothing of the key.
impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(…)")
    }
}

/// An agent's request that another worker is to deal with.
#[derive(Debug)]
pub(super) struct Passed {
    framing: Framing,
    head: Head,
    /// It is known to be a poll of this tunnel.
    poll: Option<(TunnelName, Carriage)>,
}

impl Relay {
    /// Whether a request that came in on a front is an agent's. Takes it, if so.
    pub(super) fn claim_request(
        &mut self,
        core: &mut Core,
        token: Token,
        framing: Framing,
        orders: &mut Vec<Order>,
    ) -> Claim {
        self.has_had(core, token);
        match means(&core.head, framing, self.domain.as_bytes(), self.polling.prefix.as_bytes()) {
            Means::Visit => Claim::No,
            Means::BadName => Claim::Refuse(super::bad_name()),
            Means::Comet(name) => {
                let carriage = Carriage::comet(&core.head);
                self.polled(core, token, name, carriage, framing, orders)
            }
            Means::Listen(name) => {
                let full = core.head.fields.lists(Name::PtthAccept, b"full");
                let carriage = Carriage::Packed(if full { Form::Full } else { Form::Stock });
                self.polled(core, token, name, carriage, framing, orders)
            }
            Means::Respond(id) => match Id::parse(id) {
                Some(id) => self.responded(core, token, id, framing),
                None => Claim::Refuse(unknown(Unwanted::Unknown)),
            },
            Means::PerhapsComet(name) => {
                give_leave(core, token);
                let head = Box::new(std::mem::take(&mut core.head));
                self.take_in(core, token, Coming::Undecided(name, framing, head));
                Claim::Taken
            }
        }
    }

    /// Whether it has still to show whose the request is that comes on it.
    pub(super) fn is_undecided(&self, token: Token) -> bool {
        matches!(self.queues.coming.get(&token), Some(Coming::Undecided(..)))
    }

    /// Whoever asks again has had what it was sent, unless it asks ahead.
    pub(super) fn has_had(&mut self, core: &mut Core, token: Token) {
        if let Some(handed) = self.queues.handed.get_mut(&token) {
            let written = core.peer(token).map_or(0, |peer| peer.written);
            handed.retain(|(_, end)| *end > written);
            if handed.is_empty() {
                self.queues.handed.remove(&token);
            }
        }
    }

    /// A connection whose request is ours and still coming.
    fn take_in(&mut self, core: &mut Core, token: Token, coming: Coming) {
        if let Some(peer) = core.peer(token) {
            peer.seat = Seat::Own;
            peer.key = COMING;
            self.queues.coming.insert(token, coming);
            core.step_again(token);
        }
    }

    /// Hands an agent's request to the worker whose it is.
    fn pass(
        &self,
        core: &mut Core,
        token: Token,
        worker: usize,
        framing: Framing,
        poll: Option<(TunnelName, Carriage)>,
    ) -> Claim {
        let head = std::mem::take(&mut core.head);
        if let (Some(mailbox), Some(peer)) = (self.workers.mailbox(worker), core.detach(token)) {
            mailbox.send(Message::Handed(peer, Box::new(Passed { framing, head, poll })));
        }
        Claim::Taken
    }

    /// Takes over such a request.
    pub(super) fn passed(&mut self, core: &mut Core, peer: Box<Peer>, passed: Passed, orders: &mut Vec<Order>) {
        let Ok(token) = core.adopt(peer) else { return };
        let Passed { framing, head, poll } = passed;
        core.head = head;
        let claim = match poll {
            Some((name, carriage)) => self.polled(core, token, name, carriage, framing, orders),
            None => self.claim_request(core, token, framing, orders),
        };
        let head = |core: &mut Core| Box::new(std::mem::take(&mut core.head));
        match claim {
            Claim::Taken => {}
            Claim::No => orders.push(Order::Begin(token, framing, head(core))),
            Claim::Refuse(answer) => orders.push(Order::Respond(token, head(core), answer)),
        }
    }

    /// A peer of ours was lost, but for links.
    pub(super) fn lost_own(&mut self, core: &mut Core, token: Token, key: usize, loss: Loss, orders: &mut Vec<Order>) {
        match (key, loss) {
            (COMING, Loss::Late(Wait::Body)) => match self.queues.coming.remove(&token) {
                // It is late as a visitor's too, and is told so as one.
                Some(Coming::Undecided(_, framing, head)) => orders.push(Order::Begin(token, framing, head)),
                Some(coming) => {
                    // What goes with it is settled when it is gone.
                    self.queues.coming.insert(token, coming);
                    core.drop_peer(token);
                }
                None => {}
            },
            // Both ends of a pipe go together, and the bridge has the near one.
            _ => core.drop_peer(token),
        }
    }

    /// A peer is out of the table: what was arranged with it is off.
    pub(super) fn queue_peer_gone(&mut self, core: &mut Core, token: Token, peer: &Peer, orders: &mut Vec<Order>) {
        match peer.key {
            POLL => {
                if let Some(poll) = self.queues.polls.remove(&token) {
                    if let Some(mail) = self.tunnels.mail(poll.tunnel) {
                        mail.queue.poll_gone(token);
                    }
                    self.look_who_is_there(core, poll.tunnel);
                }
            }
            COMING => match self.queues.coming.remove(&token) {
                // The rest of the body will never come.
                Some(Coming::Stream(far)) => core.drop_peer(far),
                Some(Coming::Whole(_, _, _, charge)) => self.discharge(core, charge),
                Some(Coming::Undecided(..)) | None => {}
            },
            FAR => {
                self.settle_letter(core, token);
                if let Some(Letter { stage: Stage::Answered(Some(on)), .. }) = self.queues.letters.remove(&token) {
                    core.step_again(on);
                }
            }
            _ => {}
        }
        if let Some(handed) = self.queues.handed.remove(&token) {
            let (unsent, sent): (Vec<_>, Vec<_>) = handed.into_iter().partition(|(_, end)| *end > peer.written);
            self.hand_out_again(core, unsent.into_iter().map(|(id, _)| id).collect(), orders);
            // It is told by what came first: the report that it broke, a read, or a write.
            if peer.is_gone() || peer.broken || peer.is_deaf() {
                self.broke_behind(core, sent.into_iter().map(|(id, _)| id));
            }
        }
    }

    /// Sees to it that the tunnel is looked at when its first poll or message has waited long enough.
    fn arm(&mut self, core: &mut Core, tunnel: usize) {
        let now = core.now;
        let Some(mail) = self.tunnels.mail(tunnel) else { return };
        if let Some(at) = mail.queue.deadline()
            && mail.armed.is_none_or(|armed| at < armed)
        {
            mail.armed = Some(at);
            core.set_timer(at.since(now), MAIL | tunnel);
        }
    }

    fn arm_out(&mut self, core: &mut Core) {
        if let Some(at) = self.queues.out.deadline()
            && self.queues.out_armed.is_none_or(|armed| at < armed)
        {
            self.queues.out_armed = Some(at);
            core.set_timer(at.since(core.now), OUT);
        }
    }

    /// The timer of a tunnel's polls and messages.
    pub(super) fn mail_is_due(&mut self, core: &mut Core, tunnel: usize, orders: &mut Vec<Order>) {
        let now = core.now;
        if let Some(mail) = self.tunnels.mail(tunnel)
            && mail.armed.is_some_and(|armed| armed <= now)
        {
            mail.armed = None;
        }
        while let Some(due) = self.tunnels.mail(tunnel).and_then(|mail| mail.queue.timeout(now)) {
            self.is_due(core, due, orders);
        }
        self.serve(core, tunnel, orders);
        self.look_who_is_there(core, tunnel);
    }

    /// The timer of the messages that are out.
    pub(super) fn out_is_due(&mut self, core: &mut Core, orders: &mut Vec<Order>) {
        self.queues.out_armed = None;
        while let Some(due) = self.queues.out.timeout(core.now) {
            self.is_due(core, due, orders);
        }
        self.arm_out(core);
    }

    fn is_due(&mut self, core: &mut Core, due: Due<Token, Token>, orders: &mut Vec<Order>) {
        let (far, wait) = match due {
            Due::Nothing(poll) => return self.let_poll_go(core, poll, orders),
            Due::NoPoll(far) => (far, Wait::Link),
            Due::NoAnswer(far) => (far, Wait::Answer),
        };
        let goes_on = match wait {
            // Of several times that it was handed out, the last one counts.
            Wait::Answer => self.may_be_answered(far),
            _ => self.leave_out(far),
        };
        if !goes_on && let Some(letter) = self.queues.letters.get_mut(&far) {
            letter.stage = Stage::Coming;
            let (near, tunnel) = (letter.near, letter.tunnel);
            orders.push(Order::Fault(near, self.late(tunnel, wait)));
        }
    }

    /// The program is stopping: agents are told at once, so that they look for another relay, and so are visitors whose requests
    /// nobody has had.
    pub(super) fn stop_queues(&mut self, core: &mut Core, orders: &mut Vec<Order>) {
        self.queues.stopping = true;
        let polls: Vec<(Token, Poll)> = self.queues.polls.drain().collect();
        for (token, poll) in polls {
            if let Some(mail) = self.tunnels.mail(poll.tunnel) {
                mail.queue.poll_gone(token);
            }
            if let Some(peer) = core.peer(token) {
                peer.key = NO_KEY;
                peer.seat = Seat::Front;
                peer.conn.do_not_keep();
            }
            respond("ptth-relay", core, token, &Head::default(), 0, &stopping());
        }
        let unsent = |(_, letter): &(&Token, &Letter)| matches!(letter.stage, Stage::Coming | Stage::Ready);
        let letters: Vec<(Token, Token)> =
            self.queues.letters.iter().filter(unsent).map(|(far, letter)| (*far, letter.near)).collect();
        for (far, near) in letters {
            if !self.leave_out(far) {
                orders.push(Order::Fault(near, stopping()));
            }
        }
    }
}

/// Lets the sender of the request in `core.head` send its body, if it waits for that.
fn give_leave(core: &mut Core, token: Token) {
    if core.head.fields.lists(Name::Expect, b"100-continue")
        && let Some(peer) = core.tell(token)
    {
        // It can be sent in this state, or the request is no more.
        let _ = peer.conn.send_informational(peer.output.vec(), (100, b"Continue"), |_| {});
    }
}

/// Sends an answer to an agent's request. Gives the number of the connection's last byte of it.
fn say(core: &mut Core, token: Token, carriage: Carriage, status: u16, body: &[&[u8]]) -> Option<u64> {
    let (now, date) = (core.now, core.wall_clock());
    answer_early(core, token);
    let peer = core.tell(token)?;
    let length = body.iter().map(|part| part.len()).sum::<usize>();
    let framing = if status == 204 { Body::None } else { Body::Length(length as u64) };
    let reason = ptth_proto::wire::head::reason(status).as_bytes();
    let out = peer.output.vec();
    let mut sent = peer.conn.send_response(now, out, (status, reason), framing, |fields| {
        match carriage {
            Carriage::Comet(_) => {
                fields.field("Content-type", "application/json");
                fields.field("Ptth-Accept", "base64");
            }
            Carriage::Packed(_) => fields.field("Ptth-Accept", "full"),
        }
        // Nobody on the way is to answer the next poll with this.
        fields.field("Cache-Control", "no-store");
        fields.field("Date", httpdate::fmt_http_date(date));
    });
    for part in body {
        sent = sent.and_then(|()| peer.conn.send_data(now, part, out));
    }
    if let Err(error) = sent.and_then(|()| peer.conn.send_end(now, None, out)) {
        log::error!("an agent could not be answered: {error}");
        core.drop_peer(token);
        return None;
    }
    Some(peer.written + peer.output.len() as u64)
}

/// A connection of ours is an ordinary one again.
fn to_front(core: &mut Core, token: Token, orders: &mut Vec<Order>) {
    if let Some(peer) = core.peer(token) {
        peer.key = NO_KEY;
        peer.seat = Seat::Front;
        peer.held = false;
        // Only a pipelined request, or the end, is there to be looked at already.
        if peer.conn.closing().is_none() && (!peer.input.is_empty() || peer.has_hung_up()) {
            orders.push(Order::Listen(token));
        }
    }
}

fn unknown(unwanted: Unwanted) -> Answer {
    let text = match unwanted {
        Unwanted::Unknown => {
            "No message with this id waits for an answer: it was answered before, its time is over, its visitor has gone, or \
             there never was one."
        }
        Unwanted::Foreign => "The message with this id was given to an agent that showed another credential.",
    };
    Answer::new(Code::UNKNOWN_MESSAGE, text)
}
