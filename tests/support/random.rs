//! Numbers and bytes that look random and can be had again from their seed.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// A generator: SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// One that gives the same numbers for the same seed.
    pub(crate) fn seeded(seed: u64) -> Random {
        Random(seed)
    }

    /// A seed to be printed, so that a failure can be had again: that of the environment variable `PTTH_TEST_SEED`, else a
    /// new one.
    pub(crate) fn seed() -> u64 {
        let given = std::env::var("PTTH_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        given.unwrap_or_else(|| RandomState::new().build_hasher().finish())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// One of these.
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// So many bytes.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// A number that tells one body from another: FNV-1a, eight bytes at a time where it can be.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut hash = Hash::default();
    hash.add(bytes);
    hash.value()
}

/// The same, of a body that comes in pieces; where it was cut does not matter.
#[derive(Clone, Debug)]
pub(crate) struct Hash {
    state: u64,
    rest: Vec<u8>,
    length: u64,
}

impl Default for Hash {
    fn default() -> Self {
        Hash { state: 0xcbf2_9ce4_8422_2325, rest: Vec::new(), length: 0 }
    }
}

impl Hash {
    pub(crate) fn add(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if !self.rest.is_empty() {
            let missing = (8 - self.rest.len()).min(bytes.len());
            self.rest.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.rest.len() < 8 {
                return;
            }
            let word = std::mem::take(&mut self.rest);
            self.mix(&word);
        }
        let mut words = bytes.chunks_exact(8);
        words.by_ref().for_each(|word| self.mix(word));
        self.rest.extend_from_slice(words.remainder());
    }

    fn mix(&mut self, word: &[u8]) {
        let word = u64::from_le_bytes(word.try_into().unwrap());
        self.state = (self.state ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    pub(crate) fn value(&self) -> u64 {
        let mut last = self.clone();
        let mut rest = std::mem::take(&mut last.rest);
        rest.resize(8, 0);
        last.mix(&rest);
        last.state ^ self.length
    }
}
