//! Links without a flip: an agent polls, a poll is answered by a message, and the answer to the message comes later, on
//! whatever connection. Here is what waits for what, and until when. A poll and a message are handles of the driver's own;
//! what a message says and how it is written are matters of the dialect.
//!
//! ```text
//!               push                 pair                      answer
//!   (new) ─────────────▶ ready ─────────────▶ handed out ─────────────▶ (done)
//!                          ▲  │ no poll: 503      │  │ no answer: 504
//!                          └──┼──────────────────┘  │
//!                             ▼     take_back       ▼
//!                           (late)                (late)
//! ```
//!
//! Each tunnel has a [`Queue`]. What was handed out is [`Outstanding`], once for all tunnels: an answer is found by its id
//! alone. A message is in one place at a time, so that what is handed out twice, answered twice or answered late shows itself.

use alloc::collections::{BTreeMap, VecDeque};
use core::fmt;
use core::time::Duration;

use crate::time::Instant;

/// Bytes of an [`Id`].
const ID: usize = 26;
/// Of which these name who gave it out, those its number; all others are random.
const GIVER: usize = 2;
const NUMBER: usize = 8;
/// Crockford's base 32, which has no letters that look alike; ULIDs are written in it, and the `ptth` relay's ids are ULIDs.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The id of a message: 26 letters and digits, of which the last 16 are 80 random bits that nobody else can guess.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Id([u8; ID]);

impl Id {
    fn new(giver: u8, number: u64, secret: [u8; 10]) -> Id {
        let mut id = [0; ID];
        let random = secret.iter().fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
        let parts = [(GIVER, u128::from(giver)), (NUMBER, u128::from(number)), (ID - GIVER - NUMBER, random)];
        let mut at = 0;
        for (length, bits) in parts {
            for i in 0..length {
                let digit = bits >> (5 * (length - 1 - i)) & 31;
                id[at + i] = DIGITS[digit as usize];
            }
            at += length;
        }
        Id(id)
    }

    /// Reads an id. `None` when it is none that was ever given out.
    pub fn parse(text: &[u8]) -> Option<Id> {
        let id: [u8; ID] = text.try_into().ok()?;
        id.iter().all(|digit| DIGITS.contains(digit)).then_some(Id(id))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Who gave it out.
    pub fn giver(&self) -> u8 {
        // What was not given out by us can name anybody up to 1023.
        u8::try_from(digits(&self.0[..GIVER])).unwrap_or(u8::MAX)
    }

    fn number(&self) -> u64 {
        digits(&self.0[GIVER..GIVER + NUMBER])
    }
}

fn digits(text: &[u8]) -> u64 {
    let value = |digit: &u8| DIGITS.iter().position(|known| known == digit).unwrap_or_default() as u64;
    text.iter().fold(0, |number, digit| number << 5 | value(digit))
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What has waited long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due<P, M> {
    /// A poll: it is answered with nothing, and its agent polls again.
    Nothing(P),
    /// A message for which no poll came.
    NoPoll(M),
    /// A message that was handed out and not answered.
    NoAnswer(M),
}

/// The polls and the messages of one tunnel. Either waits for the other, the first of each for the first of the other: of the
/// polls the one that is held shortest from now on, which is the oldest where all are held equally long.
#[derive(Debug)]
pub struct Queue<P, M> {
    polls: VecDeque<(P, Instant)>,
    ready: VecDeque<(M, Instant)>,
}

impl<P, M> Default for Queue<P, M> {
    fn default() -> Self {
        Queue { polls: VecDeque::new(), ready: VecDeque::new() }
    }
}

impl<P: Copy + PartialEq, M: Copy + PartialEq> Queue<P, M> {
    /// A poll is held, for so long at most.
    pub fn poll(&mut self, now: Instant, poll: P, hold: Duration) {
        let due = now + hold;
        let behind = self.polls.partition_point(|(_, until)| *until <= due);
        self.polls.insert(behind, (poll, due));
    }

    /// The first poll, which is held no more.
    pub fn take_poll(&mut self) -> Option<P> {
        self.polls.pop_front().map(|(poll, _)| poll)
    }

    /// A poll is gone. False when it was not held.
    pub fn poll_gone(&mut self, poll: P) -> bool {
        let before = self.polls.len();
        self.polls.retain(|(held, _)| *held != poll);
        self.polls.len() < before
    }

    /// A message is whole and waits for a poll, for so long at most.
    pub fn push(&mut self, now: Instant, message: M, patience: Duration) {
        self.ready.push_back((message, now + patience));
    }

    /// A message that nobody can have had waits again, in front of all others, and no longer than they do.
    pub fn push_again(&mut self, now: Instant, message: M, patience: Duration) {
        let until = now + patience;
        let until = self.ready.front().map_or(until, |(_, first)| until.min(*first));
        self.ready.push_front((message, until));
    }

    /// Nobody wants the message any more. False when it was not waiting.
    pub fn forget(&mut self, message: M) -> bool {
        let before = self.ready.len();
        self.ready.retain(|(ready, _)| *ready != message);
        self.ready.len() < before
    }

    /// A message and the poll that it answers, when there is one of each.
    pub fn pair(&mut self) -> Option<(P, M)> {
        if self.polls.is_empty() {
            return None;
        }
        let (message, _) = self.ready.pop_front()?;
        Some((self.take_poll()?, message))
    }

    /// One more message for a poll that takes several at once.
    pub fn another(&mut self) -> Option<M> {
        self.ready.pop_front().map(|(message, _)| message)
    }

    /// The message that has waited longest.
    pub fn first(&self) -> Option<M> {
        self.ready.front().map(|(message, ..)| *message)
    }

    /// How many polls are held.
    pub fn polls(&self) -> usize {
        self.polls.len()
    }

    /// How many messages wait for one.
    pub fn messages(&self) -> usize {
        self.ready.len()
    }

    /// When the first of them has waited long enough.
    pub fn deadline(&self) -> Option<Instant> {
        let poll = self.polls.front().map(|(_, until)| *until);
        let message = self.ready.front().map(|(_, until)| *until);
        poll.into_iter().chain(message).min()
    }

    /// What has waited long enough by now, one at a time.
    pub fn timeout(&mut self, now: Instant) -> Option<Due<P, M>> {
        if self.polls.front().is_some_and(|(_, until)| *until <= now) {
            return self.polls.pop_front().map(|(poll, _)| Due::Nothing(poll));
        }
        if self.ready.front().is_some_and(|(_, until)| *until <= now) {
            return self.ready.pop_front().map(|(message, _)| Due::NoPoll(message));
        }
        None
    }
}

/// Why an answer is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwanted {
    /// No message of this id is out: it was answered, its time is over, its visitor has gone, or it never was.
    Unknown,
    /// It was handed to another agent.
    Foreign,
}

#[derive(Debug)]
struct Sent<M, W> {
    id: Id,
    message: M,
    to: W,
    until: Instant,
}

/// Messages that were handed out, until they are answered. `W` is what tells one agent from another.
#[derive(Debug)]
pub struct Outstanding<M, W> {
    giver: u8,
    numbers: u64,
    /// By their numbers, which is the order they were handed out in, and so that in which they are due.
    sent: BTreeMap<u64, Sent<M, W>>,
}

impl<M: Copy, W: PartialEq> Outstanding<M, W> {
    /// None; the ids will name this giver.
    pub fn new(giver: u8) -> Outstanding<M, W> {
        Outstanding { giver, numbers: 0, sent: BTreeMap::new() }
    }

    /// A message is handed to an agent, which has so long to answer. Gives its id; `secret` is what nobody can guess about it.
    pub fn hand_out(&mut self, now: Instant, message: M, to: W, patience: Duration, secret: [u8; 10]) -> Id {
        self.numbers += 1;
        let id = Id::new(self.giver, self.numbers, secret);
        self.sent.insert(self.numbers, Sent { id, message, to, until: now + patience });
        id
    }

    /// An agent answers: gives the message, which is out no more.
    ///
    /// # Errors
    /// When it is not out, or not with this agent; it stays where it is then.
    pub fn answer(&mut self, id: Id, by: &W) -> Result<M, Unwanted> {
        let number = id.number();
        let sent = self.sent.get(&number).filter(|sent| sent.id == id).ok_or(Unwanted::Unknown)?;
        if sent.to != *by {
            return Err(Unwanted::Foreign);
        }
        self.sent.remove(&number).map(|sent| sent.message).ok_or(Unwanted::Unknown)
    }

    /// The message of an id, if it is out.
    pub fn find(&self, id: Id) -> Option<M> {
        self.sent.get(&id.number()).filter(|sent| sent.id == id).map(|sent| sent.message)
    }

    /// The message comes back, unanswered: it can't have arrived, or nobody waits for its answer any more.
    pub fn take_back(&mut self, id: Id) -> Option<M> {
        self.find(id)?;
        self.sent.remove(&id.number()).map(|sent| sent.message)
    }

    /// How many are out.
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// When the first of them has been out long enough.
    pub fn deadline(&self) -> Option<Instant> {
        self.sent.first_key_value().map(|(_, sent)| sent.until)
    }

    /// What has been out long enough by now, one at a time.
    pub fn timeout<P>(&mut self, now: Instant) -> Option<Due<P, M>> {
        let first = self.sent.first_entry().filter(|first| first.get().until <= now)?;
        Some(Due::NoAnswer(first.remove().message))
    }
}
