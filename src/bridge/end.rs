//! How an exchange ends: its answer is complete, or it is cut off so that nobody takes what there is of it for the whole.

use mio::Token;

use super::exchange::{Lane, Stage};
use super::forward::is_http10;
use super::{BackFault, Bridge, Running, Side};
use crate::answer::Code;
use crate::peer::{Seat, Twin};
use crate::reactor::Core;

impl<S: Side> Bridge<S> {
    /// Ends an exchange whose response is complete, or whose tunnel is over.
    pub(super) fn finish(&mut self, core: &mut Core, id: usize) {
        if self.exchanges.get_mut(id).is_some_and(|exchange| exchange.stage == Stage::Tunnel) {
            return self.tunnel_over(core, id);
        }
        let Some(exchange) = self.exchanges.end(id) else { return };
        self.write_line(core, &exchange);
        match exchange.back {
            Some(back) => self.next_on_back(core, back),
            None => self.side.forget(id, &exchange),
        }
        self.side.ended(core, &exchange);
        let front = exchange.front;
        if let Some(peer) = core.peer(front) {
            peer.head = peer.head.saturating_sub(exchange.head.memory());
        }
        self.front_is_done(core, front);
        self.exchanges.recycle(exchange);
    }

    /// A front has the answer that was due: the next one's turn, or the next request.
    pub(super) fn front_is_done(&mut self, core: &mut Core, front: Token) {
        self.gathering |= core.peer(front).is_some_and(|peer| peer.conn.is_in_line() && peer.conn.is_link());
        let closes = core.peer(front).is_none_or(|peer| peer.conn.closing().is_some());
        if !closes && self.next_on_front(core, front) {
            return;
        }
        self.cancel_line(core, front);
        let Some(peer) = core.peer(front) else { return };
        peer.wait = None;
        peer.fed = false;
        peer.held = false;
        peer.head = 0;
        peer.seat = Seat::Front;
        // Only a pipelined request, or the visitor's end, is there to be looked at already.
        let more = !peer.input.is_empty() || peer.has_hung_up();
        let is_pipe = peer.twin != Twin::None;
        if !closes {
            self.side.front_kept(core, front);
            if self.running == Running::Draining && !more && !is_pipe && !self.owes() {
                leave(core, front);
            }
        }
        if more {
            core.step_again(front);
        } else {
            core.touch(front);
        }
    }

    /// Ends an exchange that can't be completed: the front is closed in the middle, so that nobody takes what it has for the
    /// whole.
    pub(super) fn cancel(&mut self, core: &mut Core, id: usize, code: Code) {
        let Some(mut exchange) = self.exchanges.end(id) else { return };
        self.side.told(code);
        exchange.code = Some(code.name.into());
        if exchange.status == 0 {
            exchange.status = code.status;
        }
        self.write_line(core, &exchange);
        match exchange.back {
            Some(back) if exchange.lane == Lane::Ahead && self.leave_line(core, id, back) => {}
            Some(back) => {
                if let Some(peer) = core.peer(back)
                    && S::RESETS_BACKS
                {
                    peer.transport().break_on_close();
                }
                self.break_line(core, back);
            }
            None => self.side.forget(id, &exchange),
        }
        self.side.ended(core, &exchange);
        let now = core.now;
        let front = exchange.front;
        self.cancel_line(core, front);
        let gone = matches!(code, Code::VISITOR_GONE | Code::WRITE_TIMEOUT);
        if let Some(peer) = core.peer(front) {
            peer.seat = Seat::Front;
            if is_http10(&exchange.head) {
                // To a visitor of HTTP/1.0 the end of the connection is the end of the body. It may have gone only half.
                peer.transport().break_on_close();
                core.drop_peer(front);
            } else if gone || peer.is_deaf() {
                core.drop_peer(front);
            } else {
                // What there is of the answer arrives, and lacks its end.
                peer.conn.close(now);
                core.touch(front);
            }
        }
        if exchange.lane == Lane::Aside {
            self.owes_less(core);
        }
        self.exchanges.recycle(exchange);
    }

    /// The connection that these came on goes, and they with it: whoever sent them asks somebody else.
    fn cancel_line(&mut self, core: &mut Core, front: Token) {
        let Some(peer) = core.peer(front).filter(|peer| !peer.line.is_empty()) else { return };
        for id in std::mem::take(&mut peer.line) {
            let Some(mut exchange) = self.exchanges.end(id) else { continue };
            if exchange.stage == Stage::Hint {
                continue;
            }
            exchange.code = Some(Code::VISITOR_GONE.name.into());
            exchange.status = Code::VISITOR_GONE.status;
            self.write_line(core, &exchange);
            match exchange.back {
                Some(back) => self.break_line(core, back),
                None => self.side.forget(id, &exchange),
            }
            self.side.ended(core, &exchange);
            self.exchanges.recycle(exchange);
        }
    }

    /// Both directions of a tunnel have ended: each connection closes when it has sent what it has.
    fn tunnel_over(&mut self, core: &mut Core, id: usize) {
        let Some(exchange) = self.exchanges.end(id) else { return };
        self.write_line(core, &exchange);
        self.side.ended(core, &exchange);
        let seats = [(Some(exchange.front), Seat::Front), (exchange.back, Seat::Own)];
        for (token, seat) in seats.into_iter().filter_map(|(token, seat)| Some((token?, seat))) {
            if let Some(peer) = core.peer(token) {
                peer.seat = seat;
                peer.wait = None;
                peer.fed = false;
                peer.held = false;
                core.touch(token);
            }
        }
        self.exchanges.recycle(exchange);
    }

    /// The next hop won't have the tunnel: the front, which speaks no HTTP, is closed, and so is the back, on which someone may go on
    /// as if there were one (RFC 9931 §4).
    pub(super) fn tunnel_refused(&mut self, core: &mut Core, id: usize) {
        let now = core.now;
        self.drop_back(core, id);
        let Some(exchange) = self.exchanges.end(id) else { return };
        let code = exchange.code.as_deref().unwrap_or("-");
        log::info!(
            "a connection from {} was closed: the tunnel `{}` was refused with {} ({code})",
            exchange.visitor,
            self.side.tunnel(&exchange),
            exchange.status
        );
        self.write_line(core, &exchange);
        self.side.forget(id, &exchange);
        self.side.ended(core, &exchange);
        if let Some(peer) = core.peer(exchange.front) {
            peer.seat = Seat::Front;
            peer.conn.close(now);
            core.touch(exchange.front);
        }
        self.exchanges.recycle(exchange);
    }

    /// One end of a tunnel is gone before its time, or both have been silent for too long: the other is not to take what it has for
    /// the whole, even if that costs it the last bytes, which a slow reader has not taken yet.
    pub(super) fn tunnel_broken(&mut self, core: &mut Core, id: usize, end: Token, code: Option<Code>) {
        let Some(mut exchange) = self.exchanges.end(id) else { return };
        let code = code.unwrap_or_else(|| match end == exchange.front {
            true => Code::VISITOR_GONE,
            false => self.side.fault(&exchange, &BackFault::Lost(None)).code,
        });
        exchange.code = Some(code.name.into());
        self.write_line(core, &exchange);
        self.side.told(code);
        self.side.ended(core, &exchange);
        let seats = [(Some(exchange.front), Seat::Front), (exchange.back, Seat::Own)];
        for (token, seat) in seats.into_iter().filter_map(|(token, seat)| Some((token?, seat))) {
            let Some(peer) = core.peer(token) else { continue };
            peer.seat = seat;
            peer.transport().break_on_close();
            core.drop_peer(token);
        }
        self.exchanges.recycle(exchange);
    }
}

/// A front is done with what it has, and nothing more is to come on it.
pub(super) fn leave(core: &mut Core, front: Token) {
    let now = core.now;
    if let Some(peer) = core.tell(front) {
        peer.conn.leave(now, peer.output.vec());
    }
}
