//! Answers of our own: to an exchange that can't have another, and to what is none.

use std::time::Duration;

use mio::Token;
use ptth_proto::conn::{Body, Event};
use ptth_proto::error::Error;
use ptth_proto::http::framing::Asked;
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::Head;

use super::exchange::{Kind, Lane, Stage};
use super::{Bridge, Running, Side};
use crate::answer::{Answer, Code, wants_json};
use crate::log::{Line, Visitor};
use crate::net::addr::Remote;
use crate::peer::{NO_KEY, Seat};
use crate::reactor::Core;

impl<S: Side> Bridge<S> {
    /// Gives an exchange an answer of our own, if none was begun, and ends it.
    pub(super) fn answer(&mut self, core: &mut Core, id: usize, answer: Answer) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        exchange.code = Some(answer.code.name.into());
        if exchange.lane == Lane::InLine
            && core.peer(exchange.front).is_some_and(|front| front.seat != Seat::Exchange(id))
        {
            exchange.stage = Stage::Answered;
            exchange.failure = Some(answer);
            if exchange.back.is_none() {
                // It may have stood before others that wait for what it needs no more.
                self.side.forget(id, exchange);
            }
            return self.mark(id);
        }
        if exchange.lane == Lane::Ahead
            && let Some(back) = exchange.back.take()
            && !self.leave_line(core, id, back)
        {
            self.break_line(core, back);
        }
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        let can = core.peer(exchange.front).is_some_and(|front| front.conn.can_respond());
        if can {
            self.side.told(answer.code);
            if exchange.kind == Kind::Connect
                && let Some(front) = core.peer(exchange.front)
            {
                // Whoever has asked for a tunnel may go on as if it had one (RFC 9931 §4).
                front.conn.do_not_keep();
            }
            answer_early(core, exchange.front);
            exchange.status = answer.code.status;
            exchange.bytes_out = respond(S::PROGRAM, core, exchange.front, &exchange.head, exchange.number, &answer);
            self.finish(core, id);
        } else {
            if exchange.kind == Kind::Connect {
                // It has no page to read that on.
                let (visitor, code) = (exchange.visitor, answer.code.name);
                let tunnel = self.side.tunnel(exchange);
                log::info!("tunnel `{tunnel}`: a connection from {visitor} was closed ({code}): {}", answer.text);
            }
            self.cancel(core, id, answer.code);
        }
    }

    /// A request that could not be read: its sender is told why, where it can be.
    pub(super) fn refuse(&mut self, core: &mut Core, token: Token, error: Error) {
        let now = core.now;
        let Some(peer) = core.peer(token) else { return };
        log::debug!("{}: refused ({}): it {error}", peer.remote, error.code());
        match Answer::to_error(error).filter(|_| peer.conn.can_respond()) {
            Some(answer) => self.respond_alone(core, token, &Head::default(), &answer),
            None => {
                let remote = peer.remote;
                // What it was told before still reaches it.
                peer.conn.close(now);
                core.touch(token);
                let id = self.exchanges.number();
                self.line_alone(core, id, remote, &Head::default(), (0, Some(error.code()), 0));
            }
        }
    }

    /// An agent's request gets no more than this answer.
    pub(super) fn refuse_agent(&mut self, core: &mut Core, token: Token, head: &Head, answer: &Answer) {
        let Some(peer) = core.peer(token) else { return };
        log::info!("an agent at {} was refused ({}): {}", peer.remote, answer.code.name, answer.text);
        peer.seat = Seat::Front;
        peer.key = NO_KEY;
        answer_early(core, token);
        self.respond_alone(core, token, head, answer);
    }

    /// A request that may go no further is answered by whom it has reached. A relay asks its agents so whether they are there.
    pub(super) fn answer_here(&mut self, core: &mut Core, front: Token) {
        let now = core.now;
        let head = std::mem::take(&mut core.head);
        answer_early(core, front);
        // A link on which something is to be asked for yet is kept.
        let is_last = self.running != Running::Yes && !self.owes();
        if let Some(peer) = core.tell(front) {
            peer.seat = Seat::Front;
            if is_last {
                peer.conn.do_not_keep();
            }
            if head.method() == b"TRACE" {
                let text =
                    "A TRACE that may go no further would show what its sender has sent; this program answers none.";
                self.respond_alone(core, front, &head, &Answer::new(Code::TRACE, text));
            } else {
                let out = peer.output.vec();
                let sent = peer.conn.send_response(now, out, (204, b"No Content"), Body::None, |_| {});
                let sent = sent.and_then(|()| peer.conn.send_end(now, None, peer.output.vec()));
                // The relay's own questions come all the time, and are nobody's request.
                let asked = !peer.conn.is_link() || head.fields.has(Name::Via);
                let remote = peer.remote;
                if let Err(error) = sent {
                    log::error!("an answer could not be written: {error}");
                    core.drop_peer(front);
                } else if asked {
                    let id = self.exchanges.number();
                    self.line_alone(core, id, remote, &head, (204, None, 0));
                }
            }
        }
        core.head = head;
        core.step_again(front);
    }

    /// Answers what is no exchange: a request that could not be read, or was for nobody but us.
    pub(super) fn respond_alone(&mut self, core: &mut Core, token: Token, head: &Head, answer: &Answer) {
        let Some(remote) = core.peer(token).map(|peer| peer.remote) else { return };
        let id = self.exchanges.number();
        self.side.told(answer.code);
        let length = respond(S::PROGRAM, core, token, head, id, answer);
        self.line_alone(core, id, remote, head, (answer.code.status, Some(answer.code.name), length));
        // What is left of its bytes is of no more use, or the next request.
        core.step_again(token);
    }

    fn line_alone(
        &mut self,
        core: &Core,
        id: u64,
        remote: Remote,
        head: &Head,
        (status, code, length): (u16, Option<&'static str>, u64),
    ) {
        if !self.log.is_on() {
            return;
        }
        self.log.line(&Line {
            time: core.wall_clock(),
            id,
            visitor: Visitor::At(remote),
            tunnel: "-",
            method: head.method(),
            target: head.target(),
            status,
            bytes_in: 0,
            bytes_out: length,
            took: Duration::ZERO,
            code,
        });
    }
}

/// A request is about to be answered that may not be whole: behind a body that goes on no other is found. A length of 0 is a body
/// that has ended, if nobody has looked yet.
pub(crate) fn answer_early(core: &mut Core, token: Token) {
    let now = core.now;
    if let Some((peer, head, config)) = core.hear(token)
        && !peer.conn.has_heard_all()
        && !matches!(peer.conn.recv(now, b"", head, config), Ok((_, Some(Event::End { .. }))))
    {
        peer.conn.do_not_keep();
    }
}

/// Sends an answer of our own. Gives how much body it has.
pub(crate) fn respond(program: &str, core: &mut Core, front: Token, head: &Head, id: u64, answer: &Answer) -> u64 {
    let (now, date) = (core.now, core.wall_clock());
    let Some(peer) = core.tell(front) else { return 0 };
    let json = wants_json(head);
    let page = answer.page(program, id, json);
    let status = (answer.code.status, ptth_proto::wire::head::reason(answer.code.status).as_bytes());
    let length = page.len() as u64;
    let shown = if peer.conn.asked() == Asked::Head { 0 } else { length };
    let sent = peer
        .conn
        .send_response(now, peer.output.vec(), status, Body::Length(length), |fields| {
            answer.fields(program, json, date, fields);
        })
        .and_then(|()| peer.conn.send_data(now, page.as_bytes(), peer.output.vec()))
        .and_then(|()| peer.conn.send_end(now, None, peer.output.vec()));
    if let Err(error) = sent {
        log::error!("an answer could not be written: {error}");
        core.drop_peer(front);
    }
    shown
}

/// What those get who come while the program ends.
pub fn stopping() -> Answer {
    Answer::new(Code::STOPPING, "The program is being stopped and takes no new requests.")
}
