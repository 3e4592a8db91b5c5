//! Bytes of a body that go from one peer to another without entering our memory.

use std::io;

use ptth_proto::limits::{BYPASS_FROM, BYPASS_LITTLE};
use ptth_proto::time::Instant;

use super::{Gone, Life, Peer, Seat, Taking};
use crate::net::buf::Pool;

impl Peer {
    /// Whether its bytes go past us at the moment, so that they are not to be read. Those that nobody waits for are.
    pub(super) fn is_past(&self) -> bool {
        matches!(self.taking, Taking::Past | Taking::Sated)
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
            Taking::Past | Taking::Sated => most > 0,
            Taking::Heads => most >= BYPASS_FROM && (self.input.is_bulk() || !self.conn.is_tunnel()),
            Taking::Pieces => most >= BYPASS_FROM && self.input.is_bulk(),
        };
        let sockets = self.transport.socket().is_some() && to.transport.socket().is_some();
        (worth && sockets).then_some(most)
    }

    /// Sends bytes of its body to `to` past us, as many as are there, but no more than `most`. Gives how many went. What has ended, or has
    /// broken, shows as after a read. They are written at once, as far as `to` takes them: what they went through is free then for the next
    /// body of this turn, and a crowd of those needs no more of it than its slow readers.
    pub(crate) fn pass(&mut self, to: &mut Peer, most: u64, now: Instant, pool: &mut Pool) -> usize {
        let Some(most) = self.passable(to).map(|left| left.min(most)).filter(|most| *most > 0) else {
            self.taking = match self.taking {
                _ if self.conn.left_to_recv().is_none() => Taking::Heads,
                Taking::Past | Taking::Sated => Taking::Pieces,
                taking => taking,
            };
            return 0;
        };
        let waits = self.taking == Taking::Sated || !self.readable || to.output.is_passing();
        let n = if waits {
            0
        } else {
            self.taking = Taking::Past;
            self.pass_on(to, most, now, pool)
        };
        if self.readable && self.is_past() {
            // There may be more, which waits for the next turn; it owes us nothing meanwhile.
            to.fed = true;
            self.held = true;
            self.taking = if n > 0 { Taking::Sated } else { self.taking };
        }
        if n > 0 {
            // Should it fail, so will the write at the end of the turn.
            let _ = to.flush(now);
        }
        to.output.clear_way(pool);
        n
    }

    /// The turn ends: there is a new share for its body in the next one.
    pub(crate) fn end_turn(&mut self) {
        if self.taking == Taking::Sated {
            self.taking = Taking::Past;
        }
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

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;
    use crate::peer::tests::connected_as;
    use ptth_proto::conn::Conn;

    /// An end of a tunnel whose bytes go past us, and the other end of its connection.
    fn tunnel(now: Instant) -> (Peer, TcpStream) {
        let (mut peer, other) = connected_as(Conn::tunnel(now));
        // What fails is to end, too.
        other.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (peer.seat, peer.taking) = (Seat::Exchange(0), Taking::Past);
        peer.ready(true, true, Gone::No);
        (peer, other)
    }

    /// Passes what is on its way, once it is there.
    fn pass(from: &mut Peer, to: &mut Peer, most: u64, pool: &mut Pool) -> usize {
        while !from.transport.has_unread() {}
        from.pass(to, most, Instant::default(), pool)
    }

    #[test]
    fn one_way_is_enough_for_all_bodies_of_a_turn() {
        let (mut pool, now, mut heard) = (Pool::default(), Instant::default(), [0; 4]);
        pool.allow_bypasses(1);
        for body in [b"some", b"more", b"last"] {
            let ((mut from, mut writer), (mut to, mut reader)) = (tunnel(now), tunnel(now));
            writer.write_all(body).unwrap();
            assert_eq!(pass(&mut from, &mut to, u64::MAX, &mut pool), body.len());
            // It is there before the turn ends.
            reader.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, body);
        }
    }

    #[test]
    fn a_body_has_its_share_of_a_turn_and_no_more() {
        let (mut pool, now) = (Pool::default(), Instant::default());
        pool.allow_bypasses(1);
        let ((mut from, mut writer), (mut to, _reader)) = (tunnel(now), tunnel(now));
        writer.write_all(b"twelve bytes").unwrap();
        assert_eq!(pass(&mut from, &mut to, 4, &mut pool), 4);
        // There are more, for the next turn: whoever asks for them in this one is told that there is nothing, however often.
        for _ in 0..3 {
            assert_eq!((from.pass(&mut to, 4, now, &mut pool), to.fed, from.held), (0, true, true));
        }
        from.end_turn();
        assert_eq!(from.pass(&mut to, 4, now, &mut pool), 4);
    }
}
