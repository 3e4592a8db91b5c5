//! The side that dials out. Fronts are links: dialled connections, flipped, on which the relay asks, or pipes to what [`polls`]
//! bring; backs are connections to the upstream. [`links`] says how many links there are to be and when to dial, [`upstream`]
//! keeps the backs, [`hello`] is the built-in upstream.

pub mod hello;
pub mod links;
pub mod polls;
pub mod upstream;

use std::borrow::Cow;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mio::Token;
use ptth_proto::conn::{Config, Conn, Event};
use ptth_proto::error::Error;
use ptth_proto::http::framing::Framing;
use ptth_proto::limits::{Deadlines, FILES_AGAIN, Wait, bypasses_of_loop};
use ptth_proto::link::upgrade::Token as Offered;
use ptth_proto::time::Instant;
use ptth_proto::wire::fields::{Label, Name};
use ptth_proto::wire::head::{FieldWriter, Head};

use crate::answer::{Answer, Code};
use crate::bridge::exchange::{Exchange, Kind, Lane};
use crate::bridge::line::wanted;
use crate::bridge::{Assign, BackFault, Bridge, Claim, Order, Side, pass_on};
use crate::log::{AccessLog, Visitor};
use crate::net::addr::{Place, Remote};
use crate::net::{Transport, is_out_of_files};
use crate::peer::{Peer, Seat, Twin};
use crate::reactor::{Core, Door, Loss, Mailbox, Message, Reactor};
use hello::Hello;
use links::{Dial, Links, Lost, Size};
use polls::{Polls, Way};
use upstream::{Reach, Target, Upstream, Use};

/// Where the relay is and what the tunnel is called there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    /// Where to dial.
    pub place: Place,
    /// `host[:port]`, for `Host`.
    pub authority: String,
    /// The path that offers and polls are posted to; in the `ptth` dialect, the one that its own paths are below.
    pub path: String,
    /// The URL as the user gave it, for messages.
    pub url: String,
}

/// How links are made, as the user wishes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// By upgrade, and by polls where that can't be had.
    Auto,
    /// By upgrade alone.
    Ptth10,
    /// By polls with messages of COMET.
    Comet,
    /// By polls with messages of the `ptth` relay.
    PtthRelay,
}

/// What an agent is told.
#[derive(Debug)]
pub struct Settings {
    /// What it makes reachable.
    pub upstream: Target,
    /// The relay.
    pub via: Via,
    /// The tunnel's name.
    pub name: String,
    /// Where visitors find it.
    pub public_url: String,
    /// The credential, if any.
    pub token: Option<String>,
    /// What `Host` is rewritten to, if it is.
    pub host_header: Option<String>,
    /// How links are made.
    pub dialect: Dialect,
    /// How many links.
    pub size: Size,
    /// End instead of dialling again.
    pub once: bool,
    /// JSON on stdout instead of the URL alone.
    pub json: bool,
    /// Limits and deadlines.
    pub config: Config,
    /// One line for each exchange.
    pub access_log: AccessLog,
}

/// What `--once` ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The relay could not be reached.
    Unreachable = 3,
    /// The relay would not have the tunnel.
    Refused = 4,
    /// The tunnel stood, and the relay went away.
    Gone = 5,
}

/// Keys of peers that are no links; those of links are places in [`Links`].
const UPSTREAM: usize = usize::MAX - 1;
const HELLO: usize = usize::MAX - 2;

/// Timer keys.
const DIAL: usize = 0;
const SHRINK: usize = 1;
const RESUME: usize = 2;
const STANDS: usize = 3;
const UPGRADE: usize = 4;
const STARVED: usize = 5;

/// What keeps an agent that has links from making more is no news when it happens again within this time: one that has used up
/// its descriptors runs into that with each attempt.
const NO_NEWS: Duration = Duration::from_secs(60);

/// Look-up ids.
const LOOK_UP_RELAY: usize = 0;
const LOOK_UP_UPSTREAM: usize = 1;

/// What each request is given.
const HOST: Label = Label::new("Host");

/// What it calls itself.
const AGENT: &str = concat!("ptth-reverse/", env!("CARGO_PKG_VERSION"));

/// The agent's side of the bridge.
#[derive(Debug)]
pub struct Agent {
    via: Via,
    name: String,
    /// Who it is to a relay of ours, by chance alone: nobody else can name the answers that it sets aside.
    me: u64,
    public_url: String,
    token: Option<String>,
    host_header: Option<String>,
    once: bool,
    json: bool,
    dialect: Dialect,
    /// What the dialect comes to at the moment.
    way: Way,
    size: Size,
    links: Links,
    polls: Polls,
    upstream: Upstream,
    hello: Hello,
    /// A relay in this process, which stops when the agent does.
    companion: Option<Mailbox>,
    /// The public URL was printed.
    announced: bool,
    /// What was last said of the tunnel: that it is up.
    up: bool,
    ended: Option<Ended>,
    /// What was last said to keep an agent that has links from making more, and when that last happened.
    said: Option<(String, Instant)>,
}

/// Starts to dial, in a process that may have so many files open. Gives the loop to be run.
///
/// # Errors
/// In one sentence for the person who started it.
pub fn start(settings: Settings, files: usize) -> Result<Reactor<Bridge<Agent>>, String> {
    let Settings { upstream, via, name, public_url, token, host_header, dialect, size, once, json, config, access_log } =
        settings;
    let (way, links) = match dialect {
        Dialect::Auto | Dialect::Ptth10 => (Way::Flip, size),
        Dialect::Comet => (Way::Comet, size),
        Dialect::PtthRelay => (Way::Packed, polls::ONE),
    };
    let agent = Agent {
        via,
        name,
        // The standard library seeds its hash tables from the system.
        me: RandomState::new().build_hasher().finish(),
        public_url,
        token,
        host_header,
        once,
        json,
        dialect,
        way,
        size,
        links: Links::new(links),
        polls: Polls::default(),
        upstream: Upstream::new(upstream),
        hello: Hello::default(),
        companion: None,
        announced: false,
        up: false,
        ended: None,
        said: None,
    };
    let mut reactor =
        Reactor::new(Bridge::new(agent, access_log), config).map_err(|error| format!("no event loop: {error}"))?;
    reactor.core.pool.allow_bypasses(bypasses_of_loop(files, 1));
    let spare = reactor.core.config.deadlines.spare;
    reactor.core.set_timer(spare, SHRINK);
    reactor.app.side.fill(&mut reactor.core);
    Ok(reactor)
}

impl Agent {
    /// Names a relay in this process that is to stop when the agent does.
    pub fn set_companion(&mut self, relay: Option<Mailbox>) {
        self.companion = relay;
    }

    /// Dials as many links as there are to be and are not; but none for requests to come, while one that is there waits for a file.
    fn fill(&mut self, core: &mut Core) {
        if self.upstream.is_short(core.now) {
            return;
        }
        let Dial::Now(wanted) = self.links.wanted() else { return };
        match self.via.place.known() {
            Some(addresses) => self.dial_links(core, wanted, &addresses.into()),
            None => match core.look_up(&self.via.place, LOOK_UP_RELAY) {
                Ok(()) => self.links.looking_up(),
                Err(error) => self.dial_failed(core, &format!("its name can't be looked up: {error}")),
            },
        }
    }

    fn dial_links(&mut self, core: &mut Core, wanted: usize, addresses: &Arc<[SocketAddr]>) {
        for _ in 0..wanted {
            let link = self.links.add(Arc::clone(addresses));
            self.dial_next(core, link, None);
        }
    }

    /// Dials the next address of a link's relay; `last` says what the one before failed of.
    fn dial_next(&mut self, core: &mut Core, link: usize, mut last: Option<io::Error>) {
        while let Some(address) = self.links.next_address(link) {
            match self.dial(core, link, address) {
                Ok(()) => return,
                Err(error) => last = Some(error),
            }
        }
        self.take_line(core, link);
        self.links.remove(link);
        let reason = last.map_or_else(|| "its name has no address".into(), |error| plain(&error));
        self.dial_failed(core, &reason);
    }

    fn dial(&mut self, core: &mut Core, link: usize, address: SocketAddr) -> io::Result<()> {
        match self.way {
            Way::Flip => self.dial_offer(core, link, address),
            Way::Comet | Way::Packed => self.dial_line(core, link, address),
        }
    }

    /// Makes a connection that is to be turned.
    fn dial_offer(&mut self, core: &mut Core, link: usize, address: SocketAddr) -> io::Result<()> {
        let transport = Transport::dial(address)?;
        let token = core.add(transport, Remote::Ip(address), Conn::client(core.now), true)?;
        let (now, limit) = (core.now, core.config.limits.pipeline);
        let Some(peer) = core.tell(token) else { return Ok(()) };
        peer.seat = Seat::Own;
        peer.key = link;
        let (path, authority) = (self.via.path.as_bytes(), self.via.authority.as_bytes());
        let offer = peer.conn.send_offer(now, peer.output.vec(), (path, authority), Offered::PTTH_1_0, |fields| {
            fields.field("User-Agent", AGENT);
            let several = limit > 1;
            if self.dialect == Dialect::Auto {
                // A relay that won't turn the connection, or doesn't see that it may, is to answer as if it were polled, and at
                // once.
                fields.field(
                    "Ptth-Accept",
                    if several { "comet, base64, ping, pipeline" } else { "comet, base64, ping" },
                );
                fields.field("Prefer", "wait=0");
            } else {
                fields.field("Ptth-Accept", if several { "ping, pipeline" } else { "ping" });
            }
            fields.field("Ptth-Aside", format!("{:016x}", self.me));
            if let Some(token) = &self.token {
                fields.parts(b"Authorization", &[b"Bearer ", token.as_bytes()]);
            }
        });
        offer.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("the offer {error}")))
    }

    fn dial_failed(&mut self, core: &mut Core, reason: &str) {
        let url = &self.via.url;
        self.failed(core, Ended::Unreachable, &format!("can't reach the relay {url}: {reason}"));
    }

    /// No link came of an attempt: the next one waits.
    fn failed(&mut self, core: &mut Core, ended: Ended, reason: &str) {
        if self.links.standing() == 0 && std::mem::replace(&mut self.up, false) {
            self.event(&serde_json::json!({ "event": "down" }));
        }
        if self.once && self.links.standing() == 0 {
            // Every link that was being made fails of the same; the first one says it.
            if self.ended.is_none() {
                log::error!("{reason}");
                self.ended = Some(if self.announced { Ended::Gone } else { ended });
            }
            return;
        }
        let deadlines = &core.config.deadlines;
        let Some(pause) = self.links.back_off(deadlines.backoff, deadlines.backoff_max) else {
            log::debug!("{reason}");
            return;
        };
        let (now, stands) = (core.now, self.links.standing() > 0);
        let known = self.said.as_ref().is_some_and(|(said, at)| said == reason && now.since(*at) < NO_NEWS);
        let level = if stands && known { log::Level::Debug } else { log::Level::Warn };
        log::log!(level, "{reason}; trying again in {:.1} s", pause.as_secs_f32());
        self.said = stands.then(|| (reason.to_owned(), now));
        let millis = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        self.event(&serde_json::json!({ "event": "retry", "reason": reason, "in_ms": millis }));
        core.set_timer(pause, DIAL);
    }

    /// A peer that is to become a link has said something.
    fn handshake(&mut self, core: &mut Core, token: Token, orders: &mut Vec<Order>) {
        let now = core.now;
        let Some((peer, head, config)) = core.hear(token) else { return };
        let link = peer.key;
        if peer.is_connecting() {
            return;
        }
        let refusal = match peer.conn.recv(now, peer.input.bytes(), head, config) {
            Ok((used, Some(Event::Turned))) => {
                peer.input.consume(used);
                let (idle, patience) = (config.deadlines.keepalive, config.deadlines.write);
                if peer.conn.is_ours() {
                    peer.transport().watch(idle, patience);
                } else {
                    peer.transport().keep_alive(idle);
                }
                peer.seat = Seat::Front;
                peer.wait = None;
                orders.push(Order::Listen(token));
                if self.links.is_stopping() {
                    return self.stands_too_late(core, token, link);
                }
                if self.way == Way::Comet {
                    self.way = Way::Flip;
                    log::info!("the relay {} turns connections again: no more polling", self.via.url);
                    self.event(&serde_json::json!({ "event": "dialect", "dialect": "ptth/1.0" }));
                }
                return self.link_stands(core, link);
            }
            Ok((used, Some(Event::Response(_)))) if self.dialect == Dialect::Auto && is_like_a_poll(head) => {
                peer.input.consume(used);
                let Remote::Ip(address) = peer.remote else { return };
                let head = std::mem::take(head);
                self.becomes_line(core, token, link, address, &head);
                core.head = head;
                return self.step_line(core, token, link);
            }
            Ok((used, Some(Event::Response(_)))) => {
                peer.input.consume(used);
                Some((Ended::Refused, refusal(head.status(), true)))
            }
            Ok((used, Some(_))) => {
                peer.input.consume(used);
                core.step_again(token);
                None
            }
            Ok((used, None)) => {
                peer.input.consume(used);
                let end = (Ended::Refused, "closed the connection instead of an answer".into());
                peer.eof.then_some(end)
            }
            Err(error) => Some((Ended::Refused, format!("{error} ({})", error.code()))),
        };
        if let Some((ended, what)) = refusal {
            self.links.remove(link);
            if let Some(peer) = core.peer(token) {
                peer.key = crate::peer::NO_KEY;
            }
            core.drop_peer(token);
            let reason = format!("the relay {} {what}", self.via.url);
            if self.way == Way::Flip {
                self.failed(core, ended, &reason);
            } else {
                // It was only to see whether the upgrade can be had by now.
                log::debug!("still polling: {reason}");
            }
        }
    }

    /// A link is gone that stood, or a line.
    fn link_lost(&mut self, core: &mut Core, link: usize, reason: &str) {
        let now = core.now;
        let steady = core.config.deadlines.backoff_max;
        let lost = self.links.lost(link, now, steady);
        if self.links.is_stopping() {
            return;
        }
        let last = self.once && self.links.standing() == 0 && lost != Lost::Served;
        if last || lost == Lost::AtOnce {
            self.failed(core, Ended::Gone, reason);
        } else {
            self.fill(core);
        }
    }

    /// A link stands that was offered before the agent was told to stop: what came with the 101 is served, and the link goes.
    fn stands_too_late(&mut self, core: &mut Core, token: Token, link: usize) {
        let now = core.now;
        self.links.stands(link, now);
        if let Some(peer) = core.tell(token) {
            peer.conn.leave(now, peer.output.vec());
        }
    }

    fn link_stands(&mut self, core: &mut Core, link: usize) {
        let now = core.now;
        self.links.stands(link, now);
        // One that serves a request on each link is not down in between.
        if std::mem::replace(&mut self.up, true) {
            return;
        }
        if !self.announced {
            self.announced = true;
            log::info!("tunnel `{}` stands: {} -> {}", self.name, self.public_url, self.upstream.target());
            if !self.json {
                print_line(&self.public_url);
            }
        } else {
            log::info!("connected to the relay {} again", self.via.url);
        }
        let event = serde_json::json!({
            "event": "up", "url": self.public_url, "name": self.name, "upstream": self.upstream.target().to_string(),
        });
        self.event(&event);
    }

    /// One JSON object a line, where that was asked for.
    fn event(&self, event: &serde_json::Value) {
        if self.json {
            print_line(&event.to_string());
        }
    }

    /// Looks whether the relay turns connections by now.
    fn try_upgrade(&mut self, core: &mut Core) {
        if self.way != Way::Comet || self.links.is_stopping() {
            return;
        }
        let again = core.config.deadlines.upgrade_again;
        core.set_timer(again, UPGRADE);
        if self.polls.attempt.is_some_and(|link| self.links.is_pending(link)) {
            return;
        }
        let Some(address) = self.polls.address() else { return };
        let link = self.links.add(Arc::from([address]));
        self.polls.attempt = Some(link);
        if let Some(address) = self.links.next_address(link)
            && let Err(error) = self.dial_offer(core, link, address)
        {
            log::debug!("still polling: {error}");
            self.links.remove(link);
        }
    }

    fn upstream_address(&self) -> String {
        self.upstream.target().to_string()
    }

    /// A connection to the upstream for a request: one that rests, if it is the first that is tried, or a new one.
    fn connect(&mut self, core: &mut Core, id: usize, exchange: &mut Exchange, first: bool) -> Assign {
        // To its own upstream and to no other, whatever the authority of a CONNECT says.
        let conn = |now| match exchange.kind {
            Kind::Connect => Conn::tunnel(now),
            Kind::Http | Kind::Switch => Conn::client(now),
        };
        if first
            && exchange.kind != Kind::Connect
            && let Some(back) = self.upstream.take_idle(|back| core.peer(back).is_some_and(|peer| peer.can_be_asked()))
        {
            return Assign::Back(back);
        }
        let has_waited = self.upstream.is_starved();
        if !self.upstream.may_try(id) {
            // Whoever has waited longest is to have the next file, or has seen in this moment that there is none.
            return self.starve(core, id, exchange, false);
        }
        let mut failed = None;
        let reached = loop {
            let dialled = match self.upstream.reach(core.now, id, exchange.dialled) {
                Reach::Address(address) => Transport::dial(address)
                    .and_then(|socket| core.add(socket, Remote::Ip(address), conn(core.now), true)),
                Reach::Unix(path) if exchange.dialled == 0 => {
                    Transport::dial_unix(&path).and_then(|socket| core.add(socket, Remote::Unix, conn(core.now), true))
                }
                Reach::Hello => Ok(self.hello.connect(core, HELLO)),
                Reach::LookUp(place) => {
                    if let Some(place) = place
                        && let Err(error) = core.look_up(&place, LOOK_UP_UPSTREAM)
                    {
                        return Assign::Refuse(self.fault(exchange, &BackFault::Connect(error)));
                    }
                    wait_to_connect(core, id, exchange);
                    return Assign::Later;
                }
                Reach::Unix(_) | Reach::Nowhere => {
                    break Err(failed.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()));
                }
            };
            match dialled {
                Err(error) if is_out_of_files(&error) && self.has_open(core) => {
                    self.say_starved(core, &error);
                    return self.starve(core, id, exchange, has_waited);
                }
                _ => exchange.dialled += 1,
            }
            match dialled {
                Ok(back) => break Ok(back),
                // The next address may do.
                Err(error) => failed = Some(error),
            }
        };
        match reached {
            Ok(back) => {
                let (idle, patience) = (core.config.deadlines.keepalive, core.config.deadlines.write);
                if let Some(peer) = core.peer(back) {
                    peer.transport().watch(idle, patience);
                    peer.key = UPSTREAM;
                    peer.seat = Seat::Own;
                }
                Assign::Back(back)
            }
            Err(error) => {
                let fault = self.fault(exchange, &BackFault::Connect(error));
                let answer = exchange.failure.take().unwrap_or(fault);
                log::warn!("request {}: {} ({})", exchange.number, answer.text, answer.code.name);
                Assign::Refuse(answer)
            }
        }
    }

    /// Whether a connection to the upstream is open, or being made or closed: in time it is of use to somebody else, or its file is.
    fn has_open(&self, core: &Core) -> bool {
        core.peers().any(|(_, peer)| peer.key == UPSTREAM)
    }

    /// The process may have no more files open, and so no connection for this request: it waits until one of the others has served,
    /// or is closed. `has_waited`: it was the first of those who do.
    fn starve(&mut self, core: &mut Core, id: usize, exchange: &Exchange, has_waited: bool) -> Assign {
        let Deadlines { connect, aside, .. } = core.config.deadlines;
        let of = if exchange.kind == Kind::Connect { Use::New } else { Use::Any };
        if let Some(back) = self.upstream.take_idle(|back| core.peer(back).is_some_and(|peer| peer.can_be_asked())) {
            if of == Use::Any {
                return Assign::Back(back);
            }
            core.drop_peer(back);
        }
        if exchange.lane == Lane::Aside && core.now.since(exchange.started) > aside + connect {
            // It has no front whose patience would end. Whoever asks for it yet is asked for it anew.
            return Assign::Refuse(self.fault(exchange, &BackFault::Late(Wait::Connect)));
        }
        wait_to_connect(core, id, exchange);
        if has_waited {
            self.upstream.starves_again(id, of);
        } else {
            self.upstream.starves(id, of);
        }
        self.try_again_later(core);
        Assign::Later
    }

    fn say_starved(&mut self, core: &Core, error: &io::Error) {
        if self.upstream.is_news(core.now, NO_NEWS) {
            log::warn!(
                "no more connections to the upstream {} can be made: {error}; requests wait (raise the limit with `ulimit -n`)",
                self.upstream_address()
            );
        }
    }

    /// Those who wait for a file try again.
    fn feed(&mut self, core: &mut Core, orders: &mut Vec<Order>) {
        if self.upstream.is_starved() {
            self.try_again_later(core);
            // The last order is followed first.
            orders.extend(self.upstream.starved().rev().map(Order::Assign));
        }
    }

    fn try_again_later(&mut self, core: &mut Core) {
        if self.upstream.look_again(core.now, FILES_AGAIN) {
            core.set_timer(FILES_AGAIN, STARVED);
        }
    }
}

/// A request waits for what it takes to connect the upstream, no longer than the connection itself may take.
fn wait_to_connect(core: &mut Core, id: usize, exchange: &Exchange) {
    let until = core.now + core.config.deadlines.connect;
    // Of several on a link, each waits when it is its turn; and who waits already, no longer than it does.
    let is_new = |front: &&mut Peer| front.seat == Seat::Exchange(id) && front.wait.is_none();
    if let Some(front) = core.peer(exchange.front).filter(is_new) {
        front.wait = Some((until, Wait::Connect));
        core.touch(exchange.front);
    }
}

impl Side for Agent {
    const PROGRAM: &'static str = "ptth-reverse";
    const RESETS_BACKS: bool = false;

    fn accepted(&mut self, _: &mut Core, _: Token, _: Door, _: &mut Vec<Order>) {}

    /// The relay has settled what it passes on.
    fn switches(&self, _: &[u8]) -> bool {
        true
    }

    fn connects(&self) -> Result<(), Answer> {
        match self.upstream.target() {
            Target::Hello => {
                let text = "The agent's upstream is its built-in page (`hello`), which speaks nothing but HTTP.";
                Err(Answer::new(Code::CONNECT, text))
            }
            Target::Place(_) => Ok(()),
        }
    }

    fn assign(&mut self, core: &mut Core, id: usize, exchange: &mut Exchange) -> Assign {
        let first = exchange.tries == 0 && exchange.dialled == 0 && exchange.failure.is_none();
        if first
            && self.links.is_busy(exchange.key)
            && let Some(front) = core.peer(exchange.front)
        {
            // More links than are needed: this one goes with its answer, so that no request can meet its end.
            front.conn.do_not_keep();
        }
        let assigned = self.connect(core, id, exchange, first);
        if first {
            // A request that is there goes before those to come: of the last file, too.
            self.fill(core);
        }
        assigned
    }

    fn forget(&mut self, id: usize, _: &Exchange) {
        self.upstream.forget(id);
    }

    fn has_room(&self) -> bool {
        !self.upstream.is_starved()
    }

    fn release(&mut self, core: &mut Core, back: Token, orders: &mut Vec<Order>) {
        let until = core.now + core.config.deadlines.upstream_idle;
        let most = core.config.limits.upstream_idle;
        if let Some(peer) = core.peer(back) {
            peer.wait = Some((until, Wait::UpstreamIdle));
            self.upstream.connected(peer.remote);
        }
        if self.upstream.is_starved() {
            match self.upstream.next_starved() {
                Some(id) => orders.push(Order::Attach(id, back)),
                // Its file is wanted for another one.
                None => core.drop_peer(back),
            }
            return;
        }
        if !self.upstream.park(back, most) {
            core.drop_peer(back);
        }
    }

    fn agent(&self) -> u64 {
        self.me
    }

    fn told_by_relay(&mut self, core: &mut Core) {
        if let Some(wanted) = wanted(&core.head) {
            self.links.want(wanted);
            self.fill(core);
        }
    }

    fn taken_up(&mut self, core: &mut Core, exchange: &Exchange) {
        if self.links.is_busy(exchange.key)
            && let Some(front) = core.peer(exchange.front)
        {
            front.conn.do_not_keep();
        }
        self.fill(core);
    }

    fn front_kept(&mut self, core: &mut Core, front: Token) {
        let now = core.now;
        if let Some(peer) = core.peer(front) {
            self.links.is_idle(peer.key, now);
        }
    }

    fn claim(&mut self, _: &mut Core, _: Token, _: Framing, _: &mut Vec<Order>) -> Claim {
        Claim::No
    }

    fn is_owed(&self) -> bool {
        // What was offered may be taken yet, with a request behind it.
        self.polls.is_owed() || self.way == Way::Flip && self.links.pending() > 0
    }

    fn offer(&mut self, _: &mut Core, _: Token, _: &mut Vec<Order>) -> Option<Answer> {
        None
    }

    fn own(&mut self, core: &mut Core, token: Token, orders: &mut Vec<Order>) {
        let now = core.now;
        let Some((peer, head, config)) = core.hear(token) else { return };
        match peer.key {
            HELLO => self.hello.step(core, token),
            // Nothing may come on an idle connection but its end; either way it is of no more use.
            UPSTREAM => match peer.conn.recv(now, peer.input.bytes(), head, config) {
                Ok((_, None)) if !peer.eof => {}
                _ => core.drop_peer(token),
            },
            polls::FAR => self.step_far(core, token),
            polls::ANSWER => self.step_answer(core, token),
            link if self.polls.is_line(link) => self.step_line(core, token, link),
            _ => self.handshake(core, token, orders),
        }
    }

    fn own_lost(&mut self, core: &mut Core, token: Token, loss: Loss, _: &mut Vec<Order>) {
        let Some(peer) = core.peer(token) else { return };
        let (link, connecting) = (peer.key, peer.is_connecting());
        if matches!(link, HELLO | UPSTREAM) {
            return core.drop_peer(token);
        }
        if matches!(link, polls::FAR | polls::ANSWER) || !connecting && self.polls.is_line(link) {
            return self.lost_polling(core, token, link, loss);
        }
        if self.way == Way::Comet && !self.polls.is_line(link) {
            // It was only to see whether the upgrade can be had by now.
            peer.key = crate::peer::NO_KEY;
            core.drop_peer(token);
            return self.links.remove(link);
        }
        // The peer goes, and the link's place lives on for the next address.
        peer.key = crate::peer::NO_KEY;
        core.drop_peer(token);
        if self.links.is_stopping() {
            return self.links.remove(link);
        }
        match loss {
            Loss::Io(error) | Loss::Deaf(error) if connecting => self.dial_next(core, link, Some(error)),
            Loss::Late(_) if connecting => self.dial_next(core, link, Some(io::ErrorKind::TimedOut.into())),
            Loss::Io(error) | Loss::Deaf(error) => {
                self.links.remove(link);
                self.dial_failed(core, &plain(&error));
            }
            Loss::Late(_) => {
                self.links.remove(link);
                let seconds = core.config.deadlines.upgrade.as_secs();
                let reason = format!("the relay {} did not answer within {seconds} s", self.via.url);
                self.failed(core, Ended::Unreachable, &reason);
            }
        }
    }

    fn gone(&mut self, core: &mut Core, token: Token, peer: Peer, orders: &mut Vec<Order>) {
        if peer.twin == Twin::None {
            // Its file is closed before these are followed.
            self.feed(core, orders);
        }
        match peer.key {
            crate::peer::NO_KEY => {}
            HELLO => self.hello.gone(token),
            UPSTREAM if matches!(peer.wait, Some((_, Wait::UpstreamIdle))) => self.upstream.gone(token),
            UPSTREAM => {}
            _ if peer.twin != Twin::None => self.polling_gone(core, token, &peer),
            polls::ANSWER => self.polling_gone(core, token, &peer),
            link if self.polls.is_line(link) => self.polling_gone(core, token, &peer),
            link => {
                let reason = format!("the relay {} has closed the link", self.via.url);
                self.link_lost(core, link, &reason);
            }
        }
    }

    fn target<'a>(&self, exchange: &'a Exchange) -> Cow<'a, [u8]> {
        Cow::Borrowed(exchange.head.target())
    }

    fn request_fields(&self, exchange: &Exchange, fields: &mut FieldWriter<'_>) {
        let head = &exchange.head;
        // draft-lentczner-rhttp leaves it out, and no upstream takes HTTP/1.1 without it.
        let asked = head.fields.first(Name::Host).unwrap_or_default();
        fields.known(HOST, &[self.host_header.as_ref().map_or(asked, String::as_bytes)]);
        pass_on(exchange, fields, |_| true);
    }

    fn fault(&self, _: &Exchange, fault: &BackFault) -> Answer {
        let (name, upstream) = (&self.name, self.upstream_address());
        let at = format!("The agent `{name}` is connected, but its upstream {upstream}");
        let (code, text) = match fault {
            BackFault::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused => (
                Code::UPSTREAM_REFUSED,
                format!("{at} refuses connections: nothing listens there. Is the server on that port running?"),
            ),
            BackFault::Connect(error) if error.kind() == io::ErrorKind::NotFound => {
                (Code::UPSTREAM_UNREACHABLE, format!("{at} is not there: {}.", plain(error)))
            }
            BackFault::Connect(error) => {
                (Code::UPSTREAM_UNREACHABLE, format!("{at} can't be reached: {}.", plain(error)))
            }
            BackFault::Late(Wait::Connect) if self.upstream.is_starved() => (
                Code::UPSTREAM_CONNECT_TIMEOUT,
                format!(
                    "{at} could not be connected in time (--timeout connect): the agent has as many files open as it may."
                ),
            ),
            BackFault::ConnectLate | BackFault::Late(Wait::Connect) => (
                Code::UPSTREAM_CONNECT_TIMEOUT,
                format!("{at} could not be connected in time (--timeout connect). Is the address right?"),
            ),
            BackFault::Lost(_) => {
                (Code::UPSTREAM_LOST, format!("{at} closed the connection before its answer was complete."))
            }
            BackFault::Late(_) => (Code::UPSTREAM_TIMEOUT, format!("{at} did not answer in time (--timeout answer).")),
            BackFault::Protocol(error @ (Error::Peer(_) | Error::Limit(_))) => (
                Code::UPSTREAM_PROTOCOL,
                format!("{at} gave an answer that was not passed on: it {error} ({}).", error.code()),
            ),
            BackFault::Protocol(error) => (Code::UPSTREAM_PROTOCOL, format!("{at} {error}.")),
        };
        Answer::new(code, text)
    }

    /// The relay says who asks: on a link, every visitor comes from the relay's own address.
    fn visitor<'a>(&self, exchange: &'a Exchange) -> Visitor<'a> {
        // The first of a list is the visitor, those behind it are proxies; and what is no word would be two columns.
        let visitor = exchange.head.fields.list(Name::XForwardedFor).next();
        match visitor.filter(|visitor| visitor.iter().all(u8::is_ascii_graphic)) {
            Some(visitor) => Visitor::Named(visitor),
            None => Visitor::At(exchange.visitor),
        }
    }

    fn tunnel<'a>(&'a self, _: &'a Exchange) -> &'a str {
        &self.name
    }

    fn timer(&mut self, core: &mut Core, key: usize, orders: &mut Vec<Order>) {
        match key {
            STARVED => {
                self.feed(core, orders);
                return self.fill(core);
            }
            RESUME => return self.resume_lines(core),
            STANDS => return self.held_lines_stand(core),
            UPGRADE => return self.try_upgrade(core),
            _ => {}
        }
        if key == SHRINK {
            let (now, spare) = (core.now, core.config.deadlines.spare);
            self.links.shrink(now, spare);
            let rested: Vec<Token> = core
                .peers()
                .filter(|(_, peer)| peer.seat == Seat::Front && peer.twin == Twin::None && self.links.may_go(peer.key))
                .map(|(token, _)| token)
                .collect();
            // Lines go by themselves, when their polls are over.
            for token in rested {
                if let Some(peer) = core.tell(token) {
                    peer.conn.leave(now, peer.output.vec());
                }
            }
            core.set_timer(spare, SHRINK);
        } else {
            self.links.rested();
            self.fill(core);
        }
    }

    fn message(&mut self, core: &mut Core, message: Message, orders: &mut Vec<Order>) {
        let Message::Resolved(id, found) = message else { return };
        if id == LOOK_UP_RELAY {
            self.links.looked_up();
            match (found, self.links.wanted()) {
                (Ok(addresses), Dial::Now(wanted)) => self.dial_links(core, wanted, &addresses.into()),
                (Ok(_), Dial::Not) => {}
                (Err(error), _) => self.dial_failed(core, &format!("its name can't be looked up: {error}")),
            }
            return;
        }
        let (waited, failed) = self.upstream.resolved(core.now, found);
        let failure = failed.map(|error| {
            let text = format!(
                "The agent `{}` is connected, but the name of its upstream {} can't be looked up: {error}.",
                self.name,
                self.upstream_address()
            );
            Answer::new(Code::UPSTREAM_NAME, text)
        });
        // The last order is followed first.
        for waiting in waited.into_iter().rev() {
            orders.push(match &failure {
                None => Order::Assign(waiting),
                Some(answer) => Order::Answer(waiting, answer.clone()),
            });
        }
    }

    fn is_kept(&self, _: Token) -> bool {
        false
    }

    fn keeps_its_door_open(&self) -> bool {
        false
    }

    fn is_out(&self, _: &mut Core, _: Token) -> bool {
        true
    }

    fn stop(&mut self, core: &mut Core, _: &mut Vec<Order>) {
        self.links.stop();
        if let Some(relay) = &self.companion {
            relay.send(Message::Stop);
        }
        self.event(&serde_json::json!({ "event": "stopping" }));
        self.stop_polling(core);
        let of_polls = |key: usize| matches!(key, HELLO | polls::FAR | polls::ANSWER) || self.polls.is_line(key);
        let own: Vec<Token> =
            core.peers().filter(|(_, p)| p.seat == Seat::Own && !of_polls(p.key)).map(|(token, _)| token).collect();
        let until = core.now + core.config.deadlines.linger;
        for token in own {
            match core.peer(token) {
                // The relay may have taken the offer already, and sent a request behind it.
                Some(peer) if self.way == Way::Flip && peer.key != UPSTREAM && peer.written > 0 => {
                    peer.wait = Some((until, Wait::Leave));
                    core.touch(token);
                }
                _ => core.drop_peer(token),
            }
        }
    }

    fn stop_at_once(&mut self) {
        if let Some(relay) = &self.companion {
            relay.send(Message::StopAtOnce);
        }
    }

    fn drain(&mut self, _: &mut Core, _: &mut Vec<Order>) {}

    fn says_farewell(&self) -> bool {
        // It goes by links, on which each relay is told so.
        false
    }

    fn is_alone(&self) -> bool {
        true
    }

    fn is_last(&self, _: &Exchange) -> bool {
        false
    }

    fn back_silent(&mut self, _: &mut Core, _: &Exchange) {}

    fn front_silent(&mut self, core: &mut Core, front: Token) {
        let seconds = core.config.deadlines.silence.as_secs_f32();
        let Some(peer) = core.peer(front) else { return };
        let link = std::mem::replace(&mut peer.key, crate::peer::NO_KEY);
        core.drop_peer(front);
        let reason = format!("the relay {} was silent on an idle link for {seconds} s", self.via.url);
        log::warn!("a link is closed: {reason} (--timeout silence)");
        self.link_lost(core, link, &reason);
    }

    fn exit(&self) -> Option<u8> {
        self.ended.map(|ended| ended as u8)
    }
}

/// Whether an offer was answered as polls are.
fn is_like_a_poll(head: &Head) -> bool {
    matches!(head.status(), 200..300) && (head.fields.is_json() || head.fields.has(Name::PtthAccept))
}

/// What a relay's answer tells its user: to an offer, any but a 101.
fn refusal(status: u16, offered: bool) -> String {
    let advice = match status {
        200..=299 => "is that a ptth relay, and is nothing in between that takes the upgrade away?",
        300..=399 => "it points elsewhere: give that address with --via",
        400 => "it does not take the tunnel's name: give another one with --name",
        401 => "it wants a credential that it knows: give it with --token-file",
        403 => "the credential (--token-file) is not one for this name (--name)",
        404 | 405 | 501 => "is that a ptth relay, and is the address right?",
        429 => "it has had too many attempts",
        502 | 504 => "something in front of the relay can't reach it",
        503 => "it has as many tunnels as it may have, or something in front of it can't reach it",
        _ => "is that a ptth relay?",
    };
    let instead = if offered { " instead of 101" } else { "" };
    format!("answered {status}{instead}: {advice}")
}

/// An error of the system in the words that people know, without its number.
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "nothing listens there (connection refused)".into(),
        io::ErrorKind::TimedOut => "no answer to the connection attempt".into(),
        io::ErrorKind::ConnectionReset => "the connection was reset".into(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "no route to that address".into(),
        io::ErrorKind::NotFound => "no such socket".into(),
        io::ErrorKind::AddrNotAvailable => "it has no address that can be dialled".into(),
        _ => error.to_string(),
    }
}

/// Prints a line to stdout: the one place that does. A reader that has gone away is no reason to stop serving.
fn print_line(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
