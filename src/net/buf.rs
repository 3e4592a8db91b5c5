//! Buffers of a connection. They are lent by a pool while there is something in them, so that an idle connection owns none.

use std::io;

/// A buffer for a message or two: most heads and small bodies fit.
const SMALL: usize = 4 * 1024;
/// A buffer for bodies that fill a small one: fewer and larger reads.
const LARGE: usize = 64 * 1024;
/// Spare buffers that the pool keeps of each size: 1 MiB of small ones, 1 MiB of large ones.
const SPARE_SMALL: usize = 256;
const SPARE_LARGE: usize = 16;
/// Bytes of spare buffers for output, which grow as they have to. In bytes, because one that has grown is worth keeping: the next
/// crowd on one link would have to let another grow.
const SPARE_OUTPUT: usize = 4 * 1024 * 1024;

/// Spare buffers of one event loop.
#[derive(Debug, Default)]
pub struct Pool {
    small: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
    output: Vec<Vec<u8>>,
    /// Bytes of those.
    output_bytes: usize,
}

impl Pool {
    /// A buffer of one of the two sizes, its length its size. The bytes in it are old ones.
    fn take(&mut self, size: usize) -> Vec<u8> {
        let spare = if size == SMALL { &mut self.small } else { &mut self.large };
        spare.pop().unwrap_or_else(|| vec![0; size])
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

    /// Gives the buffer back when nothing is in it.
    pub fn release(&mut self, pool: &mut Pool) {
        if self.is_empty() && !self.data.is_empty() {
            pool.give(std::mem::take(&mut self.data));
        }
    }
}

/// Bytes that are to be written.
#[derive(Debug, Default)]
pub struct OutBuf {
    data: Vec<u8>,
    start: usize,
}

impl OutBuf {
    /// Where to append.
    pub fn vec(&mut self) -> &mut Vec<u8> {
        &mut self.data
    }

    /// What is still to be written.
    pub fn bytes(&self) -> &[u8] {
        &self.data[self.start..]
    }

    /// How much that is.
    pub fn len(&self) -> usize {
        self.data.len() - self.start
    }

    /// Whether that is nothing.
    pub fn is_empty(&self) -> bool {
        self.start == self.data.len()
    }

    /// Bytes of memory that it has.
    pub fn memory(&self) -> usize {
        self.data.capacity()
    }

    /// `n` bytes from the front were written.
    pub fn consume(&mut self, n: usize) {
        self.start += n;
        if self.is_empty() {
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
    }

    /// Takes a buffer from the pool when there is none.
    pub fn prepare(&mut self, pool: &mut Pool) {
        if self.data.capacity() == 0 {
            self.data = match pool.output.pop() {
                Some(spare) => {
                    pool.output_bytes -= spare.capacity();
                    spare
                }
                None => Vec::with_capacity(SMALL),
            };
        }
    }

    /// Gives the buffer back when nothing is in it.
    pub fn release(&mut self, pool: &mut Pool) {
        if self.data.is_empty() && self.data.capacity() > 0 {
            let buffer = std::mem::take(&mut self.data);
            let bytes = buffer.capacity();
            if bytes <= 4 * LARGE && pool.output_bytes + bytes <= SPARE_OUTPUT {
                pool.output_bytes += bytes;
                pool.output.push(buffer);
            }
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

    #[test]
    fn output_keeps_its_order_over_short_writes() {
        let (mut pool, mut out) = (Pool::default(), OutBuf::default());
        out.prepare(&mut pool);
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
