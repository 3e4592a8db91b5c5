//! Whoever stands at the door: which visitors are let in, and what those are told who are too many. An agent gets in whatever the
//! crowd: that it is one shows with its head only, so a surplus connection is let in for as long as it takes to say what it wants.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mio::Token;
use ptth_proto::http::framing::Framing;
use ptth_proto::limits::Wait;
use ptth_proto::time::Instant;

use super::Relay;
use crate::answer::{Answer, Code};
use crate::bridge::exchange::Exchange;
use crate::bridge::too_large;
use crate::net::guests::{Full, Guests};
use crate::peer::Peer;
use crate::reactor::{Core, Door};

/// A limit that is hit again within this time has not been left in between: that is no news.
const HIT_AGAIN: Duration = Duration::from_secs(60);

/// Idle connections that one look around finds: a look goes over all of them.
const FOUND: usize = 256;

/// A look that found fewer is not worth another one before so much time for each connection is over: so looking takes a small
/// part of the time, however many come and find no room.
const LOOK_AGAIN: Duration = Duration::from_micros(10);

/// What one worker knows at the porter.
#[derive(Debug)]
pub(super) struct Porter {
    guests: Arc<Guests>,
    /// Limits that were hit, and when that was last.
    hit: Vec<(&'static str, Instant)>,
    /// Idle connections, the longest first, as they were at the last look; each with what tells whether it still is.
    idle: VecDeque<(Instant, Token)>,
    /// Before this time there is nothing new to be found.
    look_again: Instant,
}

impl Porter {
    pub(super) fn new(guests: Arc<Guests>) -> Porter {
        Porter { guests, hit: Vec::new(), idle: VecDeque::new(), look_again: Instant::from_micros(0) }
    }

    /// A limit was hit. Said once for each time that it begins.
    pub(super) fn is_hit(&mut self, now: Instant, limit: &'static str, what: impl FnOnce() -> String) {
        let known = self.hit.iter_mut().find(|(name, _)| *name == limit);
        let last = match known {
            Some((_, at)) => Some(std::mem::replace(at, now)),
            None => {
                self.hit.push((limit, now));
                None
            }
        };
        if last.is_none_or(|last| now.since(last) > HIT_AGAIN) {
            log::warn!("{} (--limit {limit})", what());
        }
    }

    /// The connection that has waited longest for a request. Finding it costs those that come and go nothing: it is looked for
    /// when it is needed.
    fn longest_idle(&mut self, core: &mut Core, may_go: impl Fn(Token, &Peer) -> bool) -> Option<Token> {
        let now = core.now;
        loop {
            while let Some((until, token)) = self.idle.pop_front() {
                if let Some((peer, _, config)) = core.hear(token)
                    && may_go(token, peer)
                    && peer.idle_until(now, &config.deadlines) == Some(until)
                {
                    return Some(token);
                }
            }
            if now < self.look_again {
                return None;
            }
            self.look_around(core, &may_go);
        }
    }

    fn look_around(&mut self, core: &Core, may_go: impl Fn(Token, &Peer) -> bool) {
        let deadlines = &core.config.deadlines;
        let idle = core.peers().filter(|(token, peer)| may_go(*token, peer));
        let mut idle: Vec<_> =
            idle.filter_map(|(token, peer)| Some((peer.idle_until(core.now, deadlines)?, token))).collect();
        if idle.len() > FOUND {
            idle.select_nth_unstable(FOUND);
            idle.truncate(FOUND);
        } else {
            let peers = u32::try_from(core.peers().count()).unwrap_or(u32::MAX);
            self.look_again = core.now + LOOK_AGAIN.saturating_mul(peers);
        }
        idle.sort_unstable();
        self.idle = idle.into();
    }
}

impl Relay {
    /// A connection has come in: a visitor's, as far as one can tell. When there are too many, one that waits for its next request
    /// goes for it. False when it can't stay.
    pub(super) fn let_in(&mut self, core: &mut Core, token: Token, door: Door) -> bool {
        self.counts.connections += 1;
        let Some(ip) = core.peer(token).and_then(|peer| peer.remote.ip()) else { return true };
        let address = (!self.is_trusted(ip)).then_some(ip);
        let mut entered = self.porter.guests.enter(address);
        if let Err(Full::All) = entered
            && self.make_room(core)
        {
            entered = self.porter.guests.enter(address);
        }
        let entered = entered.or_else(|full| match door {
            Door::Http => self.porter.guests.enter_surplus().ok_or(full),
            // Those who speak another protocol could not be told.
            Door::Tunnel(_) => Err(full),
        });
        let pass = match entered {
            Ok(pass) => pass,
            Err(full) => {
                self.counts.dropped += 1;
                self.too_many(core.now, full, ip);
                return false;
            }
        };
        // One that is too many has a moment to say what it wants.
        let until = core.now + core.config.deadlines.linger;
        if let Some(peer) = core.peer(token) {
            peer.wait = pass.is_surplus().then_some((until, Wait::Linger));
            peer.pass = Some(pass);
        }
        true
    }

    /// Closes the connection that has waited longest for its next request. False when there is none.
    fn make_room(&mut self, core: &mut Core) -> bool {
        let Relay { porter, queues, counts, .. } = self;
        let counts_as_guest = |peer: &Peer| peer.pass.as_ref().is_some_and(|pass| !pass.is_surplus());
        let may_go = |token, peer: &Peer| counts_as_guest(peer) && !queues.has_given(token);
        let Some(idle) = porter.longest_idle(core, may_go) else { return false };
        if let Some(peer) = core.peer(idle) {
            // It is gone at the end of the turn, and its place is free now.
            peer.pass = None;
        }
        core.drop_peer(idle);
        counts.closed_idle += 1;
        porter.is_hit(core.now, "connections", || {
            "there are as many visitors as there may be: idle ones are closed for new ones".into()
        });
        true
    }

    /// A surplus connection turned out to be an agent's that polls: it stays, in a visitor's place if there is one by now.
    pub(super) fn let_agent_in(&mut self, core: &mut Core, token: Token) {
        if let Some(peer) = core.peer(token)
            && let Some((_, Wait::Linger)) = peer.wait
        {
            peer.wait = None;
            let _ = self.enter_at_last(core, token);
        }
    }

    /// Lets a surplus connection in if there is room by now.
    fn enter_at_last(&mut self, core: &mut Core, token: Token) -> Result<(), (Full, IpAddr)> {
        let Some(peer) = core.peer(token) else { return Ok(()) };
        let Some(ip) = peer.remote.ip() else { return Ok(()) };
        let address = (!self.is_trusted(ip)).then_some(ip);
        peer.pass = Some(self.porter.guests.enter(address).map_err(|full| (full, ip))?);
        Ok(())
    }

    /// Whether a visitor's request may not begin, for whatever tunnel it is.
    pub(super) fn may_not_begin(&mut self, core: &mut Core, exchange: &Exchange) -> Option<Answer> {
        let front = exchange.front;
        let surplus = core.peer(front).and_then(|peer| peer.pass.as_ref()).is_some_and(|pass| pass.is_surplus());
        if surplus {
            if let Err((full, ip)) = self.enter_at_last(core, front) {
                if let Some(peer) = core.peer(front) {
                    peer.conn.do_not_keep();
                }
                return Some(self.too_many(core.now, full, ip));
            }
            if let Some(peer) = core.peer(front) {
                peer.wait = None;
            }
        }
        let most = core.config.limits.body as u64;
        if let Framing::Length(length) = exchange.framing
            && length > most
        {
            return Some(too_large(most));
        }
        self.has_no_memory(core)
    }

    /// Whether there is so much in memory that nothing may be begun.
    pub(super) fn has_no_memory(&mut self, core: &Core) -> Option<Answer> {
        let bytes = core.buffered() + self.queues.bytes();
        (bytes > core.config.limits.memory).then(|| {
            self.porter.is_hit(core.now, "memory", || format!("{bytes} bytes are buffered: nothing new begins"));
            Answer::new(Code::RELAY_BUSY, "This relay has as much in memory as it may have; try again later.")
        })
    }

    /// What is told to one who is too many.
    fn too_many(&mut self, now: Instant, full: Full, ip: IpAddr) -> Answer {
        match full {
            Full::All => {
                self.porter.is_hit(now, "connections", || "there are as many visitors as there may be".into());
                let text = "This relay has as many visitors as it may have; try again later.";
                Answer::new(Code::TOO_MANY_CONNECTIONS, text)
            }
            Full::Address => {
                self.porter
                    .is_hit(now, "address-connections", || format!("{ip} has as many connections as one may have"));
                let text = "Your address has as many connections to this relay as one may have; close some, or try again \
                            later.";
                Answer::new(Code::ADDRESS_BUSY, text)
            }
        }
    }
}
