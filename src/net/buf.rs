//! Buffers of a connection. They are lent by a pool while there is something in them, so that an idle connection owns none.

use std::io;
use std::sync::Arc;

use ptth_proto::limits::{BYPASS, BYPASS_AGAIN, BYPASSES_SPARE};
use ptth_proto::time::Instant;
use rustix::io::Errno;

use super::Transport;
use super::bypass::Bypass;

/// A buffer for a message or two: most heads and small bodies fit.
const SMALL: usize = 4 * 1024;
/// A buffer for bodies that fill a small one: fewer and larger reads.
const LARGE: usize = 64 * 1024;
/// Spare buffers that the pool keeps of each size: 1 MiB of small ones, 1 MiB of large ones.
const SPARE_SMALL: usize = 256;
const SPARE_LARGE: usize = 16;
/// Bytes of spare buffers for output, which grow as they have to, and of those that have grown. In bytes, because one that has grown
/// is worth keeping: the next crowd on one link would have to let another grow.
const SPARE_OUTPUT: usize = 1024 * 1024;
const SPARE_GROWN: usize = 3 * 1024 * 1024;

/// Whether there are ways past the buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ways {
    #[default]
    Open,
    /// The system had none to give: only spare ones until then.
    Scarce(Instant),
    /// The system won't move bytes for this program: never again.
    Closed,
}

/// Whether there are more spare bypasses than are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Surplus {
    #[default]
    No,
    /// So many have not been needed since they were last looked at.
    Unused(usize),
}

/// Spare buffers that are counted by their bytes.
#[derive(Debug, Default)]
struct Spare {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl Spare {
    fn take(&mut self) -> Option<Vec<u8>> {
        let buffer = self.buffers.pop()?;
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    /// Keeps it, unless that would be more than `most` bytes.
    fn give(&mut self, buffer: Vec<u8>, most: usize) {
        if self.bytes + buffer.capacity() <= most {
            self.bytes += buffer.capacity();
            self.buffers.push(buffer);
        }
    }
}

/// Spare buffers of one event loop.
#[derive(Debug, Default)]
pub struct Pool {
    small: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
    output: Spare,
    /// Those that have grown. They go to those alone who have much to say: if they went to everybody in turn, each spare buffer would
    /// be grown once by the few that have, and 64 visitors would cost an agent 2 MiB.
    grown: Spare,
    /// The one that was used last is behind all others.
    bypasses: Vec<Bypass>,
    surplus: Surplus,
    /// As many bypasses as there may be, spare ones and others: none until the program says how many.
    most_bypasses: usize,
    ways: Ways,
    /// Each of them has one, wherever it is.
    alive: Arc<()>,
}

impl Pool {
    /// From now on there may be so many bypasses.
    pub fn allow_bypasses(&mut self, most: usize) {
        self.most_bypasses = most;
    }

    /// An empty bypass, if there may be another one.
    fn bypass(&mut self, now: Instant) -> Option<Bypass> {
        if let Some(spare) = self.bypasses.pop() {
            if let Surplus::Unused(unused) = &mut self.surplus {
                *unused = self.bypasses.len().min(*unused);
            }
            return Some(spare);
        }
        match self.ways {
            Ways::Closed => None,
            Ways::Scarce(until) if now < until => None,
            Ways::Scarce(_) | Ways::Open => self.another_bypass(now),
        }
    }

    fn another_bypass(&mut self, now: Instant) -> Option<Bypass> {
        if Arc::strong_count(&self.alive) > self.most_bypasses {
            return None;
        }
        let bypass = Bypass::new(&self.alive);
        self.ways = if bypass.is_some() { Ways::Open } else { Ways::Scarce(now + BYPASS_AGAIN) };
        bypass
    }

    /// An empty one is of no more use to whoever had it. One that came with a peer from another loop goes, for it counts there.
    fn give_bypass(&mut self, bypass: Bypass) {
        match self.ways {
            _ if !bypass.is_of(&self.alive) => {}
            Ways::Open | Ways::Scarce(_) => self.bypasses.push(bypass),
            Ways::Closed => {}
        }
    }

    /// Whether there have come to be more spare bypasses than are kept: they are to be looked at after a while.
    pub fn has_surplus(&mut self) -> bool {
        let more = self.surplus == Surplus::No && self.bypasses.len() > BYPASSES_SPARE;
        if more {
            self.surplus = Surplus::Unused(self.bypasses.len());
        }
        more
    }

    /// Gives those back to the system that nobody needed in that while, but for some. Others of the same user may have to do without.
    pub fn give_surplus_back(&mut self) {
        if let Surplus::Unused(unused) = std::mem::replace(&mut self.surplus, Surplus::No) {
            self.bypasses.drain(..unused.saturating_sub(BYPASSES_SPARE));
        }
    }

    /// There is no way past the buffers: all is read and written from now on.
    fn close_ways(&mut self, error: &io::Error) {
        if self.ways != Ways::Closed {
            log::debug!("long bodies are copied: the system does not move bytes from socket to socket ({error})");
        }
        self.ways = Ways::Closed;
        self.bypasses.clear();
        self.surplus = Surplus::No;
    }

    /// A buffer of one of the two sizes, its length its size. The bytes in it are old ones.
    fn take(&mut self, size: usize) -> Vec<u8> {
        let spare = if size == SMALL { &mut self.small } else { &mut self.large };
        spare.pop().unwrap_or_else(|| vec![0; size])
    }

    /// An empty buffer for output.
    fn take_output(&mut self, much: bool) -> Vec<u8> {
        let grown = if much { self.grown.take() } else { None };
        grown.or_else(|| self.output.take()).unwrap_or_else(|| Vec::with_capacity(SMALL))
    }

    fn give_output(&mut self, buffer: Vec<u8>) {
        match buffer.capacity() {
            ..=SMALL => self.output.give(buffer, SPARE_OUTPUT),
            bytes if bytes <= 4 * LARGE => self.grown.give(buffer, SPARE_GROWN),
            _ => {}
        }
    }

    fn give(&mut self, buffer: Vec<u8>) {
        let (spare, most) = match buffer.len() {
            SMALL => (&mut self.small, SPARE_SMALL),
            LARGE => (&mut self.large, SPARE_LARGE),
            // It had to grow for one large head: not worth keeping.
            _ => return,
        };
        if spare.len() < most {
            spare.push(buffer);
        }
    }
}

/// Bytes that were read and not yet used.
#[derive(Debug, Default)]
pub struct InBuf {
    data: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read filled its buffer: the next one gets a large one.
    bulk: bool,
}

impl InBuf {
    /// What was read and not used.
    pub fn bytes(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    /// How much that is.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether that is nothing.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether the last read filled the room that there was, so that more may be waiting.
    pub fn is_bulk(&self) -> bool {
        self.bulk
    }

    /// Bytes of memory that it has.
    pub fn memory(&self) -> usize {
        self.data.len()
    }

    /// `n` bytes from the front were used.
    pub fn consume(&mut self, n: usize) {
        self.start += n;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Reads once, into at most `most` bytes of buffer in all. Gives how many bytes came and whether the room was filled, so
    /// that more may be waiting.
    pub fn fill(
        &mut self,
        pool: &mut Pool,
        most: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<(usize, bool)> {
        if self.data.is_empty() {
            self.data = pool.take(if self.bulk { LARGE } else { SMALL });
        }
        if self.end == self.data.len() {
            if self.start > 0 {
                self.data.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            } else {
                let size = (self.data.len() * 2).max(LARGE).min(most.max(LARGE));
                let mut larger = if size == LARGE { pool.take(LARGE) } else { vec![0; size] };
                larger[..self.end].copy_from_slice(&self.data[..self.end]);
                pool.give(std::mem::replace(&mut self.data, larger));
            }
        }
        let room = &mut self.data[self.end..];
        let size = room.len();
        let n = read(room)?;
        self.end += n;
        self.bulk = n == size;
        Ok((n, n == size))
    }

    /// What filled the last room has ended: what comes next is a head, as small as any.
    pub fn expect_little(&mut self) {
        self.bulk = false;
    }

    /// Gives the buffer back when nothing is in it.
    pub fn release(&mut self, pool: &mut Pool) {
        if self.is_empty() && !self.data.is_empty() {
            pool.give(std::mem::take(&mut self.data));
        }
    }
}

/// Whether the system does not have, or does not allow, what was asked for, so that nothing was taken: filters of system calls, kernels
/// in user space and unusual sockets say so.
fn is_refusal(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP))
}

/// Bytes that are to be written: a buffer, and in between what went past it.
#[derive(Debug, Default)]
pub struct OutBuf {
    data: Vec<u8>,
    start: usize,
    bypass: Option<Bypass>,
    /// Bytes of the buffer that go before those in the bypass; all others go behind them.
    before: usize,
}

impl OutBuf {
    /// Where to append.
    pub fn vec(&mut self) -> &mut Vec<u8> {
        &mut self.data
    }

    /// What is still to be written from the buffer.
    pub fn bytes(&self) -> &[u8] {
        &self.data[self.start..]
    }

    /// How much is still to be written.
    pub fn len(&self) -> usize {
        self.bytes().len() + self.passing()
    }

    /// Whether that is nothing.
    pub fn is_empty(&self) -> bool {
        self.bytes().is_empty() && !self.is_passing()
    }

    /// Bytes of memory that it has, the system's own for it included.
    pub fn memory(&self) -> usize {
        self.data.capacity() + self.passing()
    }

    fn passing(&self) -> usize {
        self.bypass.as_ref().map_or(0, Bypass::load)
    }

    /// Whether bytes are on their way past the buffer. No others can follow them on that way until these are gone.
    pub fn is_passing(&self) -> bool {
        self.passing() > 0
    }

    /// Takes bytes from a socket past the buffer, at most so many, behind all that is in it. `None` when there is no way for them:
    /// they are to be read.
    pub fn pass(&mut self, from: &Transport, most: u64, now: Instant, pool: &mut Pool) -> Option<io::Result<usize>> {
        let socket = from.socket().filter(|_| !self.is_passing())?;
        if self.bypass.is_none() {
            self.bypass = pool.bypass(now);
        }
        self.before = self.bytes().len();
        let most = usize::try_from(most).unwrap_or(BYPASS).min(BYPASS);
        let taken = self.bypass.as_mut()?.take(socket, most);
        if let Some(error) = taken.as_ref().err().filter(|error| is_refusal(error)) {
            pool.close_ways(error);
            self.bypass = None;
            return None;
        }
        Some(taken)
    }

    /// Writes once, in the order in which all came; `is_last`: the end of the connection follows. Gives how much went.
    pub fn write(&mut self, transport: &mut Transport, is_last: bool) -> io::Result<usize> {
        let n = match &mut self.bypass {
            Some(bypass) if bypass.load() > 0 && self.before == 0 => {
                let socket = transport.socket().ok_or(io::ErrorKind::Unsupported)?;
                return match bypass.give(socket)? {
                    0 => Err(io::ErrorKind::WriteZero.into()),
                    n => Ok(n),
                };
            }
            Some(bypass) if bypass.load() > 0 => {
                let n = transport.write(&self.data[self.start..self.start + self.before])?;
                self.before -= n;
                n
            }
            _ if is_last => transport.write_last(self.bytes())?,
            _ => transport.write(self.bytes())?,
        };
        self.consume(n);
        Ok(n)
    }

    /// `n` bytes from the front of the buffer were written.
    pub fn consume(&mut self, n: usize) {
        self.start += n;
        if self.bytes().is_empty() {
            self.data.clear();
            self.start = 0;
        } else if self.start >= LARGE {
            self.data.drain(..self.start);
            self.start = 0;
        }
    }

    /// Forgets what was not written.
    pub fn clear(&mut self) {
        self.data.clear();
        self.start = 0;
        if self.is_passing() {
            self.bypass = None;
        }
    }

    /// Takes a buffer from the pool when there is none, or a larger one for what won't have room in a small one: some `more` bytes are
    /// about to be appended.
    pub fn prepare(&mut self, more: usize, pool: &mut Pool) {
        // The rest is for what a head is longer than the one that it was made of.
        let much = self.data.len() + more > SMALL / 4 * 3;
        if self.data.capacity() == 0 {
            self.data = pool.take_output(much);
        } else if much
            && self.data.capacity() <= SMALL
            && let Some(mut grown) = pool.grown.take()
        {
            grown.extend_from_slice(&self.data);
            std::mem::swap(&mut self.data, &mut grown);
            grown.clear();
            pool.give_output(grown);
        }
    }

    /// Gives the way past the buffer back when nothing is in it.
    pub fn clear_way(&mut self, pool: &mut Pool) {
        if let Some(bypass) = self.bypass.take_if(|bypass| bypass.load() == 0) {
            pool.give_bypass(bypass);
        }
    }

    /// Gives the buffer back when nothing is in it, and the way past it likewise.
    pub fn release(&mut self, pool: &mut Pool) {
        self.clear_way(pool);
        if self.data.is_empty() && self.data.capacity() > 0 {
            pool.give_output(std::mem::take(&mut self.data));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_grows_for_a_large_head_and_goes_back_when_empty() {
        let (mut pool, mut buffer) = (Pool::default(), InBuf::default());
        for _ in 0..5 {
            buffer.fill(&mut pool, 128 * 1024, |room| Ok(room.len())).unwrap();
        }
        assert_eq!(buffer.len(), 128 * 1024);
        buffer.consume(128 * 1024 - 1);
        let (_, filled) = buffer.fill(&mut pool, 128 * 1024, |_| Ok(1)).unwrap();
        assert!(!filled);
        assert_eq!(buffer.len(), 2);
        buffer.consume(2);
        buffer.release(&mut pool);
        assert!(buffer.data.is_empty());
    }

    /// A pool with so many bypasses.
    #[cfg(target_os = "linux")]
    fn pool(bypasses: usize) -> Pool {
        Pool { most_bypasses: bypasses, ..Pool::default() }
    }

    /// A socket, and the other end of its connection.
    #[cfg(target_os = "linux")]
    fn connected() -> (Transport, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        let other = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        (Transport::Tcp(mio::net::TcpStream::from_std(stream)), other)
    }

    /// Takes exactly so many bytes, which are there or on their way.
    #[cfg(target_os = "linux")]
    fn pass(out: &mut OutBuf, from: &Transport, most: u64, pool: &mut Pool) -> Option<usize> {
        loop {
            match out.pass(from, most, Instant::default(), pool)? {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                taken => return Some(taken.unwrap()),
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_goes_past_the_buffer_keeps_its_place() {
        use std::io::{Read, Write};
        let (mut pool, mut out) = (pool(1), OutBuf::default());
        let ((from, mut writer), (mut to, mut reader)) = (connected(), connected());
        writer.write_all(b"body, and the next head").unwrap();
        out.vec().extend_from_slice(b"head, ");
        assert_eq!(pass(&mut out, &from, 4, &mut pool), Some(4));
        out.vec().extend_from_slice(b", behind");
        assert_eq!((out.len(), out.is_passing()), (18, true));
        while !out.is_empty() {
            out.write(&mut to, false).unwrap();
        }
        let mut heard = [0; 18];
        reader.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"head, body, behind");
        // Only what was asked for is gone from the other socket.
        assert_eq!(pass(&mut out, &from, 100, &mut pool), Some(19));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn there_are_so_many_ways_past_the_buffers_and_no_more() {
        use std::io::Write;
        let mut pool = pool(1);
        let (mut first, mut second) = (OutBuf::default(), OutBuf::default());
        let ((from, mut writer), (mut to, _reader)) = (connected(), connected());
        writer.write_all(b"abcdef").unwrap();
        assert_eq!(pass(&mut first, &from, 2, &mut pool), Some(2));
        first.release(&mut pool);
        assert_eq!(pass(&mut second, &from, 2, &mut pool), None);
        while !first.is_empty() {
            first.write(&mut to, false).unwrap();
        }
        first.release(&mut pool);
        assert_eq!(pass(&mut second, &from, 2, &mut pool), Some(2));
        // One with something left in it is of no use to anybody.
        second.clear();
        assert_eq!((second.len(), pool.bypasses.len()), (0, 0));
        assert_eq!(pass(&mut first, &from, 2, &mut pool), Some(2));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn where_the_system_does_not_move_bytes_they_are_to_be_read() {
        use std::io::Write;
        let (mut pool, mut first, mut second) = (pool(2), OutBuf::default(), OutBuf::default());
        let ((from, mut writer), (mut to, _reader)) = (connected(), connected());
        writer.write_all(b"abcdef").unwrap();
        assert_eq!(pass(&mut second, &from, 2, &mut pool), Some(2));
        // A folder is no socket, and nothing that bytes could be moved from.
        let folder = std::os::fd::OwnedFd::from(std::fs::File::open("/").unwrap());
        let refusing = Transport::Tcp(mio::net::TcpStream::from_std(folder.into()));
        assert!(first.pass(&refusing, 100, Instant::default(), &mut pool).is_none());
        assert_eq!((pool.ways, first.is_passing()), (Ways::Closed, false));
        // What is on its way arrives; nothing else goes there.
        while !second.is_empty() {
            second.write(&mut to, false).unwrap();
        }
        second.release(&mut pool);
        assert_eq!(pass(&mut second, &from, 2, &mut pool), None);
        assert_eq!(Arc::strong_count(&pool.alive), 1);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn where_the_system_has_no_pipe_to_give_it_is_not_asked_again_for_a_while() {
        let (mut pool, now) = (pool(1), Instant::default());
        pool.ways = Ways::Scarce(now + BYPASS_AGAIN);
        assert!(pool.bypass(now).is_none());
        let bypass = pool.bypass(now + BYPASS_AGAIN);
        assert_eq!((bypass.is_some(), pool.ways), (true, Ways::Open));
        // Those that there are can be had at any time.
        pool.give_bypass(bypass.unwrap());
        pool.ways = Ways::Scarce(now + BYPASS_AGAIN);
        assert!(pool.bypass(now).is_some());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn bypasses_that_nobody_needs_are_given_back_after_a_while() {
        let all = BYPASSES_SPARE + 3;
        let (mut pool, now) = (pool(all), Instant::default());
        assert!(!pool.has_surplus());
        let taken: Vec<_> = (0..all).map(|_| pool.bypass(now).unwrap()).collect();
        taken.into_iter().for_each(|bypass| pool.give_bypass(bypass));
        // It is said once.
        assert!(pool.has_surplus() && !pool.has_surplus());
        // One that is needed now and then stays.
        let taken: Vec<_> = (0..=BYPASSES_SPARE).map(|_| pool.bypass(now).unwrap()).collect();
        taken.into_iter().for_each(|bypass| pool.give_bypass(bypass));
        pool.give_surplus_back();
        assert_eq!(pool.bypasses.len(), all);
        assert!(pool.has_surplus());
        let bypass = pool.bypass(now).unwrap();
        pool.give_bypass(bypass);
        pool.give_surplus_back();
        assert_eq!(pool.bypasses.len(), BYPASSES_SPARE + 1);
        assert!(pool.has_surplus());
        pool.give_surplus_back();
        assert_eq!((pool.bypasses.len(), pool.has_surplus()), (BYPASSES_SPARE, false));
        assert_eq!(Arc::strong_count(&pool.alive), 1 + BYPASSES_SPARE);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_bypass_of_another_loop_is_not_kept() {
        let (mut here, mut there, now) = (pool(1), pool(1), Instant::default());
        here.give_bypass(there.bypass(now).unwrap());
        assert!(here.bypasses.is_empty());
        assert!(here.bypass(now).is_some() && there.bypass(now).is_some());
    }

    /// 64 that say little and now and then four that say much, piece by piece, given back in another order each time: only four
    /// buffers ever grow.
    #[test]
    fn only_who_has_much_to_say_gets_a_buffer_that_has_grown() {
        let (mut pool, mut outs) = (Pool::default(), Vec::new());
        outs.resize_with(68, OutBuf::default);
        for turn in 0..200 {
            for (i, out) in outs.iter_mut().enumerate() {
                for n in 0..if i % 17 == 0 { 20 } else { 1 } {
                    out.prepare(1200, &mut pool);
                    out.vec().resize((n + 1) * 1300, n as u8);
                    assert!((0..=n).all(|n| out.bytes()[n * 1300..][..1300].iter().all(|byte| *byte == n as u8)));
                }
            }
            outs.rotate_left(turn % 68);
            for out in &mut outs {
                out.consume(out.len());
                out.release(&mut pool);
            }
        }
        assert_eq!((pool.output.buffers.len(), pool.grown.buffers.len()), (64, 4));
        for spare in [&pool.output, &pool.grown] {
            assert_eq!(spare.bytes, spare.buffers.iter().map(Vec::capacity).sum::<usize>());
        }
    }

    #[test]
    fn output_keeps_its_order_over_short_writes() {
        let (mut pool, mut out) = (Pool::default(), OutBuf::default());
        out.prepare(0, &mut pool);
        let bytes: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
        out.vec().extend_from_slice(&bytes);
        let mut seen = Vec::new();
        while !out.is_empty() {
            let n = out.len().min(7_777);
            seen.extend_from_slice(&out.bytes()[..n]);
            out.consume(n);
        }
        assert_eq!(seen, bytes);
        out.release(&mut pool);
    }
}
