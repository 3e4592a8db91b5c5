//! Links between two exchanges. Those of agents that understand it (`docs/links.md`) are asked now and then whether anybody is
//! still there; all others are left to TCP keep-alive. A link that is asked does not rest: it can't be given a request before its
//! answer is there.

use mio::Token;
use ptth_proto::conn::{Body, Event};
use ptth_proto::limits::Wait;

use super::{Relay, is_free, queues};
use crate::bridge::Order;
use crate::peer::{Peer, Seat};
use crate::reactor::{Core, Loss};

impl Relay {
    /// A link has nothing to do, and nobody waits for it.
    pub(super) fn rest(&mut self, core: &mut Core, tunnel: usize, link: Token) {
        self.tunnels.park(tunnel, link);
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
