//! What the peer says: bytes come in, and events go out. What we say is in [`send`](super::send); of a request that comes before the
//! answer to the one in front of it, [`line`](super::line) has all.

use super::{Config, Conn, Event, Http, Reading, State};
use crate::error::{CloseReason, Error, Fault, Misuse};
use crate::http::body::Reader;
use crate::http::exchange::{Move, Phase};
use crate::http::framing::{Asked, Framing, framing, is_doubtful};
use crate::http::tunnel::Tunnel;
use crate::limits::{BLANK_LINES, Limits};
use crate::link::upgrade::{self, Profile};
use crate::role::Role;
use crate::time::Instant;
use crate::wire::chunk::Part;
use crate::wire::fields::{Fields, Name};
use crate::wire::head::{self, Head, LineEnds, Version};

impl Conn {
    /// Takes bytes from the peer. Gives how many of them are done with, and what they said. A head or trailers are put into
    /// `head`.
    ///
    /// # Errors
    /// When the peer broke a rule or a limit; the same error again at each later call. On a server's side
    /// [`Conn::can_respond`] says whether the peer can be told.
    pub fn recv<'a>(
        &mut self,
        now: Instant,
        input: &'a [u8],
        head: &mut Head,
        config: &Config,
    ) -> Result<(usize, Option<Event<'a>>), Error> {
        let step = match &mut self.state {
            State::Http(http) => {
                let ends = http.profile.line_ends();
                http.recv(now, input, head, &config.limits, ends)
            }
            State::Link(http) | State::Leaving(http) => {
                let ends = http.profile.line_ends();
                http.recv(now, input, head, &config.limits.of_link(), ends)
            }
            // Kodi and net-ptth's test server end lines of their 101 with LF alone.
            State::Offering(http) => http.recv(now, input, head, &config.limits, LineEnds::LfToo),
            // Nothing may come before the answer to an offer (RFC 9931), nor on a link that was not asked.
            State::Offered(..) | State::Pausing(_) if input.is_empty() => Ok((0, None)),
            State::Offered(..) => Err(Fault::BytesBehindOffer.into()),
            State::Pausing(_) => Err(Fault::UnexpectedData.into()),
            State::Tunnel(_) if input.is_empty() => Ok((0, None)),
            State::Tunnel(tunnel) => {
                tunnel.since = now;
                Ok((input.len(), Some(Event::Data(input))))
            }
            State::Broken(_, error) => return Err(*error),
            State::Draining(..) | State::Closed(_) => Ok((input.len(), None)),
        };
        match step {
            Ok((used, Some(event))) => self.turn(now, event, input.len() - used, head).map(|event| (used, event)),
            Ok(none) => Ok(none),
            Err(error) => {
                self.break_off(error);
                Err(error)
            }
        }
    }

    /// What an event does to the connection beyond its exchange.
    fn turn<'a>(
        &mut self,
        now: Instant,
        event: Event<'a>,
        behind: usize,
        head: &Head,
    ) -> Result<Option<Event<'a>>, Error> {
        match (self.state, event) {
            (State::Offering(http), Event::Switched) => match upgrade::switched(head, http.lone_lf) {
                Ok(profile) => {
                    self.state = State::Link(Http::new(!http.role, profile, now));
                    Ok(Some(Event::Turned))
                }
                Err(error) => {
                    self.break_off(error);
                    Err(error)
                }
            },
            // A 101 or a 2xx that was asked for: `Http::response` gives no other.
            (State::Http(_) | State::Link(_), Event::Switched) => {
                self.state = State::Tunnel(Tunnel::new(now));
                Ok(Some(Event::Switched))
            }
            (State::Offering(http), Event::Response(framing)) => {
                self.state = State::Http(http);
                Ok(Some(Event::Response(framing)))
            }
            (State::Http(http), Event::Request(framing)) if http.role == Role::Server => match upgrade::offered(head) {
                Ok(Some(_)) if behind > 0 => {
                    self.break_off(Fault::BytesBehindOffer.into());
                    Err(Fault::BytesBehindOffer.into())
                }
                Ok(Some((token, profile))) => {
                    let mut http = http;
                    http.exchange.offer();
                    http.exchange.make(Role::Client, Move::End)?;
                    http.reading = Reading::HEAD;
                    self.state = State::Offered(http, token, profile);
                    Ok(Some(Event::Offer(token)))
                }
                Ok(None) => self.demand_host(head).map(|()| Some(Event::Request(framing))),
                Err(error) => {
                    self.break_off(error);
                    Err(error)
                }
            },
            // The request was on its way: its answer says that it was the last one.
            (State::Leaving(http), event @ Event::Request(_)) => {
                self.state = State::Link(http);
                Ok(Some(event))
            }
            (_, Event::Leaving) => {
                self.state = State::Closed(CloseReason::NotKept);
                Ok(Some(Event::Leaving))
            }
            (_, event @ (Event::End { .. } | Event::Aside | Event::Closed)) => {
                self.settle(now);
                Ok(Some(event))
            }
            (_, event) => Ok(Some(event)),
        }
    }

    /// RFC 9112 §3.2: a request of HTTP/1.1 without `Host` is refused, whatever its target says. On the reversed side it is not: draft-lentczner-rhttp
    /// leaves the value empty, and AirPlay receivers the whole field away.
    fn demand_host(&mut self, head: &Head) -> Result<(), Error> {
        if head.version() == Version::Http11 && !head.fields.has(Name::Host) {
            self.break_off(Fault::NoHost.into());
            return Err(Fault::NoHost.into());
        }
        Ok(())
    }

    /// The peer's bytes have ended, and `recv` gives nothing more; `leftover` of them were not used. Gives the end of a body
    /// that ends so, or [`Event::Closed`].
    ///
    /// # Errors
    /// [`Fault::EarlyEnd`] in the middle of a message.
    pub fn eof(&mut self, now: Instant, leftover: usize) -> Result<Option<Event<'static>>, Error> {
        let step = match &mut self.state {
            State::Http(http) | State::Offering(http) | State::Link(http) | State::Leaving(http) => http.eof(leftover),
            State::Tunnel(tunnel) => {
                tunnel.end_theirs(now);
                Ok(Some(Event::End { trailers: false }))
            }
            State::Offered(..) | State::Pausing(_) => Ok(Some(Event::Closed)),
            State::Broken(_, error) => return Err(*error),
            State::Draining(reason, ..) => {
                self.state = State::Closed(*reason);
                return Ok(None);
            }
            State::Closed(_) => return Ok(None),
        };
        match step {
            Ok(Some(Event::Closed)) => {
                self.state = State::Closed(CloseReason::PeerClosed);
                Ok(Some(Event::Closed))
            }
            Ok(event) => {
                self.settle(now);
                Ok(event)
            }
            Err(error) => {
                self.break_off(error);
                Err(error)
            }
        }
    }

    /// How many of the peer's next bytes are certain to be nothing but body; in a tunnel there is no end of them. `None` where
    /// none are: then all that comes has to be received.
    pub fn left_to_recv(&self) -> Option<u64> {
        match &self.state {
            State::Tunnel(tunnel) => tunnel.they_speak().then_some(u64::MAX),
            State::Http(http) | State::Link(http) if http.theirs() == Phase::Body => match &http.reading {
                Reading::Body(reader) => reader.left(),
                Reading::Head { .. } => None,
            },
            _ => None,
        }
    }

    /// So many bytes of the peer's body have come and were taken elsewhere: as if [`Conn::recv`] had given them as
    /// [`Event::Data`]. It gives the end of the body as always.
    ///
    /// # Errors
    /// When they were more than [`Conn::left_to_recv`]; nothing changes then.
    pub fn recv_passed(&mut self, now: Instant, n: u64) -> Result<(), Error> {
        match &mut self.state {
            State::Tunnel(tunnel) if tunnel.they_speak() => tunnel.since = now,
            State::Http(http) | State::Link(http) if http.theirs() == Phase::Body => match &mut http.reading {
                Reading::Body(reader) => {
                    reader.passed(n)?;
                    http.heard(now);
                }
                Reading::Head { .. } => return Err(Misuse::OutOfTurn.into()),
            },
            _ => return Err(Misuse::OutOfTurn.into()),
        }
        Ok(())
    }
}

impl Http {
    fn recv<'a>(
        &mut self,
        now: Instant,
        input: &'a [u8],
        head: &mut Head,
        limits: &Limits,
        ends: LineEnds,
    ) -> Result<(usize, Option<Event<'a>>), Error> {
        match (self.role, self.theirs()) {
            (Role::Client, Phase::Idle) if !input.is_empty() && self.profile.is_ours() => {
                self.recv_leave(now, input, head, limits)
            }
            // RFC 9112 §9.2: bytes on a connection without an outstanding request are no response.
            (Role::Client, Phase::Idle) if !input.is_empty() => Err(Fault::UnexpectedData.into()),
            (Role::Server, Phase::Idle) | (Role::Client, Phase::Answering) => {
                self.recv_head(now, input, head, limits, ends)
            }
            (_, Phase::Body) => self.recv_body(now, input, head, limits),
            _ => Ok((0, None)),
        }
    }

    fn recv_head<'a>(
        &mut self,
        now: Instant,
        input: &'a [u8],
        head: &mut Head,
        limits: &Limits,
        ends: LineEnds,
    ) -> Result<(usize, Option<Event<'a>>), Error> {
        let Reading::Head { scanner, blank } = &mut self.reading else { return Ok((0, None)) };
        let mut used = 0;
        if self.role == Role::Server && scanner.is_fresh() {
            used = blank_lines(input, blank);
            if matches!(input[used..], [] | [b'\r']) {
                return Ok((used, None));
            }
            self.since = now;
        }
        let rest = &input[used..];
        let Some(n) = scanner.find_end(rest, ends, limits.head)? else { return Ok((used, None)) };
        self.lone_lf = scanner.saw_lone_lf();
        let event = match self.role {
            Role::Server => self.request(&rest[..n], head, limits)?,
            Role::Client => self.response(&rest[..n], head, limits)?,
        };
        self.since = now;
        if self.role == Role::Server {
            self.asked_at = now;
        }
        Ok((used + n, Some(event)))
    }

    /// An agent of ours may say on an idle link that it goes, and nothing else.
    fn recv_leave<'a>(
        &mut self,
        now: Instant,
        input: &'a [u8],
        head: &mut Head,
        limits: &Limits,
    ) -> Result<(usize, Option<Event<'a>>), Error> {
        const START: &[u8] = b"HTTP/1.1 102 ";
        let begun = START.len().min(input.len());
        if input[..begun] != START[..begun] {
            return Err(Fault::UnexpectedData.into());
        }
        let Reading::Head { scanner, .. } = &mut self.reading else { return Ok((0, None)) };
        if scanner.is_fresh() {
            self.since = now;
        }
        let Some(n) = scanner.find_end(input, LineEnds::Crlf, limits.head)? else { return Ok((0, None)) };
        head.parse_response(&input[..n], limits)?;
        if !head.fields.lists(Name::Connection, b"close") {
            return Err(Fault::UnexpectedData.into());
        }
        self.reading = Reading::HEAD;
        Ok((n, Some(Event::Leaving)))
    }

    fn request(&mut self, whole: &[u8], head: &mut Head, limits: &Limits) -> Result<Event<'static>, Error> {
        head.parse_request(whole, limits)?;
        // Known as early as can be: an error is answered in the version of the request.
        self.version = head.version();
        self.asked = Asked::by(head.method());
        head::host(&head.fields)?;
        let framing = framing(head, None)?;
        self.exchange.make(Role::Client, Move::Request)?;
        if !is_kept(head) {
            self.exchange.do_not_keep();
        }
        self.reading = Reading::Body(framing.into());
        let may_follow = self.profile == Profile::Pipelining && framing == Framing::Empty && self.exchange.is_kept();
        let may_be_repeated = matches!(head.method(), b"GET" | b"HEAD");
        if may_follow && may_be_repeated && head.fields.lists(Name::PtthAccept, upgrade::ASIDE) {
            self.behind.open();
        }
        Ok(Event::Request(framing))
    }

    fn response(&mut self, whole: &[u8], head: &mut Head, limits: &Limits) -> Result<Event<'static>, Error> {
        head.parse_response(whole, limits)?;
        self.version = head.version();
        match head.status() {
            101 => {
                self.exchange.make(Role::Server, Move::Switch).map_err(|_| Fault::UnaskedSwitch)?;
                return Ok(Event::Switched);
            }
            100..200 => {
                self.exchange.make(Role::Server, Move::Informational)?;
                if is_doubtful(head) {
                    self.exchange.do_not_keep();
                }
                self.reading = Reading::HEAD;
                // The second is of an agent that goes, and had not heard of this request when it said so.
                let mark = |fields: &Fields| {
                    fields.lists(Name::PtthAccept, upgrade::PING) || fields.lists(Name::Connection, b"close")
                };
                let ours = self.profile.is_ours() && head.status() == 102;
                if ours && self.behind.is_line() && head.fields.has(Name::PtthAside) {
                    self.exchange.make(Role::Server, Move::Response)?;
                    self.exchange.make(Role::Server, Move::End)?;
                    return Ok(Event::Aside);
                }
                return Ok(if ours && mark(&head.fields) { Event::Alive } else { Event::Informational });
            }
            _ => {}
        }
        let framing = framing(head, Some(self.asked))?;
        if self.asked == Asked::Connect && matches!(head.status(), 200..300) {
            if self.exchange.phase(Role::Client) == Phase::Body {
                return Err(Fault::UnaskedSwitch.into());
            }
            return Ok(Event::Switched);
        }
        self.exchange.make(Role::Server, Move::Response)?;
        // net-ptth goes on after a body that only silence ends.
        let ends_by_close = framing == Framing::UntilClose && self.profile != Profile::NetPtth;
        if !is_kept(head) || ends_by_close || is_doubtful(head) {
            self.exchange.do_not_keep();
        }
        self.reading = Reading::Body(framing.into());
        Ok(Event::Response(framing))
    }

    fn recv_body<'a>(
        &mut self,
        now: Instant,
        input: &'a [u8],
        head: &mut Head,
        limits: &Limits,
    ) -> Result<(usize, Option<Event<'a>>), Error> {
        let Reading::Body(reader) = &mut self.reading else { return Ok((0, None)) };
        let (used, part) = reader.read(input, &mut head.fields, limits)?;
        match part {
            None => Ok((used, None)),
            Some(Part::Data(data)) => {
                self.heard(now);
                Ok((used, Some(Event::Data(data))))
            }
            Some(Part::End) => {
                let trailers = matches!(reader, Reader::Chunked(_)) && !head.fields.is_empty();
                self.exchange.make(!self.role, Move::End)?;
                self.reading = Reading::HEAD;
                self.since = now;
                Ok((used, Some(Event::End { trailers })))
            }
        }
    }

    /// A piece of the peer's body has come.
    fn heard(&mut self, now: Instant) {
        self.since = now;
        if self.role == Role::Server {
            self.asked_at = now;
        }
    }

    fn eof(&mut self, leftover: usize) -> Result<Option<Event<'static>>, Error> {
        match (self.role, self.theirs(), &self.reading) {
            (_, Phase::Idle, _) if leftover == 0 => Ok(Some(Event::Closed)),
            (Role::Client, Phase::Body, Reading::Body(Reader::UntilClose)) => {
                self.exchange.do_not_keep();
                self.exchange.make(Role::Server, Move::End)?;
                self.reading = Reading::HEAD;
                Ok(Some(Event::End { trailers: false }))
            }
            // The message was whole; only no other can follow it.
            (_, Phase::Done | Phase::MustClose | Phase::Closed | Phase::MightSwitch, _) => {
                self.exchange.do_not_keep();
                Ok(None)
            }
            _ => Err(Fault::EarlyEnd.into()),
        }
    }
}

/// Whether the sender of this head would go on with the connection (RFC 9112 §9.3).
pub(super) fn is_kept(head: &Head) -> bool {
    match head.version() {
        Version::Http11 => !head.fields.lists(Name::Connection, b"close"),
        Version::Http10 => head.fields.lists(Name::Connection, b"keep-alive"),
    }
}

/// The bytes of empty lines in front of a request.
fn blank_lines(input: &[u8], blank: &mut u8) -> usize {
    let mut used = 0;
    while *blank < BLANK_LINES && input[used..].starts_with(b"\r\n") {
        *blank += 1;
        used += 2;
    }
    used
}
