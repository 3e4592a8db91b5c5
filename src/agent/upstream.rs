//! The backs of an agent: connections to its upstream, kept alive between requests, the last used first.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use mio::Token;
use ptth_proto::time::Instant;

use crate::net::addr::{Place, Remote};
use crate::net::is_out_of_files;

/// What an agent makes reachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A server.
    Place(Place),
    /// The built-in page.
    Hello,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Place(place) => place.fmt(f),
            Target::Hello => f.write_str("hello"),
        }
    }
}

/// How the upstream is reached now.
#[derive(Debug, PartialEq, Eq)]
pub enum Reach {
    /// At this address.
    Address(SocketAddr),
    /// At this path.
    Unix(PathBuf),
    /// Inside this process.
    Hello,
    /// Its name has to be looked up first; `None` when that is under way.
    LookUp(Option<Place>),
    /// Every address was tried.
    Nowhere,
}

/// How long the addresses of a name are used again: a burst of connections is one look-up.
const FRESH: Duration = Duration::from_secs(5);

/// The upstream and the idle connections to it.
#[derive(Debug)]
pub struct Upstream {
    target: Target,
    /// The last used last.
    idle: VecDeque<Token>,
    addresses: Vec<SocketAddr>,
    /// When the addresses were looked up; `None` when they were known from the start.
    looked_up: Option<Instant>,
    /// The address that worked last.
    good: Option<SocketAddr>,
    /// Exchanges that wait for a look-up.
    waiting: Vec<usize>,
    /// Exchanges that wait until the process may have another file open, the oldest in front, and what is of use to each.
    starved: VecDeque<(usize, Use)>,
    /// When they try again if nothing happens before.
    again: Option<Instant>,
    /// When it was last said that there are some.
    said: Option<Instant>,
}

/// Which connections are of use to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Any.
    Any,
    /// None on which anything was said: it is to be a tunnel.
    New,
}

impl Upstream {
    /// An upstream without a connection.
    pub fn new(target: Target) -> Upstream {
        let addresses = match &target {
            Target::Place(place) => place.known().unwrap_or_default(),
            Target::Hello => Vec::new(),
        };
        Upstream {
            target,
            idle: VecDeque::new(),
            addresses,
            looked_up: None,
            good: None,
            waiting: Vec::new(),
            starved: VecDeque::new(),
            again: None,
            said: None,
        }
    }

    /// What it is.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// An idle connection that still lives.
    pub fn take_idle(&mut self, mut is_alive: impl FnMut(Token) -> bool) -> Option<Token> {
        std::iter::from_fn(|| self.idle.pop_back()).find(|back| is_alive(*back))
    }

    /// Keeps an idle connection. False when there are enough.
    pub fn park(&mut self, back: Token, most: usize) -> bool {
        let room = self.idle.len() < most;
        if room {
            self.idle.push_back(back);
        }
        room
    }

    /// An idle connection is gone. Most do when they have rested for long: those are in front.
    pub fn gone(&mut self, back: Token) {
        if let Some(at) = self.idle.iter().position(|idle| *idle == back) {
            self.idle.remove(at);
        }
    }

    /// A connection has served: its address is the one to try first.
    pub fn connected(&mut self, remote: Remote) {
        if let Remote::Ip(address) = remote {
            self.good = Some(address);
        }
    }

    /// How to make a new connection, after `tried` of the addresses were.
    pub fn reach(&mut self, now: Instant, id: usize, tried: usize) -> Reach {
        let place = match &self.target {
            Target::Hello => return Reach::Hello,
            Target::Place(Place::Unix(path)) => return Reach::Unix(path.clone()),
            Target::Place(place) => place,
        };
        let stale = self.looked_up.is_none_or(|at| now.since(at) > FRESH);
        let unknown = place.known().is_none() && stale;
        if unknown && tried == 0 {
            let first = self.waiting.is_empty();
            let place = first.then(|| place.clone());
            self.waiting.push(id);
            return Reach::LookUp(place);
        }
        let start = self.good.and_then(|good| self.addresses.iter().position(|address| *address == good)).unwrap_or(0);
        if tried >= self.addresses.len() {
            return Reach::Nowhere;
        }
        Reach::Address(self.addresses[(start + tried) % self.addresses.len()])
    }

    /// The look-up is over: gives the exchanges that waited for it, and why there is no address for them.
    pub fn resolved(&mut self, now: Instant, found: io::Result<Vec<SocketAddr>>) -> (Vec<usize>, Option<io::Error>) {
        let failed = match found {
            Ok(addresses) => {
                self.addresses = addresses;
                None
            }
            // It was itself in want of a file, as those are who wait for it: what was found last holds.
            Err(error) if is_out_of_files(&error) && !self.addresses.is_empty() => None,
            Err(error) => {
                self.addresses.clear();
                Some(error)
            }
        };
        // None were found: the next request asks again.
        self.looked_up = (!self.addresses.is_empty()).then_some(now);
        (std::mem::take(&mut self.waiting), failed)
    }

    /// An exchange waits until another file may be open, behind all others; one of them keeps its place.
    pub fn starves(&mut self, id: usize, of: Use) {
        if !self.starved.iter().any(|(other, _)| *other == id) {
            self.starved.push_back((id, of));
        }
    }

    /// Whether an exchange may try to have a file: nobody has waited longer. If it has waited, it does so no more.
    pub fn may_try(&mut self, id: usize) -> bool {
        let first = self.starved.front().map(|(first, _)| *first);
        if first == Some(id) {
            self.starved.pop_front();
        }
        first.is_none_or(|first| first == id)
    }

    /// It has tried for nothing, and had waited: it does so again, before all others.
    pub fn starves_again(&mut self, id: usize, of: Use) {
        self.starved.push_front((id, of));
    }

    /// Whether any does.
    pub fn is_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// Whether files are short: some wait for one, or did a moment ago.
    pub fn is_short(&self, now: Instant) -> bool {
        self.is_starved() || self.again.is_some_and(|at| now < at)
    }

    /// All that wait. When a file was closed, or time has passed, they are to try again in this order.
    pub fn starved(&self) -> impl DoubleEndedIterator<Item = usize> {
        self.starved.iter().map(|(id, _)| *id)
    }

    /// A connection has served: gives the exchange that has waited longest, if it is of use to that.
    pub fn next_starved(&mut self) -> Option<usize> {
        let (id, of) = *self.starved.front()?;
        if of == Use::New {
            return None;
        }
        self.starved.pop_front();
        Some(id)
    }

    /// Whether a timer is needed that has those who wait try again after `pause`.
    pub fn look_again(&mut self, now: Instant, pause: Duration) -> bool {
        let is_due = self.again.is_none_or(|at| at <= now);
        if is_due {
            self.again = Some(now + pause);
        }
        is_due
    }

    /// Whether it is news that some wait: it was not said within `pause`.
    pub fn is_news(&mut self, now: Instant, pause: Duration) -> bool {
        let is_news = self.said.is_none_or(|at| now.since(at) >= pause);
        if is_news {
            self.said = Some(now);
        }
        is_news
    }

    /// An exchange waits no more.
    pub fn forget(&mut self, id: usize) {
        self.waiting.retain(|waiting| *waiting != id);
        self.starved.retain(|(starved, _)| *starved != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_worked_is_tried_first_and_each_once() {
        let mut upstream = Upstream::new(Target::Place(Place::parse("8080").unwrap()));
        let v4 = "127.0.0.1:8080".parse().unwrap();
        let v6 = "[::1]:8080".parse().unwrap();
        let now = Instant::default();
        assert_eq!(upstream.reach(now, 0, 0), Reach::Address(v4));
        assert_eq!(upstream.reach(now, 0, 1), Reach::Address(v6));
        assert_eq!(upstream.reach(now, 0, 2), Reach::Nowhere);
        upstream.connected(Remote::Ip(v6));
        assert_eq!(upstream.reach(now, 0, 0), Reach::Address(v6));
        assert_eq!(upstream.reach(now, 0, 1), Reach::Address(v4));
    }

    #[test]
    fn the_connection_that_was_used_last_is_used_next() {
        let mut upstream = Upstream::new(Target::Hello);
        assert_eq!([1, 2, 3, 4].map(|n| upstream.park(Token(n), 3)), [true, true, true, false]);
        upstream.gone(Token(1));
        assert!(upstream.park(Token(5), 3));
        assert_eq!(upstream.take_idle(|back| back != Token(5)), Some(Token(3)));
        assert_eq!(upstream.take_idle(|_| true), Some(Token(2)));
        assert_eq!(upstream.take_idle(|_| true), None);
    }

    #[test]
    fn a_name_is_looked_up_once_for_all_who_wait() {
        let mut upstream = Upstream::new(Target::Place(Place::parse("host:80").unwrap()));
        let now = Instant::default();
        assert!(matches!(upstream.reach(now, 1, 0), Reach::LookUp(Some(_))));
        assert_eq!(upstream.reach(now, 2, 0), Reach::LookUp(None));
        upstream.forget(1);
        let (waited, failed) = upstream.resolved(now, Ok(vec!["127.0.0.1:80".parse().unwrap()]));
        assert!(waited == [2] && failed.is_none());
        assert!(matches!(upstream.reach(now, 2, 0), Reach::Address(_)));
        let later = now + FRESH + FRESH;
        assert!(matches!(upstream.reach(later, 3, 0), Reach::LookUp(Some(_))));
    }

    #[test]
    fn a_look_up_for_which_there_is_no_file_takes_no_address_away() {
        let mut upstream = Upstream::new(Target::Place(Place::parse("host:80").unwrap()));
        let address = "127.0.0.1:80".parse().unwrap();
        let no_file = || io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
        let steps = [
            // As long as none is known, it is a failure like any other.
            (Err(no_file()), false),
            (Ok(vec![address]), true),
            (Err(no_file()), true),
            (Err(io::ErrorKind::NotFound.into()), false),
            (Err(no_file()), false),
        ];
        let mut now = Instant::default();
        for (id, (found, is_known)) in steps.into_iter().enumerate() {
            now = now + FRESH + FRESH;
            assert!(matches!(upstream.reach(now, id, 0), Reach::LookUp(Some(_))));
            let (waited, failed) = upstream.resolved(now, found);
            assert_eq!((waited, failed.is_none()), (vec![id], is_known));
            if is_known {
                assert_eq!(upstream.reach(now, id, 0), Reach::Address(address));
            }
        }
    }

    #[test]
    fn who_waits_for_a_file_has_the_next_connection_that_is_of_use() {
        let mut upstream = Upstream::new(Target::Hello);
        for (id, of) in [(1, Use::Any), (2, Use::New), (3, Use::Any), (4, Use::Any)] {
            upstream.starves(id, of);
        }
        assert_eq!((upstream.next_starved(), upstream.next_starved()), (Some(1), None));
        upstream.forget(3);
        assert_eq!(upstream.starved().collect::<Vec<_>>(), [2, 4]);
        // Neither 4 nor one that has come just now is tried before 2.
        upstream.starves(4, Use::Any);
        assert_eq!([4, 5, 2].map(|id| upstream.may_try(id)), [false, false, true]);
        upstream.starves_again(2, Use::New);
        upstream.starves(5, Use::Any);
        assert_eq!(upstream.starved().collect::<Vec<_>>(), [2, 4, 5]);
        assert_eq!([2, 4, 5].map(|id| upstream.may_try(id)), [true; 3]);
        assert!(!upstream.is_starved() && upstream.may_try(6));
        assert_eq!(upstream.next_starved(), None);
    }

    #[test]
    fn one_timer_is_enough_for_all_who_wait_for_a_file() {
        let mut upstream = Upstream::new(Target::Hello);
        let (now, pause) = (Instant::default(), Duration::from_millis(100));
        assert_eq!(
            [0, 50, 99, 100, 150].map(|ms| upstream.look_again(now + Duration::from_millis(ms), pause)),
            [true, false, false, true, false]
        );
        assert_eq!(
            [0, 99, 100].map(|ms| upstream.is_news(now + Duration::from_millis(ms), pause)),
            [true, false, true]
        );
    }
}
