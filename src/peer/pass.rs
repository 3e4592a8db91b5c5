//! Bytes of a body that go from one peer to another without entering our memory.

use std::io;

use ptth_proto::limits::{BYPASS_FROM, BYPASS_LITTLE};
use ptth_proto::time::Instant;

use super::{Gone, Life, Peer, Seat, Taking};
use crate::net::buf::Pool;

impl Peer {
    /// Whether its bytes go past us at the moment, so that they are not to be read. Those that nobody waits for are.
    pub(super) fn is_past(&self) -> bool {
        self.taking == Taking::Past
            && matches!(self.seat, Seat::Exchange(_))
            && self.conn.left_to_recv().is_some_and(|left| left > 0)
    }

    /// Whether the bytes of its present body can go to `to` past us, and it is worth while: gives how many at most. What comes in
    /// small pieces is read until a read shows that there is more; so is what a tunnel carries, of which nobody knows how long it is.
    fn passable(&self, to: &Peer) -> Option<u64> {
        if self.eof || !self.input.is_empty() || to.life != Life::Open || to.deaf {
            return None;
        }
        let most = self.conn.left_to_recv()?.min(to.conn.left_to_send()?);
        let worth = match self.taking {
            Taking::Past => most > 0,
            Taking::Heads => most >= BYPASS_FROM && (self.input.is_bulk() || !self.conn.is_tunnel()),
            Taking::Pieces => most >= BYPASS_FROM && self.input.is_bulk(),
        };
        let sockets = self.transport.socket().is_some() && to.transport.socket().is_some();
        (worth && sockets).then_some(most)
    }

    /// Sends bytes of its body to `to` past us, as many as are there, but no more than `most`. Gives how many went. What has ended, or has
    /// broken, shows as after a read.
    pub(crate) fn pass(&mut self, to: &mut Peer, most: u64, now: Instant, pool: &mut Pool) -> usize {
        let Some(most) = self.passable(to).map(|left| left.min(most)).filter(|most| *most > 0) else {
            self.taking = match self.taking {
                _ if self.conn.left_to_recv().is_none() => Taking::Heads,
                Taking::Past => Taking::Pieces,
                taking => taking,
            };
            return 0;
        };
        self.taking = Taking::Past;
        let n = if !self.readable || to.output.is_passing() { 0 } else { self.pass_on(to, most, now, pool) };
        if self.readable && self.is_past() {
            // There may be more, which waits until these are gone; it owes us nothing meanwhile.
            to.fed = true;
            self.held = true;
        }
        n
    }

    fn pass_on(&mut self, to: &mut Peer, most: u64, now: Instant, pool: &mut Pool) -> usize {
        match to.output.pass(&self.transport, most, now, pool) {
            // No end: an urgent byte in front of bytes that the end has come behind looks the same. A read tells.
            None | Some(Ok(0)) => self.taking = Taking::Pieces,
            Some(Ok(n)) => return self.passed(to, n, most, now),
            Some(Err(error)) => match error.kind() {
                // There is nothing, or a byte that is urgent: only a read steps over that, and finds out which it is.
                io::ErrorKind::WouldBlock => self.taking = Taking::Pieces,
                io::ErrorKind::Interrupted => {}
                _ => self.break_off(),
            },
        }
        0
    }

    fn passed(&mut self, to: &mut Peer, n: usize, most: u64, now: Instant) -> usize {
        let told = self.conn.recv_passed(now, n as u64).and_then(|()| to.conn.send_passed(now, n as u64));
        debug_assert!(told.is_ok(), "{told:?}");
        if told.is_err() {
            self.break_off();
        }
        // As after a short read; but here it may also have been the pipe that was full.
        self.readable = n as u64 == most && self.is_past() || self.gone != Gone::No || self.transport.has_unread();
        if !self.is_past() {
            self.taking = Taking::Heads;
            self.input.expect_little();
        } else if n < BYPASS_LITTLE && !self.readable {
            self.taking = Taking::Pieces;
        }
        n
    }
}
