//! One connection as one enum: bytes in, events out, bytes out. The same type is an agent's and a relay's, before the turn
//! and after it.
//!
//! The contract, for whoever drives it:
//!
//! - Bytes from the peer go to [`Conn::recv`], again and again while it gives an event or uses bytes. `(n, None)` asks for
//!   more input; what was not used must come again in front of it. It also gives `None` while a request's answer is due: the
//!   next request of a pipelining client stays in the driver's buffer until then.
//! - At the end of the peer's bytes [`Conn::eof`] is called once, when `recv` gives nothing more.
//! - What is to be sent goes through the `send_…` calls, which append to the driver's buffer or change nothing at all.
//! - After each call the driver asks [`Conn::deadline`] until when it may sleep, and [`Conn::closing`] whether the
//!   connection is to end. `now` never runs backwards.
//! - Bytes of a body whose number is known, and those of a tunnel, may go from one socket to another without being seen here:
//!   at most [`Conn::left_to_recv`] of one connection and [`Conn::left_to_send`] of the other, and while nothing that came
//!   before them waits in a buffer to be received. Each connection is told so by [`Conn::recv_passed`] and
//!   [`Conn::send_passed`].
//! - A message is whole for the peer with its last byte, which may be that of its head: [`Conn::send_end`] belongs into the
//!   same turn, before anything more is received.
//! - After an error `recv` repeats it. A server may still send one response when [`Conn::can_respond`] and the error has a
//!   status ([`Error::status`]), and is closing then; in all other cases the driver drops the connection.

use alloc::vec::Vec;
use core::mem;
use core::time::Duration;

use crate::error::{CloseReason, Error, Fault, Misuse};
use crate::http::body::{Reader, Writer};
use crate::http::exchange::{Exchange, Move, Phase};
use crate::http::framing::{Asked, Framing, framing, is_doubtful};
use crate::http::tunnel::{Flow, Tunnel};
use crate::limits::{BLANK_LINES, Deadlines, Limits, NET_PTTH_PAUSE, NET_PTTH_QUIET, Wait};
use crate::link::upgrade::{self, Profile, Token};
use crate::role::Role;
use crate::time::Instant;
use crate::wire::chunk::Part;
use crate::wire::fields::{Fields, Name};
use crate::wire::head::{self, FieldWriter, Head, LineEnds, Scanner, Version};

/// What a peer said.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A request's head; it stands in the `head` given to [`Conn::recv`].
    Request(Framing),
    /// An agent's offer to turn the connection; its head stands in `head`. Answered by [`Conn::accept`] or by an ordinary
    /// response.
    Offer(Token),
    /// A 1xx response other than 101; its head stands in `head`.
    Informational,
    /// An agent of ours says that it is there, and no answer yet: nothing that the visitor is to hear of.
    Alive,
    /// An agent of ours has set the answer to our oldest request aside, under the name in `head`'s `Ptth-Aside`: on another link it can
    /// be asked for. Here it is over, and the next answer is that to the next request.
    Aside,
    /// An agent of ours is done with its idle link, which is closed.
    Leaving,
    /// A final response's head; it stands in `head`. To an offer: the refusal.
    Response(Framing),
    /// The offer was taken; the connection is turned and we are the server on it.
    Turned,
    /// The request's offer to switch protocols was taken by a 101, or its CONNECT by a 2xx; the head stands in `head`. From here on
    /// there are only [`Event::Data`] and one [`Event::End`].
    Switched,
    /// A piece of the body, never empty.
    Data(&'a [u8]),
    /// The message is complete. With `trailers` its trailer fields stand in `head`.
    End {
        /// Whether there are any.
        trailers: bool,
    },
    /// The peer closed between two exchanges.
    Closed,
}

/// The body that a head announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// None, and nothing is said of it.
    None,
    /// So many bytes.
    Length(u64),
    /// As many as come: chunked, or up to the end of the connection where the peer speaks HTTP/1.0.
    Stream,
}

impl From<Framing> for Body {
    fn from(framing: Framing) -> Body {
        match framing {
            Framing::Empty => Body::None,
            Framing::Length(n) => Body::Length(n),
            Framing::Chunked | Framing::UntilClose => Body::Stream,
        }
    }
}

/// How a connection is to end, once what was appended has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// At once: the peer has nothing more to say, or nobody listens.
    Flush,
    /// Our side first; then what the peer still sends is read and thrown away for a while, for closing on unread bytes
    /// would reset the connection and our answer with it (RFC 9112 §9.6).
    Linger,
}

/// What the driver has settled for its connections.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Limits on what peers send.
    pub limits: Limits,
    /// How long each state may last.
    pub deadlines: Deadlines,
}

/// Ordinary HTTP/1 in one role.
#[derive(Clone, Copy, Debug)]
struct Http {
    role: Role,
    exchange: Exchange,
    /// What of the peer's message comes next: its head, of which so much was looked at, or its body.
    reading: Reading,
    writing: Writer,
    /// What the present request asked for: its answer's framing depends on it.
    asked: Asked,
    /// The version of the peer's last message; before any, what we take it for.
    version: Version,
    /// Whether the peer's last head had a line that ended in LF alone.
    lone_lf: bool,
    profile: Profile,
    /// The last step forward: deadlines count from here.
    since: Instant,
    /// The end of our last request, or the last piece of the peer's: what an answer has in all, and what a body may rest, count from
    /// here, whatever signs of life there are.
    asked_at: Instant,
    /// What was asked behind the request in progress, and is not answered before that is.
    behind: Line,
}

/// Requests on a link behind the one in progress: whole ones without a body, of methods that may be repeated, between our own two
/// sides (`docs/links.md`).
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    state: Follow,
    count: u8,
    /// Which of them are HEAD, the oldest in the lowest bit.
    heads: u32,
}

/// Whether more may follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Follow {
    /// None: the request in progress is alone.
    #[default]
    No,
    Yes,
    /// Not any more: the connection ends behind those that are there.
    NoMore,
    /// None, and the connection ends behind the hints that are there.
    Last,
}

/// As many as there are bits for, and one in progress.
const MOST_BEHIND: u8 = 31;

/// Requests that may be on one link, whatever [`Limits::pipeline`] says.
pub const MOST_IN_LINE: usize = MOST_BEHIND as usize + 1;

impl Line {
    /// Whether the request in progress is one that others may follow, or could.
    fn is_line(&self) -> bool {
        matches!(self.state, Follow::Yes | Follow::NoMore)
    }

    /// No exchange follows those that are there.
    fn end(&mut self) {
        self.state = if self.is_line() { Follow::NoMore } else { Follow::Last };
    }

    fn is_ending(&self) -> bool {
        matches!(self.state, Follow::NoMore | Follow::Last)
    }

    fn has_room(&self) -> bool {
        self.state == Follow::Yes && self.count < MOST_BEHIND
    }

    fn push(&mut self, asked: Asked) {
        self.heads |= u32::from(asked == Asked::Head) << self.count;
        self.count += 1;
    }

    /// The next one, and whether it is the last that is answered.
    fn pop(&mut self) -> Option<(Asked, bool)> {
        self.count = self.count.checked_sub(1)?;
        let asked = if self.heads & 1 == 1 { Asked::Head } else { Asked::Other };
        self.heads >>= 1;
        Some((asked, self.count == 0 && self.is_ending()))
    }
}

#[derive(Clone, Copy, Debug)]
enum Reading {
    Head { scanner: Scanner, blank: u8 },
    Body(Reader),
}

impl Reading {
    const HEAD: Reading = Reading::Head { scanner: Scanner::new(), blank: 0 };
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Ordinary HTTP, in either role.
    Http(Http),
    /// We have offered to turn the connection.
    Offering(Http),
    /// The peer has.
    Offered(Http, Token, Profile),
    /// Turned, and waiting before the first request because the peer would lose it.
    Pausing(Http),
    /// Turned.
    Link(Http),
    /// No HTTP any more: bytes both ways.
    Tunnel(Tunnel),
    /// Turned, idle, and we have told the relay that we go: one request may be on its way still.
    Leaving(Http),
    /// The peer broke the rules; a server may still say so.
    Broken(Http, Error),
    /// Only what was appended is still to be sent.
    Draining(CloseReason, Closing, Instant),
    /// Over.
    Closed(CloseReason),
}

/// One connection. See the [module](self) for the contract.
#[derive(Clone, Debug)]
pub struct Conn {
    state: State,
}

impl Conn {
    /// A connection on which the peer asks first.
    pub fn server(now: Instant) -> Conn {
        Conn { state: State::Http(Http::new(Role::Server, Profile::Standard, now)) }
    }

    /// A connection on which we ask first.
    pub fn client(now: Instant) -> Conn {
        Conn { state: State::Http(Http::new(Role::Client, Profile::Standard, now)) }
    }

    /// A link without a handshake: one end of a pipe to whoever makes messages of what is said on it. Which end asks is told by
    /// the role, as on a connection after the turn.
    pub fn link(role: Role, now: Instant) -> Conn {
        Conn { state: State::Link(Http::new(role, Profile::Standard, now)) }
    }

    /// A connection that is a tunnel from the start: bytes without HTTP.
    pub fn tunnel(now: Instant) -> Conn {
        Conn { state: State::Tunnel(Tunnel::new(now)) }
    }

    /// Our role at the moment; `None` in a tunnel, and once the connection is closing.
    pub fn role(&self) -> Option<Role> {
        self.http().map(|http| http.role)
    }

    /// Whether the connection was turned and still lives.
    pub fn is_link(&self) -> bool {
        matches!(self.state, State::Link(_) | State::Pausing(_) | State::Leaving(_))
    }

    /// Whether both sides know what `docs/links.md` says.
    pub fn is_ours(&self) -> bool {
        self.http().is_some_and(|http| http.profile.is_ours())
    }

    /// Whether the relay was told that this idle link goes, and has not closed it yet.
    pub fn is_leaving(&self) -> bool {
        matches!(self.state, State::Leaving(_))
    }

    /// Whether it is a tunnel: bytes without HTTP, in one direction at least.
    pub fn is_tunnel(&self) -> bool {
        matches!(self.state, State::Tunnel(_))
    }

    /// Whether our direction of a tunnel has ended and the peer's has not: once what was appended is sent, the driver is to end its
    /// side of the socket, and to go on reading.
    pub fn is_half_closed(&self) -> bool {
        matches!(self.state, State::Tunnel(Tunnel { flow: Flow::Theirs, .. }))
    }

    /// Whether a new request may go out on it, or may come in: nothing of one is there yet.
    pub fn is_idle(&self) -> bool {
        match &self.state {
            State::Http(http) | State::Link(http) => http.is_idle(),
            _ => false,
        }
    }

    /// Whether more of the peer's bytes would be of use now. False while its next request has to wait for the answer to
    /// this one.
    pub fn wants_read(&self) -> bool {
        match &self.state {
            State::Link(http) if http.takes_more() => true,
            State::Http(http)
            | State::Offering(http)
            | State::Pausing(http)
            | State::Link(http)
            | State::Leaving(http) => !matches!(http.theirs(), Phase::Done | Phase::MustClose | Phase::MightSwitch),
            State::Tunnel(tunnel) => tunnel.they_speak(),
            State::Offered(..) | State::Broken(..) | State::Closed(_) => false,
            State::Draining(_, closing, _) => *closing == Closing::Linger,
        }
    }

    /// Whether and how the connection is to be closed after what was appended is sent.
    pub fn closing(&self) -> Option<Closing> {
        match &self.state {
            State::Draining(_, closing, _) => Some(*closing),
            State::Closed(_) => Some(Closing::Flush),
            State::Broken(http, _) if http.role == Role::Client => Some(Closing::Flush),
            _ => None,
        }
    }

    /// Why it is closing or closed.
    pub fn close_reason(&self) -> Option<CloseReason> {
        match &self.state {
            State::Draining(reason, ..) | State::Closed(reason) => Some(*reason),
            State::Broken(_, error) => Some(CloseReason::Failed(*error)),
            _ => None,
        }
    }

    /// What the request in progress asked for.
    pub fn asked(&self) -> Asked {
        self.http().map(|http| http.asked).unwrap_or_default()
    }

    /// Whether our own message is still due: a server that has not finished its answer, a client that has not finished its
    /// request. In a tunnel, whether our direction is open.
    pub fn is_speaking(&self) -> bool {
        match &self.state {
            State::Tunnel(tunnel) => tunnel.we_speak(),
            _ => self.http().is_some_and(|http| matches!(http.ours(), Phase::Answering | Phase::Body)),
        }
    }

    /// Whether the peer's message is whole; in a tunnel, whether its direction has ended.
    pub fn has_heard_all(&self) -> bool {
        if let State::Tunnel(tunnel) = &self.state {
            return !tunnel.they_speak();
        }
        self.http().is_none_or(|http| !matches!(http.theirs(), Phase::Idle | Phase::Answering | Phase::Body))
    }

    /// Whether another exchange may follow the present one, as far as is known.
    pub fn is_kept(&self) -> bool {
        self.http().is_some_and(|http| http.exchange.is_kept())
    }

    /// Whether a final response can still be sent: none was begun. Not to half a head on a link of which we have said that it goes.
    pub fn can_respond(&self) -> bool {
        !self.is_leaving()
            && self
                .http()
                .is_some_and(|http| http.role == Role::Server && matches!(http.ours(), Phase::Answering | Phase::Idle))
    }

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

    /// Sends a request's head. `fields` are all but the framing ones, `Host` among them.
    ///
    /// # Errors
    /// When it is not our turn to ask, or a value can't be sent; nothing is appended then.
    pub fn send_request(
        &mut self,
        now: Instant,
        out: &mut Vec<u8>,
        (method, target): (&[u8], &[u8]),
        body: Body,
        fields: impl FnOnce(&mut FieldWriter<'_>),
    ) -> Result<(), Error> {
        let (State::Http(http) | State::Link(http)) = &mut self.state else {
            return Err(Misuse::OutOfTurn.into());
        };
        let start = out.len();
        let done = http.send_request(now, out, method, target, body, fields);
        undo(done, out, start)
    }

    /// Offers to turn the connection: see [`upgrade::write_offer`].
    ///
    /// # Errors
    /// When something was said on the connection before, or a value can't be sent.
    pub fn send_offer(
        &mut self,
        now: Instant,
        out: &mut Vec<u8>,
        (path, host): (&[u8], &[u8]),
        token: Token,
        more: impl FnOnce(&mut FieldWriter<'_>),
    ) -> Result<(), Error> {
        let State::Http(mut http) = self.state else { return Err(Misuse::OutOfTurn.into()) };
        if http.role != Role::Client || !http.is_idle() {
            return Err(Misuse::OutOfTurn.into());
        }
        let start = out.len();
        undo(upgrade::write_offer(path, host, token, more, out), out, start)?;
        http.exchange.offer();
        http.exchange.make(Role::Client, Move::Request)?;
        http.exchange.make(Role::Client, Move::End)?;
        http.since = now;
        self.state = State::Offering(http);
        Ok(())
    }

    /// Takes an offer: sends the 101 and turns the connection. The first request may follow when [`Conn::is_idle`], which
    /// for one known peer takes a moment ([`Wait::Pause`]).
    ///
    /// # Errors
    /// When there is none.
    pub fn accept(&mut self, now: Instant, out: &mut Vec<u8>) -> Result<(), Error> {
        let State::Offered(mut http, token, profile) = self.state else { return Err(Misuse::OutOfTurn.into()) };
        // Not when a refusal has begun.
        http.exchange.make(http.role, Move::Switch)?;
        upgrade::write_switch(token, profile, out);
        let turned = Http::new(!http.role, profile, now);
        self.state = match profile {
            Profile::NetPtth => State::Pausing(turned),
            _ => State::Link(turned),
        };
        Ok(())
    }

    /// Sends a 1xx response other than 101. Swallowed where the peer speaks HTTP/1.0, which has none.
    ///
    /// # Errors
    /// When no answer is due, or the status is another.
    pub fn send_informational(
        &mut self,
        out: &mut Vec<u8>,
        (status, reason): (u16, &[u8]),
        fields: impl FnOnce(&mut FieldWriter<'_>),
    ) -> Result<(), Error> {
        let (State::Http(http) | State::Link(http)) = &mut self.state else {
            return Err(Misuse::OutOfTurn.into());
        };
        if !(100..200).contains(&status) || status == 101 {
            return Err(Misuse::OutOfTurn.into());
        }
        http.exchange.make(http.role, Move::Informational)?;
        if http.version == Version::Http10 {
            return Ok(());
        }
        let start = out.len();
        let done = head::write_status_line(status, reason, out).and_then(|()| {
            let mut writer = FieldWriter::new(out);
            fields(&mut writer);
            writer.finish()
        });
        undo(done, out, start)
    }

    /// Tells a relay of ours that its request is being worked on: a 102 (RFC 2518 §10.1) with our mark, which goes no further.
    ///
    /// # Errors
    /// When no answer is due, or the relay would not understand it.
    pub fn send_sign(&mut self, now: Instant, out: &mut Vec<u8>) -> Result<(), Error> {
        let State::Link(http) = &mut self.state else { return Err(Misuse::OutOfTurn.into()) };
        if !http.profile.is_ours() {
            return Err(Misuse::OutOfTurn.into());
        }
        http.exchange.make(http.role, Move::Informational)?;
        http.since = now;
        out.extend_from_slice(b"HTTP/1.1 102 Processing\r\nPtth-Accept: ping\r\n\r\n");
        Ok(())
    }

    /// Further requests may follow the one in progress before its answer: it has no body, its method may be repeated, and its
    /// fields said so ([`upgrade::ASIDE`]).
    ///
    /// # Errors
    /// When the peer would not understand it, or no such request is in progress.
    pub fn open_line(&mut self) -> Result<(), Error> {
        let State::Link(http) = &mut self.state else { return Err(Misuse::OutOfTurn.into()) };
        let whole = http.exchange.phase(Role::Client) == Phase::Done;
        if http.role != Role::Client || http.profile != Profile::Pipelining || !whole {
            return Err(Misuse::OutOfTurn.into());
        }
        http.behind.state = Follow::Yes;
        Ok(())
    }

    /// Whether requests can be sent on this link before those that are there are answered, once its line is [open](Conn::open_line).
    pub fn can_pipeline(&self) -> bool {
        self.http().is_some_and(|http| http.profile == Profile::Pipelining)
    }

    /// Whether the request in progress is one that others may follow, or has followed such a one.
    pub fn is_in_line(&self) -> bool {
        self.http().is_some_and(|http| http.behind.is_line())
    }

    /// Whether [`Conn::send_ahead`] can be called now.
    pub fn has_room_behind(&self) -> bool {
        matches!(&self.state, State::Link(http) if http.behind.has_room() && http.exchange.is_kept())
    }

    /// Sends a whole request without a body behind the one in progress, which is not answered yet. `fields` are all, `Host` and the mark
    /// among them.
    ///
    /// # Errors
    /// When none may follow, or a value can't be sent; nothing is appended then.
    pub fn send_ahead(
        &mut self,
        out: &mut Vec<u8>,
        (method, target): (&[u8], &[u8]),
        fields: impl FnOnce(&mut FieldWriter<'_>),
    ) -> Result<(), Error> {
        let may = self.has_room_behind();
        let State::Link(http) = &mut self.state else { return Err(Misuse::OutOfTurn.into()) };
        if http.role != Role::Client || !may {
            return Err(Misuse::OutOfTurn.into());
        }
        let start = out.len();
        let done = head::write_request_line(method, target, out).and_then(|()| {
            let mut writer = FieldWriter::new(out);
            fields(&mut writer);
            writer.finish()
        });
        undo(done, out, start)?;
        http.behind.push(Asked::by(method));
        Ok(())
    }

    /// Whether [`Conn::send_hint`] can be called now: an answer is to come first, to a whole request that is no CONNECT, behind which
    /// there may be no HTTP.
    pub fn can_hint(&self) -> bool {
        matches!(&self.state, State::Link(http) if http.role == Role::Client
            && http.profile == Profile::Pipelining
            && http.asked != Asked::Connect
            && http.exchange.is_kept()
            && http.exchange.phase(Role::Client) == Phase::Done
            && http.behind.count < MOST_BEHIND)
    }

    /// Says something to an agent of ours on a link that is not idle, by a question that only it can answer and that stands behind
    /// what was asked: an OPTIONS that may go no further (RFC 9110 §7.6.2). `fields` say what.
    ///
    /// # Errors
    /// When nothing may follow, or a value can't be sent; nothing is appended then.
    pub fn send_hint(&mut self, out: &mut Vec<u8>, fields: impl FnOnce(&mut FieldWriter<'_>)) -> Result<(), Error> {
        let may = self.can_hint();
        let State::Link(http) = &mut self.state else { return Err(Misuse::OutOfTurn.into()) };
        if !may {
            return Err(Misuse::OutOfTurn.into());
        }
        let start = out.len();
        let done = head::write_request_line(b"OPTIONS", b"*", out).and_then(|()| {
            let mut writer = FieldWriter::new(out);
            writer.field("Host", "");
            writer.field("Max-Forwards", "0");
            fields(&mut writer);
            writer.finish()
        });
        undo(done, out, start)?;
        http.behind.push(Asked::Other);
        Ok(())
    }

    /// Takes a request from a relay of ours that stands behind others which are not answered yet, like [`Conn::recv`]. Gives how many
    /// bytes are done with, and whether a request is in `head`. Any other request is left for [`Conn::recv`], behind the answers: to the
    /// relay an answer is over with its last byte, which may be before its end was said here.
    ///
    /// # Errors
    /// When it is no request, or a limit is broken.
    pub fn recv_ahead(&mut self, input: &[u8], head: &mut Head, config: &Config) -> Result<(usize, bool), Error> {
        let State::Link(http) = &mut self.state else { return Ok((0, false)) };
        let is_next = http.takes_more() && matches!(http.ours(), Phase::Answering | Phase::Body);
        if !is_next || input.is_empty() {
            return Ok((0, false));
        }
        let limits = config.limits.of_link();
        let Reading::Head { scanner, .. } = &mut http.reading else { return Ok((0, false)) };
        let step = match scanner.find_end(input, LineEnds::Crlf, limits.head) {
            Ok(None) => return Ok((0, false)),
            Ok(Some(n)) => {
                http.reading = Reading::HEAD;
                let fits = http.request_behind(&input[..n], head, &limits);
                fits.map(|fits| if fits { (n, true) } else { (0, false) })
            }
            Err(error) => Err(error),
        };
        step.inspect_err(|error| self.break_off(*error))
    }

    /// Tells a relay of ours that the answer to its oldest request won't come here, but when it asks for it by this name on another
    /// link; here the next one follows.
    ///
    /// # Errors
    /// When an answer has begun, or none may be set aside.
    pub fn send_aside(&mut self, now: Instant, out: &mut Vec<u8>, name: &[u8]) -> Result<(), Error> {
        let State::Link(http) = &mut self.state else { return Err(Misuse::OutOfTurn.into()) };
        if http.role != Role::Server || !http.behind.is_line() || http.theirs() != Phase::Done {
            return Err(Misuse::OutOfTurn.into());
        }
        let mut exchange = http.exchange;
        exchange.make(Role::Server, Move::Response)?;
        exchange.make(Role::Server, Move::End)?;
        let start = out.len();
        let done = head::write_status_line(102, head::reason(102).as_bytes(), out).and_then(|()| {
            let mut writer = FieldWriter::new(out);
            writer.field("Ptth-Aside", name);
            writer.finish()
        });
        undo(done, out, start)?;
        http.exchange = exchange;
        self.settle(now);
        Ok(())
    }

    /// Sends a final response's head. `fields` are all but the framing ones and `Connection`.
    ///
    /// # Errors
    /// When no answer is due, or a value can't be sent; nothing is appended then.
    pub fn send_response(
        &mut self,
        now: Instant,
        out: &mut Vec<u8>,
        (status, reason): (u16, &[u8]),
        body: Body,
        fields: impl FnOnce(&mut FieldWriter<'_>),
    ) -> Result<(), Error> {
        let http = match &mut self.state {
            State::Http(http) | State::Link(http) | State::Offered(http, ..) | State::Broken(http, _) => http,
            _ => return Err(Misuse::OutOfTurn.into()),
        };
        let start = out.len();
        let done = http.send_response(now, out, status, reason, body, fields);
        undo(done, out, start)?;
        match self.state {
            // The offer is refused; what the peer says next is a request again.
            State::Offered(http, ..) => self.state = State::Http(http),
            State::Http(http) | State::Link(http) if http.asked == Asked::Connect && (200..300).contains(&status) => {
                self.state = State::Tunnel(Tunnel::new(now));
            }
            _ => {}
        }
        Ok(())
    }

    /// The request in progress, which is whole and has no body, offers to switch protocols: its `Upgrade` and `Connection` are among
    /// the fields that were sent or heard. Until the answer nothing more is read of it, on a server's side, or sent.
    ///
    /// # Errors
    /// When no such request is under way, or the connection ends with it and is no link.
    pub fn offer_switch(&mut self) -> Result<(), Error> {
        let (http, turned) = match &mut self.state {
            State::Http(http) => (http, false),
            State::Link(http) => (http, true),
            _ => return Err(Misuse::OutOfTurn.into()),
        };
        let whole = match http.exchange.phase(Role::Client) {
            Phase::Done => true,
            // A link that is not kept is one that either side leaves: a tunnel would use it up anyway.
            Phase::MustClose => turned,
            _ => false,
        };
        if !whole || http.exchange.phase(Role::Server) != Phase::Answering || http.asked == Asked::Connect {
            return Err(Misuse::OutOfTurn.into());
        }
        http.exchange.offer();
        Ok(())
    }

    /// Takes a visitor's offer to switch protocols: sends the 101. `fields` are all but `Connection`. The connection is a
    /// tunnel then.
    ///
    /// # Errors
    /// When nothing was offered ([`Conn::offer_switch`]), or a value can't be sent; nothing is appended then.
    pub fn send_switch(
        &mut self,
        now: Instant,
        out: &mut Vec<u8>,
        fields: impl FnOnce(&mut FieldWriter<'_>),
    ) -> Result<(), Error> {
        let (State::Http(http) | State::Link(http)) = &mut self.state else {
            return Err(Misuse::OutOfTurn.into());
        };
        let mut exchange = http.exchange;
        exchange.make(http.role, Move::Switch)?;
        let start = out.len();
        let done = head::write_status_line(101, head::reason(101).as_bytes(), out).and_then(|()| {
            let mut writer = FieldWriter::new(out);
            writer.field("Connection", "Upgrade");
            fields(&mut writer);
            writer.finish()
        });
        undo(done, out, start)?;
        self.state = State::Tunnel(Tunnel::new(now));
        Ok(())
    }

    /// Sends a piece of the body.
    ///
    /// # Errors
    /// When no body is being sent, or it is more than was announced; nothing is appended then.
    pub fn send_data(&mut self, now: Instant, data: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        if let State::Tunnel(tunnel) = &mut self.state {
            if !tunnel.we_speak() {
                return Err(Misuse::OutOfTurn.into());
            }
            tunnel.since = now;
            out.extend_from_slice(data);
            return Ok(());
        }
        let http = self.http_mut().ok_or(Error::Local(Misuse::OutOfTurn))?;
        let mut exchange = http.exchange;
        exchange.make(http.role, Move::Data)?;
        http.writing.data(data, out)?;
        http.exchange = exchange;
        http.since = now;
        Ok(())
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

    /// How many bytes of body may be sent as they are, without framing between them; in a tunnel there is no end of them.
    pub fn left_to_send(&self) -> Option<u64> {
        match &self.state {
            State::Tunnel(tunnel) => tunnel.we_speak().then_some(u64::MAX),
            State::Http(http) | State::Link(http) if http.ours() == Phase::Body => http.writing.left(),
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

    /// So many bytes of body go out that are not in the driver's buffer: as if [`Conn::send_data`] had been given them.
    ///
    /// # Errors
    /// When they are more than [`Conn::left_to_send`]; nothing changes then.
    pub fn send_passed(&mut self, now: Instant, n: u64) -> Result<(), Error> {
        match &mut self.state {
            State::Tunnel(tunnel) if tunnel.we_speak() => tunnel.since = now,
            State::Http(http) | State::Link(http) if http.ours() == Phase::Body => {
                http.writing.passed(n)?;
                http.since = now;
            }
            _ => return Err(Misuse::OutOfTurn.into()),
        }
        Ok(())
    }

    /// Ends the message, with trailers where they can be sent; in a tunnel, our direction.
    ///
    /// # Errors
    /// When no body is being sent, or less of it came than was announced.
    pub fn send_end(&mut self, now: Instant, trailers: Option<&Fields>, out: &mut Vec<u8>) -> Result<(), Error> {
        if let State::Tunnel(tunnel) = &mut self.state {
            tunnel.end_ours(now)?;
            self.settle(now);
            return Ok(());
        }
        let http = self.http_mut().ok_or(Error::Local(Misuse::OutOfTurn))?;
        let mut exchange = http.exchange;
        exchange.make(http.role, Move::End)?;
        http.writing.end(trailers, out)?;
        http.exchange = exchange;
        http.since = now;
        if http.role == Role::Client {
            http.asked_at = now;
        }
        self.settle(now);
        Ok(())
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
        if http.behind.is_line() || http.behind.count > 0 {
            http.behind.end();
        }
        if http.behind.count > 0 {
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

    /// Both messages are over: the next exchange begins, or the connection ends.
    fn settle(&mut self, now: Instant) {
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

    fn break_off(&mut self, error: Error) {
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

    fn http(&self) -> Option<&Http> {
        match &self.state {
            State::Http(http)
            | State::Offering(http)
            | State::Offered(http, ..)
            | State::Pausing(http)
            | State::Link(http)
            | State::Leaving(http)
            | State::Broken(http, _) => Some(http),
            State::Tunnel(_) | State::Draining(..) | State::Closed(_) => None,
        }
    }

    fn http_mut(&mut self) -> Option<&mut Http> {
        match &mut self.state {
            State::Http(http)
            | State::Offering(http)
            | State::Offered(http, ..)
            | State::Pausing(http)
            | State::Link(http)
            | State::Leaving(http)
            | State::Broken(http, _) => Some(http),
            State::Tunnel(_) | State::Draining(..) | State::Closed(_) => None,
        }
    }
}

/// A head that could not be written is taken back whole.
fn undo(done: Result<(), Error>, out: &mut Vec<u8>, start: usize) -> Result<(), Error> {
    if done.is_err() {
        out.truncate(start);
    }
    done
}

impl Http {
    fn new(role: Role, profile: Profile, now: Instant) -> Http {
        Http {
            role,
            exchange: Exchange::default(),
            reading: Reading::HEAD,
            writing: Writer::Length(0),
            asked: Asked::Other,
            version: Version::Http11,
            lone_lf: false,
            profile,
            since: now,
            asked_at: now,
            behind: Line::default(),
        }
    }

    /// The next exchange begins: with a request that was asked already, if there is one.
    fn start_next(&mut self, now: Instant) {
        // Of a server's side, the next request may have begun to come.
        if self.role == Role::Client || !self.behind.is_line() {
            self.reading = Reading::HEAD;
        }
        self.asked = Asked::Other;
        self.since = now;
        match self.behind.pop() {
            None => self.behind.state = Follow::No,
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

    /// Whether a relay of ours may say more before it has its answer: a request or, in front of any answer, a hint.
    fn takes_more(&self) -> bool {
        self.role == Role::Server
            && self.profile == Profile::Pipelining
            && self.asked != Asked::Connect
            && self.theirs() == Phase::Done
            && self.behind.count < MOST_BEHIND
            && !self.behind.is_ending()
            && self.exchange.is_kept()
    }

    /// A whole request's head: takes it, if it may stand behind another one.
    fn request_behind(&mut self, whole: &[u8], head: &mut Head, limits: &Limits) -> Result<bool, Error> {
        head.parse_request(whole, limits)?;
        let asked = Asked::by(head.method());
        head::host(&head.fields)?;
        let fits = match head.method() {
            b"GET" | b"HEAD" => self.behind.state == Follow::Yes && head.fields.lists(Name::PtthAccept, upgrade::ASIDE),
            b"OPTIONS" => head.fields.first(Name::MaxForwards) == Some(b"0"),
            _ => false,
        };
        let whole = framing(head, None)? == Framing::Empty && head.version() == Version::Http11 && is_kept(head);
        if fits && whole {
            self.behind.push(asked);
        }
        Ok(fits && whole)
    }

    fn ours(&self) -> Phase {
        self.exchange.phase(self.role)
    }

    fn theirs(&self) -> Phase {
        self.exchange.phase(!self.role)
    }

    fn is_idle(&self) -> bool {
        let fresh = match &self.reading {
            Reading::Head { scanner, .. } => scanner.is_fresh(),
            Reading::Body(_) => false,
        };
        fresh && self.exchange.phase(Role::Client) == Phase::Idle && self.exchange.phase(Role::Server) == Phase::Idle
    }

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
            self.behind.state = Follow::Yes;
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

    fn send_request(
        &mut self,
        now: Instant,
        out: &mut Vec<u8>,
        method: &[u8],
        target: &[u8],
        body: Body,
        fields: impl FnOnce(&mut FieldWriter<'_>),
    ) -> Result<(), Error> {
        if self.role != Role::Client || !self.is_idle() {
            return Err(Misuse::OutOfTurn.into());
        }
        head::write_request_line(method, target, out)?;
        let mut writer = FieldWriter::new(out);
        fields(&mut writer);
        let writing = match body {
            Body::None => Writer::Length(0),
            Body::Length(n) => {
                writer.length(n);
                Writer::Length(n)
            }
            Body::Stream => {
                writer.field("Transfer-Encoding", "chunked");
                Writer::Chunked
            }
        };
        if !self.exchange.is_kept() {
            writer.field("Connection", "close");
        }
        writer.finish()?;
        self.exchange.make(Role::Client, Move::Request)?;
        self.writing = writing;
        self.asked = Asked::by(method);
        self.since = now;
        Ok(())
    }

    fn send_response(
        &mut self,
        now: Instant,
        out: &mut Vec<u8>,
        status: u16,
        reason: &[u8],
        body: Body,
        fields: impl FnOnce(&mut FieldWriter<'_>),
    ) -> Result<(), Error> {
        let mut exchange = self.exchange;
        exchange.make(Role::Server, Move::Response)?;
        if status < 200 || self.role != Role::Server {
            return Err(Misuse::OutOfTurn.into());
        }
        head::write_status_line(status, reason, out)?;
        let mut writer = FieldWriter::new(out);
        fields(&mut writer);
        let tunnel = self.asked == Asked::Connect && (200..300).contains(&status);
        let bodiless = self.asked == Asked::Head || matches!(status, 204 | 304) || tunnel;
        let writing = match body {
            _ if status == 204 || tunnel => Writer::Swallow,
            Body::None if bodiless => Writer::Swallow,
            Body::None => {
                writer.field("Content-Length", "0");
                Writer::Length(0)
            }
            Body::Length(n) => {
                writer.length(n);
                if bodiless { Writer::Swallow } else { Writer::Length(n) }
            }
            Body::Stream if bodiless => Writer::Swallow,
            Body::Stream if self.version == Version::Http10 => {
                exchange.do_not_keep();
                Writer::UntilClose
            }
            Body::Stream => {
                writer.field("Transfer-Encoding", "chunked");
                Writer::Chunked
            }
        };
        // Nothing that was said to a client which has not asked, or not well, can be followed by another exchange.
        if !matches!(self.theirs(), Phase::Body | Phase::Done | Phase::MustClose | Phase::MightSwitch) {
            exchange.do_not_keep();
        }
        match (exchange.is_kept(), self.version) {
            (false, _) => writer.field("Connection", "close"),
            (true, Version::Http10) => writer.field("Connection", "keep-alive"),
            (true, Version::Http11) => {}
        }
        writer.finish()?;
        self.exchange = exchange;
        self.writing = writing;
        self.since = now;
        Ok(())
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

/// Whether the sender of this head would go on with the connection (RFC 9112 §9.3).
fn is_kept(head: &Head) -> bool {
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
