//! Until when a connection may stay as it is, and how an exchange and the connection end: by a deadline, because either side will have
//! no other exchange, because the peer broke the rules. Which rules there are is settled where they are read, in
//! [`recv`](super::recv).

use alloc::vec::Vec;
use core::mem;
use core::time::Duration;

use super::line::Line;
use super::{Closing, Conn, Event, Http, Reading, State};
use crate::error::{CloseReason, Error};
use crate::http::body::{Reader, Writer};
use crate::http::exchange::{Move, Phase};
use crate::http::framing::Asked;
use crate::http::tunnel::{Flow, Tunnel};
use crate::limits::{Deadlines, NET_PTTH_PAUSE, NET_PTTH_QUIET, Wait};
use crate::link::upgrade::Profile;
use crate::role::Role;
use crate::time::Instant;

impl Conn {
    /// Until when this connection may stay as it is, and which patience ends then. `None`: as long as it likes.
    pub fn deadline(&self, deadlines: &Deadlines) -> Option<(Instant, Wait)> {
        let (since, patience, wait): (Instant, Duration, Wait) = match &self.state {
            State::Offering(http) => (http.since, deadlines.upgrade, Wait::Upgrade),
            State::Pausing(http) => (http.since, NET_PTTH_PAUSE, Wait::Pause),
            State::Draining(_, Closing::Linger, since) => (*since, deadlines.linger, Wait::Linger),
            State::Http(http) => http.deadline(deadlines, false)?,
            State::Leaving(http) if http.is_idle() => (http.since, deadlines.linger, Wait::Leave),
            State::Link(http) | State::Leaving(http) => http.deadline(deadlines, true)?,
            State::Tunnel(Tunnel { flow: Flow::Both, since }) => (*since, deadlines.tunnel, Wait::Tunnel),
            State::Tunnel(Tunnel { since, .. }) => (*since, deadlines.tunnel_end, Wait::TunnelEnd),
            _ => return None,
        };
        Some((since + patience, wait))
    }

    /// A deadline has passed. Those that only move the connection on are dealt with here: the pause behind a 101 ends, a body
    /// whose end is silence ends, a lingering connection is closed. The others are the driver's to answer.
    pub fn timeout(&mut self, now: Instant, wait: Wait) -> Option<Event<'static>> {
        match (&mut self.state, wait) {
            (State::Pausing(http), Wait::Pause) => {
                self.state = State::Link(Http { since: now, ..*http });
                None
            }
            (State::Link(http), Wait::Quiet) => {
                http.exchange.make(!http.role, Move::End).ok()?;
                http.reading = Reading::HEAD;
                self.settle(now);
                Some(Event::End { trailers: false })
            }
            (State::Draining(reason, ..), Wait::Linger) => {
                self.state = State::Closed(*reason);
                None
            }
            _ => None,
        }
    }

    /// The driver has held the peer back and now reads on: the patience with it starts anew.
    pub fn touch(&mut self, now: Instant) {
        if let State::Tunnel(tunnel) = &mut self.state {
            tunnel.since = now;
        }
        if let Some(http) = self.http_mut() {
            http.since = now;
            if http.role == Role::Server {
                http.asked_at = now;
            }
        }
    }

    /// Whether nothing has come of the peer's request for longer than this, its body not being whole. Only an agent of ours has to ask, whose
    /// deadline in that state is the next sign that it is there.
    pub fn has_stalled(&self, now: Instant, patience: Duration) -> bool {
        self.http().is_some_and(|http| {
            http.role == Role::Server && http.theirs() == Phase::Body && now >= http.asked_at + patience
        })
    }

    /// Gives the connection up: it closes once what was appended is sent, whatever was still to be said.
    pub fn close(&mut self, now: Instant) {
        let reason = self.close_reason().unwrap_or(CloseReason::Draining);
        if !matches!(self.state, State::Closed(_)) {
            self.state = State::Draining(reason, Closing::Linger, now);
        }
    }

    /// Our last byte is sent and our side is ended: from now on what the peer says is thrown away, for as long as
    /// [`Deadlines::linger`]. False when the connection is not closing, or over.
    pub fn linger(&mut self, now: Instant) -> bool {
        let State::Draining(reason, ..) = self.state else { return false };
        self.state = State::Draining(reason, Closing::Linger, now);
        true
    }

    /// No exchange follows the present one: a server's answer says `Connection: close`, an idle connection closes now.
    pub fn do_not_keep(&mut self) {
        let idle = self.is_idle();
        let Some(http) = self.http_mut() else { return };
        if http.behind.is_line() || !http.behind.is_empty() {
            http.behind.end();
        }
        if !http.behind.is_empty() {
            // Those who were asked for are answered.
            return;
        }
        http.exchange.do_not_keep();
        if idle {
            self.state = State::Closed(CloseReason::Draining);
        }
    }

    /// The next request is to be the last: it says `Connection: close`.
    pub fn ask_last(&mut self) {
        if let State::Http(http) | State::Link(http) = &mut self.state
            && http.role == Role::Client
            && http.is_idle()
        {
            http.exchange.do_not_keep();
        }
    }

    /// No exchange follows the present one, as [`Conn::do_not_keep`] has it. Only an idle link to a relay of ours is not closed
    /// under a request that may be on its way: the relay is told, and closes it, now or behind the answer to that request.
    pub fn leave(&mut self, now: Instant, out: &mut Vec<u8>) {
        match self.state {
            State::Link(mut http) if http.profile.is_ours() && http.role == Role::Server && http.is_idle() => {
                out.extend_from_slice(b"HTTP/1.1 102 Processing\r\nConnection: close\r\n\r\n");
                http.exchange.do_not_keep();
                http.since = now;
                self.state = State::Leaving(http);
            }
            State::Leaving(_) => {}
            _ => self.do_not_keep(),
        }
    }

    /// Both messages are over: the next exchange begins, or the connection ends.
    pub(super) fn settle(&mut self, now: Instant) {
        let (http, error) = match &mut self.state {
            // An offer that came while an answer was under way is settled by that answer.
            State::Http(http) | State::Link(http) | State::Offered(http, ..) => (http, None),
            State::Broken(http, error) => (http, Some(*error)),
            State::Tunnel(Tunnel { flow: Flow::Neither, .. }) => {
                self.state = State::Closed(CloseReason::TunnelOver);
                return;
            }
            _ => return,
        };
        if http.exchange.start_next() {
            http.start_next(now);
            return;
        }
        let (ours, theirs) = (http.ours(), http.theirs());
        let over = matches!(ours, Phase::Done | Phase::MustClose);
        self.state = match (http.role, over, theirs) {
            (_, true, Phase::Broken) => match error {
                Some(error) => State::Draining(CloseReason::Failed(error), Closing::Linger, now),
                None => return,
            },
            (Role::Server, true, Phase::MustClose | Phase::Closed) => {
                let until_close = http.writing == Writer::UntilClose;
                let reason = if until_close { CloseReason::EndOfBody } else { CloseReason::NotKept };
                // Further requests may be on their way to us, whose bytes would reset the connection and our answers with it.
                let closing = if http.profile == Profile::Pipelining { Closing::Linger } else { Closing::Flush };
                State::Draining(reason, closing, now)
            }
            // The answer is complete and the request is not: no next exchange can be found behind it.
            (Role::Server, true, Phase::Body) => State::Draining(CloseReason::AnsweredEarly, Closing::Linger, now),
            (Role::Server, true, Phase::Idle) => State::Draining(CloseReason::NotKept, Closing::Linger, now),
            (Role::Client, _, Phase::MustClose) if over => State::Closed(CloseReason::NotKept),
            (Role::Client, false, Phase::Done | Phase::MustClose) => State::Closed(CloseReason::AnsweredEarly),
            _ => return,
        };
    }

    pub(super) fn break_off(&mut self, error: Error) {
        let state = mem::replace(&mut self.state, State::Closed(CloseReason::Failed(error)));
        self.state = match state {
            State::Http(mut http)
            | State::Offering(mut http)
            | State::Offered(mut http, ..)
            | State::Pausing(mut http)
            | State::Link(mut http)
            | State::Leaving(mut http) => {
                http.exchange.break_off(!http.role);
                State::Broken(http, error)
            }
            other => other,
        };
    }
}

impl Http {
    /// The next exchange begins: with a request that was asked already, if there is one.
    fn start_next(&mut self, now: Instant) {
        // Of a server's side, the next request may have begun to come.
        if self.role == Role::Client || !self.behind.is_line() {
            self.reading = Reading::HEAD;
        }
        self.asked = Asked::Other;
        self.since = now;
        match self.behind.pop() {
            None => self.behind = Line::default(),
            Some((asked, last)) => {
                self.asked = asked;
                self.asked_at = now;
                let asked = self.exchange.make(Role::Client, Move::Request);
                let done = asked.and_then(|()| self.exchange.make(Role::Client, Move::End));
                debug_assert!(done.is_ok(), "a new exchange takes a request");
                if last {
                    self.exchange.do_not_keep();
                }
            }
        }
    }

    fn deadline(&self, deadlines: &Deadlines, turned: bool) -> Option<(Instant, Duration, Wait)> {
        let ours = self.profile.is_ours();
        let (patience, wait) = match (self.role, self.theirs(), &self.reading) {
            // On a link where we ask, it is the head by which the agent goes.
            (_, Phase::Idle, Reading::Head { scanner, .. }) if !scanner.is_fresh() => (deadlines.head, Wait::Head),
            // A link may be idle as long as it lives. A relay of ours asks now and then whether we are there; TCP keep-alive
            // watches the others.
            (Role::Server, Phase::Idle, _) if !turned => (deadlines.idle, Wait::Idle),
            (Role::Server, Phase::Idle, _) if ours => (deadlines.silence, Wait::Silence),
            // A request whose rest lies in the sockets on the way is whole to the relay: it waits for signs, like behind any other.
            (Role::Server, Phase::Body, _) if turned && ours && self.ours() == Phase::Answering => {
                (deadlines.ping.min(deadlines.body), Wait::Ping)
            }
            (Role::Server, Phase::Body, _) => (deadlines.body, Wait::Body),
            (Role::Server, Phase::Done | Phase::MustClose | Phase::MightSwitch, _)
                if ours && self.ours() == Phase::Answering =>
            {
                (deadlines.ping, Wait::Ping)
            }
            // As long as we still ask, no answer is due.
            (Role::Client, Phase::Answering, _) if self.ours() == Phase::Body => return None,
            (Role::Client, Phase::Answering, _) if ours => return Some(self.answer_deadline(deadlines)),
            (Role::Client, Phase::Answering, _) if turned => (deadlines.link_answer, Wait::Answer),
            (Role::Client, Phase::Answering, _) => (deadlines.answer, Wait::Answer),
            (Role::Client, Phase::Body, Reading::Body(Reader::UntilClose)) if self.profile == Profile::NetPtth => {
                (NET_PTTH_QUIET, Wait::Quiet)
            }
            (Role::Client, Phase::Body, _) => (deadlines.stream, Wait::Stream),
            _ => return None,
        };
        Some((self.since, patience, wait))
    }

    /// How long an agent of ours may take for its answer: without a sign of life, and in all.
    fn answer_deadline(&self, deadlines: &Deadlines) -> (Instant, Duration, Wait) {
        let (quiet, wait) = if deadlines.silence <= deadlines.link_answer {
            (deadlines.silence, Wait::Silence)
        } else {
            (deadlines.link_answer, Wait::Answer)
        };
        if self.since + quiet <= self.asked_at + deadlines.signs {
            (self.since, quiet, wait)
        } else {
            (self.asked_at, deadlines.signs, Wait::Signs)
        }
    }
}
