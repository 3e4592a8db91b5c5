//! Requests on their way to an agent: read at the far end of a pipe until they are whole, made into messages, handed to a poll, and
//! handed out again if they can't have arrived, or may not have.

use std::time::Duration;

use mio::Token;
use ptth_proto::conn::{Conn, Event};
use ptth_proto::http::framing::Framing;
use ptth_proto::link::queue::{Id, Unwanted};
use ptth_proto::role::Role;
use ptth_proto::wire::comet;
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::{Head, is_idempotent};
use ptth_proto::wire::message::Unsendable;
use ptth_proto::wire::packed::{self, Form};

use super::{Carriage, FAR, Letter, MAIL, NEAR, Poll, Stage, say, to_front};
use crate::answer::{Answer, Code};
use crate::bridge::{Order, stopping, takes_trailers};
use crate::peer::Seat;
use crate::reactor::Core;
use crate::relay::Relay;
use crate::relay::agents::KeyHash;

/// Messages that one poll of the `ptth` dialect takes along, when several wait.
const BATCH: usize = 16;
/// Pipes that are kept for the next messages.
const SPARE_PIPES: usize = 64;

impl Relay {
    /// A link of the tunnel for one more message: the near end of a pipe.
    pub(in crate::relay) fn open_pipe(&mut self, core: &mut Core, tunnel: usize) -> Token {
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
            earlier: Vec::new(),
            head: Head::default(),
            bodiless: false,
            body: Vec::new(),
            bytes: 0,
        };
        self.queues.letters.insert(far, letter);
        near
    }

    /// An exchange is done with its pipe, which can serve another.
    pub(in crate::relay) fn pipe_is_idle(&mut self, core: &mut Core, near: Token) {
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
    pub(super) fn settle_letter(&mut self, core: &mut Core, far: Token) {
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
        for id in letter.earlier.drain(..) {
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
    pub(in crate::relay) fn step_far(&mut self, core: &mut Core, far: Token, orders: &mut Vec<Order>) {
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
    pub(super) fn hand_out(&mut self, core: &mut Core, token: Token, far: Token, orders: &mut Vec<Order>) {
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
                None => self.hand_out_again(core, ids, orders),
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

    /// Messages that can't have arrived wait again. Where the program is stopping no poll will come for them, and their visitors are told.
    pub(super) fn hand_out_again(&mut self, core: &mut Core, ids: Vec<Id>, orders: &mut Vec<Order>) {
        for id in ids.into_iter().rev() {
            let Some(far) = self.queues.out.take_back(id) else { continue };
            let Some(letter) = self.queues.letters.get_mut(&far) else { continue };
            log::debug!("a message did not reach its agent and waits again");
            let near = letter.near;
            letter.stage = Stage::Ready;
            if !self.queues.stopping {
                self.wait_again(core, far);
            } else if !self.leave_out(far) {
                orders.push(Order::Fault(near, stopping()));
            }
        }
    }

    fn wait_again(&mut self, core: &mut Core, far: Token) {
        let patience = core.config.deadlines.link;
        let Some(letter) = self.queues.letters.get_mut(&far) else { return };
        letter.stage = Stage::Ready;
        let tunnel = letter.tunnel;
        if let Some(mail) = self.tunnels.mail(tunnel) {
            mail.queue.push_again(core.now, far, patience);
        }
        // Whoever polls now takes it at once.
        core.set_timer(Duration::ZERO, MAIL | tunnel);
    }

    /// The connection broke that these were written to, and nothing was heard on it behind them. They may not have been read, or their
    /// agent is at work on them and answers on another connection. What may be asked twice waits for another poll, as often as a request
    /// is tried on links, and the first answer is taken; all others stay with the agent.
    pub(super) fn broke_behind(&mut self, core: &mut Core, ids: impl Iterator<Item = Id>) {
        if self.queues.stopping {
            return;
        }
        let most = core.config.limits.tries;
        let mut again = Vec::new();
        for id in ids {
            let Some(far) = self.queues.out.find(id) else { continue };
            let Some(letter) = self.queues.letters.get_mut(&far) else { continue };
            // With an agent all its polls break, and not in one moment.
            if letter.stage == Stage::Out(id) && letter.earlier.len() + 1 < most && is_idempotent(letter.head.method())
            {
                letter.earlier.push(id);
                again.push(far);
            }
        }
        for far in again.into_iter().rev() {
            log::debug!("a message may not have reached its agent and waits again");
            self.wait_again(core, far);
        }
    }

    /// Whether a message waits for a poll, or for the answer to it.
    pub(super) fn may_be_answered(&self, far: Token) -> bool {
        match self.queues.letters.get(&far).map(|letter| letter.stage) {
            Some(Stage::Ready) => true,
            Some(Stage::Out(id)) => self.queues.out.find(id).is_some(),
            _ => false,
        }
    }

    /// No poll will come for a message. If an agent may have it, its answer is waited for.
    pub(super) fn leave_out(&mut self, far: Token) -> bool {
        let Some(letter) = self.queues.letters.get_mut(&far) else { return false };
        let out = &self.queues.out;
        let Some(id) = letter.earlier.iter().rev().find(|id| out.find(**id).is_some()) else { return false };
        letter.stage = Stage::Out(*id);
        if let Some(mail) = self.tunnels.mail(letter.tunnel) {
            mail.queue.forget(far);
        }
        true
    }

    /// An agent answers: gives the message, which nobody else can answer then.
    ///
    /// # Errors
    /// When it is not out, or not with this agent.
    pub(super) fn take_answer(&mut self, id: Id, by: &Option<KeyHash>) -> Result<Token, Unwanted> {
        let far = self.queues.out.answer(id, by)?;
        let Some(letter) = self.queues.letters.get_mut(&far) else { return Ok(far) };
        if let Stage::Out(last) = letter.stage {
            self.queues.out.take_back(last);
        }
        for id in letter.earlier.drain(..) {
            self.queues.out.take_back(id);
        }
        if letter.stage == Stage::Ready
            && let Some(mail) = self.tunnels.mail(letter.tunnel)
        {
            mail.queue.forget(far);
        }
        letter.stage = Stage::Answered(None);
        Ok(far)
    }

    /// Messages of a tunnel that wait for a poll.
    pub(in crate::relay) fn letters_waiting(&mut self, tunnel: usize) -> usize {
        self.tunnels.mail(tunnel).map_or(0, |mail| mail.queue.messages())
    }

    /// Whether a request may have left for its agent, or will in this moment: only one that waits for a poll has not.
    pub(in crate::relay) fn letter_is_out(&self, far: Token) -> bool {
        let letter = self.queues.letters.get(&far);
        letter.is_none_or(|letter| letter.stage != Stage::Ready || !letter.earlier.is_empty())
    }

    /// The near end of the pipe of the message that has waited longest for a poll, if it can go another way: it has no body that
    /// was used up.
    pub(in crate::relay) fn take_ready(&mut self, tunnel: usize) -> Option<Token> {
        let far = self.tunnels.mail(tunnel)?.queue.first()?;
        let letter = self.queues.letters.get_mut(&far).filter(|letter| letter.bodiless)?;
        letter.stage = Stage::Coming;
        let near = letter.near;
        self.tunnels.mail(tunnel)?.queue.forget(far);
        Some(near)
    }
}

fn not_carried(unsendable: Unsendable, name: &str) -> Answer {
    let code = match unsendable {
        Unsendable::BinaryBody => Code::BINARY_BODY,
        _ => Code::DIALECT_LIMIT,
    };
    Answer::new(code, format!("The request can't be given to the agent `{name}`: it {unsendable}."))
}
