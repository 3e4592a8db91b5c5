//! Several requests on one link, between our own two sides (`docs/links.md`). The relay sends requests behind one that is not answered
//! yet; the agent runs them all at once, and gives their answers in the order of the requests, whole. An answer that is long, or not
//! there while one behind it is, is set aside, and the relay asks for it again on a link that it has to itself: so nobody waits for
//! somebody else's slow answer for longer than [`turn`](ptth_proto::limits::Deadlines::turn).
//!
//! In a line the exchange in a peer's seat is the one whose turn it is; those behind it are in [`Peer::line`].

use std::io::Write;

use mio::Token;
use ptth_proto::conn::{Body, Event};
use ptth_proto::http::framing::Framing;
use ptth_proto::limits::Wait;
use ptth_proto::time::Instant;
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::{FieldWriter, Head, is_idempotent};

use super::end::leave;
use super::exchange::{Lane, Stage};
use super::{BackFault, Bridge, Order, Running, Side};
use crate::answer::Code;
use crate::peer::{HINT, NO_KEY, NOBODY, Peer, Seat};
use crate::reactor::Core;

/// The agent that the name of an answer set aside begins with, and the rest of the name.
pub(crate) fn agent_of(name: &[u8]) -> Option<(u64, &[u8])> {
    let (agent, rest) = name.split_at_checked(16)?;
    let agent = std::str::from_utf8(agent).ok()?;
    Some((u64::from_str_radix(agent, 16).ok()?, rest.strip_prefix(b"-").unwrap_or(rest)))
}

/// Tells an agent of ours how many requests wait for a link to it.
pub(crate) fn say_wanted(fields: &mut FieldWriter<'_>, waiting: usize) {
    let mut digits = [0; 20];
    let mut room = &mut digits[..];
    let _ = write!(room, "{waiting}");
    let left = room.len();
    fields.parts(b"Ptth-Accept", &[WANTED, &digits[..digits.len() - left]]);
}

/// The element of `Ptth-Accept` that says so.
const WANTED: &[u8] = b"wanted=";

/// What a request says of that.
pub(crate) fn wanted(head: &Head) -> Option<usize> {
    let mut said = head.fields.list(Name::PtthAccept).filter_map(|element| element.strip_prefix(WANTED));
    std::str::from_utf8(said.next()?).ok()?.parse().ok()
}

/// Whether somebody waits for an answer of those that are to come behind the one whose turn it is.
fn is_waited_for(back: &Peer) -> bool {
    back.line.iter().any(|behind| *behind != NOBODY && *behind != HINT)
}

/// No peer: the front of an exchange that is set aside.
const NO_FRONT: Token = Token(usize::MAX);

// The relay's side: lines on backs.
impl<S: Side> Bridge<S> {
    /// Sends an exchange's request behind those that are on this link already.
    pub(super) fn attach_behind(&mut self, core: &mut Core, id: usize, back: Token) {
        let Some(exchange) = self.exchanges.waiting_mut(id) else { return };
        let room = |peer: &&mut Peer| peer.is_alive() && peer.conn.has_room_behind();
        let Some(peer) = core.tell_much(back, exchange.head.size()).filter(room) else {
            exchange.lane = Lane::Own;
            return self.orders.push(Order::Assign(id));
        };
        exchange.mark = peer.written + peer.output.len() as u64;
        let target = self.side.target(exchange);
        let sent = peer.conn.send_ahead(peer.output.vec(), (exchange.head.method(), &target), |fields| {
            self.side.request_fields(exchange, fields);
            fields.field("Ptth-Accept", "aside");
        });
        if let Err(error) = sent {
            return self.not_written(core, id, error);
        }
        peer.line.push(id);
        self.gathering = true;
        exchange.back = Some(back);
        exchange.tries += 1;
        exchange.stage = Stage::Streaming;
        let front = exchange.front;
        let Some(front) = core.peer(front) else { return };
        front.wait = None;
        if front.has_hung_up() {
            self.mark(id);
        }
    }

    /// The answer whose turn it was on this back has come, or won't: the next one's turn, or a rest.
    pub(super) fn next_on_back(&mut self, core: &mut Core, back: Token) {
        let Some(peer) = core.peer(back) else { return };
        if peer.line.is_empty() {
            return self.let_go(core, back);
        }
        if peer.is_dead() || peer.conn.closing().is_some() {
            // What was answered was the last one. The end of the link alone says nothing: their answers may have come before it.
            return self.break_line(core, back);
        }
        let next = peer.line.remove(0);
        peer.fed = false;
        peer.held = false;
        if next == NOBODY && !is_waited_for(peer) {
            if S::RESETS_BACKS {
                peer.transport().break_on_close();
            }
            return self.break_line(core, back);
        }
        if next == NOBODY || next == HINT {
            peer.seat = Seat::Nobody;
            core.step_again(back);
        } else {
            peer.seat = Seat::Exchange(next);
            self.mark(next);
        }
    }

    /// A link is of no more use: those behind the one whose turn it was go other ways.
    pub(super) fn break_line(&mut self, core: &mut Core, back: Token) {
        let most = core.config.limits.tries;
        let Some(peer) = core.peer(back) else { return };
        let line = std::mem::take(&mut peer.line);
        peer.seat = Seat::Own;
        core.drop_peer(back);
        for id in line.into_iter().rev() {
            let Some(exchange) = self.exchanges.get_mut(id) else { continue };
            exchange.back = None;
            exchange.stage = Stage::Waiting;
            exchange.lane = Lane::Own;
            debug_assert!(is_idempotent(exchange.head.method()), "no other method stands in a line");
            self.orders.push(if exchange.tries < most {
                Order::Assign(id)
            } else {
                Order::Answer(id, self.side.fault(exchange, &BackFault::Lost(None)))
            });
        }
    }

    /// Nobody waits for this exchange's answer any more, which is one of several to come on its back. False when nobody waits for any of
    /// them: then the back is of no more use, and what is made there for nobody ends with it.
    pub(super) fn leave_line(&mut self, core: &mut Core, id: usize, back: Token) -> bool {
        let Some(peer) = core.peer(back) else { return false };
        let is_first = peer.seat == Seat::Exchange(id);
        if let Some(place) = peer.line.iter_mut().find(|place| **place == id) {
            *place = NOBODY;
        } else if !is_first {
            return false;
        }
        if (is_first || peer.seat == Seat::Nobody) && !is_waited_for(peer) {
            return false;
        }
        if is_first {
            peer.seat = Seat::Nobody;
            peer.held = false;
            core.step_again(back);
        }
        true
    }

    /// Throws away what comes for nobody.
    pub(super) fn pass_over(&mut self, core: &mut Core, back: Token) {
        let now = core.now;
        // There is room again for what its socket has.
        core.touch(back);
        loop {
            let Some((peer, head, config)) = core.hear(back) else { return };
            let over = match peer.conn.recv(now, peer.input.bytes(), head, config) {
                Ok((used, event)) => {
                    let over = matches!(event, Some(Event::End { .. } | Event::Aside));
                    let still = event.is_none();
                    peer.input.consume(used);
                    if still {
                        if peer.eof || peer.broken {
                            self.break_line(core, back);
                        }
                        return;
                    }
                    over
                }
                Err(_) => return self.break_line(core, back),
            };
            if over {
                return self.next_on_back(core, back);
            }
        }
    }

    /// The agent has set this exchange's answer aside: it is asked for on a link of its own.
    pub(super) fn was_set_aside(&mut self, core: &mut Core, id: usize) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        exchange.stage = Stage::Waiting;
        exchange.lane = Lane::Own;
        let back = exchange.back.take();
        self.side.was_set_aside(exchange);
        if let Some(back) = back {
            self.next_on_back(core, back);
        }
        self.assign(core, id);
    }
}

// The agent's side: lines on fronts.
impl<S: Side> Bridge<S> {
    /// Takes the requests that stand behind the one in progress on a link.
    pub(super) fn listen_behind(&mut self, core: &mut Core, front: Token) {
        loop {
            let (under_way, has_room) = (self.exchanges.len(), self.side.has_room());
            let Some((peer, head, config)) = core.hear(front) else { return };
            // What is left there is looked at again when it is the next one's turn, and when there is room.
            if !peer.conn.can_pipeline() || !matches!(peer.seat, Seat::Exchange(_)) {
                return;
            }
            if !has_room || under_way >= config.limits.upstream {
                if !peer.input.is_empty() && !self.unheard.contains(&front) {
                    self.unheard.push_back(front);
                }
                return;
            }
            match peer.conn.recv_ahead(peer.input.bytes(), head, config) {
                Ok((used, true)) => {
                    peer.input.consume(used);
                    self.begin(core, front, Framing::Empty);
                }
                Ok((_, false)) => return,
                Err(error) => {
                    log::warn!("a link is closed: the relay {error} ({})", error.code());
                    if let Seat::Exchange(id) = peer.seat {
                        self.cancel(core, id, Code::VISITOR_GONE);
                    }
                    return;
                }
            }
        }
    }

    /// Where requests were left unread behind others for want of room, they are looked at again, as many as there is room for now.
    pub(super) fn hear_more(&mut self, core: &mut Core) {
        if self.unheard.is_empty() || !self.side.has_room() {
            return;
        }
        let room = core.config.limits.upstream.saturating_sub(self.exchanges.len());
        for front in self.unheard.drain(..room.min(self.unheard.len())) {
            core.step_again(front);
        }
    }

    /// A word from the relay to us alone: it has been heard, and is answered in its turn.
    pub(super) fn begin_hint(&mut self, core: &mut Core, front: Token) {
        let now = core.now;
        let Some(peer) = core.peer(front) else { return };
        let mut exchange = self.exchanges.begin(front, peer.remote, Framing::Empty, now);
        exchange.lane = Lane::InLine;
        exchange.stage = Stage::Hint;
        let id = self.exchanges.insert(exchange);
        peer.line.push(id);
    }

    /// It is its turn.
    pub(super) fn answer_hint(&mut self, core: &mut Core, id: usize) {
        let now = core.now;
        let Some(exchange) = self.exchanges.end(id) else { return };
        let front = exchange.front;
        self.exchanges.recycle(exchange);
        let Some(peer) = core.tell(front) else { return };
        let sent = peer.conn.send_response(now, peer.output.vec(), (204, b"No Content"), Body::None, |_| {});
        if let Err(error) = sent.and_then(|()| peer.conn.send_end(now, None, peer.output.vec())) {
            log::error!("an answer could not be written: {error}");
            core.drop_peer(front);
        }
        self.front_is_done(core, front);
    }

    /// Whether it is this exchange's turn on its front. If it is not, and its answer is there, the one before it has not much time left.
    pub(super) fn has_turn(&mut self, core: &mut Core, id: usize) -> bool {
        let now = core.now;
        let Some(exchange) = self.exchanges.get_mut(id) else { return false };
        let front = exchange.front;
        let Some(seat) = core.peer(front).map(|peer| peer.seat) else { return false };
        if seat == Seat::Exchange(id) {
            return true;
        }
        let back = exchange.back.and_then(|back| core.peer(back));
        if back.as_ref().is_some_and(|back| back.input.is_empty() && (back.eof || back.broken)) {
            // It has no answer: another connection may bring one, and need not wait for its turn.
            self.back_failed(core, id, BackFault::Lost(None));
            return false;
        }
        if exchange.stage == Stage::Answered || back.is_some_and(|back| !back.input.is_empty()) {
            exchange.ready.get_or_insert(now);
            self.watch_turn(core, front);
        }
        false
    }

    /// Sees to it that nobody in this front's line waits for too long.
    pub(super) fn watch_turn(&mut self, core: &mut Core, front: Token) {
        let turn = core.config.deadlines.turn;
        if core.peer(front).is_none_or(|peer| matches!(peer.wait, Some((_, Wait::Turn)))) {
            return;
        }
        let Some(until) = self.held_up_since(core, front).map(|since| since + turn) else { return };
        if let Some(peer) = core.peer(front).filter(|peer| peer.wait.is_none_or(|(at, _)| until < at)) {
            peer.wait = Some((until, Wait::Turn));
            core.touch(front);
        }
    }

    /// Since when an answer has been held up on this front: behind another one, or because it is not whole.
    fn held_up_since(&mut self, core: &mut Core, front: Token) -> Option<Instant> {
        let peer = core.peer(front)?;
        let Seat::Exchange(first) = peer.seat else { return None };
        let part = self.exchanges.get_mut(first).filter(|exchange| exchange.kept.is_some()).and_then(|part| part.ready);
        let behind = peer.line.iter().filter_map(|id| self.exchanges.get_mut(*id)?.ready).min();
        part.into_iter().chain(behind).min()
    }

    /// The answer whose turn it is has held others up for too long, or itself: it is set aside, and so are those behind it that are no
    /// better.
    pub(super) fn turn_is_over(&mut self, core: &mut Core, front: Token) {
        let (now, turn) = (core.now, core.config.deadlines.turn);
        if let Some(peer) = core.peer(front) {
            peer.wait = None;
        }
        while let Some(Seat::Exchange(id)) = core.peer(front).map(|peer| peer.seat) {
            if self.held_up_since(core, front).is_none_or(|since| now < since + turn) {
                return self.watch_turn(core, front);
            }
            let back = self.exchanges.get_mut(id).and_then(|exchange| exchange.back);
            if back.and_then(|back| core.peer(back)).is_some_and(|back| back.held) {
                // It is there, and waits for the link itself to have room.
                return;
            }
            if !self.set_aside(core, id) {
                return self.give_here(id);
            }
            // What there is of the next ones goes.
            let mut last = None;
            while let Some(Seat::Exchange(next)) = core.peer(front).map(|peer| peer.seat)
                && last.replace(next) != Some(next)
            {
                self.pump(core, next);
            }
        }
    }

    /// An answer that is not whole can't be set aside: it is given where it is, as it comes.
    pub(super) fn give_here(&mut self, id: usize) {
        if let Some(exchange) = self.exchanges.get_mut(id).filter(|exchange| exchange.kept.is_some()) {
            exchange.lane = Lane::Own;
            self.mark(id);
        }
    }

    /// Sets an exchange's answer aside. False when that can't be. An agent that is to stop sets none aside: it makes no more links on
    /// which it could be asked for.
    pub(super) fn set_aside(&mut self, core: &mut Core, id: usize) -> bool {
        let (now, until) = (core.now, core.now + core.config.deadlines.aside);
        let Some(exchange) = self.exchanges.get_mut(id).filter(|_| self.running == Running::Yes) else { return false };
        let front = exchange.front;
        let name = format!("{:016x}-{id:x}", self.side.agent());
        let Some(peer) = core.tell(front) else { return false };
        if peer.conn.send_aside(now, peer.output.vec(), name.as_bytes()).is_err() {
            return false;
        }
        peer.head = peer.head.saturating_sub(exchange.head.memory());
        log::debug!("request {}: its answer was set aside", exchange.number);
        exchange.lane = Lane::Aside;
        exchange.front = NO_FRONT;
        exchange.key = NO_KEY;
        exchange.ready = None;
        if let Some(back) = exchange.back {
            if let Some(peer) = core.peer(back) {
                peer.wait = Some((until, Wait::Aside));
                peer.held = false;
            }
            core.touch(back);
        }
        self.front_is_done(core, front);
        true
    }

    /// The relay asks for an answer that was set aside, by a request with its name in `core.head`. False when there is none of that name.
    pub(super) fn take_up(&mut self, core: &mut Core, front: Token) -> bool {
        let Some(name) = core.head.fields.first(Name::PtthAside) else { return false };
        let id = agent_of(name)
            .filter(|(agent, _)| *agent == self.side.agent())
            .and_then(|(_, id)| std::str::from_utf8(id).ok().and_then(|id| usize::from_str_radix(id, 16).ok()));
        let head = &core.head;
        let same = |exchange: &&mut super::Exchange| {
            let asked = &exchange.head;
            exchange.lane == Lane::Aside && (asked.method(), asked.target()) == (head.method(), head.target())
        };
        let Some(id) = id else { return false };
        let Some(exchange) = self.exchanges.get_mut(id).filter(same) else { return false };
        let connected = core.now + core.config.deadlines.connect;
        let Some(peer) = core.peer(front) else { return false };
        exchange.front = front;
        exchange.lane = Lane::Own;
        exchange.key = peer.key;
        peer.head = exchange.head.memory();
        peer.seat = Seat::Exchange(id);
        peer.wait = exchange.back.is_none().then_some((connected, Wait::Connect));
        let back = exchange.back;
        self.side.taken_up(core, exchange);
        if let Some(peer) = back.and_then(|back| core.peer(back)) {
            peer.wait = None;
        }
        core.touch(front);
        self.mark(id);
        self.owes_less(core);
        true
    }

    /// Whether links are needed that could go by now: an answer that was set aside is to be asked for on one.
    pub(super) fn owes(&self) -> bool {
        self.running != Running::Yes && self.exchanges.is_any_aside()
    }

    /// An answer is not set aside any more. Behind the last one, a program that is to stop needs its links no more.
    pub(super) fn owes_less(&mut self, core: &mut Core) {
        if self.running == Running::Yes || self.owes() {
            return;
        }
        let fronts: Vec<Token> = core.peers().filter(|(_, peer)| peer.conn.is_link()).map(|(token, _)| token).collect();
        for front in fronts {
            leave(core, front);
        }
    }

    /// The exchange whose turn it was on this front is over: the next one's turn. False when there is none.
    pub(super) fn next_on_front(&mut self, core: &mut Core, front: Token) -> bool {
        let connected = core.now + core.config.deadlines.connect;
        let Some(peer) = core.peer(front).filter(|peer| !peer.line.is_empty()) else { return false };
        let next = peer.line.remove(0);
        let is_looked_up = self.exchanges.waiting_mut(next).is_some();
        peer.seat = Seat::Exchange(next);
        peer.fed = false;
        peer.wait = is_looked_up.then_some((connected, Wait::Connect));
        if !peer.input.is_empty() {
            // There was no room for it in the line.
            core.step_again(front);
        }
        core.touch(front);
        self.mark(next);
        self.watch_turn(core, front);
        true
    }
}
