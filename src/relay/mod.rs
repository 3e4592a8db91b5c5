//! The public side: visitors and agents on one port. Fronts are visitors, backs are links; which tunnel a visitor means is
//! settled by [`route`], who can serve it by [`registry`].

pub mod agents;
pub mod counts;
mod links;
mod porter;
mod queues;
pub mod registry;
pub mod route;
mod text;
pub mod workers;

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use mio::Token;
use ptth_proto::conn::Config;
use ptth_proto::error::Error;
use ptth_proto::http::framing::Framing;
use ptth_proto::limits::{Limits, Wait, bypasses_of_loop, descriptors_kept};
use ptth_proto::wire::fields::{Label, Name};
use ptth_proto::wire::head::{FieldWriter, Head, split_port};

use crate::answer::{Answer, Code};
use crate::bridge::exchange::{Exchange, Intake, Kind, Lane};
use crate::bridge::line::agent_of;
use crate::bridge::{Assign, BackFault, Bridge, Claim, Order, Side, is_http10, pass_on};
use crate::log::{AccessLog, Visitor};
use crate::net;
use crate::net::guests::{Guests, Most};
use crate::net::name::TunnelName;
use crate::peer::{NO_KEY, Peer, Seat};
use crate::reactor::{Core, Door, Loss, Message, Reactor};
use agents::Access;
use counts::Counts;
use links::{has_waited, suits_a_line};
use porter::Porter;
use queues::{Carriage, Passed, Queues, Secrets};
use registry::{Registry, Taken, Waiting};
use text::Text;
use workers::{Directory, Word, Workers};

/// What a relay is told.
#[derive(Debug)]
pub struct Settings {
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Where it takes connections in that speak anything, and for which tunnel.
    pub services: Vec<Service>,
    /// Protocols that visitors may go on with by `Upgrade`.
    pub upgrades: Vec<String>,
    /// The domain whose names are tunnels, in lower case.
    pub domain: String,
    /// Event loops, each on a thread of its own.
    pub workers: usize,
    /// Peers whose forwarding fields are believed.
    pub trusted: Vec<IpNet>,
    /// Limits and deadlines.
    pub config: Config,
    /// One line for each exchange, for each worker.
    pub access_logs: Vec<AccessLog>,
    /// Who may claim names.
    pub agents: Access,
    /// What it does for agents that poll.
    pub polling: Polling,
}

/// A port of which each connection goes through a tunnel, byte by byte.
#[derive(Clone, Debug)]
pub struct Service {
    /// Where it is.
    pub listen: SocketAddr,
    /// The tunnel.
    pub name: TunnelName,
}

/// What a relay does for agents that poll.
#[derive(Clone, Debug, Default)]
pub struct Polling {
    /// No connection is turned: an agent that offers it is given messages.
    pub no_upgrade: bool,
    /// The path below which the queues are, without a slash at its end.
    pub prefix: String,
    /// Stock agents of the `ptth` dialect get query strings too.
    pub query: bool,
}

/// What each request is given on its way.
const HOST: Label = Label::new("Host");
const X_FORWARDED_FOR: Label = Label::new("X-Forwarded-For");
const X_FORWARDED_PROTO: Label = Label::new("X-Forwarded-Proto");
const X_FORWARDED_HOST: Label = Label::new("X-Forwarded-Host");
const FORWARDED: Label = Label::new("Forwarded");
const VIA: Label = Label::new("Via");

/// A tunnel whose last link is gone is only said to be down after a moment: agents that serve one request for each
/// connection, and links that are replaced, come back at once.
const DOWN_AFTER: Duration = Duration::from_secs(2);

/// Workers that may hand a request on before it waits where it is: two that each believe that the other has a link must not
/// play ball with it.
const MOST_HOPS: usize = 2;

/// The relay's side of the bridge.
#[derive(Debug)]
pub struct Relay {
    domain: String,
    trusted: Vec<IpNet>,
    access: Access,
    polling: Polling,
    /// Of each service, what an agent is asked for.
    services: Vec<String>,
    upgrades: Vec<String>,
    tunnels: Registry,
    queues: Queues,
    workers: Workers,
    porter: Porter,
    counts: Counts,
    /// Other workers that may hand requests over: no worker ends before all have had their farewell.
    others_here: usize,
}

/// One event loop of a relay.
pub type Worker = Reactor<Bridge<Relay>>;

/// Starts to listen, in a process that may have so many files open. Gives the loops to be run, each on its own thread, and where
/// they listen.
///
/// # Errors
/// In one sentence for the person who started it.
pub fn start(settings: Settings, files: usize) -> Result<(Vec<Worker>, Vec<SocketAddr>), String> {
    let Settings { listen, services, upgrades, domain, workers, trusted, mut config, access_logs, agents, polling } =
        settings;
    let directory = Arc::new(Directory::default());
    let guests = Arc::new(Guests::new(most_guests(&config.limits, files)));
    // Each worker has its share of what can't be looked up elsewhere for each request.
    config.limits.memory = (config.limits.memory / workers).max(1);
    config.limits.waiting_all = config.limits.waiting_all.div_ceil(workers);
    let mut reactors = Vec::new();
    for (me, access_log) in access_logs.into_iter().enumerate().take(workers) {
        let relay = Relay {
            domain: domain.clone(),
            trusted: trusted.clone(),
            access: agents.clone(),
            polling: polling.clone(),
            services: Vec::new(),
            upgrades: upgrades.clone(),
            tunnels: Registry::new(config.limits.tunnels, config.limits.links),
            queues: Queues::new(me, Secrets::new()?),
            workers: Workers::new(Arc::clone(&directory), me),
            porter: Porter::new(Arc::clone(&guests)),
            counts: Counts::default(),
            others_here: workers - 1,
        };
        let bridge = Bridge::numbered(relay, access_log, me as u64 + 1, workers as u64);
        let reactor = Reactor::new(bridge, config.clone());
        let mut reactor = reactor.map_err(|error| format!("no event loop: {error}"))?;
        reactor.core.pool.allow_bypasses(bypasses_of_loop(files, workers));
        reactors.push(reactor);
    }
    Workers::introduce(&directory, reactors.iter().map(|reactor| reactor.core.mailbox()).collect());
    let mut at = Vec::new();
    for address in listen {
        at.push(
            listen_on(&mut reactors, address, Door::Http)
                .map_err(|error| cannot_listen("--listen", address, &error))?,
        );
    }
    for (number, Service { listen, name }) in services.into_iter().enumerate() {
        let at = listen_on(&mut reactors, listen, Door::Tunnel(number));
        let at = at.map_err(|error| cannot_listen("--tcp", listen, &error))?;
        log::info!("tcp://{at} is the tunnel `{name}`");
        let asked = format!("{name}.{domain}:{}", at.port());
        for reactor in &mut reactors {
            reactor.app.side.services.push(asked.clone());
        }
    }
    Ok((reactors, at))
}

/// How many visitors there may be.
fn most_guests(limits: &Limits, files: usize) -> Most {
    let room = files.saturating_sub(descriptors_kept(files)).max(1);
    let all = limits.connections.min(room);
    log::debug!("room for {all} connections of visitors ({files} files may be open)");
    Most { all, of_address: limits.address_connections, surplus: limits.surplus }
}

/// Runs the loops until the process is told to stop: the first on this thread, each other one on its own. Gives what the
/// process is to exit with.
///
/// # Errors
/// In one sentence for the person who started it.
pub fn run(reactors: Vec<Worker>) -> Result<u8, String> {
    let failed = |error: io::Error| format!("the event loop failed: {error}");
    let mut reactors = reactors.into_iter();
    let first = reactors.next();
    let others = reactors
        .map(|mut reactor| {
            let run = move || reactor.run().map(|_| sum_up(&reactor));
            let spawned = thread::Builder::new().name("worker".into()).spawn(run);
            spawned.map_err(|error| format!("no thread for a worker: {error}"))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let (mut code, mut counts) = (0, Counts::default());
    if let Some(mut first) = first {
        code = first.run().map_err(failed)?;
        counts.add(&sum_up(&first));
    }
    for other in others {
        match other.join() {
            Ok(done) => counts.add(&done.map_err(failed)?),
            Err(_) => return Err("a worker has panicked".into()),
        }
    }
    log::debug!("counts: {counts}");
    Ok(code)
}

/// What a worker has counted so far.
fn sum_up(worker: &Worker) -> Counts {
    let relay = &worker.app.side;
    Counts {
        connections_now: worker.core.peers().filter(|(_, peer)| peer.pass.is_some()).count() as u64,
        requests_now: worker.app.under_way() as u64,
        waiting: relay.tunnels.all_waiting() as u64,
        buffered: (worker.core.buffered() + relay.queues.bytes()) as u64,
        ..relay.counts.clone()
    }
}

/// Listens with all workers on one address.
fn listen_on(reactors: &mut [Worker], address: SocketAddr, door: Door) -> io::Result<SocketAddr> {
    if let [only] = reactors {
        return only.core.listen(address, false, door);
    }
    // A port that is shared can be shared with another process, unnoticed: so first see whether it can be had alone.
    let mut at = net::listen(address, false, Duration::from_secs(1), Duration::from_secs(1))?.local_addr()?;
    for reactor in reactors {
        at = reactor.core.listen(at, true, door)?;
    }
    Ok(at)
}

fn cannot_listen(flag: &str, address: SocketAddr, error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there; stop it or choose another address with",
        io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege; choose another one with",
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address; choose another one with",
        _ => return format!("can't listen on {address}: {error}"),
    };
    format!("can't listen on {address}: {advice} {flag}")
}

impl Side for Relay {
    const PROGRAM: &'static str = "ptth-relay";
    const RESETS_BACKS: bool = true;

    fn accepted(&mut self, core: &mut Core, token: Token, door: Door, orders: &mut Vec<Order>) {
        if !self.let_in(core, token, door) {
            return core.drop_peer(token);
        }
        let Door::Tunnel(service) = door else { return };
        let Some(asked) = self.services.get(service) else { return core.drop_peer(token) };
        let text = format!("CONNECT {asked} HTTP/1.1\r\nHost: {asked}\r\n\r\n");
        let mut head = Box::<Head>::default();
        match head.parse_request(text.as_bytes(), &core.config.limits) {
            Ok(()) => orders.push(Order::Begin(token, Framing::Empty, head)),
            Err(error) => {
                log::error!("a tunnel could not be asked for: the request {error}");
                core.drop_peer(token);
            }
        }
    }

    fn switches(&self, token: &[u8]) -> bool {
        self.upgrades.iter().any(|allowed| allowed == "*" || token.eq_ignore_ascii_case(allowed.as_bytes()))
    }

    fn connects(&self) -> Result<(), Answer> {
        let text = "This port carries HTTP requests; for other protocols a relay has ports of their own (--tcp).";
        Err(Answer::new(Code::CONNECT, text))
    }

    fn is_full(&mut self, core: &Core) -> Option<Answer> {
        self.has_no_memory(core)
    }

    fn handed_over(&mut self, exchange: &Exchange) {
        self.tunnels.end(exchange.tunnel);
    }

    fn ended(&mut self, core: &Core, exchange: &Exchange) {
        self.counts.requests += 1;
        self.counts.bytes_in += exchange.bytes_in;
        self.counts.bytes_out += exchange.bytes_out;
        self.judge(core, exchange);
        self.tunnels.end(exchange.tunnel);
    }

    fn waiting(&self, exchange: &Exchange) -> usize {
        self.tunnels.waiting(exchange.tunnel)
    }

    fn was_set_aside(&mut self, exchange: &Exchange) {
        self.tunnels.was_slow(exchange.tunnel);
    }

    fn told(&mut self, code: Code) {
        self.counts.told(code);
    }

    fn assign(&mut self, core: &mut Core, id: usize, exchange: &mut Exchange) -> Assign {
        if exchange.tunnel == NO_KEY {
            if let Some(answer) = self.may_not_begin(core, exchange) {
                return Assign::Refuse(answer);
            }
            let routed = route::route(&exchange.head, self.domain.as_bytes());
            let Some(tunnel) = self.tunnels.find_or_make(routed.name.as_str()) else {
                let text = "This relay has as many tunnels as it may have; try again later.";
                return Assign::Refuse(Answer::new(Code::TOO_MANY_TUNNELS, text));
            };
            exchange.tunnel = tunnel;
            exchange.cut = routed.cut;
            exchange.intake = Intake::Due;
            if self.tunnels.begin(tunnel) > core.config.limits.tunnel_requests {
                let name = self.tunnels.name(tunnel);
                let text = format!("The tunnel `{name}` has as many requests as it may have; try again later.");
                self.porter.is_hit(core.now, "tunnel-requests", || format!("tunnel `{name}` has too many requests"));
                return Assign::Refuse(Answer::new(Code::TUNNEL_BUSY, text));
            }
        }
        let tunnel = exchange.tunnel;
        exchange.lane = Lane::Own;
        let in_line = self.may_stand_in_line(core, exchange);
        // For one that has waited, a link is free.
        let waited = core.peer(exchange.front).is_some_and(|front| has_waited(front));
        if in_line
            && !waited
            && let Some(link) = self.line(core, tunnel)
        {
            exchange.lane = Lane::Ahead;
            return Assign::Back(link);
        }
        let has_it = exchange.aside.as_deref().and_then(agent_of).map(|(agent, _)| agent);
        let has_it = has_it.filter(|agent| self.tunnels.knows(tunnel, *agent));
        if has_it.is_some() {
            // Another agent would have to ask its upstream anew.
            let leads_there = |core: &mut Core, link| core.peer(link).is_some_and(|peer| peer.agent == has_it);
            let link = self.tunnels.take_idle_of(tunnel, |link| leads_there(core, link) && is_free(core, link));
            if let Some(link) = link {
                self.tunnels.gives(tunnel, link);
                return Assign::Back(link);
            }
        } else if let Some(link) = self.tunnels.take_idle(tunnel, |link| is_free(core, link)) {
            if in_line && core.peer(link).is_some_and(|peer| peer.conn.can_pipeline()) {
                exchange.lane = Lane::Ahead;
                self.tunnels.open_line(tunnel, link);
            }
            self.tunnels.gives(tunnel, link);
            return Assign::Back(link);
        }
        if in_line
            && waited
            && let Some(link) = self.line(core, tunnel)
        {
            exchange.lane = Lane::Ahead;
            return Assign::Back(link);
        }
        if has_it.is_none() && self.has_poll(tunnel) {
            return Assign::Back(self.open_pipe(core, tunnel));
        }
        if self.workers.are_several()
            && self.tunnels.links(tunnel) == 0
            && exchange.hops < MOST_HOPS
            && let Some(mailbox) = self.workers.who_has(self.tunnels.name(tunnel))
        {
            return Assign::Elsewhere(mailbox);
        }
        if exchange.kind == Kind::Connect && !self.tunnels.is_up(tunnel) {
            // Nobody who speaks another protocol knows what a silent connection is to mean.
            return Assign::Refuse(self.late(tunnel, Wait::Link));
        }
        // Who has been let in once, and lost its link, waits again whatever the crowd.
        let is_new = exchange.tries == 0;
        if is_new && self.tunnels.waiting(tunnel) + self.letters_waiting(tunnel) >= core.config.limits.waiting {
            let name = self.tunnels.name(tunnel);
            let text = format!("Too many requests wait for a link of the tunnel `{name}` already; try again later.");
            self.porter
                .is_hit(core.now, "waiting", || format!("too many requests wait for a link of the tunnel `{name}`"));
            return Assign::Refuse(Answer::new(Code::TUNNEL_BUSY, text));
        }
        if is_new && self.tunnels.all_waiting() >= core.config.limits.waiting_all {
            self.porter.is_hit(core.now, "waiting-all", || "too many requests wait for links".into());
            let text = "Too many requests wait for links at this relay already; try again later.";
            return Assign::Refuse(Answer::new(Code::RELAY_BUSY, text));
        }
        // To be asked for again is a wait of its own.
        let since = if exchange.aside.is_some() { core.now } else { exchange.started };
        let until = since + core.config.deadlines.link;
        if let Some(front) = core.peer(exchange.front) {
            front.wait = Some((until, Wait::Link));
        }
        core.step_again(exchange.front);
        self.tunnels
            .wait(tunnel, Waiting { id, since: exchange.started, agent: has_it, may_line: suits_a_line(exchange) });
        if has_it.is_none() && self.tunnels.waiting_for_any(tunnel) == 1 {
            self.begins_to_wait(tunnel);
        }
        self.tell_of_waiting(core, tunnel);
        Assign::Later
    }

    fn forget(&mut self, id: usize, exchange: &Exchange) {
        if self.tunnels.forget(exchange.tunnel, id) {
            self.waits_no_more(exchange.tunnel);
        }
    }

    fn release(&mut self, core: &mut Core, back: Token, orders: &mut Vec<Order>) {
        match core.peer(back).map(|peer| peer.key) {
            Some(queues::NEAR) => self.pipe_is_idle(core, back),
            Some(tunnel) => {
                self.tunnels.close_line(tunnel, back);
                self.link_is_idle(core, tunnel, back, orders);
            }
            None => {}
        }
    }

    fn is_wanted(&self, core: &mut Core, back: Token) -> bool {
        core.peer(back).is_some_and(|link| self.tunnels.is_waited_for(link.key, link.agent))
    }

    fn front_kept(&mut self, _: &mut Core, _: Token) {}

    fn claim(&mut self, core: &mut Core, token: Token, framing: Framing, orders: &mut Vec<Order>) -> Claim {
        let claim = self.claim_request(core, token, framing, orders);
        if let Claim::Taken = claim
            && !self.is_undecided(token)
        {
            self.let_agent_in(core, token);
        }
        claim
    }

    fn is_owed(&self) -> bool {
        // An answer may come to any of the doors: none is closed before all messages are answered.
        self.workers.have_messages() || self.others_here > 0
    }

    fn is_kept(&self, front: Token) -> bool {
        self.queues.has_given(front)
    }

    fn offer(&mut self, core: &mut Core, token: Token, orders: &mut Vec<Order>) -> Option<Answer> {
        let Some(name) = route::name_of_offer(&core.head, self.polling.prefix.as_bytes()) else {
            return Some(bad_name());
        };
        if self.polling.no_upgrade {
            let carriage = Carriage::comet(&core.head);
            return match self.polled(core, token, name, carriage, Framing::Empty, orders) {
                Claim::Refuse(answer) => Some(answer),
                Claim::Taken | Claim::No => None,
            };
        }
        if let Err(denied) = self.access.admit(&core.head, name.as_str()) {
            return Some(agents::refusal(denied, name.as_str()));
        }
        let Some(tunnel) = self.tunnels.claim(name.as_str()) else {
            let text = "This relay has as many tunnels as it may have.";
            return Some(Answer::new(Code::TOO_MANY_TUNNELS, text));
        };
        self.has_had(core, token);
        let agent = core.head.fields.first(Name::PtthAside).and_then(agent_of).map(|(agent, _)| agent);
        if let Some(peer) = core.peer(token) {
            peer.agent = agent;
        }
        let to = self.workers.deal(name.as_str());
        if to != self.workers.me()
            && let Some(mailbox) = self.workers.mailbox(to)
            && let Some(peer) = core.detach(token)
        {
            self.tunnels.drop_unused(tunnel);
            mailbox.send(Message::Handed(peer, Box::new(name)));
            return None;
        }
        self.take_link(core, token, tunnel, orders);
        None
    }

    fn own(&mut self, core: &mut Core, token: Token, orders: &mut Vec<Order>) {
        match core.peer(token).map(|peer| peer.key) {
            Some(queues::FAR) => self.step_far(core, token, orders),
            Some(queues::POLL) => self.step_poll(core, token),
            Some(queues::COMING) => self.step_coming(core, token, orders),
            Some(_) => self.step_link(core, token, orders),
            None => {}
        }
    }

    fn own_lost(&mut self, core: &mut Core, token: Token, loss: Loss, orders: &mut Vec<Order>) {
        let Some(key) = core.peer(token).map(|peer| peer.key) else { return };
        if key >= queues::FAR {
            return self.lost_own(core, token, key, loss, orders);
        }
        self.lost_link(core, token, loss, orders);
    }

    fn gone(&mut self, core: &mut Core, token: Token, peer: Peer, orders: &mut Vec<Order>) {
        self.queue_peer_gone(core, token, &peer, orders);
        if peer.key >= queues::FAR {
            return;
        }
        self.workers.link_gone(self.tunnels.name(peer.key));
        self.tunnels.close_line(peer.key, token);
        if let Some(agent) = peer.agent {
            orders.extend(self.tunnels.agent_has_less(peer.key, agent).into_iter().map(Order::Assign));
        }
        if self.tunnels.remove_link(peer.key, |link| is_free(core, link)) {
            core.set_timer(DOWN_AFTER, peer.key);
        }
    }

    fn target<'a>(&self, exchange: &'a Exchange) -> Cow<'a, [u8]> {
        route::target(&exchange.head, exchange.cut)
    }

    fn request_fields(&self, exchange: &Exchange, fields: &mut FieldWriter<'_>) {
        let head = &exchange.head;
        let trusted = exchange.visitor.ip().is_some_and(|ip| self.is_trusted(ip));
        // Always a Host line: Node answers 400 without one. Empty, when the visitor of HTTP/1.0 named none.
        let host = route::authority(head);
        fields.known(HOST, &[host]);
        pass_on(exchange, fields, |known| trusted || !known.is_forwarding());
        let text = exchange.visitor.ip().map(Text::of);
        let visitor = text.as_ref().map_or(&b"unknown"[..], Text::as_bytes);
        let [open, close] = if visitor.contains(&b':') { [&b"\"["[..], b"]\""] } else { [&b""[..]; 2] };
        // What a trusted proxy has said, unless it said so to us alone.
        let known = |name| trusted && head.fields.end_to_end().any(|field| field.known == name);
        fields.known(X_FORWARDED_FOR, &[visitor]);
        if !known(Name::XForwardedProto) {
            fields.known(X_FORWARDED_PROTO, &[b"http"]);
        }
        if !known(Name::XForwardedHost) {
            fields.known(X_FORWARDED_HOST, &[host]);
        }
        fields.known(FORWARDED, &[b"for=", open, visitor, close, b";host=\"", host, b"\";proto=http"]);
        fields.known(VIA, &[if is_http10(head) { b"1.0 ptth-relay" } else { b"1.1 ptth-relay" }]);
    }

    fn fault(&self, exchange: &Exchange, fault: &BackFault) -> Answer {
        let name = self.tunnels.name(exchange.tunnel);
        let (code, text) = match fault {
            BackFault::Late(Wait::Link) if self.tunnels.links(exchange.tunnel) == 0 && self.is_stray(exchange) => (
                Code::NO_LINK,
                format!(
                    "The host `{}` is not under this relay's domain `{}` (--domain), so the request is for the tunnel \
                     `{name}`; and no agent is connected as that.",
                    String::from_utf8_lossy(route::authority(&exchange.head)),
                    self.domain
                ),
            ),
            BackFault::Late(wait) => return self.late(exchange.tunnel, *wait),
            BackFault::Protocol(error @ (Error::Peer(_) | Error::Limit(_))) => (
                Code::LINK_PROTOCOL,
                format!("The answer of the agent `{name}` was not passed on: it {error} ({}).", error.code()),
            ),
            BackFault::Connect(_) | BackFault::ConnectLate | BackFault::Lost(_) | BackFault::Protocol(_) => (
                Code::LINK_LOST,
                format!("The agent `{name}` took the request, and its link broke before the answer was complete."),
            ),
        };
        Answer::new(code, text)
    }

    fn visitor<'a>(&self, exchange: &'a Exchange) -> Visitor<'a> {
        Visitor::At(exchange.visitor)
    }

    fn tunnel<'a>(&'a self, exchange: &'a Exchange) -> &'a str {
        self.tunnels.name(exchange.tunnel)
    }

    fn timer(&mut self, core: &mut Core, key: usize, orders: &mut Vec<Order>) {
        if key == queues::OUT {
            return self.out_is_due(core, orders);
        }
        if key & queues::MAIL != 0 {
            return self.mail_is_due(core, key & !queues::MAIL, orders);
        }
        // All others are those of tunnels without a link.
        if let Some(name) = self.tunnels.settle_down(key)
            && self.workers.is_down(&name)
        {
            log::info!("tunnel `{name}` is down: no agent is connected");
        }
    }

    fn message(&mut self, core: &mut Core, message: Message, orders: &mut Vec<Order>) {
        match message {
            Message::Handed(peer, parcel) => match parcel.downcast::<TunnelName>() {
                Ok(name) => self.link_dealt(core, peer, &name, orders),
                Err(parcel) => {
                    if let Ok(passed) = parcel.downcast::<Passed>() {
                        self.passed(core, peer, *passed, orders);
                    }
                }
            },
            Message::Word(word) => {
                if let Ok(word) = word.downcast::<Word>() {
                    self.word(core, *word, orders);
                }
            }
            Message::Resolved(..) | Message::Stop | Message::StopAtOnce => {}
        }
    }

    fn keeps_its_door_open(&self) -> bool {
        self.workers.have_messages() || self.workers.have_polls()
    }

    fn is_out(&self, core: &mut Core, back: Token) -> bool {
        let far = core.peer(back).and_then(|peer| peer.twin.token());
        far.is_none_or(|far| self.letter_is_out(far))
    }

    fn stop(&mut self, _: &mut Core, _: &mut Vec<Order>) {
        // The signal reached one worker.
        for mailbox in self.workers.others() {
            mailbox.send(Message::Stop);
        }
    }

    fn stop_at_once(&mut self) {
        for mailbox in self.workers.others() {
            mailbox.send(Message::StopAtOnce);
        }
    }

    fn drain(&mut self, core: &mut Core, orders: &mut Vec<Order>) {
        self.stop_queues(core, orders);
        self.close_links(core);
        // Behind all that this worker has ever handed over.
        for mailbox in self.workers.others() {
            mailbox.send(Message::Word(Box::new(Word::Left)));
        }
    }

    fn says_farewell(&self) -> bool {
        true
    }

    fn is_alone(&self) -> bool {
        !self.workers.are_several()
    }

    fn is_last(&self, exchange: &Exchange) -> bool {
        // Each visitor may have one more request, and the links that are there have to do.
        self.tunnels.waiting(exchange.tunnel) == 0 && self.tunnels.has_parked(exchange.tunnel)
    }

    fn back_silent(&mut self, core: &mut Core, exchange: &Exchange) {
        self.ping_all(core, exchange.tunnel);
    }

    fn front_silent(&mut self, core: &mut Core, front: Token) {
        core.drop_peer(front);
    }

    fn exit(&self) -> Option<u8> {
        None
    }
}

impl Relay {
    /// Whether what a peer at this address says of others is believed.
    fn is_trusted(&self, ip: IpAddr) -> bool {
        self.trusted.iter().any(|net| net.contains(&ip))
    }

    /// Whether the request looks as if it meant another tunnel than `default`: its host has a name in front of a domain that is
    /// not ours.
    fn is_stray(&self, exchange: &Exchange) -> bool {
        let host = split_port(route::authority(&exchange.head)).map_or(&b""[..], |(host, _)| host);
        let ours = host.eq_ignore_ascii_case(self.domain.as_bytes());
        let address = std::str::from_utf8(host).is_ok_and(|host| host.parse::<std::net::Ipv4Addr>().is_ok());
        exchange.cut == 0
            && !ours
            && !address
            && host.contains(&b'.')
            && route::route(&exchange.head, self.domain.as_bytes()).name.as_str() == "default"
    }

    /// The page for a request whose time is over.
    fn late(&self, tunnel: usize, wait: Wait) -> Answer {
        let name = self.tunnels.name(tunnel);
        let (code, text) = match wait {
            Wait::Link if self.tunnels.links(tunnel) == 0 => (
                Code::NO_LINK,
                format!(
                    "No agent is connected to this relay as `{name}`, and none came while the request waited. Start one \
                     with `ptth-reverse PORT --via … --name {name}`, or look at its log."
                ),
            ),
            Wait::Link => (
                Code::LINKS_BUSY,
                format!(
                    "All links of the agent `{name}` are busy, and none was free while the request waited. Raise its \
                     `--links`, or start another agent under the same name."
                ),
            ),
            wait => (
                Code::LINK_TIMEOUT,
                format!(
                    "The agent `{name}` took the request and was silent for longer than it may be (--timeout {}). Its \
                     upstream may be slow, or the agent frozen.",
                    wait_name(wait)
                ),
            ),
        };
        Answer::new(code, text)
    }

    /// Takes an agent's connection as a link.
    fn take_link(&mut self, core: &mut Core, token: Token, tunnel: usize, orders: &mut Vec<Order>) {
        let now = core.now;
        let (keep_alive, patience) = (core.config.deadlines.keepalive, core.config.deadlines.write);
        let taken = self.tunnels.add_link(tunnel, |link| is_free(core, link));
        let Some(peer) = core.tell(token) else { return };
        if let Some(agent) = peer.agent {
            self.tunnels.agent_has_more(tunnel, agent);
        }
        peer.seat = Seat::Own;
        peer.key = tunnel;
        // Links are counted among their tunnel's.
        peer.pass = None;
        peer.wait = None;
        let name = self.tunnels.name(tunnel);
        if let Err(error) = peer.conn.accept(now, peer.output.vec()) {
            log::error!("an offer could not be answered: {error}");
            return core.drop_peer(token);
        }
        if peer.conn.is_ours() {
            peer.transport().watch(keep_alive, patience);
        } else {
            peer.transport().keep_alive(keep_alive);
        }
        let (remote, idle) = (peer.remote, peer.conn.is_idle());
        match taken {
            Taken::First if self.workers.is_up(name) => {
                log::info!("tunnel `{name}` is up: an agent has connected from {remote}")
            }
            Taken::First | Taken::More => log::debug!("tunnel `{name}`: another link, from {remote}"),
            Taken::InPlaceOf(old) => {
                log::info!("tunnel `{name}` has as many links as it may have: its oldest idle one is closed");
                core.drop_peer(old);
            }
        }
        if idle {
            self.link_is_idle(core, tunnel, token, orders);
        }
    }

    /// Takes a link that registered with another worker and was dealt to this one.
    fn link_dealt(&mut self, core: &mut Core, peer: Box<Peer>, name: &TunnelName, orders: &mut Vec<Order>) {
        let tunnel = self.tunnels.claim(name.as_str());
        match (tunnel, core.adopt(peer)) {
            (Some(tunnel), Ok(token)) => self.take_link(core, token, tunnel, orders),
            (_, token) => {
                self.workers.link_gone(name.as_str());
                if let Ok(token) = token {
                    core.drop_peer(token);
                }
            }
        }
    }

    /// Gives an idle link to the request that has waited longest, here or on another worker, or parks it.
    fn link_is_idle(&mut self, core: &mut Core, tunnel: usize, link: Token, orders: &mut Vec<Order>) {
        let agent = core.peer(link).and_then(|peer| peer.agent);
        match self.tunnels.next_waiting(tunnel, agent) {
            Some(Waiting { id, may_line, .. }) => {
                self.waits_no_more(tunnel);
                let can = core.peer(link).is_some_and(|peer| peer.conn.can_pipeline());
                if may_line && can && self.tunnels.may_line(tunnel) {
                    self.let_more_in(core, tunnel, orders);
                    self.tunnels.park_first(tunnel, link);
                    Relay::ping_later(core, link);
                    // Before those, for orders are followed from the last one.
                    orders.push(Order::Assign(id));
                } else {
                    orders.push(Order::Attach(id, link));
                }
            }
            None => {
                if let Some(near) = self.take_ready(tunnel) {
                    return orders.push(Order::Move(near, link));
                }
                self.rest(core, tunnel, link);
                if self.workers.are_several() {
                    self.workers.offer(self.tunnels.name(tunnel));
                }
            }
        }
    }

    /// A link of any worker would be taken here from now on.
    fn begins_to_wait(&self, tunnel: usize) {
        if self.workers.are_several() {
            self.workers.begin_to_wait(self.tunnels.name(tunnel));
        }
    }

    /// One of those who waited waits no more.
    fn waits_no_more(&mut self, tunnel: usize) {
        if !self.workers.are_several() {
            return;
        }
        if self.tunnels.waiting_for_any(tunnel) == 0 {
            self.workers.cease_to_wait(self.tunnels.name(tunnel));
        } else if let Some(fewer) = self.tunnels.are_fewer(tunnel) {
            self.workers.are_waiting(self.tunnels.name(tunnel), fewer);
        }
    }

    /// What another worker says.
    fn word(&mut self, core: &mut Core, word: Word, orders: &mut Vec<Order>) {
        match word {
            Word::Over => {}
            Word::Left => self.others_here = self.others_here.saturating_sub(1),
            Word::Wanted(name, by) => {
                let Some(tunnel) = self.tunnels.find(&name) else { return };
                let idle = self.tunnels.resting(tunnel, |link| is_free(core, link)) + self.polls(tunnel);
                if idle > 0
                    && let Some(mailbox) = self.workers.mailbox(by)
                {
                    mailbox.send(Message::Word(Box::new(Word::Send(name, self.workers.me(), idle))));
                }
            }
            Word::Send(name, to, most) => {
                let Some(tunnel) = self.tunnels.find(&name) else { return };
                let Some(mailbox) = self.workers.mailbox(to) else { return };
                let first = orders.len();
                for _ in 0..most {
                    let Some(Waiting { id, .. }) = self.tunnels.next_waiting(tunnel, None) else { break };
                    self.waits_no_more(tunnel);
                    orders.push(Order::HandOver(id, mailbox.clone()));
                }
                // Orders are followed from the last one.
                orders[first..].reverse();
            }
            Word::Tell(name) => {
                let Some(tunnel) = self.tunnels.find(&name) else { return };
                let wanted = self.workers.all_waiting(&name);
                if wanted > 0 {
                    self.say_wanted(core, tunnel, wanted);
                }
            }
        }
    }
}

fn bad_name() -> Answer {
    let text = "The first segment of the path that an agent posts to is its tunnel's name: 1 to 63 letters, digits, `-` and \
                `_`, or nothing for the tunnel `default`.";
    Answer::new(Code::BAD_NAME, text)
}

/// The name of a deadline as the command line has it: on a link, the wait for an answer is its own.
fn wait_name(wait: Wait) -> &'static str {
    if wait == Wait::Answer { "link-answer" } else { wait.name() }
}

/// Whether a parked link can take a request.
fn is_free(core: &mut Core, link: Token) -> bool {
    core.peer(link).is_some_and(|peer| peer.seat == Seat::Own && peer.can_be_asked())
}
