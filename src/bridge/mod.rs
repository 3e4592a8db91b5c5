//! An exchange from a front to a back: a request comes in where we are the server and goes out where we are the client; its
//! response comes home. Both bodies stream at once, held back only by the reader's pace. Written once: the relay's fronts are
//! visitors and its backs are links, the agent's fronts are links and its backs are connections to the upstream. What differs
//! between the two is behind [`Side`].
//!
//! The rules on trying again: a request that reached nobody goes to another back. One whose bytes may have arrived goes again
//! only when its method is idempotent, no byte of an answer came, and none of its body was used up.

mod answers;
mod app;
mod assign;
mod begin;
mod carry;
mod end;
pub mod exchange;
mod forward;
pub(crate) mod hops;
pub(crate) mod line;
mod lost;
mod side;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use mio::Token;
use ptth_proto::http::framing::Framing;

pub use answers::stopping;
#[cfg(feature = "relay")]
pub(crate) use answers::{answer_early, respond};
pub use begin::take_bodiless;
pub(crate) use carry::hold;
#[cfg(feature = "relay")]
pub(crate) use carry::too_large;
use carry::{Flow, ask, home};
use exchange::{Exchange, Exchanges, Lane, Stage};
pub use forward::is_http10;
pub(crate) use forward::pass_on;
use forward::passes;
#[cfg(feature = "relay")]
pub(crate) use forward::takes_trailers;
pub use side::{Assign, BackFault, Claim, Order, Side};

use crate::log::{AccessLog, Line};
use crate::peer::Seat;
use crate::reactor::Core;

/// Whether the program is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Running {
    Yes,
    /// Whoever is here is served a last time.
    Farewell,
    /// Exchanges finish, nothing begins but what comes on links: the relay has taken that on already.
    Draining,
    /// Time is up: the process exits with this.
    Over(u8),
}

/// The bridge, and the program on either side of it.
#[derive(Debug)]
pub struct Bridge<S> {
    /// The program.
    pub side: S,
    exchanges: Exchanges,
    /// Exchanges with something to carry.
    marked: Vec<usize>,
    orders: Vec<Order>,
    log: AccessLog,
    running: Running,
    /// Something was said on a link with several requests.
    gathering: bool,
    /// Links on which requests were left unread for want of room.
    unheard: VecDeque<Token>,
}

impl<S: Side> Bridge<S> {
    /// A bridge for a program.
    pub fn new(side: S, log: AccessLog) -> Bridge<S> {
        Bridge::numbered(side, log, 1, 1)
    }

    /// One of several that share a log: its exchanges are numbered from `first` in steps of `step`.
    pub fn numbered(side: S, log: AccessLog, first: u64, step: u64) -> Bridge<S> {
        Bridge {
            side,
            exchanges: Exchanges::new(first, step),
            marked: Vec::new(),
            orders: Vec::new(),
            log,
            running: Running::Yes,
            gathering: false,
            unheard: VecDeque::new(),
        }
    }

    /// How many requests are under way.
    pub fn under_way(&self) -> usize {
        self.exchanges.len()
    }

    fn mark(&mut self, id: usize) {
        if let Some(exchange) = self.exchanges.get_mut(id)
            && !exchange.marked
        {
            exchange.marked = true;
            self.marked.push(id);
        }
    }

    /// Carries what there is to carry for one exchange.
    fn pump(&mut self, core: &mut Core, id: usize) {
        let mut carried = false;
        loop {
            let Some(exchange) = self.exchanges.get_mut(id) else { return };
            exchange.marked = false;
            let lane = exchange.lane;
            match lane {
                Lane::Own => {}
                Lane::InLine if !self.has_turn(core, id) => return,
                Lane::Ahead if !self.is_first(core, id) => return self.check_front(core, id, false),
                Lane::InLine | Lane::Ahead => {}
                Lane::Aside => return,
            }
            let Some(exchange) = self.exchanges.get_mut(id) else { return };
            if exchange.stage == Stage::Hint {
                return self.answer_hint(core, id);
            }
            if exchange.stage == Stage::Answered
                && let Some(answer) = exchange.failure.take()
            {
                return self.answer(core, id, answer);
            }
            let Some(back) = exchange.back else { return };
            let (asked, answered) = match exchange.stage {
                Stage::Tunnel => (false, carry::tunnel(core, exchange, back)),
                Stage::Connecting => (false, carry::connect(core, exchange, back)),
                // Of a request without a body nothing is left to carry.
                _ if exchange.framing == Framing::Empty => {
                    (false, home(core, exchange, back, |token| passes(&self.side, token)))
                }
                _ => match ask(core, exchange, back) {
                    Flow::Moved => (true, home(core, exchange, back, |token| passes(&self.side, token))),
                    Flow::Still => (false, home(core, exchange, back, |token| passes(&self.side, token))),
                    failed => (false, failed),
                },
            };
            match answered {
                Flow::Moved => carried = true,
                Flow::Still if asked => carried = true,
                Flow::Still => {
                    if lane == Lane::InLine
                        && let Some(exchange) = self.exchanges.get_mut(id).filter(|exchange| exchange.kept.is_some())
                    {
                        let front = exchange.front;
                        self.watch_turn(core, front);
                    }
                    return self.check_front(core, id, carried);
                }
                Flow::Aside => return self.was_set_aside(core, id),
                Flow::Long if self.set_aside(core, id) => return,
                Flow::Long => self.give_here(id),
                Flow::Over => return self.finish(core, id),
                Flow::Refused => return self.tunnel_refused(core, id),
                Flow::Broken(end) => return self.tunnel_broken(core, id, end, None),
                Flow::Front(error) => return self.front_failed(core, id, error),
                Flow::Back(fault) => return self.back_failed(core, id, fault),
                Flow::Limit(answer) => {
                    // As in `front_failed`: the back must not take a part for the whole.
                    self.drop_back(core, id);
                    return self.answer(core, id, answer);
                }
            }
        }
    }

    /// Whether it is this exchange's answer that comes next on its back.
    fn is_first(&mut self, core: &mut Core, id: usize) -> bool {
        let back = self.exchanges.get_mut(id).and_then(|exchange| exchange.back);
        back.and_then(|back| core.peer(back)).is_some_and(|back| back.seat == Seat::Exchange(id))
    }

    fn write_line(&mut self, core: &Core, exchange: &Exchange) {
        if !self.log.is_on() {
            return;
        }
        self.log.line(&Line {
            time: core.wall_clock(),
            id: exchange.number,
            visitor: self.side.visitor(exchange),
            tunnel: self.side.tunnel(exchange),
            method: exchange.head.method(),
            target: exchange.head.target(),
            status: exchange.status,
            bytes_in: exchange.bytes_in,
            bytes_out: exchange.bytes_out,
            took: core.now.since(exchange.started),
            code: exchange.code.as_deref(),
        });
    }

    fn follow_orders(&mut self, core: &mut Core) {
        while let Some(order) = self.orders.pop() {
            match order {
                Order::Attach(id, back) => self.attach(core, id, back),
                Order::Assign(id) => self.assign(core, id),
                Order::HandOver(id, mailbox) => self.hand_over(core, id, &mailbox),
                Order::Answer(id, answer) => {
                    if self.exchanges.waiting_mut(id).is_some() {
                        self.answer(core, id, answer);
                    }
                }
                Order::Listen(token) => self.listen(core, token),
                Order::Begin(token, framing, head) => {
                    core.head = *head;
                    self.begin(core, token, framing);
                }
                Order::Respond(token, head, answer) => self.refuse_agent(core, token, &head, &answer),
                Order::Move(from, to) => self.change_back(core, from, to),
                Order::Fault(back, answer) => self.back_faulted(core, back, answer),
            }
        }
    }
}
