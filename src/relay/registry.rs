//! Tunnels by name, the links that serve each, and the requests that wait for one. A name belongs to nobody: every agent that
//! offers it gets in, and all of their links share the load, the one that rested longest first.

use std::collections::{HashMap, VecDeque};

use std::time::Duration;

use mio::Token;
use ptth_proto::time::Instant;

use super::queues::Mail;

/// Requests of a tunnel that are under way before several go on one link: fewer have nothing to share.
const CROWD: usize = 4;
/// Trust in a tunnel's answers: from here on they may stand in a line,
const TRUSTED: usize = 32;
/// more is not earned,
const MOST_TRUST: usize = 64;
/// and this much a long or a slow one costs: one in twenty is borne.
const SLOW_COSTS: usize = 20;

/// When an agent was told that requests wait, for how many links it was asked, and how many it had.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    at: Instant,
    wanted: usize,
    links: usize,
    /// How many wait, as other workers know.
    said: usize,
}

/// How soon an agent is told of a crowd of its own, whatever came of the last one.
const TELL_ANEW: Duration = Duration::from_secs(5);
/// How soon an agent is told again that requests wait, when they are hardly more: a link may be as long in the making.
const TELL_AGAIN: Duration = Duration::from_millis(200);
/// So many of those who wait are taken to be followed by one more: a crowd of 100 is told of some 16 times while it gathers.
const TELL_MORE: usize = 4;

/// What became of a new link.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is the tunnel's only one, and the tunnel was said to be down, or is new.
    First,
    /// There are others.
    More,
    /// There are too many: this one is to be closed for it.
    InPlaceOf(Token),
}

/// A request that waits for a link.
#[derive(Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its exchange.
    pub id: usize,
    /// When it came.
    pub since: Instant,
    /// The agent that has its answer set aside: it is for no other one.
    pub agent: Option<u64>,
    /// It may share a link.
    pub may_line: bool,
}

#[derive(Debug)]
struct Tunnel {
    name: String,
    /// Links that are idle, and some that are gone by now.
    idle: VecDeque<Token>,
    /// Requests that wait, the oldest in front.
    waiting: VecDeque<Waiting>,
    /// Those of them that wait for one agent alone.
    bound: usize,
    /// Agents that have said who they are, and how many links each has.
    agents: Vec<(u64, usize)>,
    /// Requests under way, those that wait among them.
    requests: usize,
    links: usize,
    /// Links with several requests on them, the one in front that the next request goes to.
    lines: VecDeque<Token>,
    /// The link that was last given a request.
    last: Option<Token>,
    /// What its agent was last told of requests that wait.
    told: Told,
    /// How sure we are that its answers are short and quick.
    quick: usize,
    /// Links gone since `idle` was last rid of them.
    gone: usize,
    /// It was said that the tunnel is up.
    up: bool,
    /// Its polls and messages.
    mail: Mail,
}

/// All tunnels of a relay.
#[derive(Debug)]
pub struct Registry {
    tunnels: Vec<Option<Tunnel>>,
    free: Vec<usize>,
    by_name: HashMap<String, usize>,
    /// The one that was asked for last: most visitors ask for the same again.
    last: usize,
    /// Tunnels with an agent, or with one a moment ago.
    served: usize,
    /// Requests that wait for a link of any tunnel.
    waiting: usize,
    most_tunnels: usize,
    most_links: usize,
}

impl Registry {
    /// No tunnels; at most so many, with at most so many links each.
    pub fn new(most_tunnels: usize, most_links: usize) -> Registry {
        Registry {
            tunnels: Vec::new(),
            free: Vec::new(),
            by_name: HashMap::new(),
            last: 0,
            served: 0,
            waiting: 0,
            most_tunnels,
            most_links,
        }
    }

    /// The tunnel of a name that a visitor asks for, made when there is none. `None` when too many names without an agent are
    /// asked for: those have a bound of their own, so that nobody can keep agents out by asking for names.
    pub fn find_or_make(&mut self, name: &str) -> Option<usize> {
        let room = self.by_name.len() - self.served < self.most_tunnels;
        self.get_or_make(name, room)
    }

    /// The tunnel of a name that an agent offers, made when there is none. `None` when there are too many.
    pub fn claim(&mut self, name: &str) -> Option<usize> {
        let room = self.served < self.most_tunnels;
        self.get_or_make(name, room)
    }

    fn get_or_make(&mut self, name: &str, room: bool) -> Option<usize> {
        if self.get(self.last).is_some_and(|tunnel| tunnel.name == name) {
            return Some(self.last);
        }
        if let Some(tunnel) = self.by_name.get(name) {
            self.last = *tunnel;
            return Some(*tunnel);
        }
        if !room {
            return None;
        }
        let tunnel = self.free.pop().unwrap_or_else(|| {
            self.tunnels.push(None);
            self.tunnels.len() - 1
        });
        self.tunnels[tunnel] = Some(Tunnel {
            name: name.into(),
            idle: VecDeque::new(),
            waiting: VecDeque::new(),
            bound: 0,
            agents: Vec::new(),
            requests: 0,
            links: 0,
            lines: VecDeque::new(),
            last: None,
            told: Told::default(),
            quick: 0,
            gone: 0,
            up: false,
            mail: Mail::default(),
        });
        self.by_name.insert(name.into(), tunnel);
        Some(tunnel)
    }

    fn get(&self, tunnel: usize) -> Option<&Tunnel> {
        self.tunnels.get(tunnel)?.as_ref()
    }

    fn get_mut(&mut self, tunnel: usize) -> Option<&mut Tunnel> {
        self.tunnels.get_mut(tunnel)?.as_mut()
    }

    /// The tunnel of a name, if there is one.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Its polls and messages.
    pub(super) fn mail(&mut self, tunnel: usize) -> Option<&mut Mail> {
        self.get_mut(tunnel).map(|tunnel| &mut tunnel.mail)
    }

    /// How many of its links rest.
    pub fn resting(&self, tunnel: usize, mut is_free: impl FnMut(Token) -> bool) -> usize {
        self.get(tunnel).map_or(0, |tunnel| tunnel.idle.iter().filter(|link| is_free(**link)).count())
    }

    /// The tunnel's name.
    pub fn name(&self, tunnel: usize) -> &str {
        self.get(tunnel).map_or("-", |tunnel| &tunnel.name)
    }

    /// How many links it has, idle and busy.
    pub fn links(&self, tunnel: usize) -> usize {
        self.get(tunnel).map_or(0, |tunnel| tunnel.links)
    }

    /// Whether it has one, or had one a moment ago.
    pub fn is_up(&self, tunnel: usize) -> bool {
        self.get(tunnel).is_some_and(|tunnel| tunnel.up)
    }

    /// How many requests wait for one.
    pub fn waiting(&self, tunnel: usize) -> usize {
        self.get(tunnel).map_or(0, |tunnel| tunnel.waiting.len())
    }

    /// How many of them would take any.
    pub fn waiting_for_any(&self, tunnel: usize) -> usize {
        self.get(tunnel).map_or(0, |tunnel| tunnel.waiting.len() - tunnel.bound)
    }

    /// How many wait for one of any tunnel.
    pub fn all_waiting(&self) -> usize {
        self.waiting
    }

    /// A request for this tunnel begins. Gives how many there are with it.
    pub fn begin(&mut self, tunnel: usize) -> usize {
        let Some(tunnel) = self.get_mut(tunnel) else { return 0 };
        tunnel.requests += 1;
        tunnel.requests
    }

    /// It is over.
    pub fn end(&mut self, tunnel: usize) {
        let Some(entry) = self.get_mut(tunnel) else { return };
        entry.requests -= 1;
        if entry.requests == 0 && entry.links == 0 {
            self.drop_unused(tunnel);
        }
    }

    /// Takes the link that has rested longest among those that are still free.
    pub fn take_idle(&mut self, tunnel: usize, mut is_free: impl FnMut(Token) -> bool) -> Option<Token> {
        let idle = &mut self.get_mut(tunnel)?.idle;
        std::iter::from_fn(|| idle.pop_front()).find(|link| is_free(*link))
    }

    /// Whether requests of this tunnel may go several on a link: there are enough of them, and none of late had a long or a slow
    /// answer. One of those costs as much trust as many quick ones have earned.
    pub fn may_line(&self, tunnel: usize) -> bool {
        self.get(tunnel).is_some_and(|tunnel| tunnel.requests >= CROWD && tunnel.quick >= TRUSTED)
    }

    /// An answer of this tunnel was short and came in its turn.
    pub fn was_quick(&mut self, tunnel: usize) {
        if let Some(tunnel) = self.get_mut(tunnel) {
            tunnel.quick = (tunnel.quick + 1).min(MOST_TRUST);
        }
    }

    /// One was long, or kept others waiting.
    pub fn was_slow(&mut self, tunnel: usize) {
        if let Some(tunnel) = self.get_mut(tunnel) {
            tunnel.quick = tunnel.quick.saturating_sub(SLOW_COSTS);
        }
    }

    /// The link that the next request may go down behind others. `room` says for how many more it has room.
    pub fn line(&mut self, tunnel: usize, mut room: impl FnMut(Token) -> usize) -> Option<Token> {
        let lines = &mut self.get_mut(tunnel)?.lines;
        let first = *lines.front()?;
        if room(first) > 0 {
            return Some(first);
        }
        // It is full, and another one has its turn: the emptiest, so that many requests go out on it together.
        let (at, most) = lines.iter().map(|link| room(*link)).enumerate().max_by_key(|(_, room)| *room)?;
        if most == 0 {
            return None;
        }
        lines.swap(0, at);
        lines.front().copied()
    }

    /// Requests may go down this link behind the one that is on it.
    pub fn open_line(&mut self, tunnel: usize, link: Token) {
        if let Some(tunnel) = self.get_mut(tunnel) {
            tunnel.lines.push_front(link);
        }
    }

    /// This link is given a request.
    pub fn gives(&mut self, tunnel: usize, link: Token) {
        if let Some(tunnel) = self.get_mut(tunnel) {
            tunnel.last = Some(link);
        }
    }

    /// A request waits: for how many links an agent is to be asked, if it is time for that. A crowd that gathers is hardly over, and to
    /// tell the agent of each would take longer than the links: so there are more of them than there are requests.
    pub fn crowd(&self, tunnel: usize, now: Instant) -> Option<usize> {
        let tunnel = self.get(tunnel)?;
        let waiting = tunnel.waiting.len();
        let Told { at, links, wanted, .. } = tunnel.told;
        let passed = now.since(at);
        // Where no link came of the last word, none will come of the next one soon.
        let has_helped = passed >= TELL_AGAIN && tunnel.links != links;
        (waiting > wanted || has_helped || passed >= TELL_ANEW).then_some(waiting + waiting / TELL_MORE)
    }

    /// The link that was given a request last.
    pub fn last(&self, tunnel: usize) -> Option<Token> {
        self.get(tunnel)?.last
    }

    /// The agent was asked for so many.
    pub fn was_told(&mut self, tunnel: usize, wanted: usize, now: Instant) {
        if let Some(tunnel) = self.get_mut(tunnel) {
            tunnel.told = Told { at: now, wanted, links: tunnel.links, said: wanted };
        }
    }

    /// Another worker was asked to tell it, and may or may not be able to: there is to be another word soon.
    pub fn was_passed_on(&mut self, tunnel: usize, wanted: usize, now: Instant) {
        if let Some(tunnel) = self.get_mut(tunnel) {
            tunnel.told = Told { at: now, wanted, links: usize::MAX, said: wanted };
        }
    }

    /// How many wait, when they have become much fewer than other workers know.
    pub fn are_fewer(&mut self, tunnel: usize) -> Option<usize> {
        let tunnel = self.get_mut(tunnel)?;
        let waiting = tunnel.waiting.len();
        let fewer = waiting < tunnel.told.said / 2;
        if fewer {
            tunnel.told.said = waiting;
        }
        fewer.then_some(waiting)
    }

    /// No longer.
    pub fn close_line(&mut self, tunnel: usize, link: Token) {
        if let Some(tunnel) = self.get_mut(tunnel)
            && let Some(at) = tunnel.lines.iter().position(|line| *line == link)
        {
            tunnel.lines.swap_remove_back(at);
        }
    }

    /// Whether links rest, as far as is known without looking at each.
    pub fn has_parked(&self, tunnel: usize) -> bool {
        self.get(tunnel).is_some_and(|tunnel| !tunnel.idle.is_empty())
    }

    /// A link rests no more. Who has rested longest is asked first whether it is still there, and stands in front then: only those
    /// that are gone stand before it.
    pub fn wake(&mut self, tunnel: usize, link: Token, mut is_free: impl FnMut(Token) -> bool) {
        let Some(tunnel) = self.get_mut(tunnel) else { return };
        while tunnel.idle.front().is_some_and(|first| *first != link && !is_free(*first)) {
            tunnel.idle.pop_front();
        }
        if let Some(at) = tunnel.idle.iter().position(|idle| *idle == link) {
            tunnel.idle.remove(at);
        }
    }

    /// Takes all links that rest, some of which are gone.
    pub fn take_all(&mut self, tunnel: usize) -> VecDeque<Token> {
        self.get_mut(tunnel).map(|tunnel| std::mem::take(&mut tunnel.idle)).unwrap_or_default()
    }

    /// Puts a link to rest.
    pub fn park(&mut self, tunnel: usize, link: Token) {
        if let Some(tunnel) = self.get_mut(tunnel) {
            tunnel.idle.push_back(link);
        }
    }

    /// Puts a link where the next request finds it.
    pub fn park_first(&mut self, tunnel: usize, link: Token) {
        if let Some(tunnel) = self.get_mut(tunnel) {
            tunnel.idle.push_front(link);
        }
    }

    /// A request waits for a link; one whose answer was set aside, for one to the agent that has it. Who waits again has its old place.
    pub fn wait(&mut self, tunnel: usize, request: Waiting) {
        if let Some(tunnel) = self.get_mut(tunnel) {
            let before = tunnel.waiting.iter().rposition(|other| other.since <= request.since);
            tunnel.bound += usize::from(request.agent.is_some());
            tunnel.waiting.insert(before.map_or(0, |before| before + 1), request);
            self.waiting += 1;
        }
    }

    fn take_waiting(&mut self, tunnel: usize, is_it: impl Fn(&Waiting) -> bool) -> Option<Waiting> {
        let tunnel = self.get_mut(tunnel)?;
        let at = tunnel.waiting.iter().position(is_it)?;
        let taken = tunnel.waiting.remove(at)?;
        tunnel.bound -= usize::from(taken.agent.is_some());
        self.waiting -= 1;
        Some(taken)
    }

    /// The request that has waited longest of those that may go to this agent, which waits no more.
    pub fn next_waiting(&mut self, tunnel: usize, agent: Option<u64>) -> Option<Waiting> {
        self.take_waiting(tunnel, |one| one.agent.is_none() || one.agent == agent)
    }

    /// Whether a request waits that may go to this agent.
    pub fn is_waited_for(&self, tunnel: usize, agent: Option<u64>) -> bool {
        let may = |one: &Waiting| one.agent.is_none() || one.agent == agent;
        self.get(tunnel).is_some_and(|tunnel| tunnel.waiting.iter().any(may))
    }

    /// The same, if that one may share a link. One that may not keeps its place, and those behind it theirs.
    pub fn next_in_line(&mut self, tunnel: usize) -> Option<usize> {
        let first = self.get(tunnel)?.waiting.iter().find(|one| one.agent.is_none());
        first.filter(|first| first.may_line)?;
        self.next_waiting(tunnel, None).map(|next| next.id)
    }

    /// Whether this agent has a link.
    pub fn knows(&self, tunnel: usize, agent: u64) -> bool {
        self.get(tunnel).is_some_and(|tunnel| tunnel.agents.iter().any(|(known, _)| *known == agent))
    }

    /// An agent has one more link.
    pub fn agent_has_more(&mut self, tunnel: usize, agent: u64) {
        let Some(tunnel) = self.get_mut(tunnel) else { return };
        match tunnel.agents.iter_mut().find(|(known, _)| *known == agent) {
            Some((_, links)) => *links += 1,
            None => tunnel.agents.push((agent, 1)),
        }
    }

    /// A link of this agent is gone. If it was the last one, gives those that have waited for another: they wait no more.
    pub fn agent_has_less(&mut self, tunnel: usize, agent: u64) -> Vec<usize> {
        let Some(entry) = self.get_mut(tunnel) else { return Vec::new() };
        let Some(at) = entry.agents.iter().position(|(known, _)| *known == agent) else { return Vec::new() };
        entry.agents[at].1 -= 1;
        if entry.agents[at].1 > 0 {
            return Vec::new();
        }
        entry.agents.swap_remove(at);
        let of_it = |one: &Waiting| one.agent == Some(agent);
        std::iter::from_fn(|| self.take_waiting(tunnel, of_it)).map(|one| one.id).collect()
    }

    /// Takes a link to this agent, of those that rest.
    pub fn take_idle_of(&mut self, tunnel: usize, mut is_free: impl FnMut(Token) -> bool) -> Option<Token> {
        let idle = &mut self.get_mut(tunnel)?.idle;
        let at = idle.iter().position(|link| is_free(*link))?;
        idle.remove(at)
    }

    /// The request waits no more. False when it did not wait.
    pub fn forget(&mut self, tunnel: usize, id: usize) -> bool {
        let Some(entry) = self.get_mut(tunnel) else { return false };
        let Some(at) = entry.waiting.iter().position(|waiting| waiting.id == id) else { return false };
        let bound = entry.waiting.remove(at).is_some_and(|waiting| waiting.agent.is_some());
        entry.bound -= usize::from(bound);
        self.waiting -= 1;
        true
    }

    /// A new link: it always gets in.
    pub fn add_link(&mut self, tunnel: usize, is_free: impl FnMut(Token) -> bool) -> Taken {
        let most = self.most_links;
        let Some(entry) = self.get_mut(tunnel) else { return Taken::More };
        entry.links += 1;
        if !std::mem::replace(&mut entry.up, true) {
            self.served += 1;
            return Taken::First;
        }
        if entry.links <= most {
            return Taken::More;
        }
        self.take_idle(tunnel, is_free).map_or(Taken::More, Taken::InPlaceOf)
    }

    /// A link is gone. True when it was the last one.
    pub fn remove_link(&mut self, tunnel: usize, is_free: impl FnMut(Token) -> bool) -> bool {
        let Some(tunnel) = self.get_mut(tunnel) else { return false };
        tunnel.links = tunnel.links.saturating_sub(1);
        tunnel.gone += 1;
        // Those that are gone stay among the idle ones until half of them are: so each costs the same, however many there
        // are.
        if tunnel.gone * 2 > tunnel.idle.len() {
            tunnel.gone = 0;
            let mut is_free = is_free;
            tunnel.idle.retain(|link| is_free(*link));
        }
        tunnel.links == 0
    }

    /// A tunnel has had no link for a while, if it still has none: gives its name when that is news, and drops what nobody
    /// uses.
    pub fn settle_down(&mut self, tunnel: usize) -> Option<String> {
        let entry = self.get_mut(tunnel)?;
        if entry.links > 0 {
            return None;
        }
        let news = std::mem::replace(&mut entry.up, false).then(|| entry.name.clone());
        self.served -= usize::from(news.is_some());
        self.drop_unused(tunnel);
        news
    }

    /// Drops a tunnel that has no link and no request, waiting or under way.
    pub fn drop_unused(&mut self, tunnel: usize) {
        let unused = |tunnel: &Tunnel| tunnel.links == 0 && tunnel.requests == 0 && !tunnel.up;
        if self.get(tunnel).is_some_and(unused)
            && let Some(entry) = self.tunnels[tunnel].take()
        {
            self.by_name.remove(&entry.name);
            self.free.push(tunnel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(id: usize, since: u64) -> Waiting {
        Waiting { id, since: Instant::from_micros(since), agent: None, may_line: false }
    }

    #[test]
    fn who_waits_again_has_its_old_place() {
        let mut registry = Registry::new(10, 10);
        let t = registry.find_or_make("a").unwrap();
        for (id, since) in [(1, 10), (2, 20), (3, 20), (4, 30)] {
            registry.wait(t, waiting(id, since));
        }
        assert!(registry.forget(t, 4));
        registry.wait(t, waiting(4, 30));
        let taken: Vec<_> = (0..2).map(|_| registry.next_waiting(t, None).unwrap().id).collect();
        assert_eq!(taken, [1, 2]);
        registry.wait(t, waiting(2, 20));
        registry.wait(t, waiting(1, 10));
        let taken: Vec<_> = (0..4).map(|_| registry.next_waiting(t, None).unwrap().id).collect();
        assert_eq!(taken, [1, 3, 2, 4]);
    }

    #[test]
    fn trust_is_earned_by_quick_answers_and_lost_by_slow_ones() {
        let mut registry = Registry::new(10, 10);
        let t = registry.find_or_make("a").unwrap();
        let quick = |registry: &mut Registry, many: usize| (0..many).for_each(|_| registry.was_quick(t));
        quick(&mut registry, TRUSTED);
        for _ in 1..CROWD {
            registry.begin(t);
        }
        assert!(!registry.may_line(t), "too few");
        registry.begin(t);
        assert!(registry.may_line(t));
        registry.was_slow(t);
        assert!(!registry.may_line(t));
        quick(&mut registry, SLOW_COSTS - 1);
        assert!(!registry.may_line(t));
        quick(&mut registry, 1);
        assert!(registry.may_line(t));
        // Of a tunnel that was quick for long one is borne, and not three.
        quick(&mut registry, 10 * MOST_TRUST);
        registry.was_slow(t);
        assert!(registry.may_line(t));
        (0..2).for_each(|_| registry.was_slow(t));
        assert!(!registry.may_line(t));
        // It is not less than nothing that it has to earn again.
        (0..10).for_each(|_| registry.was_slow(t));
        quick(&mut registry, TRUSTED);
        assert!(registry.may_line(t));
        registry.end(t);
        assert!(!registry.may_line(t));
    }

    #[test]
    fn other_workers_are_told_when_those_who_wait_have_become_few() {
        let mut registry = Registry::new(100, 100);
        let t = registry.find_or_make("a").unwrap();
        for id in 0..40 {
            registry.wait(t, waiting(id, 0));
        }
        registry.was_told(t, registry.crowd(t, Instant::default()).unwrap(), Instant::default());
        let mut said = Vec::new();
        while registry.next_waiting(t, None).is_some() {
            said.extend(registry.are_fewer(t));
        }
        assert_eq!(said, [24, 11, 4, 1]);
    }

    #[test]
    fn word_that_may_not_have_come_is_sent_again_soon() {
        let mut registry = Registry::new(10, 10);
        let t = registry.find_or_make("a").unwrap();
        registry.wait(t, waiting(1, 0));
        let now = Instant::default();
        registry.was_passed_on(t, 1, now);
        assert_eq!([now, now + TELL_AGAIN].map(|now| registry.crowd(t, now)), [None, Some(1)]);
    }

    #[test]
    fn an_agent_is_not_told_again_of_a_crowd_for_which_it_made_no_link() {
        let mut registry = Registry::new(10, 10);
        let t = registry.find_or_make("a").unwrap();
        registry.add_link(t, |_| true);
        let at = |after: Duration| Instant::default() + TELL_ANEW + after;
        registry.wait(t, waiting(0, 0));
        let wanted = registry.crowd(t, at(Duration::ZERO)).unwrap();
        // It counts when it was said.
        assert_eq!(registry.crowd(t, at(Duration::ZERO)), Some(wanted));
        registry.was_told(t, wanted, at(Duration::ZERO));
        for passed in [Duration::ZERO, TELL_AGAIN, TELL_ANEW - Duration::from_micros(1)] {
            assert_eq!(registry.crowd(t, at(passed)), None, "{passed:?}");
        }
        assert_eq!(registry.crowd(t, at(TELL_ANEW)), Some(wanted));
        // Where it has helped, it is said again; but the links of the last word may still be on their way.
        registry.add_link(t, |_| true);
        assert_eq!(registry.crowd(t, at(TELL_AGAIN - Duration::from_micros(1))), None);
        assert_eq!(registry.crowd(t, at(TELL_AGAIN)), Some(wanted));
        registry.was_told(t, wanted, at(TELL_AGAIN));
        // More than were asked for are news at any time.
        for id in 1..=wanted {
            registry.wait(t, waiting(id, 0));
        }
        assert!(registry.crowd(t, at(TELL_AGAIN)).unwrap() > wanted);
    }

    #[test]
    fn an_answer_set_aside_waits_for_its_agent_as_long_as_that_has_a_link() {
        let mut registry = Registry::new(10, 10);
        let t = registry.find_or_make("a").unwrap();
        registry.agent_has_more(t, 5);
        registry.agent_has_more(t, 5);
        registry.wait(t, Waiting { agent: Some(5), ..waiting(1, 0) });
        registry.wait(t, Waiting { may_line: true, ..waiting(2, 1) });
        assert!(registry.is_waited_for(t, Some(5)) && registry.is_waited_for(t, None));
        assert_eq!(registry.next_in_line(t), Some(2));
        assert!(!registry.is_waited_for(t, None));
        assert_eq!(registry.next_waiting(t, Some(6)), None);
        assert!(registry.agent_has_less(t, 5).is_empty());
        assert!(registry.knows(t, 5));
        assert_eq!(registry.agent_has_less(t, 5), [1]);
        assert!(!registry.knows(t, 5));
        assert_eq!((registry.all_waiting(), registry.waiting_for_any(t)), (0, 0));
    }

    #[test]
    fn links_take_turns_and_the_dead_are_passed_over() {
        let mut registry = Registry::new(10, 10);
        let t = registry.find_or_make("a").unwrap();
        for n in 0..3 {
            registry.add_link(t, |_| true);
            registry.park(t, Token(n));
        }
        assert_eq!(registry.take_idle(t, |_| true), Some(Token(0)));
        registry.park(t, Token(0));
        assert_eq!(registry.take_idle(t, |link| link != Token(1)), Some(Token(2)));
        assert_eq!(registry.take_idle(t, |_| true), Some(Token(0)));
        assert_eq!(registry.take_idle(t, |_| true), None);
    }

    #[test]
    fn a_link_that_is_asked_does_not_rest_and_stands_there_once_afterwards() {
        let mut registry = Registry::new(10, 10);
        let t = registry.find_or_make("a").unwrap();
        for n in 0..4 {
            registry.park(t, Token(n));
        }
        registry.wake(t, Token(1), |link| link != Token(0));
        assert_eq!(registry.take_all(t), [2, 3].map(Token));
        for n in [2, 3, 1] {
            registry.park(t, Token(n));
        }
        registry.wake(t, Token(3), |_| true);
        registry.wake(t, Token(7), |_| true);
        assert_eq!(registry.take_all(t), [2, 1].map(Token));
        assert!(!registry.has_parked(t));
    }

    #[test]
    fn the_newest_gets_in_for_the_oldest_idle() {
        let mut registry = Registry::new(10, 2);
        let t = registry.find_or_make("a").unwrap();
        assert_eq!(registry.add_link(t, |_| true), Taken::First);
        registry.park(t, Token(1));
        assert_eq!(registry.add_link(t, |_| true), Taken::More);
        assert_eq!(registry.add_link(t, |_| true), Taken::InPlaceOf(Token(1)));
    }

    #[test]
    fn a_tunnel_that_nobody_uses_is_forgotten() {
        let mut registry = Registry::new(1, 2);
        let t = registry.find_or_make("a").unwrap();
        assert_eq!(registry.find_or_make("b"), None);
        assert_eq!(registry.begin(t), 1);
        registry.wait(t, waiting(7, 0));
        registry.drop_unused(t);
        assert_eq!(registry.all_waiting(), 1);
        assert!(registry.forget(t, 7) && !registry.forget(t, 7));
        assert_eq!(registry.all_waiting(), 0);
        assert_eq!(registry.find_or_make("b"), None);
        registry.end(t);
        let t = registry.claim("b").unwrap();
        registry.add_link(t, |_| true);
        assert_eq!(registry.claim("c"), None);
        assert!(registry.remove_link(t, |_| false));
        assert_eq!(registry.settle_down(t), Some("b".into()));
        assert!(registry.find_or_make("c").is_some());
    }

    #[test]
    fn who_can_share_no_link_keeps_its_place() {
        let mut registry = Registry::new(1, 2);
        let t = registry.find_or_make("a").unwrap();
        for (id, agent, may_line) in [(1, Some(7), true), (2, None, true), (3, None, false), (4, None, true)] {
            registry.wait(t, Waiting { agent, may_line, ..waiting(id, 0) });
        }
        assert_eq!((registry.waiting(t), registry.waiting_for_any(t)), (4, 3));
        assert_eq!(registry.next_in_line(t), Some(2));
        assert_eq!(registry.next_in_line(t), None);
        assert_eq!(registry.next_waiting(t, None), Some(waiting(3, 0)));
        assert_eq!(registry.next_in_line(t), Some(4));
        assert_eq!((registry.next_in_line(t), registry.next_waiting(t, None)), (None, None));
        assert_eq!(registry.next_waiting(t, Some(7)).map(|one| one.id), Some(1));
        assert_eq!((registry.waiting(t), registry.waiting_for_any(t)), (0, 0));
    }

    #[test]
    fn names_that_are_only_asked_for_keep_no_agent_out() {
        let mut registry = Registry::new(2, 2);
        let asked: Vec<_> = ["a", "b", "c"].iter().map(|name| registry.find_or_make(name)).collect();
        assert_eq!(asked[2], None);
        for name in ["a", "d"] {
            let t = registry.claim(name).unwrap();
            registry.add_link(t, |_| true);
        }
        assert_eq!(registry.claim("e"), None);
    }
}
