//! How an exchange begins: what is heard on a front between two of them, and what a request's head makes of it.

use mio::Token;
use ptth_proto::conn::Event;
use ptth_proto::error::Error;
use ptth_proto::http::framing::Framing;
use ptth_proto::http::tunnel;
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::Head;

use super::answers::stopping;
use super::exchange::{Kind, Lane};
use super::forward::passes;
use super::{Bridge, Claim, Running, Side, hops};
use crate::peer::{Seat, Twin};
use crate::reactor::Core;

impl<S: Side> Bridge<S> {
    /// Listens on a front between exchanges.
    pub(super) fn listen(&mut self, core: &mut Core, token: Token) {
        loop {
            let now = core.now;
            let Some((peer, head, config)) = core.hear(token) else { return };
            let heard = match peer.conn.recv(now, peer.input.bytes(), head, config) {
                Ok((used, event)) => {
                    let heard = event.map(|event| match event {
                        Event::Request(framing) => Heard::Request(framing),
                        Event::Offer(_) => Heard::Offer,
                        _ => Heard::Other,
                    });
                    peer.input.consume(used);
                    heard
                }
                Err(error) => Some(Heard::Error(error)),
            };
            match heard {
                Some(Heard::Request(framing)) => {
                    self.receive(core, token, framing);
                    return self.listen_behind(core, token);
                }
                Some(Heard::Offer) => return self.offered(core, token),
                Some(Heard::Error(error)) => return self.refuse(core, token, error),
                Some(Heard::Other) => {}
                None => {
                    let partial = !peer.input.is_empty();
                    if peer.tell_eof()
                        && let Err(error) = peer.conn.eof(now, peer.input.len())
                    {
                        self.refuse(core, token, error);
                    } else if partial && let Some(answer) = self.side.is_full(core) {
                        self.respond_alone(core, token, &Head::default(), &answer);
                    }
                    return;
                }
            }
        }
    }

    fn offered(&mut self, core: &mut Core, token: Token) {
        if let Some(answer) = self.side.offer(core, token, &mut self.orders) {
            let head = std::mem::take(&mut core.head);
            self.refuse_agent(core, token, &head, &answer);
            core.head = head;
        }
    }

    /// A request's head is here: a visitor's, or an agent's.
    fn receive(&mut self, core: &mut Core, token: Token, framing: Framing) {
        match self.side.claim(core, token, framing, &mut self.orders) {
            Claim::No => self.begin(core, token, framing),
            Claim::Taken => {}
            Claim::Refuse(answer) => {
                take_bodiless(core, token, framing);
                let head = std::mem::take(&mut core.head);
                self.refuse_agent(core, token, &head, &answer);
                core.head = head;
            }
        }
    }

    /// A request's head is here.
    pub(super) fn begin(&mut self, core: &mut Core, front: Token, framing: Framing) {
        let behind = core.peer(front).is_some_and(|peer| matches!(peer.seat, Seat::Exchange(_)));
        // Through a relay that knows nothing of it, these would be a visitor's words.
        let agreed = core.peer(front).is_some_and(|peer| peer.conn.can_pipeline() && peer.twin == Twin::None);
        if agreed {
            self.side.told_by_relay(core);
        }
        if hops::left(&core.head) == Some(0) {
            return if behind { self.begin_hint(core, front) } else { self.answer_here(core, front) };
        }
        let now = core.now;
        let kind = if behind { Kind::Http } else { self.kind(core, framing) };
        // To what may become a tunnel, no body and one of no length are the same.
        let framing = if kind == Kind::Http { framing } else { Framing::Empty };
        if framing == Framing::Empty && !behind {
            take_bodiless(core, front, framing);
        }
        // Behind others it has no seat to take: like any other, it is asked for anew.
        if agreed && !behind && core.head.fields.has(Name::PtthAside) && self.take_up(core, front) {
            return;
        }
        let Some((peer, head, _)) = core.hear(front) else { return };
        let mut exchange = self.exchanges.begin(front, peer.remote, framing, now);
        std::mem::swap(&mut exchange.head, head);
        exchange.key = peer.key;
        peer.head += exchange.head.memory();
        if peer.conn.is_in_line() {
            exchange.lane = Lane::InLine;
        }
        exchange.kind = match kind {
            // A visitor that ends its connection with this answer has nothing to go on with.
            Kind::Switch if peer.conn.offer_switch().is_err() => Kind::Http,
            kind => kind,
        };
        let by_http = !peer.conn.is_tunnel();
        let id = self.exchanges.insert(exchange);
        if behind {
            peer.line.push(id);
        } else {
            peer.seat = Seat::Exchange(id);
        }
        let is_taken_on = peer.conn.is_link();
        if self.running != Running::Yes && peer.twin == Twin::None && !self.owes() {
            peer.conn.do_not_keep();
        }
        core.touch(front);
        if self.running == Running::Draining && !is_taken_on {
            return self.answer(core, id, stopping());
        }
        if kind == Kind::Connect
            && by_http
            && let Err(refusal) = self.side.connects()
        {
            return self.answer(core, id, refusal);
        }
        self.assign(core, id);
    }

    /// What the request in `core.head` may become.
    fn kind(&self, core: &Core, framing: Framing) -> Kind {
        let head = &core.head;
        if head.method() == b"CONNECT" {
            return Kind::Connect;
        }
        let switches = tunnel::offered(head, framing).any(|token| passes(&self.side, token));
        if switches { Kind::Switch } else { Kind::Http }
    }
}

/// What was heard on a front between exchanges.
enum Heard {
    Request(Framing),
    Offer,
    Other,
    Error(Error),
}

/// The end of a request without a body takes no bytes: it is there with the head, and is taken before the request is answered.
pub fn take_bodiless(core: &mut Core, token: Token, framing: Framing) {
    let now = core.now;
    if matches!(framing, Framing::Empty | Framing::Length(0))
        && let Some((peer, head, config)) = core.hear(token)
    {
        let _ = peer.conn.recv(now, b"", head, config);
    }
}
