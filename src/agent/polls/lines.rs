//! Connections that poll: what goes out with a poll and what its answer says of the relay, when the next one follows, and what becomes
//! of a line whose poll failed.

use std::io;
use std::net::SocketAddr;

use mio::Token;
use ptth_proto::conn::{Body, Conn, Event};
use ptth_proto::limits::Wait;
use ptth_proto::wire::comet::{self, Message, Style};
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::{FieldWriter, Head};
use ptth_proto::wire::packed::{self, Form};

use super::{Came, Doing, Line, ONE, Way, forget};
use crate::agent::{AGENT, Agent, Ended, RESUME, STANDS, UPGRADE, plain, refusal};
use crate::net::Transport;
use crate::net::addr::Remote;
use crate::peer::{Peer, Seat};
use crate::reactor::Core;

/// A poll that comes back with nothing after less than this was not held: whoever answers so must not be asked in a circle.
const HELD: u64 = 1_000_000;
/// A relay has read a poll's body by this time, or has other troubles: an answer in it is not sent again.
const UNREAD: u128 = 5_000_000;
/// What base64 and escapes may add to a body, six bytes for a control character.
const ESCAPED: usize = 6;

impl Agent {
    /// Makes a connection that polls.
    pub(in crate::agent) fn dial_line(&mut self, core: &mut Core, link: usize, address: SocketAddr) -> io::Result<()> {
        self.polls.lines.insert(link, Line::new(address, core.now));
        self.polls.address = Some(address);
        self.poll(core, link)
    }

    /// A connection whose offer was answered like a poll is one: what still comes on it is the answer's body.
    pub(in crate::agent) fn becomes_line(
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
            fields.field("User-Agent", AGENT);
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
    pub(super) fn poll_or_lose(&mut self, core: &mut Core, link: usize) {
        if let Err(error) = self.poll(core, link) {
            let reason = format!("can't reach the relay {}: {}", self.via.url, plain(&error));
            self.line_lost(core, link, Ended::Unreachable, &reason);
        }
    }

    /// Something is new on a line's connection.
    pub(in crate::agent) fn step_line(&mut self, core: &mut Core, token: Token, link: usize) {
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
    pub(super) fn next_poll(&mut self, core: &mut Core, link: usize, at_once: bool) {
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
    pub(in crate::agent) fn resume_lines(&mut self, core: &mut Core) {
        let now = core.now;
        let resting = |line: &Line| matches!(line.doing, Doing::Resting(until) if until <= now);
        let lines: Vec<usize> =
            self.polls.lines.iter().filter(|(_, line)| resting(line)).map(|(link, _)| *link).collect();
        for link in lines {
            self.next_poll(core, link, true);
        }
    }

    /// A first poll was not answered for a while, and not refused: the relay holds it, and the tunnel stands.
    pub(in crate::agent) fn held_lines_stand(&mut self, core: &mut Core) {
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
        core.set_timer(again, UPGRADE);
    }

    /// A poll got no answer. Its own answer, if it had one with it, may not have arrived and is sent once more: a relay that has
    /// it says so.
    pub(super) fn poll_failed(&mut self, core: &mut Core, link: usize, ended: Ended, reason: &str) {
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
    pub(super) fn end_line(&mut self, core: &mut Core, link: usize) {
        self.take_line(core, link);
        self.links.remove(link);
        if !self.links.is_stopping() {
            self.fill(core);
        }
    }

    /// Takes a line away with all that belongs to it.
    pub(in crate::agent) fn take_line(&mut self, core: &mut Core, link: usize) {
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
}

/// The first words of a page, for the log.
fn line_of(page: &[u8]) -> String {
    const WORDS: usize = 200;
    let text = String::from_utf8_lossy(&page[..page.len().min(WORDS)]);
    text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect()
}
