//! What is due when. Entries are never taken out: whoever is woken looks whether its deadline really has come, so a deadline
//! that moves on with each request costs nothing until the first one would have passed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ptth_proto::time::Instant;

/// Entries that nobody waits for any more, before the queue is rid of them: too few to be worth the walk below this.
const STALE: usize = 1024;

/// A queue of keys by time.
#[derive(Debug)]
pub struct Timers<K> {
    heap: BinaryHeap<Reverse<(Instant, K)>>,
    /// Entries that are known to be of no use, at most.
    stale: usize,
}

impl<K: Ord> Default for Timers<K> {
    fn default() -> Self {
        Timers { heap: BinaryHeap::new(), stale: 0 }
    }
}

impl<K: Ord> Timers<K> {
    /// Wakes `key` at that time.
    pub fn set(&mut self, at: Instant, key: K) {
        self.heap.push(Reverse((at, key)));
    }

    /// An entry is of no use from now on: its key is gone, or is to be woken earlier.
    pub fn leave_behind(&mut self) {
        self.stale += 1;
    }

    /// Gives room back when much of it has entries of no use, which `keep` tells from others. Visitors that come for one request leave
    /// one each behind, and so does at every request a peer that is to be woken earlier, as everybody is who waits in line: a
    /// minute's worth of them would be a lot.
    pub fn tidy(&mut self, keep: impl Fn(Instant, &K) -> bool) {
        if self.stale > STALE && self.stale > self.heap.len() / 2 {
            self.stale = 0;
            self.heap.retain(|Reverse((at, key))| keep(*at, key));
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// 64 that wait for a minute, and again and again for a moment that never passes.
    #[test]
    fn what_is_left_behind_does_not_grow() {
        let (mut timers, mut now) = (Timers::default(), Instant::default());
        let mut armed = [Instant::default(); 64];
        for turn in 0..100_000 {
            now = now + Duration::from_millis(1);
            let key = turn % 64;
            armed[key] = now + Duration::from_secs(60);
            timers.set(armed[key], key);
            timers.leave_behind();
            armed[key] = now + Duration::from_millis(5);
            timers.set(armed[key], key);
            while let Some((at, key)) = timers.pop(now) {
                assert!(at <= now && key < 64);
            }
            timers.tidy(|at, key| armed[*key] == at);
            assert!(timers.heap.len() <= 2 * STALE + 64, "{} entries at turn {turn}", timers.heap.len());
        }
        // Whoever waits is woken nevertheless.
        let last = armed.iter().max().copied().unwrap();
        let woken: Vec<usize> = std::iter::from_fn(|| timers.pop(last)).map(|(_, key)| key).collect();
        assert!(woken.contains(&(99_999 % 64)));
    }
}
