//! What goes wrong under way: a visitor that is gone, a front or a back that fails, and whether another back is tried.

use mio::Token;
use ptth_proto::error::{Error, Fault};
use ptth_proto::http::framing::Framing;
use ptth_proto::limits::Wait;
use ptth_proto::wire::head::{Head, is_idempotent};

use super::exchange::{Kind, Lane, Stage};
use super::{BackFault, Bridge, Side};
use crate::answer::{Answer, Code};
use crate::peer::{Seat, Twin};
use crate::reactor::{Core, Loss};

impl<S: Side> Bridge<S> {
    /// Looks whether the visitor is still there, once nothing can be carried. Most that end their side are gone; the few that
    /// only ended theirs are served as long as something comes for them: then a write tells whether they are there.
    pub(super) fn check_front(&mut self, core: &mut Core, id: usize, carried: bool) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        let patience = core.now + core.config.deadlines.half_close;
        if core.peer(exchange.front).is_some_and(|front| front.conn.is_tunnel()) {
            // Its end is one of two, and travels with the bytes.
            return;
        }
        let Some(front) = core.peer(exchange.front).filter(|front| front.has_hung_up()) else { return };
        let heard_all = front.conn.has_heard_all();
        // The far end of a pipe is not half there: it is gone, and with it whoever would have the answer.
        let is_pipe = front.twin != Twin::None;
        // What is left of its request has nowhere to go, and is not read: it would never be found that it has broken off.
        let (is_gone, is_held) = (front.is_gone(), front.held);
        if exchange.stage == Stage::Waiting
            || is_pipe
            || heard_all && exchange.back.is_some_and(|back| !self.side.is_out(core, back))
            || is_gone && (heard_all || is_held)
        {
            // Nobody has heard of this request, and nobody is to; or nobody would hear the answer.
            return self.cancel(core, id, Code::VISITOR_GONE);
        }
        let Some(front) = core.peer(exchange.front) else { return };
        if !front.conn.has_heard_all() {
            // The rest of the request tells: it is whole, or its end comes early.
        } else if front.wait.is_none() || carried {
            front.wait = Some((patience, Wait::HalfClose));
            core.touch(exchange.front);
        }
    }

    pub(super) fn front_lost(&mut self, core: &mut Core, token: Token, loss: &Loss) {
        if let Loss::Late(Wait::Silence) = loss {
            return self.side.front_silent(core, token);
        }
        if let Loss::Late(Wait::Head) = loss {
            let seconds = core.config.deadlines.head.as_secs_f32();
            let text = format!("The request's head was not complete within {seconds} s of its first byte.");
            let answer = Answer::new(Code::HEAD_TIMEOUT, text);
            if core.peer(token).is_some_and(|peer| peer.conn.can_respond()) {
                return self.respond_alone(core, token, &Head::default(), &answer);
            }
        }
        if let (Loss::Io(_), Some(peer)) = (loss, core.peer(token)) {
            peer.break_off();
        }
        core.drop_peer(token);
    }

    pub(super) fn front_of_exchange_lost(&mut self, core: &mut Core, id: usize, loss: Loss) {
        match loss {
            Loss::Late(wait @ (Wait::Link | Wait::Connect)) => {
                let Some(exchange) = self.exchanges.get_mut(id) else { return };
                let fault = BackFault::Late(wait);
                let answer = exchange.failure.take().unwrap_or_else(|| self.side.fault(exchange, &fault));
                self.answer(core, id, answer);
            }
            Loss::Late(Wait::Body) => {
                let seconds = core.config.deadlines.body.as_secs_f32();
                let text = format!("The request's body stopped coming: nothing arrived for {seconds} s.");
                self.answer(core, id, Answer::new(Code::BODY_TIMEOUT, text));
            }
            Loss::Late(Wait::Write) => self.cancel(core, id, Code::WRITE_TIMEOUT),
            Loss::Late(_) | Loss::Io(_) | Loss::Deaf(_) => self.cancel(core, id, Code::VISITOR_GONE),
        }
    }

    pub(super) fn front_failed(&mut self, core: &mut Core, id: usize, error: Error) {
        // What was passed on of the request is not the whole: the back must not take it for that.
        self.drop_back(core, id);
        match Answer::to_error(error) {
            Some(answer) => self.answer(core, id, answer),
            None => self.cancel(core, id, Code::VISITOR_GONE),
        }
    }

    /// The back is of no use. Tries another one if that is safe, else says so.
    pub(super) fn back_failed(&mut self, core: &mut Core, id: usize, fault: BackFault) {
        let most = core.config.limits.tries;
        let (reached, heard) = self.drop_back(core, id);
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        let waits = exchange.lane == Lane::InLine;
        let unanswered = core.peer(exchange.front).is_some_and(|front| {
            // What is said there before its turn is somebody else's answer.
            waits && front.seat != Seat::Exchange(id) || front.conn.can_respond()
        });
        let answer = self.side.fault(exchange, &fault);
        if let BackFault::Late(Wait::Silence) = fault {
            self.side.back_silent(core, exchange);
        }
        let again = match fault {
            BackFault::Connect(_) | BackFault::ConnectLate => {
                // How many addresses there are is limit enough.
                exchange.tries -= 1;
                true
            }
            // Behind a CONNECT nothing was said yet: to connect twice is to connect.
            BackFault::Lost(_) => {
                let harmless = exchange.kind == Kind::Connect || is_idempotent(exchange.head.method());
                !reached || (!heard && harmless)
            }
            BackFault::Protocol(Error::Peer(Fault::UnexpectedData | Fault::EarlyEnd)) => !reached,
            BackFault::Protocol(_) | BackFault::Late(_) => false,
        };
        let whole = exchange.stage != Stage::Streaming || exchange.framing == Framing::Empty;
        if again && unanswered && whole && exchange.tries < most {
            log::debug!("request {}: trying another way ({})", exchange.number, answer.code.name);
            exchange.stage = Stage::Waiting;
            // What nobody has had is not lost: then the wait for another way is what it fails of.
            let told = reached || matches!(fault, BackFault::Connect(_) | BackFault::ConnectLate);
            exchange.failure = told.then_some(answer);
            return self.assign(core, id);
        }
        log::warn!("request {}: {} ({})", exchange.number, answer.text, answer.code.name);
        self.answer(core, id, answer);
    }

    /// The program has found that a back won't do, and says why.
    pub(super) fn back_faulted(&mut self, core: &mut Core, back: Token, answer: Answer) {
        let Some(Seat::Exchange(id)) = core.peer(back).map(|peer| peer.seat) else { return };
        self.drop_back(core, id);
        if let Some(exchange) = self.exchanges.get_mut(id) {
            log::warn!("request {}: {} ({})", exchange.number, answer.text, answer.code.name);
        }
        self.answer(core, id, answer);
    }

    /// Drops an exchange's back, of which nothing more is wanted. Gives whether it may have had the request, and whether it has
    /// said anything to it.
    pub(super) fn drop_back(&mut self, core: &mut Core, id: usize) -> (bool, bool) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return (false, false) };
        let (mut reached, mut heard) = (false, exchange.heard);
        if let Some(back) = exchange.back.take() {
            if let Some(peer) = core.peer(back) {
                reached = peer.written > exchange.mark;
                heard |= !peer.input.is_empty();
            }
            self.break_line(core, back);
        }
        (reached, heard)
    }
}
