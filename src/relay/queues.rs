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

use std::collections::HashMap;
use std::time::Duration;

use mio::Token;
use ptth_proto::conn::{Body, Conn, Event};
use ptth_proto::error::Error;
use ptth_proto::http::framing::{Asked, Framing};
use ptth_proto::limits::Wait;
use ptth_proto::link::queue::{Due, Id, Outstanding, Queue, Unwanted};
use ptth_proto::role::Role;
use ptth_proto::time::Instant;
use ptth_proto::wire::comet::{self, Message as Comet, Notation, Style};
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::Head;
use ptth_proto::wire::message::{Malformed, Pairs, Reply, Unsendable, end_to_end, from_base64};
use ptth_proto::wire::packed::{self, Form, MAGIC_FIELD};

use super::agents::{KeyHash, refusal};
use super::registry::{Taken, Waiting};
use super::route::{Means, means};
use super::{Relay, is_free};
use crate::answer::{Answer, Code};
use crate::bridge::{Claim, Order, answer_early, hold, respond, stopping, take_bodiless, takes_trailers};
use crate::net::addr::Remote;
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

/// Messages that one poll of the `ptth` dialect takes along, when several wait.
const BATCH: usize = 16;
/// Pipes that are kept for the next messages.
const SPARE_PIPES: usize = 64;
/// A body that can't be looked at as a whole tells by its beginning whether it is a message.
const GLANCE: usize = 4 * 1024;
/// What base64 and escapes may add to a body: six bytes for a control character, and the rest of the message.
const ESCAPED: usize = 6;

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

    /// An agent polls, maybe with an answer in the same request.
    pub(super) fn polled(
        &mut self,
        core: &mut Core,
        token: Token,
        name: TunnelName,
        carriage: Carriage,
        framing: Framing,
        orders: &mut Vec<Order>,
    ) -> Claim {
        let who = match self.access.admit(&core.head, name.as_str()) {
            Ok(who) => who,
            Err(denied) => return Claim::Refuse(refusal(denied, name.as_str())),
        };
        if self.workers.are_several() {
            let home = self.workers.home(name.as_str());
            if home != self.workers.me() {
                return self.pass(core, token, home, framing, Some((name, carriage)));
            }
        }
        let hold = core.config.deadlines.poll.min(patience(&core.head));
        let wish = Wish { name, carriage, notation: None, who, hold };
        if !matches!(framing, Framing::Empty | Framing::Length(0)) {
            if matches!(carriage, Carriage::Packed(_)) {
                return Claim::Refuse(Answer::new(Code::BAD_MESSAGE, "A poll of this dialect has no body."));
            }
            give_leave(core, token);
            let head = Box::new(std::mem::take(&mut core.head));
            self.take_in(core, token, Coming::Whole(wish, head, Vec::new(), Charge::None));
            return Claim::Taken;
        }
        take_bodiless(core, token, framing);
        match self.hold_poll(core, token, wish, orders) {
            Some(refusal) => Claim::Refuse(refusal),
            None => Claim::Taken,
        }
    }

    /// Holds a poll, or refuses it. One that won't wait is due in this turn, when what waits for it was brought to it.
    fn hold_poll(&mut self, core: &mut Core, token: Token, wish: Wish, orders: &mut Vec<Order>) -> Option<Answer> {
        let Wish { name, mut carriage, notation, who, hold } = wish;
        let (now, most) = (core.now, core.config.limits.links);
        let peer = core.peer(token)?;
        let (remote, has_hung_up) = (peer.remote, peer.has_hung_up());
        if self.queues.stopping {
            return Some(stopping());
        }
        if has_hung_up {
            // It is gone, most likely: no message is to be lost on it. If only its side is closed, it may poll again.
            say_nothing(core, token, carriage);
            to_front(core, token, orders);
            return None;
        }
        let Some(tunnel) = self.tunnels.claim(name.as_str()) else {
            let text = "This relay has as many tunnels as it may have.";
            return Some(Answer::new(Code::TOO_MANY_TUNNELS, text));
        };
        peer.seat = Seat::Own;
        peer.key = POLL;
        core.touch(token);
        let mail = self.tunnels.mail(tunnel)?;
        if let Carriage::Comet(style) = &mut carriage {
            // Who knows base64 is of today, and needs no guess.
            let guess = if style.base64 { Notation::Json } else { mail.notation };
            style.notation = notation.unwrap_or(guess);
        }
        self.queues.polls.insert(token, Poll { tunnel, carriage, who, until: now + hold });
        mail.queue.poll(now, token, hold);
        if !std::mem::replace(&mut mail.present, true) {
            self.agent_came(core, tunnel, carriage, remote);
        }
        let mail = self.tunnels.mail(tunnel)?;
        if mail.queue.polls() > most
            && let Some(first) = mail.queue.take_poll()
        {
            self.let_poll_go(core, first, orders);
        }
        self.serve(core, tunnel, orders);
        self.look_who_is_there(core, tunnel);
        None
    }

    /// An agent has come whose tunnel had none that polls.
    fn agent_came(&mut self, core: &mut Core, tunnel: usize, carriage: Carriage, remote: Remote) {
        let taken = self.tunnels.add_link(tunnel, |link| is_free(core, link));
        if let Taken::InPlaceOf(link) = taken {
            core.drop_peer(link);
        }
        let name = self.tunnels.name(tunnel);
        if self.workers.are_several() {
            self.workers.link_here(name);
        }
        if taken == Taken::First && self.workers.is_up(name) {
            let how = match carriage {
                Carriage::Comet(_) => "COMET",
                Carriage::Packed(_) => "ptth-relay",
            };
            log::info!("tunnel `{name}` is up: an agent polls from {remote} ({how})");
        }
    }

    /// Looks whether an agent of the tunnel is still there: it has a poll here, or a message, or there is one for it.
    fn look_who_is_there(&mut self, core: &mut Core, tunnel: usize) {
        let Some(mail) = self.tunnels.mail(tunnel) else { return };
        if !mail.present || mail.queue.polls() > 0 || mail.messages > 0 {
            return;
        }
        mail.present = false;
        if self.workers.are_several() {
            self.workers.link_gone(self.tunnels.name(tunnel));
        }
        if self.tunnels.remove_link(tunnel, |link| is_free(core, link)) {
            core.set_timer(super::DOWN_AFTER, tunnel);
        }
    }

    /// Brings messages to polls, and requests that wait to where messages are made of them.
    pub(super) fn serve(&mut self, core: &mut Core, tunnel: usize, orders: &mut Vec<Order>) {
        while let Some((poll, far)) = self.tunnels.mail(tunnel).and_then(|mail| mail.queue.pair()) {
            self.hand_out(core, poll, far, orders);
        }
        while self.has_poll(tunnel)
            && let Some(Waiting { id, .. }) = self.tunnels.next_waiting(tunnel, None)
        {
            self.waits_no_more(tunnel);
            let near = self.open_pipe(core, tunnel);
            orders.push(Order::Attach(id, near));
        }
        if self.workers.are_several() && self.has_poll(tunnel) {
            self.workers.offer(self.tunnels.name(tunnel));
        }
        self.arm(core, tunnel);
    }

    /// Whether a message would have a poll to go to.
    pub(super) fn has_poll(&mut self, tunnel: usize) -> bool {
        self.polls(tunnel) > 0
    }

    /// How many polls wait for one.
    pub(super) fn polls(&mut self, tunnel: usize) -> usize {
        self.tunnels.mail(tunnel).map_or(0, |mail| mail.queue.polls())
    }

    /// Messages of a tunnel that wait for a poll.
    pub(super) fn letters_waiting(&mut self, tunnel: usize) -> usize {
        self.tunnels.mail(tunnel).map_or(0, |mail| mail.queue.messages())
    }

    /// A link of the tunnel for one more message: the near end of a pipe.
    pub(super) fn open_pipe(&mut self, core: &mut Core, tunnel: usize) -> Token {
        let now = core.now;
        if let Some(mail) = self.tunnels.mail(tunnel) {
            mail.messages += 1;
        }
        self.workers.message_begins();
        while let Some(far) = self.queues.spare.pop() {
            if let Some(letter) = self.queues.letters.get_mut(&far)
                && core.peer(letter.near).is_some_and(|near| near.can_be_asked())
            {
                letter.tunnel = tunnel;
                letter.stage = Stage::Coming;
                return letter.near;
            }
        }
        let (near, far) = core.pipe(Conn::link(Role::Client, now), Conn::link(Role::Server, now));
        for (end, key) in [(near, NEAR), (far, FAR)] {
            if let Some(peer) = core.peer(end) {
                peer.seat = Seat::Own;
                peer.key = key;
            }
        }
        let letter = Letter {
            tunnel,
            near,
            stage: Stage::Coming,
            head: Head::default(),
            bodiless: false,
            body: Vec::new(),
            bytes: 0,
        };
        self.queues.letters.insert(far, letter);
        near
    }

    /// An exchange is done with its pipe, which can serve another.
    pub(super) fn pipe_is_idle(&mut self, core: &mut Core, near: Token) {
        let Some(far) = core.peer(near).and_then(|peer| peer.twin.token()) else { return };
        let clean = core.peer(far).is_some_and(|far| far.conn.is_idle() && far.output.is_empty());
        if !clean || self.queues.spare.len() >= SPARE_PIPES || !self.queues.letters.contains_key(&far) {
            return core.drop_peer(near);
        }
        self.settle_letter(core, far);
        if let Some(letter) = self.queues.letters.get_mut(&far) {
            letter.stage = Stage::Spare;
            letter.head.clear();
            // What one large body left is not kept for all the small ones.
            letter.body = Vec::new();
            self.queues.spare.push(far);
        }
    }

    /// A message is no more: nothing counts for it, and nobody can answer it.
    fn settle_letter(&mut self, core: &mut Core, far: Token) {
        let Some(letter) = self.queues.letters.get_mut(&far) else { return };
        let (tunnel, stage) = (letter.tunnel, letter.stage);
        let bytes = std::mem::take(&mut letter.bytes);
        if stage == Stage::Spare {
            return;
        }
        self.queues.bytes -= bytes;
        if self.workers.message_ends() && self.queues.stopping {
            self.workers.say_over();
        }
        if let Stage::Out(id) = stage {
            self.queues.out.take_back(id);
        }
        if let Some(mail) = self.tunnels.mail(tunnel) {
            mail.bytes = mail.bytes.saturating_sub(bytes);
            mail.messages = mail.messages.saturating_sub(1);
            if stage == Stage::Ready {
                mail.queue.forget(far);
            }
        }
        self.look_who_is_there(core, tunnel);
    }

    /// Something is new at the far end of a pipe: a request for a message, or room for more of the answer.
    pub(super) fn step_far(&mut self, core: &mut Core, far: Token, orders: &mut Vec<Order>) {
        let now = core.now;
        let most = core.config.limits.message;
        let most_bytes = core.config.limits.queue;
        if core.peer(far).is_some_and(|far| far.eof) {
            // Its exchange is over: whatever else was said here is for nobody.
            return core.drop_peer(far);
        }
        loop {
            let Some(letter) = self.queues.letters.get_mut(&far) else { return core.drop_peer(far) };
            if let Stage::Answered(Some(on)) = letter.stage {
                core.step_again(on);
            }
            let Some((peer, head, config)) = core.hear(far) else { return };
            let mut room = most_bytes;
            let (used, added, whole) = match peer.conn.recv(now, peer.input.bytes(), head, config) {
                Ok((used, Some(Event::Request(framing)))) => {
                    std::mem::swap(&mut letter.head, head);
                    if letter.head.method() == b"CONNECT" || letter.head.fields.has(Name::Upgrade) {
                        let text = "The agent of this tunnel gets its requests as messages, in which neither a WebSocket nor \
                                    any other protocol can go on. It would have to be connected by upgrade.";
                        let answer = Answer::new(Code::DIALECT_LIMIT, text);
                        return orders.push(Order::Fault(letter.near, answer));
                    }
                    letter.bodiless = framing == Framing::Empty;
                    if matches!(framing, Framing::Empty | Framing::Length(0)) {
                        // Bodies that are long in coming leave room for requests that have none.
                        room = most_bytes.saturating_add(most_bytes / 4);
                    }
                    if letter.head.fields.lists(Name::Expect, b"100-continue") {
                        // It can be sent in this state, or the request is no more.
                        let _ = peer.conn.send_informational(peer.output.vec(), (100, b"Continue"), |_| {});
                        core.touch(far);
                    }
                    (used, used, false)
                }
                Ok((used, Some(Event::Data(data)))) => {
                    letter.body.extend_from_slice(data);
                    (used, data.len(), false)
                }
                Ok((used, Some(Event::End { .. }))) => (used, 0, true),
                Ok((used, Some(_))) => (used, 0, false),
                Ok((used, None)) => {
                    peer.input.consume(used);
                    return;
                }
                Err(_) => return core.drop_peer(far),
            };
            letter.bytes += added;
            self.queues.bytes += added;
            let (near, tunnel, length) = (letter.near, letter.tunnel, letter.body.len());
            if let Some(peer) = core.peer(far) {
                peer.input.consume(used);
            }
            let Some(mail) = self.tunnels.mail(tunnel) else { return };
            mail.bytes += added;
            if length > most {
                let text = format!(
                    "The agent of this tunnel gets requests as messages, whose bodies are whole and have at most {most} \
                     bytes (--limit message)."
                );
                return orders.push(Order::Fault(near, Answer::new(Code::MESSAGE_TOO_LARGE, text)));
            }
            if added > 0 && mail.bytes > room {
                let text = "The messages that wait for the agent of this tunnel have as many bytes as they may have \
                            (--limit queue); try again later.";
                return orders.push(Order::Fault(near, Answer::new(Code::TUNNEL_BUSY, text)));
            }
            if whole {
                self.letter_is_whole(core, far, orders);
            }
        }
    }

    fn letter_is_whole(&mut self, core: &mut Core, far: Token, orders: &mut Vec<Order>) {
        let Some(letter) = self.queues.letters.get_mut(&far) else { return };
        let (tunnel, near) = (letter.tunnel, letter.near);
        let (patience, most) = (core.config.deadlines.link, core.config.limits.waiting);
        let Some(mail) = self.tunnels.mail(tunnel) else { return };
        // Each of many bodies may have begun while there was a poll for it.
        if mail.queue.polls() == 0 && mail.queue.messages() >= most {
            let text = "As many messages wait for the agent of this tunnel as may wait; try again later.";
            return orders.push(Order::Fault(near, Answer::new(Code::TUNNEL_BUSY, text)));
        }
        letter.stage = Stage::Ready;
        mail.queue.push(core.now, far, patience);
        self.serve(core, tunnel, orders);
    }

    /// Answers a poll with a message, and more if it takes several.
    fn hand_out(&mut self, core: &mut Core, token: Token, far: Token, orders: &mut Vec<Order>) {
        let now = core.now;
        let Some(poll) = self.queues.polls.get(&token).copied() else {
            // Both tables say the same of a poll; if ever they don't, no message is to be lost on it.
            debug_assert!(false, "a poll that nobody knows");
            let (tunnel, patience) =
                (self.queues.letters.get(&far).map(|letter| letter.tunnel), core.config.deadlines.link);
            if let Some(mail) = tunnel.and_then(|tunnel| self.tunnels.mail(tunnel)) {
                mail.queue.push_again(now, far, patience);
            }
            return;
        };
        let mut ids = Vec::with_capacity(1);
        let mut body = std::mem::take(&mut self.queues.scratch);
        body.clear();
        let mut next = Some(far);
        while let Some(far) = next {
            ids.extend(self.write_letter(core, &mut body, poll, far, orders));
            let several = matches!(poll.carriage, Carriage::Packed(_)) && ids.len() < BATCH;
            let mail = self.tunnels.mail(poll.tunnel);
            next = mail
                .filter(|mail| ids.is_empty() || several && mail.queue.polls() == 0)
                .and_then(|mail| mail.queue.another());
        }
        if ids.is_empty() {
            // None that this agent could read: it waits for the next one, as long as it would have waited.
            if let Some(mail) = self.tunnels.mail(poll.tunnel) {
                mail.queue.poll(now, token, poll.until.since(now));
            }
        } else {
            let mut count = Vec::new();
            if let Carriage::Packed(_) = poll.carriage {
                packed::write_array(&mut count, ids.len());
            }
            match say(core, token, poll.carriage, 200, &[&count, &body]) {
                Some(end) => {
                    self.queues.handed.entry(token).or_default().extend(ids.into_iter().map(|id| (id, end)));
                }
                None => self.hand_out_again(core, ids),
            }
            self.queues.polls.remove(&token);
            to_front(core, token, orders);
        }
        self.queues.scratch = body;
        self.arm_out(core);
    }

    /// Writes one message. Gives its id; nothing when this agent can't have it, whose visitor is told why.
    fn write_letter(
        &mut self,
        core: &mut Core,
        into: &mut Vec<u8>,
        poll: Poll,
        far: Token,
        orders: &mut Vec<Order>,
    ) -> Option<Id> {
        let letter = self.queues.letters.get_mut(&far)?;
        let patience = core.config.deadlines.link_answer;
        let id = self.queues.out.hand_out(core.now, far, poll.who, patience, self.queues.secrets.next());
        let (head, body) = (&letter.head, &letter.body);
        // The relay has given the leave that a visitor asks for with it.
        let fields = head.fields.end_to_end().filter(|field| field.known != Name::Expect);
        let fields = fields.map(|field| (field.name, field.value));
        let full = matches!(poll.carriage, Carriage::Packed(Form::Full));
        // Of the answers to messages, these alone bring trailers.
        let trailers = (full && takes_trailers(head)).then_some((&b"TE"[..], &b"trailers"[..]));
        let fields = fields.chain(trailers);
        let written = match poll.carriage {
            Carriage::Comet(style) => {
                comet::write_ask(into, style, id.as_str(), head.method(), head.target(), fields, body)
            }
            Carriage::Packed(form) => {
                let mut target = head.target();
                if form == Form::Stock && !self.polling.query {
                    let path = target.split(|b| *b == b'?').next().unwrap_or_default();
                    if path.len() < target.len() && !std::mem::replace(&mut self.queues.said_query, true) {
                        let name = self.tunnels.name(letter.tunnel);
                        log::info!(
                            "query strings are not passed on to the agent `{name}`: its relay never did, and it may not \
                             expect them (--ptth-query passes them on)"
                        );
                    }
                    target = path;
                }
                packed::write_ask(into, form, id.as_str(), head.method(), target, fields, body)
            }
        };
        match written {
            Ok(()) => {
                letter.stage = Stage::Out(id);
                Some(id)
            }
            Err(unsendable) => {
                self.queues.out.take_back(id);
                letter.stage = Stage::Coming;
                let name = self.tunnels.name(letter.tunnel);
                orders.push(Order::Fault(letter.near, not_carried(unsendable, name)));
                None
            }
        }
    }

    /// Answers a poll for which there is nothing, and holds it no more.
    fn let_poll_go(&mut self, core: &mut Core, token: Token, orders: &mut Vec<Order>) {
        let Some(poll) = self.queues.polls.remove(&token) else { return };
        say_nothing(core, token, poll.carriage);
        to_front(core, token, orders);
    }

    /// Something is new on a connection on which a poll is held: it can only be its end.
    pub(super) fn step_poll(&mut self, core: &mut Core, token: Token) {
        if core.peer(token).is_some_and(|peer| peer.has_hung_up()) {
            core.drop_peer(token);
        }
    }

    /// Something is new on a connection on which an answer comes.
    pub(super) fn step_coming(&mut self, core: &mut Core, token: Token, orders: &mut Vec<Order>) {
        match self.queues.coming.remove(&token) {
            Some(Coming::Undecided(name, framing, head)) => self.decide(core, token, (name, framing, head), orders),
            Some(Coming::Whole(wish, head, body, charge)) => {
                self.read_answer(core, token, (wish, head, body), charge, orders);
            }
            Some(Coming::Stream(far)) => self.stream_answer(core, token, far, orders),
            // It is settled whose it is, and the order that says so is on its way.
            None => {}
        }
        let kept = match self.queues.coming.get(&token) {
            Some(Coming::Undecided(_, _, head) | Coming::Whole(_, head, ..)) => head.memory(),
            Some(Coming::Stream(_)) | None => 0,
        };
        if let Some(peer) = core.peer(token) {
            peer.head = kept;
        }
    }

    /// Looks whether a POST of JSON to a path that could be a queue is an agent's answer.
    fn decide(
        &mut self,
        core: &mut Core,
        token: Token,
        (name, framing, head): (TunnelName, Framing, Box<Head>),
        orders: &mut Vec<Order>,
    ) {
        let most = core.config.limits.buffer;
        let now = core.now;
        let Some((peer, scratch, config)) = core.hear(token) else { return };
        let is_message = match framing {
            Framing::Length(n) => {
                let whole = usize::try_from(n).ok().filter(|n| *n <= most.max(GLANCE));
                let enough = whole.unwrap_or(GLANCE);
                let input = peer.input.bytes();
                match input.get(..enough) {
                    Some(body) => Some(is_answer(body)),
                    // The rest may never come.
                    None => begins_with_id(input).then_some(true),
                }
            }
            // As far as it is there: a copy of the connection reads ahead.
            _ => {
                let (mut ahead, mut input, mut body) = (peer.conn.clone(), peer.input.bytes(), Vec::new());
                loop {
                    match ahead.recv(now, input, scratch, config) {
                        Ok((used, Some(Event::Data(data)))) => {
                            body.extend_from_slice(data);
                            input = &input[used..];
                        }
                        // A name and its colon tell: as long as neither is there, it may become anything.
                        Ok((_, None)) if matches!(comet::read(&body), Ok(_) | Err(Malformed::Cut)) => {
                            let enough = body.len() >= GLANCE || body.contains(&b':');
                            break enough.then(|| is_answer(&body));
                        }
                        _ => break Some(is_answer(&body)),
                    }
                }
            }
        };
        match is_message {
            None if !peer.eof => {
                self.queues.coming.insert(token, Coming::Undecided(name, framing, head));
                core.touch(token);
            }
            Some(true) => {
                core.head = *head;
                let carriage = Carriage::Comet(Style::default());
                match self.polled(core, token, name, carriage, framing, orders) {
                    Claim::Refuse(answer) => {
                        let head = Box::new(std::mem::take(&mut core.head));
                        orders.push(Order::Respond(token, head, answer));
                    }
                    Claim::Taken | Claim::No => self.let_agent_in(core, token),
                }
            }
            _ => orders.push(Order::Begin(token, framing, head)),
        }
    }

    /// Reads an answer that has to be whole: one of COMET.
    fn read_answer(
        &mut self,
        core: &mut Core,
        token: Token,
        (mut wish, head, mut body): (Wish, Box<Head>, Vec<u8>),
        mut charge: Charge,
        orders: &mut Vec<Order>,
    ) {
        let now = core.now;
        loop {
            let Some((peer, scratch, config)) = core.hear(token) else { return };
            match peer.conn.recv(now, peer.input.bytes(), scratch, config) {
                Ok((used, Some(Event::Data(data)))) => {
                    body.extend_from_slice(data);
                    peer.input.consume(used);
                    if !self.charge(core, wish.name, body.len(), &mut charge) {
                        self.discharge(core, charge);
                        return self.too_large(core, token, wish, head, &body, orders);
                    }
                }
                Ok((used, Some(Event::End { .. }))) => {
                    peer.input.consume(used);
                    break;
                }
                Ok((used, None)) => {
                    peer.input.consume(used);
                    if peer.eof {
                        self.discharge(core, charge);
                        return core.drop_peer(token);
                    }
                    core.touch(token);
                    self.queues.coming.insert(token, Coming::Whole(wish, head, body, charge));
                    return;
                }
                Ok((used, Some(_))) => peer.input.consume(used),
                Err(error) => {
                    log::warn!("an answer from {} is refused: its sender {error} ({})", peer.remote, error.code());
                    self.discharge(core, charge);
                    match Answer::to_error(error) {
                        Some(answer) => orders.push(Order::Respond(token, head, answer)),
                        None => core.drop_peer(token),
                    }
                    return;
                }
            }
        }
        let message = comet::read(&body);
        match message {
            Ok((Comet::Nothing, _)) => {}
            Ok((Comet::Reply(reply), notation)) => {
                wish.notation = notation;
                let tunnel = self.tunnels.find(wish.name.as_str());
                if let (Some(notation), Some(mail)) = (notation, tunnel.and_then(|tunnel| self.tunnels.mail(tunnel))) {
                    mail.notation = notation;
                }
                let delivered = self.deliver(core, &reply, &wish.who, orders);
                self.discharge(core, charge);
                if let Err(unwanted) = delivered {
                    return orders.push(Order::Respond(token, head, unknown(unwanted)));
                }
            }
            Ok((Comet::Ask(_), _)) => {
                self.discharge(core, charge);
                let text = "This is a request, and a relay is asked by visitors, not by agents.";
                return orders.push(Order::Respond(token, head, Answer::new(Code::BAD_MESSAGE, text)));
            }
            Err(malformed) => {
                self.discharge(core, charge);
                if let Some((near, name)) = self.answered_by(&body, wish.who) {
                    let text = format!(
                        "The answer of the agent `{name}` was not passed on: it {malformed} ({}).",
                        malformed.code()
                    );
                    orders.push(Order::Fault(near, Answer::new(Code::LINK_PROTOCOL, text)));
                }
                let text = format!("The body is no message: its sender {malformed} ({}).", malformed.code());
                return orders.push(Order::Respond(token, head, Answer::new(Code::BAD_MESSAGE, text)));
            }
        }
        if let Some(refusal) = self.hold_poll(core, token, wish, orders) {
            orders.push(Order::Respond(token, head, refusal));
        }
    }

    /// An answer goes on beyond the limit. Its visitor is told, if the beginning says which one.
    fn too_large(
        &mut self,
        core: &mut Core,
        token: Token,
        wish: Wish,
        head: Box<Head>,
        body: &[u8],
        orders: &mut Vec<Order>,
    ) {
        let most = core.config.limits.message;
        if let Some((near, name)) = self.answered_by(body, wish.who) {
            let answer = answer_too_large(name, most);
            orders.push(Order::Fault(near, answer));
        }
        let text = format!(
            "An answer's body has at most {most} bytes here (--limit message), those of a tunnel's messages together at most \
             {} (--limit queue), and there must be a message that it answers.",
            core.config.limits.queue
        );
        orders.push(Order::Respond(token, head, Answer::new(Code::MESSAGE_TOO_LARGE, text)));
    }

    /// The message that the beginning of a broken answer names, if it is this agent's to answer; it is answered by that.
    fn answered_by(&mut self, body: &[u8], who: Option<KeyHash>) -> Option<(Token, &str)> {
        let id = Id::parse(&comet::first_id(body)?)?;
        let far = self.queues.out.answer(id, &who).ok()?;
        let letter = self.queues.letters.get_mut(&far)?;
        letter.stage = Stage::Answered(None);
        Some((letter.near, self.tunnels.name(letter.tunnel)))
    }

    /// Counts what has come of an answer: beyond a glance, only where there is a message to be answered, and only as long as there
    /// is room among the tunnel's messages. False when it is too much.
    fn charge(&mut self, core: &Core, name: TunnelName, length: usize, charge: &mut Charge) -> bool {
        let limits = &core.config.limits;
        if length <= GLANCE {
            return true;
        }
        let (tunnel, before) = match *charge {
            Charge::Bytes(tunnel, bytes) => (tunnel, bytes),
            Charge::None => match self.tunnels.find(name.as_str()) {
                Some(tunnel) => (tunnel, 0),
                None => return false,
            },
        };
        let Some(mail) = self.tunnels.mail(tunnel) else { return false };
        if *charge == Charge::None {
            if mail.messages == 0 {
                return false;
            }
            mail.messages += 1;
        }
        mail.bytes += length - before;
        self.queues.bytes += length - before;
        *charge = Charge::Bytes(tunnel, length);
        mail.bytes <= limits.queue && length <= limits.message.saturating_mul(ESCAPED).saturating_add(limits.head)
    }

    /// The answer is read, or given up.
    fn discharge(&mut self, core: &mut Core, charge: Charge) {
        let Charge::Bytes(tunnel, bytes) = charge else { return };
        self.queues.bytes -= bytes;
        if let Some(mail) = self.tunnels.mail(tunnel) {
            mail.bytes = mail.bytes.saturating_sub(bytes);
            mail.messages = mail.messages.saturating_sub(1);
        }
        self.look_who_is_there(core, tunnel);
    }

    /// Says an answer at the far end of the pipe that its message came from.
    fn deliver(
        &mut self,
        core: &mut Core,
        reply: &Reply,
        who: &Option<KeyHash>,
        orders: &mut Vec<Order>,
    ) -> Result<(), Unwanted> {
        let id = Id::parse(reply.id.as_bytes()).ok_or(Unwanted::Unknown)?;
        let far = self.queues.out.answer(id, who)?;
        let Some(letter) = self.queues.letters.get_mut(&far) else { return Err(Unwanted::Unknown) };
        letter.stage = Stage::Answered(None);
        let (near, tunnel) = (letter.near, letter.tunnel);
        let (now, most) = (core.now, core.config.limits.message);
        letter.bytes += reply.body.len();
        self.queues.bytes += reply.body.len();
        if let Some(mail) = self.tunnels.mail(tunnel) {
            mail.bytes += reply.body.len();
        }
        if reply.body.len() > most {
            orders.push(Order::Fault(near, answer_too_large(self.tunnels.name(tunnel), most)));
            return Ok(());
        }
        let status = (reply.status, &reply.reason[..]);
        let framing = Framing::Length(reply.body.len() as u64);
        let Some(said) = say_response(core, far, status, &reply.fields, framing) else { return Ok(()) };
        let said = said.and_then(|_| {
            let Some(peer) = core.tell(far) else { return Ok(()) };
            if peer.conn.is_speaking() {
                peer.conn.send_data(now, &reply.body, peer.output.vec())?;
                peer.conn.send_end(now, None, peer.output.vec())?;
            }
            Ok(())
        });
        if let Err(error) = said {
            orders.push(Order::Fault(near, bad_answer(error, self.tunnels.name(tunnel))));
        }
        Ok(())
    }

    /// An agent of the `ptth` dialect answers.
    fn responded(&mut self, core: &mut Core, token: Token, id: Id, framing: Framing) -> Claim {
        let worker = usize::from(id.giver());
        if worker != self.workers.me() {
            return match self.workers.mailbox(worker) {
                Some(_) => self.pass(core, token, worker, framing, None),
                None => Claim::Refuse(unknown(Unwanted::Unknown)),
            };
        }
        let Some(far) = self.queues.out.find(id) else { return Claim::Refuse(unknown(Unwanted::Unknown)) };
        let Some(letter) = self.queues.letters.get_mut(&far) else {
            return Claim::Refuse(unknown(Unwanted::Unknown));
        };
        let name = self.tunnels.name(letter.tunnel);
        // The key was asked for with the poll only by the original: there, whoever knew an id could answer.
        let who = match self.access.admit(&core.head, name) {
            Ok(who) => who,
            Err(denied) => return Claim::Refuse(refusal(denied, name)),
        };
        let magic = core.head.fields.iter().find(|field| field.name.eq_ignore_ascii_case(MAGIC_FIELD.as_bytes()));
        let Some((status, fields)) =
            magic.and_then(|field| from_base64(field.value)).and_then(|head| packed::read_head(&head).ok())
        else {
            let text = format!(
                "The field {MAGIC_FIELD} carries the answer's status and fields, in MessagePack and then in base64; here it \
                 is missing, or broken."
            );
            return Claim::Refuse(Answer::new(Code::BAD_MESSAGE, text));
        };
        if let Err(unwanted) = self.queues.out.answer(id, &who) {
            return Claim::Refuse(unknown(unwanted));
        }
        letter.stage = Stage::Answered(Some(token));
        give_leave(core, token);
        let reason = ptth_proto::wire::head::reason(status).as_bytes();
        if let Some(Err(error)) = say_response(core, far, (status, reason), &fields, framing) {
            log::warn!("an answer was not passed on: it {error}");
            // The pipe breaks, and the visitor hears of it.
            core.drop_peer(far);
        }
        if framing != Framing::Empty
            && let Some(peer) = core.peer(token)
            && peer.input.is_empty()
        {
            peer.transport().acknowledge();
        }
        self.take_in(core, token, Coming::Stream(far));
        Claim::Taken
    }

    /// Carries an answer's body from the connection that it comes on to the far end of its pipe.
    fn stream_answer(&mut self, core: &mut Core, token: Token, far: Token, orders: &mut Vec<Order>) {
        let now = core.now;
        let most = core.config.limits.buffer;
        if let Some(letter) = self.queues.letters.get(&far)
            && letter.stage != Stage::Answered(Some(token))
        {
            // An answer without a body was complete with its head, and the pipe may serve another by now.
            take_rest(core, token);
            return self.finish_answer(core, token, true, orders);
        }
        loop {
            let Some((from, to, head, config)) = core.between(token, far) else {
                return self.finish_answer(core, token, false, orders);
            };
            if to.eof {
                return self.finish_answer(core, token, false, orders);
            }
            if !to.conn.is_speaking() {
                // A response to HEAD, a 304: whatever comes here, the visitor's answer has no body. ptth_server announces one
                // then, and never sends it.
                take_rest(core, token);
                return self.finish_answer(core, token, true, orders);
            }
            if hold(from, to, most, now) {
                self.queues.coming.insert(token, Coming::Stream(far));
                return;
            }
            // How long a response may be silent is settled for all kinds of links at the pipe's near end.
            from.held = true;
            let sent = match from.conn.recv(now, from.input.bytes(), head, config) {
                Ok((used, Some(Event::Data(data)))) => {
                    let sent = to.conn.send_data(now, data, to.output.vec());
                    from.input.consume(used);
                    sent
                }
                Ok((used, Some(Event::End { trailers }))) => {
                    from.input.consume(used);
                    let sent = to.conn.send_end(now, trailers.then_some(&head.fields), to.output.vec());
                    if sent.is_ok() {
                        return self.finish_answer(core, token, true, orders);
                    }
                    sent
                }
                Ok((used, event)) => {
                    let more = event.is_some();
                    from.input.consume(used);
                    if from.eof && !more {
                        core.drop_peer(far);
                        return core.drop_peer(token);
                    }
                    if !more {
                        self.queues.coming.insert(token, Coming::Stream(far));
                        return;
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                log::warn!("an answer was not passed on: it {error} ({})", error.code());
                core.drop_peer(far);
                return core.drop_peer(token);
            }
        }
    }

    /// Tells an agent what became of its answer.
    fn finish_answer(&mut self, core: &mut Core, token: Token, arrived: bool, orders: &mut Vec<Order>) {
        // The two words that the original has for it.
        let text: &[u8] = if arrived { b"StreamFinished\n" } else { b"ClientDisconnected\n" };
        say(core, token, Carriage::Packed(Form::Stock), 200, &[text]);
        to_front(core, token, orders);
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
    pub(super) fn queue_peer_gone(&mut self, core: &mut Core, token: Token, peer: &Peer) {
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
        if let Some(mut handed) = self.queues.handed.remove(&token) {
            handed.retain(|(_, end)| *end > peer.written);
            self.hand_out_again(core, handed.into_iter().map(|(id, _)| id).collect());
        }
    }

    /// Messages that can't have arrived wait again.
    fn hand_out_again(&mut self, core: &mut Core, ids: Vec<Id>) {
        let patience = core.config.deadlines.link;
        for id in ids.into_iter().rev() {
            let Some(far) = self.queues.out.take_back(id) else { continue };
            let Some(letter) = self.queues.letters.get_mut(&far) else { continue };
            log::debug!("a message did not reach its agent and waits again");
            letter.stage = Stage::Ready;
            let tunnel = letter.tunnel;
            if let Some(mail) = self.tunnels.mail(tunnel) {
                mail.queue.push_again(core.now, far, patience);
            }
            // Whoever polls now takes it at once.
            core.set_timer(Duration::ZERO, MAIL | tunnel);
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
        if let Some(letter) = self.queues.letters.get_mut(&far) {
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
        let unsent = |letter: &&Letter| matches!(letter.stage, Stage::Coming | Stage::Ready);
        let letters = self.queues.letters.values().filter(unsent);
        orders.extend(letters.map(|letter| Order::Fault(letter.near, stopping())));
    }

    /// Whether a request may have left for its agent, or will in this moment: only one that waits for a poll has not.
    pub(super) fn letter_is_out(&self, far: Token) -> bool {
        let stage = self.queues.letters.get(&far).map(|letter| letter.stage);
        !matches!(stage, Some(Stage::Ready))
    }

    /// The near end of the pipe of the message that has waited longest for a poll, if it can go another way: it has no body that
    /// was used up.
    pub(super) fn take_ready(&mut self, tunnel: usize) -> Option<Token> {
        let far = self.tunnels.mail(tunnel)?.queue.first()?;
        let letter = self.queues.letters.get_mut(&far).filter(|letter| letter.bodiless)?;
        letter.stage = Stage::Coming;
        let near = letter.near;
        self.tunnels.mail(tunnel)?.queue.forget(far);
        Some(near)
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

/// Whether this is an agent's answer, or the beginning of one: a message, or what begins with an id as we give them out, however it
/// goes on. It is for nobody's upstream then.
fn is_answer(body: &[u8]) -> bool {
    comet::looks_like_reply(body) || begins_with_id(body)
}

fn begins_with_id(body: &[u8]) -> bool {
    comet::first_id(body).is_some_and(|id| Id::parse(&id).is_some())
}

/// Takes what is there of a body that nobody wants: when it is whole, the connection can be used again.
fn take_rest(core: &mut Core, token: Token) {
    let now = core.now;
    while let Some((peer, head, config)) = core.hear(token)
        && let Ok((used, Some(event))) = peer.conn.recv(now, peer.input.bytes(), head, config)
    {
        let over = matches!(event, Event::End { .. });
        peer.input.consume(used);
        if over {
            return;
        }
    }
}

/// Answers a poll for which there is nothing.
fn say_nothing(core: &mut Core, token: Token, carriage: Carriage) {
    match carriage {
        Carriage::Comet(_) => say(core, token, carriage, 200, &[b"{}"]),
        Carriage::Packed(_) => say(core, token, carriage, 204, &[]),
    };
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

/// Begins the response at the far end of a pipe; ends it, where it has no body. `None` when nobody is there any more.
fn say_response(
    core: &mut Core,
    far: Token,
    (status, reason): (u16, &[u8]),
    fields: &Pairs,
    framing: Framing,
) -> Option<Result<(), Error>> {
    let now = core.now;
    let peer = core.tell(far)?;
    if !peer.conn.can_respond() {
        return None;
    }
    let bodiless = peer.conn.asked() == Asked::Head || matches!(status, 204 | 304);
    let said_length = fields.iter().find(|(name, _)| Name::of(name) == Name::ContentLength);
    let said_length = said_length.and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok());
    let body = match framing {
        // The length of a body that is not there is what the agent says it is.
        Framing::Length(1..) if bodiless && said_length.is_none() => Body::from(framing),
        _ if bodiless => said_length.map_or(Body::None, Body::Length),
        Framing::Empty => Body::Length(0),
        framing => Body::from(framing),
    };
    let sent = peer.conn.send_response(now, peer.output.vec(), (status, reason), body, |writer| {
        end_to_end(fields).for_each(|(name, value)| writer.field(name, value));
    });
    Some(sent.and_then(|()| if bodiless { peer.conn.send_end(now, None, peer.output.vec()) } else { Ok(()) }))
}

/// How long a poll is to be held at most, if its sender says so (RFC 7240 §4.3): an agent that only wants to know whether it may
/// poll says that it won't wait.
fn patience(head: &Head) -> Duration {
    let wait = head.fields.list(Name::Prefer).find_map(|preference| {
        let (name, value) = preference.split_at_checked(5)?;
        let seconds = name.eq_ignore_ascii_case(b"wait=").then_some(value)?;
        std::str::from_utf8(seconds).ok()?.parse().ok()
    });
    wait.map_or(Duration::MAX, Duration::from_secs)
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

fn not_carried(unsendable: Unsendable, name: &str) -> Answer {
    let code = match unsendable {
        Unsendable::BinaryBody => Code::BINARY_BODY,
        _ => Code::DIALECT_LIMIT,
    };
    Answer::new(code, format!("The request can't be given to the agent `{name}`: it {unsendable}."))
}

fn answer_too_large(name: &str, most: usize) -> Answer {
    let text = format!(
        "The answer of the agent `{name}` has more than {most} bytes, which is all that a message may have here (--limit \
         message)."
    );
    Answer::new(Code::ANSWER_TOO_LARGE, text)
}

fn bad_answer(error: Error, name: &str) -> Answer {
    let text = format!("The answer of the agent `{name}` was not passed on: it {error} ({}).", error.code());
    Answer::new(Code::LINK_PROTOCOL, text)
}
