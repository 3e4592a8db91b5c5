//! How many links there are to be, and when to dial. Spare ones wait for requests, so that a visitor need not wait for a
//! connection; as soon as fewer are idle, more are dialled: twice as many when none is, and as many as a relay of ours says that it has
//! requests for. On a long road that is much sooner, for a link whose answer is on its way looks idle from here. After a failure the dials rest, longer
//! each time.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ptth_proto::time::Instant;

/// How many links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Idle ones to be kept.
    pub spare: usize,
    /// In all, busy ones too.
    pub most: usize,
}

impl Default for Size {
    fn default() -> Self {
        Size { spare: 2, most: 256 }
    }
}

/// What to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dial {
    /// So many links, at once.
    Now(usize),
    /// None.
    Not,
}

/// How a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It had served: that is how links end.
    Served,
    /// It had stood for long.
    Steady,
    /// It had stood for a moment only, for nothing.
    AtOnce,
}

#[derive(Debug)]
enum State {
    /// Being dialled: the addresses, and how many of them were tried.
    Pending(Arc<[SocketAddr]>, usize),
    Idle(Instant),
    Busy,
}

#[derive(Debug)]
struct Link {
    state: State,
    stood: Option<Instant>,
    served: bool,
    /// To be closed while it rests.
    may_go: bool,
}

/// Whether dials may go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Ready,
    LookingUp,
    Resting,
    Stopping,
}

/// All links of an agent.
#[derive(Debug)]
pub struct Links {
    size: Size,
    links: Vec<Option<Link>>,
    free: Vec<usize>,
    pending: usize,
    idle: usize,
    busy: usize,
    /// The fewest idle ones since the last look: so many were not needed.
    fewest_idle: usize,
    /// Links that the relay has requests for, beyond those that there are.
    wanted: usize,
    /// Links to be closed behind their next answer.
    to_close: usize,
    failures: u32,
    mood: Mood,
}

impl Links {
    /// None yet.
    pub fn new(size: Size) -> Links {
        Links {
            size,
            links: Vec::new(),
            free: Vec::new(),
            pending: 0,
            idle: 0,
            busy: 0,
            fewest_idle: 0,
            wanted: 0,
            to_close: 0,
            failures: 0,
            mood: Mood::Ready,
        }
    }

    /// There are to be so many from now on.
    pub fn resize(&mut self, size: Size) {
        self.size = size;
    }

    /// Whether the link is being made and does not stand yet.
    pub fn is_pending(&self, link: usize) -> bool {
        matches!(self.links.get(link), Some(Some(Link { state: State::Pending(..), .. })))
    }

    /// What is to be dialled now.
    pub fn wanted(&self) -> Dial {
        if self.mood != Mood::Ready {
            return Dial::Not;
        }
        // With none idle, requests are likely to wait at the relay already: double.
        let spare = if self.idle == 0 { self.size.spare.max(self.busy) } else { self.size.spare };
        let room = self.size.most.saturating_sub(self.pending + self.standing());
        match spare.saturating_sub(self.idle + self.pending).max(self.wanted).min(room) {
            0 => Dial::Not,
            wanted => Dial::Now(wanted),
        }
    }

    /// So many requests wait at the relay.
    pub fn want(&mut self, requests: usize) {
        let room = self.size.most.saturating_sub(self.pending + self.standing());
        // What was said of all workers is not to be forgotten for what one of them says with a request.
        self.wanted = requests.saturating_sub(self.idle + self.pending).max(self.wanted).min(room);
    }

    /// Whether as many are idle as are to be.
    pub fn has_spare(&self) -> bool {
        self.idle >= self.size.spare
    }

    /// Links that are being made.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Links that were turned and live.
    pub fn standing(&self) -> usize {
        self.idle + self.busy
    }

    /// Whether there is none, not even one being dialled.
    pub fn is_empty(&self) -> bool {
        self.pending + self.standing() == 0
    }

    fn get(&mut self, link: usize) -> Option<&mut Link> {
        self.links.get_mut(link)?.as_mut()
    }

    /// A link that is going to be dialled at these addresses.
    pub fn add(&mut self, addresses: Arc<[SocketAddr]>) -> usize {
        self.pending += 1;
        self.wanted = self.wanted.saturating_sub(1);
        let link = Link { state: State::Pending(addresses, 0), stood: None, served: false, may_go: false };
        let place = self.free.pop().unwrap_or_else(|| {
            self.links.push(None);
            self.links.len() - 1
        });
        self.links[place] = Some(link);
        place
    }

    /// The next address to dial.
    pub fn next_address(&mut self, link: usize) -> Option<SocketAddr> {
        match &mut self.get(link)?.state {
            State::Pending(addresses, tried) => {
                *tried += 1;
                addresses.get(*tried - 1).copied()
            }
            _ => None,
        }
    }

    /// The link was turned. True when it is the first one that stands.
    pub fn stands(&mut self, link: usize, now: Instant) -> bool {
        let Some(entry) = self.get(link) else { return false };
        entry.state = State::Idle(now);
        entry.stood = Some(now);
        self.pending -= 1;
        self.idle += 1;
        self.standing() == 1
    }

    /// A request has come on the link. True when the link is to go with the answer.
    pub fn is_busy(&mut self, link: usize) -> bool {
        let Some(entry) = self.get(link) else { return false };
        if !matches!(entry.state, State::Idle(_)) {
            return false;
        }
        entry.state = State::Busy;
        entry.served = true;
        // Only now has the relay shown that it has a use for us.
        self.failures = 0;
        self.idle -= 1;
        self.busy += 1;
        self.fewest_idle = self.fewest_idle.min(self.idle);
        let close = self.to_close > 0 && self.idle >= self.size.spare;
        self.to_close -= usize::from(close);
        close
    }

    /// The link has answered and is free.
    pub fn is_idle(&mut self, link: usize, now: Instant) {
        let Some(entry) = self.get(link) else { return };
        if matches!(entry.state, State::Busy) {
            entry.state = State::Idle(now);
            self.busy -= 1;
            self.idle += 1;
        }
    }

    /// Forgets a link that never stood.
    pub fn remove(&mut self, link: usize) {
        self.take(link);
    }

    fn take(&mut self, link: usize) -> Option<Link> {
        let entry = self.links.get_mut(link)?.take()?;
        self.free.push(link);
        match entry.state {
            State::Pending(..) => self.pending -= 1,
            State::Idle(_) => {
                self.idle -= 1;
                self.fewest_idle = self.fewest_idle.min(self.idle);
            }
            State::Busy => self.busy -= 1,
        }
        Some(entry)
    }

    /// A link is gone. One that stood for `steady`, or served, is nothing to be careful about.
    pub fn lost(&mut self, link: usize, now: Instant, steady: Duration) -> Lost {
        match self.take(link) {
            Some(Link { served: true, .. }) => Lost::Served,
            Some(Link { may_go: true, .. }) => Lost::Served,
            Some(Link { stood: Some(stood), .. }) if now.since(stood) >= steady => {
                self.failures = 0;
                Lost::Steady
            }
            _ => Lost::AtOnce,
        }
    }

    /// The relay's name is being looked up: no dials until it is known.
    pub fn looking_up(&mut self) {
        if self.mood == Mood::Ready {
            self.mood = Mood::LookingUp;
        }
    }

    /// It is known, or can't be.
    pub fn looked_up(&mut self) {
        if self.mood == Mood::LookingUp {
            self.mood = Mood::Ready;
        }
    }

    /// A dial has failed: how long the next one is to wait. `None` when it waits already.
    pub fn back_off(&mut self, first: Duration, longest: Duration) -> Option<Duration> {
        if self.mood != Mood::Ready {
            return None;
        }
        self.mood = Mood::Resting;
        let pause = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures += 1;
        // A relay that comes back must not find all its agents at the door in the same moment.
        Some(pause - pause.mul_f64(f64::from(random()) / f64::from(u32::MAX) / 2.0))
    }

    /// The wait is over.
    pub fn rested(&mut self) {
        if self.mood == Mood::Resting {
            self.mood = Mood::Ready;
        }
    }

    /// Nothing is dialled any more.
    pub fn stop(&mut self) {
        self.mood = Mood::Stopping;
    }

    /// Whether nothing is.
    pub fn is_stopping(&self) -> bool {
        self.mood == Mood::Stopping
    }

    /// Looks how many idle links were not needed since the last time. Those that rested all the while may go at once: hardly
    /// will a request meet their end. The others go behind an answer, where none can.
    pub fn shrink(&mut self, now: Instant, spare: Duration) {
        // Who waited then has a link by now, or has left.
        self.wanted = 0;
        let mut excess = self.fewest_idle.saturating_sub(self.size.spare);
        self.fewest_idle = self.idle;
        for link in self.links.iter_mut().flatten() {
            if excess > 0
                && let State::Idle(since) = link.state
                && now.since(since) >= spare
            {
                link.may_go = true;
                excess -= 1;
            }
        }
        self.to_close = excess;
    }

    /// Whether the link is one of those.
    pub fn may_go(&self, link: usize) -> bool {
        matches!(self.links.get(link), Some(Some(Link { may_go: true, state: State::Idle(_), .. })))
    }
}

/// A number that differs from one agent to the next: the standard library seeds its hash tables from the system.
fn random() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn dial(links: &mut Links, now: Instant) -> Vec<usize> {
        let Dial::Now(wanted) = links.wanted() else { return Vec::new() };
        let new: Vec<usize> = (0..wanted).map(|_| links.add(Arc::from([]))).collect();
        for link in &new {
            links.stands(*link, now);
        }
        new
    }

    #[test]
    fn links_grow_with_the_load_and_go_when_it_is_over() {
        let mut links = Links::new(Size { spare: 2, most: 10 });
        let mut all = dial(&mut links, at(0));
        assert_eq!(all.len(), 2);
        for _ in 0..5 {
            for link in &all {
                links.is_busy(*link);
            }
            all.extend(dial(&mut links, at(0)));
        }
        assert_eq!((all.len(), links.wanted()), (10, Dial::Not));
        for link in &all {
            links.is_idle(*link, at(1));
        }
        links.shrink(at(1), SECOND * 30);
        links.shrink(at(40), SECOND * 30);
        assert_eq!(all.iter().filter(|link| links.may_go(**link)).count(), 8);
    }

    #[test]
    fn what_the_relay_wants_is_dialled_once_and_never_more_than_may_be() {
        let mut links = Links::new(Size { spare: 1, most: 4 });
        let all = dial(&mut links, at(0));
        links.is_busy(all[0]);
        links.want(50);
        assert_eq!(dial(&mut links, at(0)).len(), 3);
        links.want(50);
        for link in
            links.links.iter().enumerate().filter_map(|(at, link)| link.as_ref().map(|_| at)).collect::<Vec<_>>()
        {
            links.lost(link, at(100), SECOND);
        }
        links.want(3);
        links.shrink(at(100), SECOND);
        assert_eq!(dial(&mut links, at(100)).len(), 1);
        assert_eq!(links.wanted(), Dial::Not);
    }

    #[test]
    fn a_smaller_number_does_not_take_the_place_of_a_larger_one() {
        let mut links = Links::new(Size { spare: 1, most: 100 });
        dial(&mut links, at(0));
        links.looking_up();
        links.want(50);
        links.want(2);
        assert_eq!(links.wanted(), Dial::Not);
        links.looked_up();
        assert_eq!(links.wanted(), Dial::Now(49));
    }

    #[test]
    fn links_in_use_by_turns_go_behind_their_answers() {
        let mut links = Links::new(Size { spare: 1, most: 10 });
        links.size.spare = 4;
        let all = dial(&mut links, at(0));
        links.size.spare = 1;
        links.shrink(at(1), SECOND * 30);
        let mut closed = 0;
        for turn in 0..8 {
            let link = all[turn % 4];
            closed += usize::from(links.is_busy(link));
            links.is_idle(link, at(2));
        }
        assert_eq!(closed, 0, "all were idle at the first look only");
        links.shrink(at(2), SECOND * 30);
        for turn in 0..8 {
            let link = all[turn % 4];
            closed += usize::from(links.is_busy(link));
            links.is_idle(link, at(2));
        }
        assert_eq!(closed, 2);
    }

    #[test]
    fn waits_double_up_to_the_longest_and_start_anew_behind_a_link_that_served() {
        let mut links = Links::new(Size::default());
        let (first, longest) = (SECOND / 2, SECOND * 30);
        let mut expected = first;
        for _ in 0..10 {
            let pause = links.back_off(first, longest).unwrap();
            assert!(pause <= expected && pause >= expected / 2, "{pause:?} of {expected:?}");
            assert_eq!((links.back_off(first, longest), links.wanted()), (None, Dial::Not));
            links.rested();
            expected = (expected * 2).min(longest);
        }
        // A link that stands is not enough: a relay that closes each at once must not be dialled in a circle.
        let all = dial(&mut links, at(0));
        assert!(links.back_off(first, longest).unwrap() > first);
        links.rested();
        links.is_busy(all[0]);
        assert!(links.back_off(first, longest).unwrap() <= first);
    }

    #[test]
    fn how_links_end() {
        let mut links = Links::new(Size { spare: 3, most: 9 });
        let all = dial(&mut links, at(0));
        links.is_busy(all[0]);
        assert_eq!(links.lost(all[0], at(1), SECOND * 30), Lost::Served);
        assert_eq!(links.lost(all[1], at(1), SECOND * 30), Lost::AtOnce);
        assert_eq!(links.lost(all[2], at(31), SECOND * 30), Lost::Steady);
        assert!(links.is_empty());
    }
}
