//! A live connection: a socket, its buffers, and what is being said on it.

mod pass;

use std::io;
use std::time::Duration;

use mio::{Registry, Token};
use ptth_proto::conn::{Closing, Config, Conn};
use ptth_proto::error::CloseReason;
use ptth_proto::limits::{Deadlines, Wait};
use ptth_proto::time::Instant;

use crate::net::Transport;
use crate::net::addr::Remote;
use crate::net::buf::{InBuf, OutBuf, Pool};
use crate::net::guests::Pass;

/// Who acts on what a peer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// Between two exchanges, we are the server: the bridge listens for a request.
    Front,
    /// In an exchange, on either end of it.
    Exchange(usize),
    /// On a link with several requests: what comes is the answer to one that nobody waits for any more.
    Nobody,
    /// The program's own business: a handshake, a parked back, a built-in page.
    Own,
}

/// The [`Peer::key`] of a peer that the program has given none.
pub const NO_KEY: usize = usize::MAX;

/// In [`Peer::line`]: nobody waits for this answer any more.
pub const NOBODY: usize = usize::MAX;

/// In [`Peer::line`]: a word of ours to the agent, whose answer says nothing.
pub const HINT: usize = usize::MAX - 1;

/// How many times over the end of a peer that goes on sending is waited for: nginx lingers 30 s in all.
const LINGERS: u32 = 15;

/// Bytes in the time of one linger that tell an upload from a visitor that drips to hold its connection.
const IN_EARNEST: usize = 4 * 1024;

/// Where the socket is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Being connected, since then.
    Connecting(Instant),
    Open,
    /// Our direction of a tunnel has ended; the peer's goes on.
    Half,
    /// Our direction has ended, at that time; what still comes is thrown away.
    Shut(Instant),
    /// To be dropped at the end of the turn.
    Dead,
}

/// Whether the peer is one end of a pipe, a connection inside this loop. The bridge has the near end; the far end is the
/// program's own, which makes something else of the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twin {
    /// It is a socket.
    None,
    /// The far end is that peer.
    Far(Token),
    /// The near end is that peer. Nobody waits for this end: what becomes late shows at the near one.
    Near(Token),
}

impl Twin {
    /// The other end.
    pub fn token(self) -> Option<Token> {
        match self {
            Twin::None => None,
            Twin::Far(token) | Twin::Near(token) => Some(token),
        }
    }
}

/// What a peer is waited for: computed from its state, in one place, whenever the loop asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Its bytes would be of use and there is room for them.
    pub read: bool,
    /// Bytes wait to be sent to it.
    pub write: bool,
}

/// Who takes its bytes from the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taking {
    /// We read them; but a body that is long enough goes past us.
    Heads,
    /// We read them, for of this body they come in small pieces.
    Pieces,
    /// They go past us, as long as they are nothing but body.
    Past,
    /// The same, but they have had their share of this turn, and there are more.
    Sated,
}

/// How much of a connection the poll says is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Gone {
    No,
    /// The peer's bytes end; it may still take ours.
    Half,
    /// The connection broke.
    Whole,
}

/// A live connection.
#[derive(Debug)]
pub struct Peer {
    /// What is being said.
    pub conn: Conn,
    /// What the peer sent and nobody has used yet.
    pub input: InBuf,
    /// What it is to be sent.
    pub output: OutBuf,
    /// Who it is.
    pub remote: Remote,
    /// Who acts on what it says.
    pub seat: Seat,
    /// Exchanges on it behind the one of its seat, in the order of their requests; [`NOBODY`] for one that is over, [`HINT`] for a word.
    pub line: Vec<usize>,
    /// Which agent a link leads to, where that has said so: the start of the names of answers that it sets aside.
    pub agent: Option<u64>,
    /// A number of the program's own: what this connection is to it.
    pub key: usize,
    /// A deadline that the connection itself does not know of.
    pub wait: Option<(Instant, Wait)>,
    /// Somebody has more for it as soon as its output has room.
    pub fed: bool,
    /// Its own bytes wait for room elsewhere: it owes us nothing meanwhile.
    pub held: bool,
    /// Reading it has failed: its end is no clean one.
    pub broken: bool,
    /// The peer's bytes have ended, or there will be no more of them.
    pub eof: bool,
    /// Bytes written to it so far.
    pub written: u64,
    /// The other end, if it is in this loop.
    pub twin: Twin,
    /// How it was let in, for as long as it counts.
    pub pass: Option<Pass>,
    transport: Transport,
    life: Life,
    taking: Taking,
    /// What the edge-triggered poll last said, until a read or write finds otherwise.
    readable: bool,
    writable: bool,
    /// What the poll said of its end; what it had sent before may still be unread.
    gone: Gone,
    /// The connection was told of its peer's end.
    eof_told: bool,
    /// The socket takes nothing more.
    deaf: bool,
    /// Bytes behind its last message that were thrown away since its end was last waited for anew.
    discarded: usize,
    /// The last time it took some of its output, or was given some when it had none.
    took: Instant,
    /// The earliest entry in the timer queue that will look at it.
    pub(crate) armed: Option<Instant>,
    /// It is on the list of those touched in this turn.
    pub(crate) touched: bool,
    /// Bytes of the head of its request that is under way, kept elsewhere.
    pub(crate) head: usize,
    /// Bytes of its buffers and of that head, as the loop last counted them.
    pub(crate) counted: usize,
}

impl Peer {
    /// A peer over a socket that is connected, or being connected.
    pub(crate) fn new(transport: Transport, remote: Remote, conn: Conn, connecting: bool, now: Instant) -> Peer {
        Peer {
            conn,
            input: InBuf::default(),
            output: OutBuf::default(),
            remote,
            seat: Seat::Front,
            line: Vec::new(),
            agent: None,
            key: NO_KEY,
            wait: None,
            fed: false,
            held: false,
            broken: false,
            eof: false,
            written: 0,
            twin: Twin::None,
            pass: None,
            transport,
            life: if connecting { Life::Connecting(now) } else { Life::Open },
            taking: Taking::Heads,
            readable: false,
            writable: !connecting,
            gone: Gone::No,
            eof_told: false,
            deaf: false,
            discarded: 0,
            took: now,
            armed: None,
            touched: false,
            head: 0,
            counted: 0,
        }
    }

    /// The socket.
    pub fn transport(&mut self) -> &mut Transport {
        &mut self.transport
    }

    /// Whether the connection is still being made.
    pub fn is_connecting(&self) -> bool {
        matches!(self.life, Life::Connecting(_))
    }

    /// Whether it is of any use still: neither dropped nor closing nor left by its peer.
    pub fn is_alive(&self) -> bool {
        self.life != Life::Dead && self.conn.closing().is_none() && !self.has_hung_up()
    }

    /// Leaves its loop for another one: nothing that was arranged with the old one holds.
    pub(crate) fn leave(&mut self, registry: &Registry) {
        // It can only fail when the socket was never in there, which is what is wanted.
        let _ = self.transport.deregister(registry);
        self.armed = None;
        self.touched = false;
        self.wait = None;
        self.fed = false;
    }

    /// Whether it can be asked: it is alive, nothing is being said on it, and it has said nothing unasked.
    pub fn can_be_asked(&self) -> bool {
        self.is_alive() && self.conn.is_idle() && self.input.is_empty()
    }

    /// The socket takes nothing more, but may still give.
    pub(crate) fn go_deaf(&mut self) {
        self.deaf = true;
        self.readable = true;
        self.output.clear();
    }

    /// Whether the socket takes nothing more.
    pub fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// Reading it has failed.
    pub(crate) fn break_off(&mut self) {
        self.broken = true;
        self.eof = true;
    }

    /// Throws away what it said behind its last message. As long as it goes on in earnest, and not for ever, its end is waited for
    /// anew: it may be sending a body whose answer it has not read yet.
    pub fn discard(&mut self, now: Instant, linger: Duration) {
        self.discarded += self.input.len();
        self.input.consume(self.input.len());
        if let Life::Shut(since) = self.life
            && self.discarded >= IN_EARNEST
            && now.since(since) < linger.saturating_mul(LINGERS)
        {
            self.discarded = 1;
            self.conn.linger(now);
        }
    }

    /// Whether our side has ended, and its last words are still being waited for.
    pub fn is_lingering(&self) -> bool {
        matches!(self.life, Life::Shut(_))
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.life == Life::Dead
    }

    /// It ends without another word. A peer that lacks some is to see that: in a tunnel, and in a body that ends with its
    /// connection, an end like any other would make what it has the whole.
    pub(crate) fn die(&mut self) {
        if !self.output.is_empty() {
            self.transport.break_on_close();
        }
        self.life = Life::Dead;
    }

    /// Whether the peer has closed its side or is gone altogether, whether or not all that it sent was read.
    pub fn has_hung_up(&self) -> bool {
        self.gone != Gone::No || self.eof
    }

    /// Whether the connection broke, so that nothing reaches the peer any more.
    pub fn is_gone(&self) -> bool {
        self.gone == Gone::Whole
    }

    /// Until when it may wait for a request of which nothing has come, so that the one that has waited longest has the earliest;
    /// `None` when it doesn't, or only since this turn: then its request may be there already.
    pub fn idle_until(&self, now: Instant, deadlines: &Deadlines) -> Option<Instant> {
        if self.seat != Seat::Front || !self.can_be_asked() || !self.output.is_empty() {
            return None;
        }
        let idle = |(at, wait): &(Instant, Wait)| *wait == Wait::Idle && *at < now + deadlines.idle;
        self.conn.deadline(deadlines).filter(idle).map(|(at, _)| at)
    }

    /// What the peer is waited for.
    pub fn interest(&self, config: &Config) -> Interest {
        let open = matches!(self.life, Life::Open | Life::Half | Life::Shut(_));
        if self.deaf {
            // Only what it had said before.
            return Interest { read: open && !self.eof && self.input.len() < most_input(config), write: false };
        }
        Interest {
            read: open && !self.eof && self.conn.wants_read() && self.input.len() < most_input(config),
            write: open && !self.output.is_empty(),
        }
    }

    /// Whether there is something to read that is wanted.
    pub(crate) fn can_read(&self, config: &Config) -> bool {
        self.readable && self.interest(config).read && !self.is_past()
    }

    /// What the poll said.
    pub(crate) fn ready(&mut self, readable: bool, writable: bool, gone: Gone) {
        self.readable |= readable;
        self.writable |= writable;
        self.gone = self.gone.max(gone);
    }

    /// The connection stands, or could not be made.
    pub(crate) fn connected(&mut self, now: Instant) -> io::Result<()> {
        self.transport.take_error()?;
        self.transport.no_delay();
        self.life = Life::Open;
        self.took = now;
        Ok(())
    }

    /// Reads once.
    pub(crate) fn fill(&mut self, pool: &mut Pool, config: &Config) -> io::Result<()> {
        let Peer { transport, input, .. } = self;
        match input.fill(pool, most_input(config), |room| transport.read(room)) {
            Ok((0, _)) => {
                self.eof = true;
                self.readable = false;
            }
            // A short read has emptied the socket: a byte more would be a new edge. Unless its end was announced with
            // them: then the end itself is still to be read.
            Ok((_, filled)) => self.readable = filled || self.gone != Gone::No,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Carries what there is over to the other end of the pipe, as far as that one takes it. True when it took something.
    pub(crate) fn pour(&mut self, twin: &mut Peer, now: Instant, pool: &mut Pool, config: &Config) -> bool {
        let before = self.written;
        while !self.output.is_empty() && twin.life == Life::Open && twin.interest(config).read {
            let filled = twin.input.fill(pool, most_input(config), |room| {
                let n = room.len().min(self.output.len());
                room[..n].copy_from_slice(&self.output.bytes()[..n]);
                Ok(n)
            });
            let Ok((n, _)) = filled else { break };
            self.output.consume(n);
            self.written += n as u64;
            self.took = now;
        }
        self.written > before
    }

    /// The other end of the pipe is gone.
    pub(crate) fn hang_up(&mut self) {
        self.output.clear();
        self.deaf = true;
        self.eof = true;
    }

    /// Writes what there is, as far as the socket takes it.
    pub(crate) fn flush(&mut self, now: Instant) -> io::Result<()> {
        if self.deaf {
            self.output.clear();
        }
        while self.writable && self.life == Life::Open && !self.output.is_empty() {
            // Its end follows in `wind_up`.
            let is_last = self.conn.closing().is_some() || self.conn.is_half_closed();
            match self.output.write(&mut self.transport, is_last) {
                Ok(n) => {
                    self.written += n as u64;
                    self.took = now;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What is left to do for a closing connection, or a closing direction of it, after its output was flushed: true when it is
    /// over.
    pub(crate) fn wind_up(&mut self, now: Instant) -> bool {
        if self.life == Life::Open && self.conn.is_half_closed() && self.output.is_empty() {
            self.transport.shutdown_write();
            self.life = Life::Half;
        }
        let Some(closing) = self.conn.closing() else { return false };
        if !self.output.is_empty() {
            return false;
        }
        if self.twin != Twin::None {
            return true;
        }
        if self.eof || self.deaf {
            return true;
        }
        // Closing on bytes that were not read would reset the connection, and our last ones with it.
        let unread = self.readable || self.discarded > 0 || closing == Closing::Linger;
        if matches!(self.life, Life::Open | Life::Half) {
            // Also where nothing more is known to come: what does come before the close would find our last words unsent.
            self.transport.shutdown_write();
            if unread {
                self.life = Life::Shut(now);
                return !self.conn.linger(now);
            }
        }
        !unread
    }

    /// Some so many bytes are about to be appended to the output: the patience with an idle taker starts now.
    pub fn prepare(&mut self, more: usize, now: Instant, pool: &mut Pool) {
        if self.output.is_empty() {
            self.took = now;
        }
        self.output.prepare(more, pool);
    }

    /// It carries bytes without messages from now on: no patience from before holds, and its reader may rest.
    pub(crate) fn becomes_tunnel(&mut self, config: &Config) {
        self.wait = None;
        self.transport.keep_alive(config.deadlines.keepalive);
    }

    /// Tells the connection of its peer's end, once, when nothing of what it sent is left to be understood.
    pub fn tell_eof(&mut self) -> bool {
        let tell = self.eof && !self.eof_told;
        self.eof_told |= tell;
        tell
    }

    /// Until when the peer may stay as it is, and why.
    pub fn deadline(&self, deadlines: &Deadlines) -> Option<(Instant, Wait)> {
        if let Life::Connecting(since) = self.life {
            return Some((since + deadlines.connect, Wait::Connect));
        }
        if let Twin::Near(_) = self.twin {
            return self.wait;
        }
        let conn = self.conn.deadline(deadlines);
        // Who answers before it has the whole request may have no use for the rest: its answer has a patience of its own.
        let answers = matches!(conn, Some((_, Wait::Stream)));
        // Whoever reads from a tunnel may rest, from the end of one too: a pager, a shell that is halted.
        let patience = match self.conn.close_reason() {
            _ if self.conn.is_tunnel() => deadlines.tunnel,
            Some(CloseReason::TunnelOver) => deadlines.tunnel_end,
            _ => deadlines.write,
        };
        let write = (!self.output.is_empty() && !answers).then(|| (self.took + patience, Wait::Write));
        let conn = conn.filter(|(_, wait)| match wait {
            // A peer that we don't read because its bytes have nowhere to go owes us nothing.
            Wait::Body | Wait::Stream | Wait::Quiet | Wait::Tunnel | Wait::TunnelEnd => !self.held,
            // Counted from our last byte.
            Wait::Linger => self.is_lingering(),
            // A message may wait in a queue before anybody can answer it: the queue counts.
            Wait::Answer | Wait::Signs | Wait::Silence => self.twin == Twin::None && !self.held,
            _ => true,
        });
        [write, conn, self.wait].into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

/// Bytes that one peer's input may hold: a whole head, or a direction's share of body.
fn most_input(config: &Config) -> usize {
    let limits = config.limits.of_link();
    // Whatever has to be whole before it is understood fits, and a byte more, which shows that it is too long.
    limits.head.max(limits.buffer).max(limits.trailers).max(limits.chunk_line) + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Ipv4Addr, TcpListener};

    use ptth_proto::conn::Body;
    use ptth_proto::wire::head::Head;

    /// A peer that speaks HTTP, and the other end of its connection.
    fn connected() -> (Peer, std::net::TcpStream) {
        connected_as(Conn::server(Instant::default()))
    }

    /// A peer, and the other end of its connection.
    pub(super) fn connected_as(conn: Conn) -> (Peer, std::net::TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let other = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, address) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let (transport, now) = (Transport::Tcp(mio::net::TcpStream::from_std(stream)), Instant::default());
        (Peer::new(transport, Remote::Ip(address), conn, false, now), other)
    }

    /// What the other end hears when a peer dies that still had this to say.
    fn last_words(unsent: &[u8]) -> io::Result<usize> {
        let (mut peer, mut other) = connected();
        peer.output.vec().extend_from_slice(unsent);
        peer.die();
        drop(peer);
        other.read(&mut [0; 10])
    }

    #[test]
    fn what_comes_at_the_last_moment_does_not_take_the_answer_away() {
        let (mut peer, mut other) = connected();
        let (now, config, mut pool) = (Instant::default(), Config::default(), Pool::default());
        other.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        peer.fill(&mut pool, &config).unwrap();
        while let (1.., _) = peer.conn.recv(now, peer.input.bytes(), &mut Head::default(), &config).unwrap() {
            peer.input.consume(peer.input.len());
        }
        peer.conn.send_response(now, peer.output.vec(), (204, b"No Content"), Body::None, |_| {}).unwrap();
        peer.conn.send_end(now, None, peer.output.vec()).unwrap();
        // Nobody has heard of these.
        other.write_all(b"\r\n").unwrap();
        peer.flush(now).unwrap();
        assert!(peer.wind_up(now));
        drop(peer);
        let mut heard = [0; 12];
        other.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"HTTP/1.1 204");
    }

    /// All that an idle connection has of ours is its peer, and a few words in lists: its buffers are given back. A relay of 20,000
    /// links may have 4 KiB for each; this is what we make of it.
    #[test]
    fn a_connection_takes_little_memory() {
        assert!(size_of::<Peer>() <= 512, "{}", size_of::<Peer>());
    }

    #[test]
    fn what_was_not_sent_is_seen_to_lack() {
        assert_eq!(last_words(b"").unwrap(), 0);
        assert_eq!(last_words(b"more").unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}
