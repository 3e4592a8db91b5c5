//! An agent whose relay does not turn connections: it polls. What a poll brings is said at the far end of a pipe; the bridge has
//! the near end, as it has a link's, and knows nothing of polls. What the upstream answers comes back through the pipe and is
//! sent to the relay: in COMET with the next poll, all at once; in the `ptth` dialect as a request of its own, as it comes.
//!
//! ```text
//!   relay ──▶ poll's answer ──▶ far ═pipe═ near ──▶ bridge ──▶ upstream
//!   relay ◀── next request ◀─── far ═pipe═ near ◀── bridge ◀── upstream
//! ```
//!
//! A connection that polls is a *line*. It takes the place of a link in [`links`](super::links): idle while its poll is out,
//! busy while what it brought is being answered.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;

use mio::Token;
use ptth_proto::conn::{Body, Conn, Event};
use ptth_proto::http::framing::{Framing, content_length};
use ptth_proto::limits::Wait;
use ptth_proto::role::Role;
use ptth_proto::time::Instant;
use ptth_proto::wire::comet::{self, Message, Notation, Style};
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::{FieldWriter, Head};
use ptth_proto::wire::message::{Ask, end_to_end, to_base64};
use ptth_proto::wire::packed::{self, Form, MAGIC_FIELD};

use super::links::Size;
use super::{Agent, Ended, RESUME, STANDS, plain, refusal};
use crate::answer::{Answer, Code};
use crate::bridge::hold;
use crate::net::Transport;
use crate::net::addr::Remote;
use crate::peer::{NO_KEY, Peer, Seat};
use crate::reactor::{Core, Loss};

/// Keys of peers of ours that are no lines; those of lines are places in [`Links`](super::links::Links).
pub(super) const FAR: usize = usize::MAX - 3;
pub(super) const ANSWER: usize = usize::MAX - 4;
/// The key of the near end of a pipe that belongs to no line.
const JOB: usize = usize::MAX - 5;

/// A poll that comes back with nothing after less than this was not held: whoever answers so must not be asked in a circle.
const HELD: u64 = 1_000_000;
/// A relay has read a poll's body by this time, or has other troubles: an answer in it is not sent again.
const UNREAD: u128 = 5_000_000;
/// Pipes that are kept for the next messages.
const SPARE_PIPES: usize = 64;
/// What base64 and escapes may add to a body, six bytes for a control character.
const ESCAPED: usize = 6;

/// The stock relay has one poll of an agent at a time: a second one ends the first.
pub(super) const ONE: Size = Size { spare: 1, most: 1 };

/// How the agent reaches its relay at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By connections that are turned.
    Flip,
    /// By polls, with messages of COMET.
    Comet,
    /// By polls, with messages of the `ptth` dialect.
    Packed,
}

/// What a line is doing.
#[derive(Debug)]
enum Doing {
    /// Its poll is out.
    Polling(Came),
    /// What it brought is being answered.
    Serving,
    /// It waits until then before it polls again.
    Resting(Instant),
    /// It polls again as soon as one of the requests that are being answered is over: there are as many as there may be.
    Full,
}

/// What has come of an answer to a poll.
#[derive(Debug, Default)]
struct Came {
    status: u16,
    body: Vec<u8>,
    /// The relay is one of ours, and has said what it understands.
    ours: bool,
}

/// A connection that polls.
#[derive(Debug)]
struct Line {
    /// It is closed between two polls by relays that don't keep connections.
    conn: Option<Token>,
    address: SocketAddr,
    doing: Doing,
    /// The far end of its pipe.
    far: Option<Token>,
    /// An answer that the relay has not taken note of yet.
    reply: Option<Vec<u8>>,
    /// That answer was sent a second time.
    again: bool,
    /// Its first poll, which is not to be held: it asks whether the relay will have us.
    first: bool,
    /// It was to be turned, and its offer was answered like a poll.
    offered: bool,
    /// No other poll follows.
    last: bool,
    /// Its last polls that came back at once with nothing.
    unheld: u32,
    /// Our side of its connection ends as soon as the poll is sent.
    leaving: bool,
    since: Instant,
}

impl Line {
    /// One that has not polled yet.
    fn new(address: SocketAddr, now: Instant) -> Line {
        Line {
            conn: None,
            address,
            doing: Doing::Resting(now),
            far: None,
            reply: None,
            again: false,
            first: true,
            offered: false,
            last: false,
            unheld: 0,
            leaving: false,
            since: now,
        }
    }
}

/// A request that a poll has brought, by the far end of its pipe.
#[derive(Debug)]
struct Job {
    id: String,
    /// Whose it is; `None` in the `ptth` dialect, where answers go ways of their own.
    line: Option<usize>,
    near: Token,
    style: Style,
    form: Form,
    /// The response's head, once it is there.
    head: Option<Head>,
    body: Vec<u8>,
    /// Where the answer goes.
    to: Option<Token>,
    /// How much had been written there before it.
    before: u64,
}

/// Why an answer of the `ptth` dialect can't go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotSent {
    /// There is no connection to the relay.
    Unreachable,
    /// Its head has no room in a field.
    HeadTooLarge,
}

/// All that belongs to polling.
#[derive(Debug)]
pub(super) struct Polls {
    lines: HashMap<usize, Line>,
    jobs: HashMap<Token, Job>,
    /// Connections that answers go out on, with the far end of the pipe that they come from, or nothing behind their end.
    answers: HashMap<Token, Option<Token>>,
    idle: Vec<Token>,
    spare: Vec<Token>,
    form: Form,
    notation: Notation,
    base64: bool,
    /// The link that is to show whether the upgrade can be had again.
    pub(super) attempt: Option<usize>,
    /// Where the last line went: answers go there too, also when no line stands.
    address: Option<SocketAddr>,
    said: HashSet<u16>,
    said_fields: bool,
}

impl Default for Polls {
    fn default() -> Self {
        Polls {
            lines: HashMap::new(),
            jobs: HashMap::new(),
            answers: HashMap::new(),
            idle: Vec::new(),
            spare: Vec::new(),
            form: Form::Stock,
            notation: Notation::Json,
            base64: false,
            attempt: None,
            address: None,
            said: HashSet::new(),
            said_fields: false,
        }
    }
}

impl Polls {
    /// Whether this place in the links is a line.
    pub(super) fn is_line(&self, link: usize) -> bool {
        self.lines.contains_key(&link)
    }

    /// Where the lines go.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Whether an answer is still on its way, or a request that the relay had sent before it could know that none is wanted.
    pub(super) fn is_owed(&self) -> bool {
        !self.jobs.is_empty() || !self.answers.is_empty() || self.lines.values().any(|line| line.last)
    }
}

impl Agent {
    /// Makes a connection that polls.
    pub(super) fn dial_line(&mut self, core: &mut Core, link: usize, address: SocketAddr) -> io::Result<()> {
        self.polls.lines.insert(link, Line::new(address, core.now));
        self.polls.address = Some(address);
        self.poll(core, link)
    }

    /// A connection whose offer was answered like a poll is one: what still comes on it is the answer's body.
    pub(super) fn becomes_line(
        &mut self,
        core: &mut Core,
        token: Token,
        link: usize,
        address: SocketAddr,
        head: &Head,
    ) {
        let came = Came { status: head.status(), body: Vec::new(), ours: head.fields.has(Name::PtthAccept) };
        self.heed(head);
        let doing = Doing::Polling(came);
        let line = Line { conn: Some(token), doing, offered: true, ..Line::new(address, core.now) };
        self.polls.lines.insert(link, line);
        self.polls.address = Some(address);
    }

    /// Notes what the relay says that it understands.
    fn heed(&mut self, head: &Head) {
        self.polls.base64 |= head.fields.lists(Name::PtthAccept, b"base64");
        if self.way == Way::Packed && self.polls.form == Form::Stock && head.fields.lists(Name::PtthAccept, b"full") {
            self.polls.form = Form::Full;
            // This one does not mind several polls.
            self.links.resize(self.size);
        }
    }

    /// Sends a line's next poll, with its answer to what the last one brought.
    fn poll(&mut self, core: &mut Core, link: usize) -> io::Result<()> {
        let now = core.now;
        let Some(line) = self.polls.lines.get_mut(&link) else { return Ok(()) };
        let kept = line.conn.filter(|conn| !line.leaving && core.peer(*conn).is_some_and(|peer| peer.can_be_asked()));
        let token = match kept {
            Some(token) => token,
            None => {
                if let Some(old) = line.conn.take() {
                    forget(core, old);
                }
                let transport = Transport::dial(line.address)?;
                transport.keep_alive(core.config.deadlines.keepalive);
                let token = core.add(transport, Remote::Ip(line.address), Conn::client(now), true)?;
                line.conn = Some(token);
                token
            }
        };
        let patience = core.config.deadlines.upgrade;
        line.doing = Doing::Polling(Came::default());
        line.leaving = false;
        line.since = now;
        let Some(peer) = core.tell(token) else { return Ok(()) };
        peer.seat = Seat::Own;
        peer.key = link;
        peer.fed = self.links.is_stopping();
        // How long a relay holds a poll is no matter of how long the upstream may take.
        peer.held = true;
        peer.wait = Some((now + patience, Wait::Answer));
        let at_once = line.first || line.last;
        let via = &self.via;
        let key = &self.token;
        let reply = line.reply.as_deref().unwrap_or_default();
        let out = peer.output.vec();
        let common = |fields: &mut FieldWriter<'_>| {
            fields.field("Host", &via.authority);
            fields.field("User-Agent", super::AGENT);
            if at_once {
                fields.field("Prefer", "wait=0");
            }
        };
        let sent = match self.way {
            Way::Packed => {
                let target = format!("{}/http_listen/{}", via.path, self.name);
                peer.conn.send_request(now, out, (b"GET", target.as_bytes()), Body::None, |fields| {
                    common(fields);
                    fields.field("Ptth-Accept", "full");
                    if let Some(key) = key {
                        fields.field("X-ApiKey", key);
                    }
                })
            }
            Way::Comet | Way::Flip => {
                let length = Body::Length(reply.len() as u64);
                let sent = peer.conn.send_request(now, out, (b"POST", via.path.as_bytes()), length, |fields| {
                    common(fields);
                    fields.field("Content-Type", "application/json");
                    fields.field("Ptth-Accept", "base64");
                    if let Some(key) = key {
                        fields.parts(b"Authorization", &[b"Bearer ", key.as_bytes()]);
                    }
                });
                match reply {
                    [] => sent,
                    reply => sent.and_then(|()| peer.conn.send_data(now, reply, out)),
                }
            }
        };
        let sent = sent.and_then(|()| peer.conn.send_end(now, None, out));
        if !self.announced {
            // A relay that knows nothing of our wish holds the poll: that it does is an answer too.
            core.set_timer(std::time::Duration::from_micros(HELD), STANDS);
        }
        sent.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("the poll {error}")))
    }

    /// Polls, or gives the line up.
    fn poll_or_lose(&mut self, core: &mut Core, link: usize) {
        if let Err(error) = self.poll(core, link) {
            let reason = format!("can't reach the relay {}: {}", self.via.url, plain(&error));
            self.line_lost(core, link, Ended::Unreachable, &reason);
        }
    }

    /// Something is new on a line's connection.
    pub(super) fn step_line(&mut self, core: &mut Core, token: Token, link: usize) {
        let now = core.now;
        let most = core.config.limits.message.saturating_mul(ESCAPED).saturating_add(core.config.limits.head);
        loop {
            let Some((peer, head, config)) = core.hear(token) else { return };
            if peer.is_connecting() {
                return;
            }
            let Some(line) = self.polls.lines.get_mut(&link) else { return core.drop_peer(token) };
            let waits = !matches!(peer.wait, Some((_, Wait::Linger)));
            if line.last && self.links.is_stopping() && peer.output.is_empty() && waits {
                // Whoever holds it now is not waited for.
                peer.wait = Some((now + config.deadlines.linger, Wait::Linger));
                if line.leaving {
                    peer.transport().shutdown_write();
                }
                core.touch(token);
                continue;
            }
            let Doing::Polling(came) = &mut line.doing else {
                // Nothing may come now but the connection's end.
                if peer.eof || !peer.input.is_empty() {
                    line.conn = None;
                    forget(core, token);
                }
                return;
            };
            let whole = match peer.conn.recv(now, peer.input.bytes(), head, config) {
                Ok((used, Some(Event::Response(_)))) => {
                    peer.input.consume(used);
                    came.status = head.status();
                    came.ours = head.fields.has(Name::PtthAccept);
                    let head = std::mem::take(head);
                    self.heed(&head);
                    core.head = head;
                    false
                }
                Ok((used, Some(Event::Data(data)))) => {
                    came.body.extend_from_slice(data);
                    peer.input.consume(used);
                    false
                }
                Ok((used, Some(Event::End { .. }))) => {
                    peer.input.consume(used);
                    true
                }
                Ok((used, Some(_))) => {
                    peer.input.consume(used);
                    false
                }
                Ok((used, None)) => {
                    peer.input.consume(used);
                    if !peer.tell_eof() {
                        if came.status != 0 {
                            peer.transport().acknowledge();
                        }
                        return;
                    }
                    match peer.conn.eof(now, peer.input.len()) {
                        Ok(Some(Event::End { .. })) => true,
                        _ => {
                            let reason =
                                format!("the relay {} closed the connection instead of an answer", self.via.url);
                            return self.poll_failed(core, link, Ended::Refused, &reason);
                        }
                    }
                }
                Err(error) => {
                    let reason = format!("the relay {} {error} ({})", self.via.url, error.code());
                    return self.line_lost(core, link, Ended::Refused, &reason);
                }
            };
            if whole {
                if let Some(peer) = core.peer(token) {
                    peer.wait = None;
                    if peer.conn.closing().is_some()
                        && let Some(line) = self.polls.lines.get_mut(&link)
                    {
                        line.conn = None;
                        forget(core, token);
                    }
                }
                return self.answered(core, link);
            }
            if self.polls.lines.get(&link).is_some_and(|line| match &line.doing {
                Doing::Polling(came) => came.body.len() > most,
                _ => false,
            }) {
                let reason = format!("the relay {} sent too long a message", self.via.url);
                return self.line_lost(core, link, Ended::Refused, &reason);
            }
        }
    }

    /// The answer to a line's poll is whole.
    fn answered(&mut self, core: &mut Core, link: usize) {
        let Some(line) = self.polls.lines.get_mut(&link) else { return };
        let Doing::Polling(came) = std::mem::replace(&mut line.doing, Doing::Resting(core.now)) else { return };
        let held = core.now.since(line.since).as_micros() as u64 >= HELD;
        let first = std::mem::replace(&mut line.first, false);
        let offered = std::mem::replace(&mut line.offered, false);
        // Also when another one has been turned meanwhile.
        let is_attempt = offered && self.polls.attempt.take_if(|attempt| *attempt == link).is_some();
        let reply = line.reply.take();
        let again = std::mem::replace(&mut line.again, false);
        // Anybody may answer 200 to whatever is posted: who holds a poll, or knows our word, is a relay.
        let proven = came.ours || held || reply.is_some();
        if proven {
            line.unheld = 0;
        }
        match came.status {
            200..300 => {}
            // It had arrived.
            404 if again => return self.next_poll(core, link, true),
            // The request that was answered is over: its visitor may have gone.
            400 | 404 | 413 if reply.is_some() => {
                log::info!("the relay did not want an answer ({}): {}", came.status, line_of(&came.body));
                return self.next_poll(core, link, true);
            }
            503 => {
                let reason = format!("the relay {} answered 503: it is stopping, or has too much to do", self.via.url);
                return self.line_refused(core, link, Ended::Refused, &reason);
            }
            status => {
                let reason = format!("the relay {} {}", self.via.url, refusal(status, false));
                return self.line_refused(core, link, Ended::Refused, &reason);
            }
        }
        if self.way == Way::Packed {
            return match packed::read_asks(&came.body) {
                _ if came.status == 204 => {
                    if proven {
                        self.stands(core, link);
                    }
                    self.next_poll(core, link, first || held);
                }
                Ok(asks) => {
                    self.stands(core, link);
                    for ask in asks {
                        self.serve(core, None, ask, Style::default());
                    }
                    self.next_poll(core, link, true);
                }
                Err(malformed) => {
                    let reason = format!("the relay {} {malformed} ({})", self.via.url, malformed.code());
                    self.line_refused(core, link, Ended::Refused, &reason);
                }
            };
        }
        let (message, notation) = match comet::read(&came.body) {
            // Anybody may answer 200 to whatever is posted.
            Ok((Message::Nothing, _)) if offered && !came.ours && came.body.is_empty() => {
                return self.offer_refused(core, link, is_attempt, came.status);
            }
            Ok((message @ (Message::Nothing | Message::Ask(_)), notation)) => (message, notation),
            Ok((Message::Reply(_), _)) | Err(_) if offered => {
                return self.offer_refused(core, link, is_attempt, came.status);
            }
            Ok((Message::Reply(_), _)) => {
                let reason = format!("the relay {} sent an answer where requests come", self.via.url);
                return self.line_refused(core, link, Ended::Refused, &reason);
            }
            Err(malformed) => {
                let reason = format!("the relay {} {malformed} ({})", self.via.url, malformed.code());
                return self.line_refused(core, link, Ended::Refused, &reason);
            }
        };
        if is_attempt && self.links.has_spare() {
            // It was only to see whether the upgrade can be had by now.
            self.last_poll(link);
        } else if offered && !is_attempt && self.way == Way::Flip {
            self.falls_back(core, came.ours);
        }
        if proven || matches!(message, Message::Ask(_)) {
            self.stands(core, link);
        }
        if let Some(notation) = notation {
            self.polls.notation = notation;
        }
        match message {
            Message::Ask(ask) => {
                let style = Style { notation: self.polls.notation, base64: self.polls.base64 };
                if let Some(line) = self.polls.lines.get_mut(&link) {
                    line.doing = Doing::Serving;
                }
                self.serve(core, Some(link), ask, style);
            }
            _ => self.next_poll(core, link, first || held || reply.is_some()),
        }
    }

    /// A line's poll is over. It polls again, unless it is not needed any more, or was not held.
    fn next_poll(&mut self, core: &mut Core, link: usize, at_once: bool) {
        let most = self.size.most;
        self.fill(core);
        let Some(line) = self.polls.lines.get_mut(&link) else { return };
        if line.last || self.way == Way::Flip || self.links.is_stopping() || self.links.may_go(link) {
            return self.end_line(core, link);
        }
        if self.polls.jobs.len() >= most && self.way == Way::Packed {
            line.doing = Doing::Full;
        } else if at_once {
            self.poll_or_lose(core, link);
        } else {
            let deadlines = &core.config.deadlines;
            let pause = deadlines.backoff.saturating_mul(1 << line.unheld.min(16)).min(deadlines.backoff_max);
            line.unheld += 1;
            line.doing = Doing::Resting(core.now + pause);
            log::debug!("the relay does not hold polls: the next one waits {} s", pause.as_secs_f32());
            core.set_timer(pause, RESUME);
        }
    }

    /// Lines that rested poll again.
    pub(super) fn resume_lines(&mut self, core: &mut Core) {
        let now = core.now;
        let resting = |line: &Line| matches!(line.doing, Doing::Resting(until) if until <= now);
        let lines: Vec<usize> =
            self.polls.lines.iter().filter(|(_, line)| resting(line)).map(|(link, _)| *link).collect();
        for link in lines {
            self.next_poll(core, link, true);
        }
    }

    /// A first poll was not answered for a while, and not refused: the relay holds it, and the tunnel stands.
    pub(super) fn held_lines_stand(&mut self, core: &mut Core) {
        let held = |line: &Line| core.now.since(line.since).as_micros() as u64 >= HELD;
        let lines: Vec<(usize, Option<Token>)> =
            self.polls.lines.iter().filter(|(_, line)| held(line)).map(|(link, line)| (*link, line.conn)).collect();
        for (link, conn) in lines {
            let sent = |peer: &mut Peer| !peer.is_connecting() && peer.output.is_empty() && peer.is_alive();
            if conn.and_then(|conn| core.peer(conn)).is_some_and(sent) {
                if let Some(line) = self.polls.lines.get_mut(&link) {
                    line.first = false;
                }
                self.stands(core, link);
            }
        }
    }

    fn stands(&mut self, core: &mut Core, link: usize) {
        if self.links.is_pending(link) {
            self.link_stands(core, link);
            self.fill(core);
        }
    }

    /// The relay answers offers like polls.
    fn falls_back(&mut self, core: &mut Core, ours: bool) {
        self.way = Way::Comet;
        let why = if ours {
            "it runs so, or something on the way takes the upgrade out of requests"
        } else {
            "it answers with a message"
        };
        let again = core.config.deadlines.upgrade_again;
        log::info!(
            "the relay {} turns no connections ({why}): polling instead (COMET), and trying again every {} s",
            self.via.url,
            again.as_secs()
        );
        self.event(&serde_json::json!({ "event": "dialect", "dialect": "comet" }));
        core.set_timer(again, super::UPGRADE);
    }

    /// Says a request that a poll has brought at the far end of a pipe.
    fn serve(&mut self, core: &mut Core, line: Option<usize>, ask: Ask, style: Style) {
        let now = core.now;
        let (near, far) = self.pipe_for(core, line);
        let Ask { id, method, target, fields, body } = ask;
        let form = self.polls.form;
        let job = Job { id, line, near, style, form, head: None, body: Vec::new(), to: None, before: 0 };
        self.polls.jobs.insert(far, job);
        // As long as the relay waits for the answer, and no longer: it may never come, and nobody would tell us that its visitor has
        // gone.
        let until = now + core.config.deadlines.link_answer;
        let Some(peer) = core.tell(far) else { return };
        peer.wait = Some((until, Wait::Answer));
        let length = match &body[..] {
            [] if matches!(&method[..], b"POST" | b"PUT" | b"PATCH") => Body::Length(0),
            [] => Body::None,
            body => Body::Length(body.len() as u64),
        };
        let out = peer.output.vec();
        let mut sent = peer.conn.send_request(now, out, (&method, &target), length, |writer| {
            for (name, value) in end_to_end(&fields).filter(|(name, _)| Name::of(name) != Name::Expect) {
                writer.field(name, value);
            }
            // Where a stock relay has it, it is the visitor's as it came, and trailers don't go home.
            if form == Form::Full && fields.iter().any(|(name, _)| Name::of(name) == Name::Te) {
                writer.field("TE", "trailers");
            }
        });
        if !body.is_empty() {
            sent = sent.and_then(|()| peer.conn.send_data(now, &body, out));
        }
        if let Err(error) = sent.and_then(|()| peer.conn.send_end(now, None, out)) {
            let text = format!("The relay gave the agent `{}` a request that can't be one: it {error}.", self.name);
            self.answer_alone(core, far, &Answer::new(Code::BAD_MESSAGE, text));
        }
    }

    /// A pipe for a request: the line's own, or any that is free.
    fn pipe_for(&mut self, core: &mut Core, link: Option<usize>) -> (Token, Token) {
        let now = core.now;
        let kept = match link {
            Some(link) => self.polls.lines.get_mut(&link).and_then(|line| line.far.take()),
            None => self.polls.spare.pop(),
        };
        if let Some(far) = kept
            && let Some(peer) = core.peer(far)
            && peer.can_be_asked()
            && let Some(near) = peer.twin.token()
            && core.peer(near).is_some_and(|near| near.is_alive() && near.conn.is_idle())
        {
            self.keep_far(link, far);
            return (near, far);
        }
        let (near, far) = core.pipe(Conn::link(Role::Server, now), Conn::link(Role::Client, now));
        if let Some(peer) = core.peer(near) {
            peer.seat = Seat::Front;
            peer.key = link.unwrap_or(JOB);
        }
        if let Some(peer) = core.peer(far) {
            peer.seat = Seat::Own;
            peer.key = FAR;
        }
        self.keep_far(link, far);
        (near, far)
    }

    fn keep_far(&mut self, link: Option<usize>, far: Token) {
        if let Some(line) = link.and_then(|link| self.polls.lines.get_mut(&link)) {
            line.far = Some(far);
        }
    }

    /// Something is new at the far end of a pipe: the upstream answers.
    pub(super) fn step_far(&mut self, core: &mut Core, far: Token) {
        let now = core.now;
        let most = core.config.limits.message;
        loop {
            let Some(job) = self.polls.jobs.get_mut(&far) else {
                // Nobody has asked; only its end is of interest.
                if core.peer(far).is_some_and(|peer| peer.has_hung_up()) {
                    core.drop_peer(far);
                }
                return;
            };
            if let (Some(to), Some(_)) = (job.to, &job.head) {
                match self.stream(core, far, to) {
                    Some(()) => continue,
                    None => return,
                }
            }
            let Some((peer, head, config)) = core.hear(far) else { return };
            match peer.conn.recv(now, peer.input.bytes(), head, config) {
                Ok((used, Some(Event::Response(framing)))) => {
                    peer.input.consume(used);
                    let stream = head.fields.first(Name::ContentType).is_some_and(is_event_stream);
                    job.head = Some(std::mem::take(head));
                    if job.line.is_none() {
                        peer.wait = None;
                        self.begin_answer(core, far, framing);
                    } else if stream {
                        let text = format!(
                            "The answer of the upstream of the agent `{}` is a stream of events, which has no end and can't be \
                             sent as a message. The relay and the agent can't have a better link just now.",
                            self.name
                        );
                        return self.answer_alone(core, far, &Answer::new(Code::ANSWER_TOO_LARGE, text));
                    }
                }
                Ok((used, Some(Event::Data(data)))) => {
                    job.body.extend_from_slice(data);
                    peer.input.consume(used);
                    if job.body.len() > most {
                        let text = format!(
                            "The answer of the upstream of the agent `{}` has more than {most} bytes, which is all that fits \
                             into a message (--limit message); the relay and the agent can't have a better link just now.",
                            self.name
                        );
                        return self.answer_alone(core, far, &Answer::new(Code::ANSWER_TOO_LARGE, text));
                    }
                }
                Ok((used, Some(Event::End { .. }))) => {
                    peer.input.consume(used);
                    return self.answer_is_whole(core, far);
                }
                Ok((used, Some(_))) => peer.input.consume(used),
                Ok((used, None)) => {
                    peer.input.consume(used);
                    if peer.eof {
                        return self.cut_off(core, far);
                    }
                    return;
                }
                Err(_) => return self.cut_off(core, far),
            }
        }
    }

    /// The answer broke off on its way from the upstream.
    fn cut_off(&mut self, core: &mut Core, far: Token) {
        let text = format!(
            "The agent `{}` is connected, but its upstream {} broke its answer off.",
            self.name,
            self.upstream.target()
        );
        self.answer_alone(core, far, &Answer::new(Code::UPSTREAM_LOST, text));
    }

    /// An answer of COMET is whole: it goes with the line's next poll.
    fn answer_is_whole(&mut self, core: &mut Core, far: Token) {
        if let Some(peer) = core.peer(far) {
            peer.wait = None;
        }
        let Some(job) = self.polls.jobs.get(&far) else { return };
        let (Some(head), Some(link)) = (&job.head, job.line) else { return };
        let mut reply = Vec::new();
        let length = content_length(&head.fields).ok().flatten().filter(|_| job.body.is_empty());
        let digits = length.map(|length| length.to_string());
        // Of a response that has none, a HEAD's or a 304, it says how long the body would be.
        let length = digits.iter().map(|digits| (&b"Content-Length"[..], digits.as_bytes()));
        let fields = head.fields.end_to_end().map(|field| (field.name, field.value)).chain(length);
        let written =
            comet::write_reply(&mut reply, job.style, &job.id, head.status(), head.reason(), fields, &job.body);
        if let Err(unsendable) = written {
            let text = format!(
                "The answer of the upstream of the agent `{}` can't be sent as a message: it {unsendable}.",
                self.name
            );
            return self.answer_alone(core, far, &Answer::new(Code::BINARY_BODY, text));
        }
        let near = job.near;
        self.polls.jobs.remove(&far);
        self.send_reply(core, link, near, reply);
    }

    fn send_reply(&mut self, core: &mut Core, link: usize, near: Token, reply: Vec<u8>) {
        let Some(line) = self.polls.lines.get_mut(&link) else { return };
        line.reply = Some(reply);
        // A link that is to go ends with its answer.
        line.last |= self.links.is_stopping() || self.way == Way::Flip;
        line.last |= core.peer(near).is_none_or(|near| near.conn.closing().is_some());
        self.poll_or_lose(core, link);
    }

    /// Gives an answer of our own to a request whose own answer won't do, and gives its pipe up.
    fn answer_alone(&mut self, core: &mut Core, far: Token, answer: &Answer) {
        let Some(job) = self.polls.jobs.remove(&far) else { return };
        core.drop_peer(far);
        if let Some(to) = job.to {
            self.polls.answers.remove(&to);
            let has_begun = core.peer(to).is_some_and(|peer| peer.written > job.before);
            forget(core, to);
            if has_begun {
                // All that can be said is that it is not whole.
                return self.job_is_over(core);
            }
        }
        log::warn!("{} ({})", answer.text, answer.code.name);
        let page = answer.page("ptth-reverse", 0, false);
        let status = format!("ptth-reverse; error={}; details=\"{}\"", answer.code.proxy_error, answer.code.name);
        let fields =
            [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store"), ("Proxy-Status", &status)];
        let fields = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        match job.line {
            Some(link) => {
                let mut reply = Vec::new();
                let reason = ptth_proto::wire::head::reason(answer.code.status).as_bytes();
                let style = job.style;
                let status = answer.code.status;
                let sent = comet::write_reply(&mut reply, style, &job.id, status, reason, fields, page.as_bytes());
                if sent.is_ok() {
                    if let Some(line) = self.polls.lines.get_mut(&link) {
                        line.far = None;
                        line.reply = Some(reply);
                        line.last |= self.links.is_stopping();
                    }
                    let now = core.now;
                    // The bridge's end of the pipe goes with ours.
                    self.links.is_idle(link, now);
                    self.poll_or_lose(core, link);
                }
            }
            None => {
                if let Ok(to) = self.open_answer(
                    core,
                    (&job.id, job.form),
                    answer.code.status,
                    fields,
                    Body::Length(page.len() as u64),
                ) {
                    let now = core.now;
                    if let Some(peer) = core.tell(to) {
                        let out = peer.output.vec();
                        let sent = peer.conn.send_data(now, page.as_bytes(), out);
                        // Its length is the one that was announced.
                        let _ = sent.and_then(|()| peer.conn.send_end(now, None, out));
                    }
                    self.polls.answers.insert(to, None);
                }
                self.job_is_over(core);
            }
        }
    }

    /// A request of the `ptth` dialect is over: there is room for another.
    fn job_is_over(&mut self, core: &mut Core) {
        if self.polls.jobs.len() >= self.size.most {
            return;
        }
        let full = |line: &Line| matches!(line.doing, Doing::Full);
        let lines: Vec<usize> = self.polls.lines.iter().filter(|(_, line)| full(line)).map(|(link, _)| *link).collect();
        for link in lines {
            self.next_poll(core, link, true);
        }
    }

    /// Begins to send an answer of the `ptth` dialect.
    fn begin_answer(&mut self, core: &mut Core, far: Token, framing: Framing) {
        let Some(job) = self.polls.jobs.get_mut(&far) else { return };
        let Some(head) = job.head.take() else { return };
        let (id, form) = (std::mem::take(&mut job.id), job.form);
        // Also of a body that comes: the stock relay tells its visitor only what the fields say.
        let length = content_length(&head.fields).ok().flatten();
        let digits = length.map(|length| length.to_string());
        let length = digits.iter().map(|digits| (&b"Content-Length"[..], digits.as_bytes()));
        let fields = head.fields.end_to_end().map(|field| (field.name, field.value)).chain(length);
        let body = match Body::from(framing) {
            Body::None => Body::Length(0),
            body => body,
        };
        let to = self.open_answer(core, (&id, form), head.status(), fields, body);
        let Some(job) = self.polls.jobs.get_mut(&far) else { return };
        job.head = Some(head);
        job.id = id;
        match to {
            Ok(to) => {
                job.to = Some(to);
                job.before = core.peer(to).map_or(0, |peer| peer.written);
                self.polls.answers.insert(to, Some(far));
            }
            Err(NotSent::Unreachable) => {
                // The relay gives its visitor up by itself.
                self.polls.jobs.remove(&far);
                core.drop_peer(far);
                self.job_is_over(core);
            }
            Err(NotSent::HeadTooLarge) => {
                let text = format!(
                    "The answer of the upstream of the agent `{}` has a head that the relay's dialect has no room for.",
                    self.name
                );
                self.answer_alone(core, far, &Answer::new(Code::ANSWER_TOO_LARGE, text));
            }
        }
    }

    /// A connection with the head of an answer on it. `None` when that can't be sent.
    fn open_answer<'a>(
        &mut self,
        core: &mut Core,
        (id, form): (&str, Form),
        status: u16,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
        body: Body,
    ) -> Result<Token, NotSent> {
        let mut packed = Vec::new();
        let dropped = packed::write_head(&mut packed, form, status, fields);
        if form == Form::Stock {
            let nearest = packed::nearest(status);
            if nearest != status && self.polls.said.insert(status) {
                log::info!("the status {status} goes to the relay as {nearest}: its dialect has no {status}");
            }
            if dropped > 0 && !std::mem::replace(&mut self.polls.said_fields, true) {
                log::info!(
                    "of fields that come several times, one goes to the relay: its dialect has no room for more"
                );
            }
        }
        let magic = to_base64(&packed);
        if magic.len() > core.config.limits.head - core.config.limits.head / 8 {
            return Err(NotSent::HeadTooLarge);
        }
        let token = self.answer_connection(core).map_err(|error| {
            log::warn!("can't reach the relay {} with an answer: {}", self.via.url, plain(&error));
            NotSent::Unreachable
        })?;
        let now = core.now;
        let target = format!("{}/http_response/{id}", self.via.path);
        let Some(peer) = core.tell(token) else { return Err(NotSent::Unreachable) };
        let sent = peer.conn.send_request(now, peer.output.vec(), (b"POST", target.as_bytes()), body, |fields| {
            fields.field("Host", &self.via.authority);
            fields.field("User-Agent", super::AGENT);
            fields.field(MAGIC_FIELD, &magic);
            if let Some(key) = &self.token {
                fields.field("X-ApiKey", key);
            }
        });
        if let Err(error) = sent {
            log::error!("an answer could not be written: it {error}");
            forget(core, token);
            return Err(NotSent::Unreachable);
        }
        Ok(token)
    }

    /// A connection on which an answer can go out.
    fn answer_connection(&mut self, core: &mut Core) -> io::Result<Token> {
        while let Some(token) = self.polls.idle.pop() {
            if let Some(peer) = core.peer(token)
                && peer.can_be_asked()
            {
                peer.wait = None;
                return Ok(token);
            }
        }
        let address = self.polls.address().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let transport = Transport::dial(address)?;
        transport.keep_alive(core.config.deadlines.keepalive);
        let token = core.add(transport, Remote::Ip(address), Conn::client(core.now), true)?;
        if let Some(peer) = core.peer(token) {
            peer.seat = Seat::Own;
            peer.key = ANSWER;
            // The relay answers when the visitor has taken all, which may take its time.
            peer.held = true;
        }
        Ok(token)
    }

    /// Carries an answer from the far end of its pipe to the connection that it goes out on. Nothing when it has to wait, or is
    /// over.
    fn stream(&mut self, core: &mut Core, far: Token, to: Token) -> Option<()> {
        let now = core.now;
        let most = core.config.limits.buffer;
        let Some((from, out, head, config)) = core.between(far, to) else {
            self.polls.jobs.remove(&far);
            core.drop_peer(far);
            self.job_is_over(core);
            return None;
        };
        if hold(from, out, most, now) {
            return None;
        }
        let sent = match from.conn.recv(now, from.input.bytes(), head, config) {
            Ok((used, Some(Event::Data(data)))) => {
                let sent = out.conn.send_data(now, data, out.output.vec());
                from.input.consume(used);
                sent
            }
            Ok((used, Some(Event::End { trailers }))) => {
                from.input.consume(used);
                let sent = out.conn.send_end(now, trailers.then_some(&head.fields), out.output.vec());
                if sent.is_ok() {
                    out.wait = Some((now + config.deadlines.stream, Wait::Stream));
                    self.polls.jobs.remove(&far);
                    self.polls.answers.insert(to, None);
                    if self.polls.spare.len() < SPARE_PIPES {
                        self.polls.spare.push(far);
                    } else {
                        core.drop_peer(far);
                    }
                    self.job_is_over(core);
                    return None;
                }
                sent
            }
            Ok((used, Some(_))) => {
                from.input.consume(used);
                Ok(())
            }
            Ok((used, None)) => {
                from.input.consume(used);
                if from.eof {
                    self.cut_off(core, far);
                }
                return None;
            }
            Err(error) => Err(error),
        };
        if sent.is_err() {
            self.cut_off(core, far);
            return None;
        }
        Some(())
    }

    /// Something is new on a connection that an answer goes out on: room for more of it, or what the relay says to it.
    pub(super) fn step_answer(&mut self, core: &mut Core, token: Token) {
        let now = core.now;
        loop {
            let Some((peer, head, config)) = core.hear(token) else { return };
            if peer.is_connecting() {
                return;
            }
            match peer.conn.recv(now, peer.input.bytes(), head, config) {
                Ok((used, Some(Event::Response(_)))) => {
                    peer.input.consume(used);
                    let status = head.status();
                    let speaking = peer.conn.is_speaking();
                    if !matches!(status, 200..300) {
                        log::info!("the relay did not want an answer ({status}): its visitor may have gone");
                    }
                    if speaking {
                        // The visitor has gone in the middle: the upstream need not go on.
                        if let Some(Some(far)) = self.polls.answers.remove(&token) {
                            self.polls.jobs.remove(&far);
                            core.drop_peer(far);
                            self.job_is_over(core);
                        }
                        return forget(core, token);
                    }
                }
                Ok((used, Some(Event::End { .. }))) => {
                    peer.input.consume(used);
                    self.polls.answers.remove(&token);
                    let until = now + config.deadlines.upstream_idle;
                    let most = config.limits.upstream_idle;
                    if self.polls.idle.len() < most && peer.conn.is_idle() && peer.is_alive() {
                        peer.wait = Some((until, Wait::UpstreamIdle));
                        self.polls.idle.push(token);
                        core.touch(token);
                        return;
                    }
                    return forget(core, token);
                }
                Ok((used, Some(_))) => peer.input.consume(used),
                Ok((used, None)) => {
                    peer.input.consume(used);
                    if peer.eof {
                        return self.answer_lost(core, token);
                    }
                    break;
                }
                Err(_) => return self.answer_lost(core, token),
            }
        }
        if let Some(Some(far)) = self.polls.answers.get(&token).copied() {
            self.step_far(core, far);
        }
    }

    /// A connection that an answer went out on is gone.
    fn answer_lost(&mut self, core: &mut Core, token: Token) {
        self.polls.idle.retain(|idle| *idle != token);
        if let Some(far) = self.polls.answers.remove(&token) {
            log::warn!("the connection to the relay {} broke in the middle of an answer", self.via.url);
            if let Some(far) = far {
                self.polls.jobs.remove(&far);
                core.drop_peer(far);
                self.job_is_over(core);
            }
        }
        forget(core, token);
    }

    /// A peer that belongs to polling was lost.
    pub(super) fn lost_polling(&mut self, core: &mut Core, token: Token, key: usize, loss: Loss) {
        match key {
            FAR if self.polls.jobs.contains_key(&token) => {
                let text = format!(
                    "The agent `{}` is connected, but its upstream {} had not answered when the relay's patience was over \
                     (--timeout link-answer). Where answers are sent as messages, they have to be whole by then.",
                    self.name,
                    self.upstream.target()
                );
                self.answer_alone(core, token, &Answer::new(Code::UPSTREAM_TIMEOUT, text));
            }
            FAR => core.drop_peer(token),
            ANSWER => self.answer_lost(core, token),
            link => match loss {
                Loss::Late(Wait::Linger) => self.end_line(core, link),
                // As long as nobody else's patience ends there is nothing wrong with a poll that is held.
                Loss::Late(Wait::Answer) => {
                    forget(core, token);
                    self.poll_or_lose(core, link);
                }
                Loss::Io(error) | Loss::Deaf(error) => {
                    let reason = format!("can't reach the relay {}: {}", self.via.url, plain(&error));
                    self.poll_failed(core, link, Ended::Unreachable, &reason);
                }
                Loss::Late(wait) => {
                    let reason = format!("the relay {} was silent for too long ({})", self.via.url, wait.name());
                    self.poll_failed(core, link, Ended::Unreachable, &reason);
                }
            },
        }
    }

    /// A poll got no answer. Its own answer, if it had one with it, may not have arrived and is sent once more: a relay that has
    /// it says so.
    fn poll_failed(&mut self, core: &mut Core, link: usize, ended: Ended, reason: &str) {
        let Some(line) = self.polls.lines.get_mut(&link) else { return };
        if let Some(conn) = line.conn.take() {
            forget(core, conn);
        }
        // One that ends because we have left it has its relay's attention.
        let unread = if line.leaving { HELD.into() } else { UNREAD };
        let fresh = core.now.since(line.since).as_micros() < unread;
        if line.reply.is_some() && fresh && !std::mem::replace(&mut line.again, true) {
            return self.poll_or_lose(core, link);
        }
        self.line_lost(core, link, ended, reason);
    }

    /// No other poll of this line follows.
    fn last_poll(&mut self, link: usize) {
        if let Some(line) = self.polls.lines.get_mut(&link) {
            line.last = true;
        }
    }

    /// An offer was answered by what is no answer to a poll either.
    fn offer_refused(&mut self, core: &mut Core, link: usize, is_attempt: bool, status: u16) {
        let reason = format!("the relay {} {}", self.via.url, refusal(status, true));
        if self.way == Way::Flip && !is_attempt {
            return self.line_refused(core, link, Ended::Refused, &reason);
        }
        log::debug!("still polling: {reason}");
        self.end_line(core, link);
    }

    /// The relay won't have it.
    fn line_refused(&mut self, core: &mut Core, link: usize, ended: Ended, reason: &str) {
        self.take_line(core, link);
        self.links.remove(link);
        self.failed(core, ended, reason);
    }

    /// A line is gone. `ended` is what that comes to if it never stood.
    fn line_lost(&mut self, core: &mut Core, link: usize, ended: Ended, reason: &str) {
        if self.links.is_pending(link) {
            return self.line_refused(core, link, ended, reason);
        }
        self.take_line(core, link);
        self.link_lost(core, link, reason);
    }

    /// A line is not needed any more.
    fn end_line(&mut self, core: &mut Core, link: usize) {
        self.take_line(core, link);
        self.links.remove(link);
        if !self.links.is_stopping() {
            self.fill(core);
        }
    }

    /// Takes a line away with all that belongs to it.
    pub(super) fn take_line(&mut self, core: &mut Core, link: usize) {
        let Some(line) = self.polls.lines.remove(&link) else { return };
        if let Some(conn) = line.conn {
            forget(core, conn);
        }
        if let Some(far) = line.far {
            self.polls.jobs.remove(&far);
            core.drop_peer(far);
        }
        if self.polls.lines.is_empty() && self.polls.form == Form::Full && !self.links.is_stopping() {
            // The next relay may be another one.
            self.polls.form = Form::Stock;
            self.links.resize(ONE);
        }
    }

    /// No new work: polls that are out end. The relay may be answering one in this moment, so that only our side of its
    /// connection is closed: what still comes is served.
    pub(super) fn stop_polling(&mut self, core: &mut Core) {
        let mut unused = Vec::new();
        for (link, line) in &mut self.polls.lines {
            line.last = true;
            let peer = line.conn.and_then(|conn| core.peer(conn));
            match (&line.doing, peer) {
                (Doing::Serving, _) => {}
                (Doing::Polling(_), Some(peer)) if line.reply.is_some() || !peer.is_connecting() => {
                    line.leaving = true;
                    peer.fed = true;
                    line.conn.inspect(|conn| core.touch(*conn));
                }
                _ => unused.push(*link),
            }
        }
        for link in unused {
            self.end_line(core, link);
        }
    }

    /// A peer that belongs to polling is out of the table.
    pub(super) fn polling_gone(&mut self, core: &mut Core, token: Token, peer: &Peer) {
        match peer.key {
            link if self.polls.is_line(link) => {
                let Some(line) = self.polls.lines.get_mut(&link).filter(|line| line.conn == Some(token)) else {
                    return;
                };
                line.conn = None;
                if let Doing::Polling(_) = line.doing {
                    let reason = format!("the relay {} has closed the connection", self.via.url);
                    self.poll_failed(core, link, Ended::Refused, &reason);
                }
            }
            FAR => {
                self.polls.spare.retain(|far| *far != token);
                if self.polls.jobs.remove(&token).is_some() {
                    self.job_is_over(core);
                }
            }
            ANSWER => {
                self.polls.idle.retain(|idle| *idle != token);
                self.polls.answers.remove(&token);
            }
            _ => {}
        }
    }
}

/// Drops a connection of which nothing more is to be heard.
fn forget(core: &mut Core, token: Token) {
    if let Some(peer) = core.peer(token) {
        peer.key = NO_KEY;
    }
    core.drop_peer(token);
}

fn is_event_stream(kind: &[u8]) -> bool {
    kind.get(..17).is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/event-stream"))
}

/// The first words of a page, for the log.
fn line_of(page: &[u8]) -> String {
    const WORDS: usize = 200;
    let text = String::from_utf8_lossy(&page[..page.len().min(WORDS)]);
    text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect()
}
