//! What is due when. Entries are never taken out: whoever is woken looks whether its deadline really has come, so a deadline
//! that moves on with each request costs nothing until the first one would have passed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ptth_proto::time::Instant;

/// A queue of keys by time.
#[derive(Debug)]
pub struct Timers<K> {
    heap: BinaryHeap<Reverse<(Instant, K)>>,
}

impl<K: Ord> Default for Timers<K> {
    fn default() -> Self {
        Timers { heap: BinaryHeap::new() }
    }
}

impl<K: Ord> Timers<K> {
    /// Wakes `key` at that time.
    pub fn set(&mut self, at: Instant, key: K) {
        self.heap.push(Reverse((at, key)));
    }

    /// How many entries there are.
    #[allow(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Keeps only these.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.heap.retain(|Reverse((_, key))| keep(key));
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// The next one that is due by now, and when it was to be woken.
    pub fn pop(&mut self, now: Instant) -> Option<(Instant, K)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}
