//! What polls have brought: said at the far end of a pipe, and answered there by the upstream. An answer of COMET is gathered here, and
//! goes with its line's next poll; one of the `ptth` dialect goes on as it comes, by [`answers`](super::answers).

use mio::Token;
use ptth_proto::conn::{Body, Conn, Event};
use ptth_proto::http::framing::content_length;
use ptth_proto::limits::Wait;
use ptth_proto::role::Role;
use ptth_proto::wire::comet::{self, Style};
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::message::{Ask, end_to_end};
use ptth_proto::wire::packed::Form;

use super::{Doing, FAR, JOB, Job, Line, Way, forget};
use crate::agent::Agent;
use crate::answer::{Answer, Code};
use crate::peer::Seat;
use crate::reactor::Core;

impl Agent {
    /// Says a request that a poll has brought at the far end of a pipe.
    pub(super) fn serve(&mut self, core: &mut Core, line: Option<usize>, ask: Ask, style: Style) {
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
    pub(in crate::agent) fn step_far(&mut self, core: &mut Core, far: Token) {
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
    pub(super) fn cut_off(&mut self, core: &mut Core, far: Token) {
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
    pub(super) fn answer_alone(&mut self, core: &mut Core, far: Token, answer: &Answer) {
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
    pub(super) fn job_is_over(&mut self, core: &mut Core) {
        if self.polls.jobs.len() >= self.size.most {
            return;
        }
        let full = |line: &Line| matches!(line.doing, Doing::Full);
        let lines: Vec<usize> = self.polls.lines.iter().filter(|(_, line)| full(line)).map(|(link, _)| *link).collect();
        for link in lines {
            self.next_poll(core, link, true);
        }
    }
}

fn is_event_stream(kind: &[u8]) -> bool {
    kind.get(..17).is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/event-stream"))
}
