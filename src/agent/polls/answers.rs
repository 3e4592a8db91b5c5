//! Answers of the `ptth` dialect: each a request of the agent's own, on a connection to the relay that no poll is on, with a body that
//! goes on as the upstream gives it.

use std::io;

use mio::Token;
use ptth_proto::conn::{Body, Conn, Event};
use ptth_proto::http::framing::{Framing, content_length};
use ptth_proto::limits::Wait;
use ptth_proto::wire::message::to_base64;
use ptth_proto::wire::packed::{self, Form, MAGIC_FIELD};

use super::{ANSWER, forget};
use crate::agent::{AGENT, Agent, plain};
use crate::answer::{Answer, Code};
use crate::bridge::hold;
use crate::net::Transport;
use crate::net::addr::Remote;
use crate::peer::Seat;
use crate::reactor::Core;

/// Pipes that are kept for the next messages.
const SPARE_PIPES: usize = 64;

/// Why an answer of the `ptth` dialect can't go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotSent {
    /// There is no connection to the relay.
    Unreachable,
    /// Its head has no room in a field.
    HeadTooLarge,
}

impl Agent {
    /// Begins to send an answer of the `ptth` dialect.
    pub(super) fn begin_answer(&mut self, core: &mut Core, far: Token, framing: Framing) {
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
    pub(super) fn open_answer<'a>(
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
            fields.field("User-Agent", AGENT);
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
    pub(super) fn stream(&mut self, core: &mut Core, far: Token, to: Token) -> Option<()> {
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
    pub(in crate::agent) fn step_answer(&mut self, core: &mut Core, token: Token) {
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
    pub(super) fn answer_lost(&mut self, core: &mut Core, token: Token) {
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
}
