//! Links between two exchanges. Those of agents that understand it (`docs/links.md`) are asked now and then whether anybody is
//! still there; all others are left to TCP keep-alive. A link that is asked does not rest: it can't be given a request before its
//! answer is there.

use std::time::Duration;

use mio::Token;
use ptth_proto::conn::{Body, Event, MOST_IN_LINE};
use ptth_proto::http::framing::Framing;
use ptth_proto::limits::Wait;
use ptth_proto::wire::fields::Name;

use super::{Relay, is_free, queues};
use crate::bridge::Order;
use crate::bridge::exchange::{Exchange, Kind, Lane};
use crate::bridge::line::say_wanted;
use crate::peer::{HINT, Peer, Seat};
use crate::reactor::{Core, Loss};

/// An answer that takes longer, with a link of its own, says nothing for a line: a crowd that waits for the upstream takes less.
const QUICK: Duration = Duration::from_secs(1);

impl Relay {
    /// Whether the request may stand with others on one link: its answer is likely to be short and quick, and its visitor takes that
    /// whatever its pace.
    pub(super) fn may_stand_in_line(&self, core: &mut Core, exchange: &Exchange) -> bool {
        if core.config.limits.pipeline < 2 || !self.tunnels.may_line(exchange.tunnel) || !suits_a_line(exchange) {
            return false;
        }
        let others_wait = self.tunnels.waiting(exchange.tunnel) > 0;
        core.peer(exchange.front).is_some_and(|front| front.output.is_empty() && (has_waited(front) || !others_wait))
    }

    /// A link that the next request may go down behind others.
    pub(super) fn line(&mut self, core: &mut Core, tunnel: usize) -> Option<Token> {
        let most = core.config.limits.pipeline;
        self.tunnels.line(tunnel, |link| {
            let peer = core.peer(link).filter(|peer| peer.is_alive() && peer.conn.has_room_behind());
            peer.map_or(0, |peer| most.saturating_sub(1 + peer.line.len()))
        })
    }

    /// A link is free for the request that has waited longest; those behind it may go along.
    pub(super) fn let_more_in(&mut self, core: &Core, tunnel: usize, orders: &mut Vec<Order>) {
        let first = orders.len();
        for _ in 1..core.config.limits.pipeline.min(MOST_IN_LINE) {
            let Some(id) = self.tunnels.next_in_line(tunnel) else { break };
            self.waits_no_more(tunnel);
            orders.push(Order::Assign(id));
        }
        orders[first..].reverse();
    }

    /// Requests wait for a link: an agent of ours is told so where it can be, on one that is busy. It may have some on the way to it that
    /// look idle from its side, and would make more one by one.
    pub(super) fn tell_of_waiting(&mut self, core: &mut Core, tunnel: usize) {
        let Some(wanted) = self.tunnels.crowd(tunnel, core.now) else { return };
        let several = self.workers.are_several();
        let all = if several { self.workers.are_waiting(self.tunnels.name(tunnel), wanted) } else { wanted };
        if self.say_wanted(core, tunnel, all) {
            self.tunnels.was_told(tunnel, wanted, core.now);
        } else if several {
            self.workers.let_tell(self.tunnels.name(tunnel));
            self.tunnels.was_passed_on(tunnel, wanted, core.now);
        }
    }

    /// Asks an agent for so many links. False when there is no link on which that could be said.
    pub(super) fn say_wanted(&mut self, core: &mut Core, tunnel: usize, wanted: usize) -> bool {
        let Some(link) = self.tunnels.last(tunnel) else { return false };
        // Not behind our question whether it is there: its answer goes to nobody who would look at what stands behind.
        let is_asked = |peer: &&mut Peer| matches!(peer.seat, Seat::Exchange(_) | Seat::Nobody) && peer.conn.can_hint();
        let Some(peer) = core.tell(link).filter(|peer| peer.is_alive()).filter(is_asked) else { return false };
        let said = peer.conn.send_hint(peer.output.vec(), |fields| say_wanted(fields, wanted));
        match &said {
            Ok(()) => peer.line.push(HINT),
            Err(error) => log::error!("an agent could not be told of waiting requests: {error}"),
        }
        said.is_ok()
    }

    /// What an exchange that is over says of the next ones of its tunnel.
    pub(super) fn judge(&mut self, core: &Core, exchange: &Exchange) {
        // In a line the agent has seen to it.
        let is_quick = exchange.lane == Lane::Ahead || core.now.since(exchange.started) < QUICK;
        if exchange.bytes_out > core.config.limits.whole as u64 {
            self.tunnels.was_slow(exchange.tunnel);
        } else if is_quick && exchange.code.is_none() && exchange.aside.is_none() {
            self.tunnels.was_quick(exchange.tunnel);
        }
    }

    /// A link has nothing to do, and nobody waits for it.
    pub(super) fn rest(&mut self, core: &mut Core, tunnel: usize, link: Token) {
        self.tunnels.park(tunnel, link);
        Relay::ping_later(core, link);
    }

    /// The link is asked whether anybody is there when it has rested for a while.
    pub(super) fn ping_later(core: &mut Core, link: Token) {
        let until = core.now + core.config.deadlines.ping;
        if let Some(peer) = core.peer(link).filter(|peer| peer.conn.is_ours()) {
            peer.wait = Some((until, Wait::Ping));
        }
    }

    /// Asks the agent on an idle link whether it is there: an OPTIONS that may go no further than to it (RFC 9110 §7.6.2).
    fn ping(core: &mut Core, link: Token) {
        let now = core.now;
        let until = now + core.config.deadlines.pong;
        let Some(peer) = core.tell(link) else { return };
        let sent = peer.conn.send_request(now, peer.output.vec(), (b"OPTIONS", b"*"), Body::None, |fields| {
            fields.field("Host", "");
            fields.field("Max-Forwards", "0");
        });
        match sent.and_then(|()| peer.conn.send_end(now, None, peer.output.vec())) {
            Ok(()) => peer.wait = Some((until, Wait::Pong)),
            Err(error) => {
                log::error!("a link could not be asked: {error}");
                core.drop_peer(link);
            }
        }
    }

    /// A link of this tunnel was found dead. Its agent may be, and all of its links with it: whoever rests is asked at once, so
    /// that no request is the one to find out.
    pub(super) fn ping_all(&mut self, core: &mut Core, tunnel: usize) {
        for link in self.tunnels.take_all(tunnel) {
            match core.peer(link).map(|peer| peer.conn.is_ours()) {
                _ if !is_free(core, link) => {}
                Some(true) => Relay::ping(core, link),
                _ => self.tunnels.park(tunnel, link),
            }
        }
    }

    /// Something has come on a link between two exchanges: the answer to our question, the agent's word that it goes, or the end.
    pub(super) fn step_link(&mut self, core: &mut Core, token: Token, orders: &mut Vec<Order>) {
        let now = core.now;
        loop {
            let Some((peer, head, config)) = core.hear(token) else { return };
            match peer.conn.recv(now, peer.input.bytes(), head, config) {
                Ok((used, Some(event))) => {
                    let leaves = event == Event::Leaving;
                    peer.input.consume(used);
                    if leaves {
                        log::debug!("a link from {} is closed: the agent has asked for it", peer.remote);
                        return core.drop_peer(token);
                    }
                }
                Ok((used, None)) => {
                    peer.input.consume(used);
                    break;
                }
                Err(error) => {
                    log::warn!("a link from {} is closed: the agent {error} ({})", peer.remote, error.code());
                    return core.drop_peer(token);
                }
            }
        }
        let Some(peer) = core.peer(token) else { return };
        if peer.eof || peer.conn.closing().is_some() {
            return core.drop_peer(token);
        }
        let (tunnel, answered) = (peer.key, matches!(peer.wait, Some((_, Wait::Pong))) && peer.can_be_asked());
        if answered {
            peer.wait = None;
            self.link_is_idle(core, tunnel, token, orders);
        }
    }

    /// A link between two exchanges broke, or something on it is due.
    pub(super) fn lost_link(&mut self, core: &mut Core, token: Token, loss: Loss, orders: &mut Vec<Order>) {
        let now = core.now;
        let Some(peer) = core.peer(token) else { return };
        let (tunnel, remote) = (peer.key, peer.remote);
        match loss {
            Loss::Late(wait @ Wait::Pause) => {
                peer.conn.timeout(now, wait);
                self.link_is_idle(core, tunnel, token, orders);
            }
            Loss::Late(Wait::Ping) => {
                peer.wait = None;
                if !peer.can_be_asked() {
                    // Its end, or the first bytes of what it has to say, are there already.
                    return;
                }
                self.tunnels.wake(tunnel, token, |link| is_free(core, link));
                Relay::ping(core, token);
            }
            Loss::Late(wait @ (Wait::Pong | Wait::Silence)) => {
                let (name, flag) = (self.tunnels.name(tunnel), wait.name());
                let seconds = core.config.deadlines.get(flag).unwrap_or_default().as_secs_f32();
                log::warn!(
                    "a link of the tunnel `{name}` from {remote} is closed: its agent did not answer within {seconds} s \
                     (--timeout {flag})"
                );
                core.drop_peer(token);
                self.ping_all(core, tunnel);
            }
            Loss::Late(_) => core.drop_peer(token),
            Loss::Io(error) | Loss::Deaf(error) => {
                log::debug!("a link from {remote} broke: {error}");
                core.drop_peer(token);
            }
        }
    }

    /// Closes all links that no request is on.
    pub(super) fn close_links(&mut self, core: &mut Core) {
        let is_link = |peer: &Peer| peer.seat == Seat::Own && peer.key < queues::FAR;
        let links: Vec<Token> = core.peers().filter(|(_, peer)| is_link(peer)).map(|(token, _)| token).collect();
        for link in links {
            core.drop_peer(link);
        }
    }
}

/// Whether the request that came on this front has waited for a link.
pub(super) fn has_waited(front: &Peer) -> bool {
    matches!(front.wait, Some((_, Wait::Link)))
}

/// Whether a request is one that can share a link: it may be asked again, and has no body.
pub(super) fn suits_a_line(exchange: &Exchange) -> bool {
    exchange.kind == Kind::Http
        && exchange.framing == Framing::Empty
        && exchange.tries == 0
        && matches!(exchange.head.method(), b"GET" | b"HEAD")
        && !exchange.head.fields.has(Name::Expect)
}
