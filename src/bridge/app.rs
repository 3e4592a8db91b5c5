//! What the loop says to the bridge: news from peers, timers, and the way in which the program stops.

use mio::Token;
use ptth_proto::limits::Wait;

use super::answers::stopping;
use super::end::leave;
use super::exchange::{Exchange, Lane, Stage};
use super::{BackFault, Bridge, Order, Running, Side};
use crate::answer::Code;
use crate::peer::{Peer, Seat, Twin};
use crate::reactor::signal::KILLED;
use crate::reactor::{App, Core, Door, Loss, Message};

/// The timer keys of the end of draining and of what goes before it; sides use others.
const DRAINED: usize = usize::MAX;
const FAREWELL: usize = usize::MAX - 1;

impl<S: Side> App for Bridge<S> {
    fn accepted(&mut self, core: &mut Core, token: Token, door: Door) {
        self.side.accepted(core, token, door, &mut self.orders);
    }

    fn step(&mut self, core: &mut Core, token: Token) {
        let (now, linger) = (core.now, core.config.deadlines.linger);
        let Some(peer) = core.peer(token) else { return };
        if peer.conn.closing().is_some() {
            // What still comes is thrown away.
            peer.discard(now, linger);
            core.touch(token);
            return;
        }
        match peer.seat {
            Seat::Front => self.listen(core, token),
            Seat::Exchange(id) => {
                self.mark(id);
                self.listen_behind(core, token);
                self.check_waiting(core, id);
            }
            Seat::Nobody => self.pass_over(core, token),
            Seat::Own => self.side.own(core, token, &mut self.orders),
        }
    }

    fn route(&mut self, core: &mut Core) {
        while !self.orders.is_empty() || !self.marked.is_empty() {
            self.follow_orders(core);
            if let Some(id) = self.marked.pop() {
                self.pump(core, id);
            }
        }
        self.hear_more(core);
    }

    fn lost(&mut self, core: &mut Core, token: Token, loss: Loss) {
        let now = core.now;
        let (patience, rest) = (core.config.deadlines.linger, core.config.deadlines.body);
        let Some(peer) = core.peer(token) else { return };
        match peer.seat {
            Seat::Front => self.front_lost(core, token, &loss),
            Seat::Own => {
                self.side.own_lost(core, token, loss, &mut self.orders);
            }
            // What had arrived before is passed over first.
            Seat::Nobody if !matches!(loss, Loss::Late(_)) => {
                peer.break_off();
                core.step_again(token);
            }
            Seat::Nobody => self.break_line(core, token),
            Seat::Exchange(id) => {
                let (is_front, in_tunnel) = self
                    .exchanges
                    .get_mut(id)
                    .map_or((false, false), |exchange| (exchange.front == token, exchange.stage == Stage::Tunnel));
                let connecting = peer.is_connecting();
                match loss {
                    Loss::Late(wait) if in_tunnel => {
                        let silent = matches!(wait, Wait::Tunnel | Wait::TunnelEnd);
                        let code = if silent { Code::TUNNEL_SILENT } else { Code::WRITE_TIMEOUT };
                        self.tunnel_broken(core, id, token, Some(code));
                    }
                    // What it had sent before is understood first.
                    Loss::Deaf(_) if in_tunnel => core.step_again(token),
                    Loss::Io(_) if in_tunnel => {
                        peer.break_off();
                        core.step_again(token);
                    }
                    Loss::Late(Wait::Quiet) if !peer.input.is_empty() => self.mark(id),
                    Loss::Late(wait @ Wait::Quiet) => {
                        // The end of this body is its silence.
                        let ended = peer.conn.timeout(now, wait).is_some();
                        if let (true, Some(exchange)) = (ended, self.exchanges.get_mut(id)) {
                            exchange.stage = Stage::Ending;
                        }
                        self.mark(id);
                    }
                    Loss::Late(Wait::Turn) => self.turn_is_over(core, token),
                    Loss::Late(Wait::Aside) => self.cancel(core, id, Code::VISITOR_GONE),
                    Loss::Late(Wait::Ping) if is_front && !peer.held && peer.conn.has_stalled(now, rest) => {
                        self.front_of_exchange_lost(core, id, Loss::Late(Wait::Body));
                    }
                    Loss::Late(Wait::Ping) if is_front => {
                        // An agent says that it is at work; it may, or nothing would be due.
                        if let Some(peer) = core.tell(token) {
                            let _ = peer.conn.send_sign(now, peer.output.vec());
                        }
                    }
                    loss if is_front => self.front_of_exchange_lost(core, id, loss),
                    Loss::Late(_) if connecting => self.back_failed(core, id, BackFault::ConnectLate),
                    Loss::Io(error) if connecting => self.back_failed(core, id, BackFault::Connect(error)),
                    Loss::Late(wait) => self.back_failed(core, id, BackFault::Late(wait)),
                    // It hears no more of the request, and may have answered: a 413 to those who send too much.
                    Loss::Deaf(_) => {
                        peer.wait = Some((now + patience, Wait::Write));
                        core.step_again(token);
                    }
                    Loss::Io(_) => {
                        // What had arrived before is understood first.
                        peer.break_off();
                        core.step_again(token);
                    }
                }
            }
        }
    }

    fn gone(&mut self, core: &mut Core, token: Token, peer: Peer) {
        if let Seat::Exchange(id) = peer.seat {
            // Dropped from outside its exchange: nobody else does that, but nothing must be left hanging.
            self.cancel(core, id, Code::INTERNAL);
        }
        for id in &peer.line {
            match self.exchanges.get_mut(*id) {
                Some(exchange) if exchange.stage == Stage::Hint => drop(self.exchanges.end(*id)),
                Some(exchange) if exchange.front == token => self.cancel(core, *id, Code::INTERNAL),
                Some(exchange) => {
                    exchange.back = None;
                    exchange.stage = Stage::Waiting;
                    exchange.lane = Lane::Own;
                    self.orders.push(Order::Assign(*id));
                }
                None => {}
            }
        }
        let was_front = peer.seat == Seat::Front;
        self.side.gone(core, token, peer, &mut self.orders);
        if self.running == Running::Farewell && was_front {
            self.look_who_is_here(core);
        }
    }

    fn timer(&mut self, core: &mut Core, key: usize) {
        match key {
            DRAINED => {
                if !self.exchanges.is_empty() {
                    log::warn!("{} requests did not end in time and are cut off", self.exchanges.len());
                }
                self.cut_off(core, |_| true);
                self.running = Running::Over(0);
            }
            FAREWELL if self.running == Running::Farewell => self.drain(core),
            FAREWELL => {}
            key => self.side.timer(core, key, &mut self.orders),
        }
    }

    fn message(&mut self, core: &mut Core, message: Message) {
        match message {
            Message::Handed(peer, parcel) => match parcel.downcast::<Exchange>() {
                Ok(exchange) => self.take_over(core, peer, *exchange),
                Err(parcel) => self.side.message(core, Message::Handed(peer, parcel), &mut self.orders),
            },
            message => self.side.message(core, message, &mut self.orders),
        }
    }

    fn stop(&mut self, core: &mut Core) {
        if self.running != Running::Yes {
            return;
        }
        self.running = Running::Farewell;
        let drain = core.config.deadlines.drain;
        match self.exchanges.len() {
            0 => log::info!("stopping"),
            1 => log::info!("stopping: 1 request has {} s to end", drain.as_secs()),
            running => log::info!("stopping: {running} requests have {} s to end", drain.as_secs()),
        }
        core.set_timer(drain, DRAINED);
        if !self.side.keeps_its_door_open() {
            // Whoever has knocked believes to be in.
            core.close_listeners(self);
        }
        self.side.stop(core, &mut self.orders);
        let is_busy = |peer: &Peer| matches!(peer.seat, Seat::Exchange(_)) && peer.conn.can_respond();
        let owes = self.owes();
        let goes = |peer: &Peer| is_busy(peer) && !(owes && peer.conn.is_link());
        let busy: Vec<Token> = core.peers().filter(|(_, peer)| goes(peer)).map(|(token, _)| token).collect();
        for token in busy {
            // Where the answer has begun, it did not say that it is the last one: the connection may be used again.
            if let Some(peer) = core.tell(token) {
                peer.conn.do_not_keep();
            }
        }
        if self.side.says_farewell() {
            core.set_timer(core.config.deadlines.farewell, FAREWELL);
            self.look_who_is_here(core);
        } else {
            self.drain(core);
        }
    }

    fn stop_at_once(&mut self, core: &mut Core) {
        if let Running::Over(_) = self.running {
            return;
        }
        match self.exchanges.len() {
            0 => log::info!("stopping at once"),
            running => log::warn!("stopping at once: {running} requests are cut off"),
        }
        self.side.stop_at_once();
        // Whoever asks on a link can ask somebody else: no answer is better there than one of ours. A message of a poll was read and will
        // not be asked again: what is said of it here has no time to go, and its visitor waits for `link-answer`.
        self.cut_off(core, |front| !front.conn.is_link());
        self.running = Running::Over(KILLED);
    }

    fn is_gathering(&mut self) -> bool {
        std::mem::take(&mut self.gathering)
    }

    fn is_busy(&self) -> bool {
        !self.marked.is_empty() || !self.orders.is_empty()
    }

    fn rest(&mut self, _: &mut Core) {
        self.log.flush();
    }

    fn exit(&self, core: &Core) -> Option<u8> {
        match self.running {
            Running::Yes => self.side.exit(),
            Running::Farewell => None,
            Running::Over(code) => Some(code),
            Running::Draining => {
                let is_done = |peer: &Peer| peer.output.is_empty() && !peer.is_lingering() && !peer.conn.is_leaving();
                let done =
                    self.exchanges.is_empty() && !self.side.is_owed() && core.peers().all(|(_, peer)| is_done(peer));
                done.then_some(0)
            }
        }
    }
}

impl<S: Side> Bridge<S> {
    /// A waiting exchange has nothing to carry, but its visitor may leave.
    fn check_waiting(&mut self, core: &mut Core, id: usize) {
        if self.exchanges.get_mut(id).is_some_and(|exchange| exchange.stage == Stage::Waiting) {
            self.check_front(core, id, false);
        }
    }

    /// Nobody has any time left. Those who have nothing of their answers yet and are to be told get one of ours; and nobody is to take
    /// a part for the whole: the end of a process looks like a clean end of what it said.
    fn cut_off(&mut self, core: &mut Core, is_told: impl Fn(&Peer) -> bool) {
        for (id, front, stage) in self.exchanges.all() {
            match stage {
                Stage::Tunnel => self.tunnel_broken(core, id, front, Some(Code::STOPPING)),
                _ if core.peer(front).is_some_and(|front| is_told(front)) => self.answer(core, id, stopping()),
                _ => self.cancel(core, id, Code::STOPPING),
            }
        }
    }

    /// Goes on with the end when there is nobody left to say farewell to.
    fn look_who_is_here(&mut self, core: &mut Core) {
        let is_visitor = |peer: &Peer| {
            peer.seat != Seat::Own
                && peer.twin == Twin::None
                && !peer.conn.is_link()
                && peer.conn.closing().is_none()
                && !peer.is_dead()
        };
        if self.side.is_alone() && !core.peers().any(|(_, peer)| is_visitor(peer)) {
            self.drain(core);
        }
    }

    /// Nothing begins any more.
    fn drain(&mut self, core: &mut Core) {
        self.running = Running::Draining;
        self.side.drain(core, &mut self.orders);
        // While the door is open, one that was told nothing yet may be there to bring an answer.
        let (open, owes) = (self.side.keeps_its_door_open(), self.owes());
        let stays = |token: Token, peer: &Peer| {
            self.side.is_kept(token) || open && peer.written == 0 || owes && peer.conn.is_link()
        };
        let is_idle = |(token, peer): &(Token, &Peer)| peer.seat == Seat::Front && !stays(*token, peer);
        let idle: Vec<Token> = core.peers().filter(is_idle).map(|(token, _)| token).collect();
        for token in idle {
            leave(core, token);
        }
        for id in self.exchanges.waiting() {
            // What was set aside was taken on long ago.
            let Some(exchange) = self.exchanges.get_mut(id).filter(|exchange| exchange.aside.is_none()) else {
                continue;
            };
            if core.peer(exchange.front).is_none_or(|front| !front.conn.is_link()) {
                self.answer(core, id, stopping());
            }
        }
    }
}
