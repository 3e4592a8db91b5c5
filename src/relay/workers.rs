//! Several event loops, one relay. Each worker owns its visitors and links alone; what they share is this directory of who has
//! links where. It is looked at when a link registers, when requests begin or cease to wait on a worker, and when many more of them
//! wait there than it was said, or many fewer; never on the way of a request that finds a link.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::reactor::Mailbox;

/// A tunnel's links, and how many requests wait for one, by worker: 0 where none does, and else so many as the worker said last.
#[derive(Debug)]
struct Entry {
    links: Vec<usize>,
    waiting: Vec<usize>,
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.links.iter().chain(&self.waiting).all(|number| *number == 0)
    }
}

/// What one worker tells another.
#[derive(Debug)]
pub enum Word {
    /// No worker has a message any more that could be answered: who has waited with its end for that need not wait.
    Over,
    /// A worker that was told to stop hands nothing over any more.
    Left,
    /// Requests wait for a link of this tunnel on that worker: does anybody have idle ones?
    Wanted(String, usize),
    /// That worker has so many idle links of this tunnel: send it a request for each.
    Send(String, usize, usize),
    /// Requests wait for links of this tunnel on a worker that has none on which it could tell the agent.
    Tell(String),
}

/// What all workers know of each other.
#[derive(Debug, Default)]
pub struct Directory {
    mailboxes: OnceLock<Vec<Mailbox>>,
    tunnels: Mutex<HashMap<String, Entry>>,
    /// Tunnels that were said to be up.
    up: Mutex<HashSet<String>>,
    /// On how many workers requests wait, added up for all tunnels.
    waiting: AtomicUsize,
    /// Some agent has polled, on any worker.
    polls: AtomicBool,
    /// Messages on all workers that can still be answered.
    messages: AtomicUsize,
}

/// One worker's view of it.
#[derive(Clone, Debug)]
pub struct Workers {
    directory: Arc<Directory>,
    me: usize,
}

impl Workers {
    /// The view of worker `me`.
    pub fn new(directory: Arc<Directory>, me: usize) -> Workers {
        Workers { directory, me }
    }

    /// Where the workers are reached, in their order. Said once, before any of them runs.
    pub fn introduce(directory: &Directory, mailboxes: Vec<Mailbox>) {
        let _ = directory.mailboxes.set(mailboxes);
    }

    /// This worker's number.
    pub fn me(&self) -> usize {
        self.me
    }

    fn mailboxes(&self) -> &[Mailbox] {
        self.directory.mailboxes.get().map_or(&[], Vec::as_slice)
    }

    /// Where the others are reached.
    pub fn others(&self) -> impl Iterator<Item = &Mailbox> {
        self.mailboxes().iter().enumerate().filter(|(worker, _)| *worker != self.me).map(|(_, mailbox)| mailbox)
    }

    /// Whether there are others.
    pub fn are_several(&self) -> bool {
        self.mailboxes().len() > 1
    }

    /// Where a worker is reached.
    pub fn mailbox(&self, worker: usize) -> Option<Mailbox> {
        self.mailboxes().get(worker).cloned()
    }

    fn tunnels(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        // Nobody panics in here; and if somebody did, the counts are still counts.
        self.directory.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, tunnel: &str, change: impl FnOnce(&mut Entry)) {
        let workers = self.mailboxes().len().max(1);
        let mut tunnels = self.tunnels();
        if !tunnels.contains_key(tunnel) {
            tunnels.insert(tunnel.into(), Entry { links: vec![0; workers], waiting: vec![0; workers] });
        }
        if let Some(entry) = tunnels.get_mut(tunnel) {
            change(entry);
            if entry.is_empty() {
                tunnels.remove(tunnel);
            }
        }
    }

    /// The worker that a new link of this tunnel goes to, which has the fewest of them; the link is counted there.
    pub fn deal(&self, tunnel: &str) -> usize {
        let mut to = self.me;
        self.change(tunnel, |entry| {
            let least = entry.links.iter().min().copied().unwrap_or(0);
            if entry.links[to] > least {
                to = entry.links.iter().position(|links| *links == least).unwrap_or(to);
            }
            entry.links[to] += 1;
        });
        to
    }

    /// The worker that has all the polls and messages of this tunnel: always the same one, so that an agent's answer finds its
    /// request without asking around.
    pub fn home(&self, tunnel: &str) -> usize {
        // FNV-1a: each worker comes to the same result, and nothing is lost when somebody chooses names that go to one of them.
        let hash = tunnel
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        (hash % self.mailboxes().len().max(1) as u64) as usize
    }

    /// A message is there that can be answered, on any of several doors.
    pub fn message_begins(&self) {
        self.directory.messages.fetch_add(1, Ordering::Relaxed);
    }

    /// It is no more. True when it was the last one of all workers.
    pub fn message_ends(&self) -> bool {
        self.directory.messages.fetch_sub(1, Ordering::Relaxed) == 1
    }

    /// Whether any worker has one.
    pub fn have_messages(&self) -> bool {
        self.directory.messages.load(Ordering::Relaxed) > 0
    }

    /// Wakes the others, so that they look whether they may end.
    pub fn say_over(&self) {
        for other in self.others() {
            other.send(crate::reactor::Message::Word(Box::new(Word::Over)));
        }
    }

    /// Whether there are others, one of which may wait for an agent's answer: it comes to any of the doors.
    pub fn have_polls(&self) -> bool {
        self.are_several() && self.directory.polls.load(Ordering::Relaxed)
    }

    /// An agent polls on this worker: that counts as a link.
    pub fn link_here(&self, tunnel: &str) {
        self.directory.polls.store(true, Ordering::Relaxed);
        self.change(tunnel, |entry| entry.links[self.me] += 1);
    }

    /// A link of this worker is gone.
    pub fn link_gone(&self, tunnel: &str) {
        self.change(tunnel, |entry| entry.links[self.me] = entry.links[self.me].saturating_sub(1));
    }

    /// A tunnel has a link here. True when that is news.
    pub fn is_up(&self, tunnel: &str) -> bool {
        self.up().insert(tunnel.into())
    }

    /// A tunnel has none here any more. True when it has none anywhere, and that is news.
    pub fn is_down(&self, tunnel: &str) -> bool {
        let links: usize = self.tunnels().get(tunnel).map_or(0, |entry| entry.links.iter().sum());
        links == 0 && self.up().remove(tunnel)
    }

    fn up(&self) -> MutexGuard<'_, HashSet<String>> {
        self.directory.up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another worker that has links of this tunnel, the most of all.
    pub fn who_has(&self, tunnel: &str) -> Option<Mailbox> {
        let worker = {
            let tunnels = self.tunnels();
            let links = &tunnels.get(tunnel)?.links;
            (0..links.len()).filter(|w| *w != self.me && links[*w] > 0).max_by_key(|w| links[*w])?
        };
        self.mailbox(worker)
    }

    /// Requests wait on this worker where none did: all others that have links of their tunnel are asked for idle ones. Those that have
    /// none offer theirs one by one, as they become idle, for as long as anybody waits here.
    pub fn begin_to_wait(&self, tunnel: &str) {
        let mut asked = Vec::new();
        self.change(tunnel, |entry| {
            if entry.waiting[self.me] == 0 {
                entry.waiting[self.me] = 1;
                self.directory.waiting.fetch_add(1, Ordering::Relaxed);
            }
            asked = (0..entry.links.len()).filter(|w| *w != self.me && entry.links[*w] > 0).collect();
        });
        for mailbox in asked.into_iter().filter_map(|worker| self.mailbox(worker)) {
            mailbox.send(crate::reactor::Message::Word(Box::new(Word::Wanted(tunnel.into(), self.me))));
        }
    }

    /// The last one that waited here waits no more.
    pub fn cease_to_wait(&self, tunnel: &str) {
        self.change(tunnel, |entry| {
            if std::mem::take(&mut entry.waiting[self.me]) > 0 {
                self.directory.waiting.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }

    /// So many wait here by now, where [`Workers::begin_to_wait`] was called. Gives how many that makes on all workers.
    pub fn are_waiting(&self, tunnel: &str, here: usize) -> usize {
        let mut tunnels = self.tunnels();
        let Some(entry) = tunnels.get_mut(tunnel) else { return here };
        if entry.waiting[self.me] > 0 {
            entry.waiting[self.me] = here;
        }
        here + (0..entry.waiting.len()).filter(|w| *w != self.me).map(|w| entry.waiting[w]).sum::<usize>()
    }

    /// How many wait on all workers, as far as they have said so.
    pub fn all_waiting(&self, tunnel: &str) -> usize {
        self.tunnels().get(tunnel).map_or(0, |entry| entry.waiting.iter().sum())
    }

    /// Has another worker tell the agent of those that wait, if there is one that could.
    pub fn let_tell(&self, tunnel: &str) {
        if let Some(mailbox) = self.who_has(tunnel) {
            mailbox.send(crate::reactor::Message::Word(Box::new(Word::Tell(tunnel.into()))));
        }
    }

    /// A link is idle here and nobody waits for it here: asks a worker where somebody does for a request.
    pub fn offer(&self, tunnel: &str) {
        if self.directory.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        let worker = {
            let tunnels = self.tunnels();
            let Some(entry) = tunnels.get(tunnel) else { return };
            (0..entry.waiting.len()).find(|w| *w != self.me && entry.waiting[*w] > 0)
        };
        if let Some(mailbox) = worker.and_then(|worker| self.mailbox(worker)) {
            mailbox.send(crate::reactor::Message::Word(Box::new(Word::Send(tunnel.into(), self.me, 1))));
        }
    }
}
