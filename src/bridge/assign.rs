//! Which back an exchange gets, and which exchange a back: the request goes out, to another loop, or to another back; a back
//! that is done goes to the next.

use mio::Token;
use ptth_proto::conn::Body;
use ptth_proto::error::Error;
use ptth_proto::http::framing::Framing;
use ptth_proto::http::tunnel;
use ptth_proto::limits::Wait;

use super::answers::stopping;
use super::exchange::{Exchange, Kind, Lane, Stage};
use super::forward::passes;
use super::{Assign, Bridge, Order, Running, Side, line};
use crate::answer::{Answer, Code};
use crate::peer::{NO_KEY, Peer, Seat, Twin};
use crate::reactor::{Core, Mailbox, Message};

impl<S: Side> Bridge<S> {
    pub(super) fn assign(&mut self, core: &mut Core, id: usize) {
        let Some(exchange) = self.exchanges.waiting_mut(id) else { return };
        match self.side.assign(core, id, exchange) {
            Assign::Back(back) => self.attach(core, id, back),
            Assign::Later => {}
            Assign::Elsewhere(mailbox) => self.hand_over(core, id, &mailbox),
            Assign::Refuse(answer) => self.answer(core, id, answer),
        }
    }

    /// Sends an exchange that nobody has heard of yet to another loop, its front with it.
    pub(super) fn hand_over(&mut self, core: &mut Core, id: usize, mailbox: &Mailbox) {
        if self.exchanges.waiting_mut(id).is_none() {
            return;
        }
        let Some(mut exchange) = self.exchanges.end(id) else { return };
        self.side.forget(id, &exchange);
        self.side.handed_over(&exchange);
        let Some(front) = core.detach(exchange.front) else { return };
        exchange.hops += 1;
        exchange.tunnel = NO_KEY;
        mailbox.send(Message::Handed(front, Box::new(exchange)));
    }

    /// Takes over such an exchange.
    pub(super) fn take_over(&mut self, core: &mut Core, front: Box<Peer>, mut exchange: Exchange) {
        let Ok(token) = core.adopt(front) else {
            exchange.code = Some(Code::INTERNAL.name.into());
            return self.write_line(core, &exchange);
        };
        exchange.front = token;
        exchange.marked = false;
        let id = self.exchanges.insert(exchange);
        if let Some(peer) = core.peer(token) {
            peer.seat = Seat::Exchange(id);
        }
        match self.running {
            Running::Yes => self.assign(core, id),
            Running::Farewell => {
                if let Some(peer) = core.peer(token) {
                    peer.conn.do_not_keep();
                }
                self.assign(core, id);
            }
            Running::Draining | Running::Over(_) => self.answer(core, id, stopping()),
        }
    }

    /// Gives an exchange its back, and the back its request.
    pub(super) fn attach(&mut self, core: &mut Core, id: usize, back: Token) {
        let now = core.now;
        let Some(exchange) = self.exchanges.waiting_mut(id) else {
            // The one that waited for it is gone: the next one, or a rest.
            return self.let_go(core, back);
        };
        if exchange.lane == Lane::Ahead && core.peer(back).is_some_and(|peer| !peer.conn.is_idle()) {
            return self.attach_behind(core, id, back);
        }
        core.read_on(back);
        let until = now + core.config.deadlines.aside;
        let is_raw = |peer: &Peer| exchange.kind == Kind::Connect && peer.conn.is_tunnel() && peer.is_alive();
        let Some(peer) = core.tell_much(back, exchange.head.size()).filter(|peer| peer.can_be_asked() || is_raw(peer))
        else {
            self.orders.push(Order::Assign(id));
            return;
        };
        peer.wait = (exchange.lane == Lane::Aside).then_some((until, Wait::Aside));
        peer.seat = Seat::Exchange(id);
        exchange.back = Some(back);
        exchange.mark = peer.written;
        exchange.tries += 1;
        if peer.conn.is_tunnel() {
            exchange.stage = Stage::Connecting;
            return self.mark(id);
        }
        let leads = exchange.lane == Lane::Ahead && peer.conn.can_pipeline();
        self.gathering |= leads;
        let waiting = if peer.conn.can_pipeline() { self.side.waiting(exchange) } else { 0 };
        if !leads && self.running != Running::Yes && exchange.kind == Kind::Http && self.side.is_last(exchange) {
            peer.conn.ask_last();
        }
        let target = self.side.target(exchange);
        let body = Body::from(exchange.framing);
        let sent = peer.conn.send_request(now, peer.output.vec(), (exchange.head.method(), &target), body, |fields| {
            self.side.request_fields(exchange, fields);
            if leads {
                fields.field("Ptth-Accept", "aside");
            }
            if waiting > 0 {
                line::say_wanted(fields, waiting);
            }
            if let Some(name) = &exchange.aside {
                fields.field("Ptth-Aside", name);
            }
            if exchange.kind == Kind::Switch {
                let head = &exchange.head;
                let offered = tunnel::offered(head, exchange.framing);
                let passed: Vec<&[u8]> = offered.filter(|token| passes(&self.side, token)).collect();
                fields.field("Connection", "Upgrade");
                fields.field("Upgrade", passed.join(&b", "[..]));
            }
        });
        let sent = match exchange.framing {
            Framing::Empty => {
                exchange.stage = Stage::Streaming;
                let sent = sent.and_then(|()| peer.conn.send_end(now, None, peer.output.vec()));
                match exchange.kind {
                    Kind::Switch => sent.and_then(|()| peer.conn.offer_switch()),
                    Kind::Http if leads => sent.and_then(|()| peer.conn.open_line()),
                    Kind::Http | Kind::Connect => sent,
                }
            }
            _ => {
                exchange.stage = Stage::Asking;
                peer.fed = true;
                sent
            }
        };
        let front = exchange.front;
        // Where its answer is to come in turn, those behind it may be waiting for that already.
        let may_carry = exchange.framing != Framing::Empty || exchange.lane == Lane::InLine;
        // What else it may wait for there concerns others.
        let is_its_own = |peer: &&mut Peer| peer.seat == Seat::Exchange(id) && !is_for_turn(peer);
        if let Some(front) = core.peer(front).filter(is_its_own) {
            front.wait = None;
        }
        // Nothing is there yet of an answer. Its visitor may have gone before there was anybody to ask.
        if may_carry || core.peer(front).is_some_and(|front| front.has_hung_up()) {
            self.mark(id);
        }
        if let Err(error) = sent {
            self.not_written(core, id, error);
        }
    }

    pub(super) fn not_written(&mut self, core: &mut Core, id: usize, error: Error) {
        log::error!("a request could not be written: {error}");
        self.drop_back(core, id);
        let text = "The request could not be written for the next hop. This is a bug worth a report.";
        self.answer(core, id, Answer::new(Code::INTERNAL, text));
    }

    /// Takes an exchange from a back whose request nobody has had to another one.
    pub(super) fn change_back(&mut self, core: &mut Core, from: Token, to: Token) {
        if let Some(Seat::Exchange(id)) = core.peer(from).map(|peer| peer.seat)
            && let Some(exchange) = self.exchanges.get_mut(id).filter(|exchange| exchange.framing == Framing::Empty)
        {
            exchange.stage = Stage::Waiting;
            self.drop_back(core, id);
            return self.attach(core, id, to);
        }
        self.let_go(core, to);
    }

    /// Lets a back go: to the next exchange when nothing about it was odd, else for good.
    pub(super) fn let_go(&mut self, core: &mut Core, back: Token) {
        let Some(peer) = core.peer(back) else { return };
        peer.fed = false;
        peer.held = false;
        peer.wait = None;
        peer.seat = Seat::Own;
        let is_over = self.running == Running::Draining && peer.twin == Twin::None && !self.side.is_wanted(core, back);
        let Some(peer) = core.peer(back) else { return };
        if peer.can_be_asked() && !peer.is_connecting() && !peer.is_deaf() && !is_over {
            self.side.release(core, back, &mut self.orders);
        } else {
            core.drop_peer(back);
        }
    }
}

/// Whether others in its line wait for what this front waits for.
fn is_for_turn(front: &Peer) -> bool {
    matches!(front.wait, Some((_, Wait::Turn)))
}
