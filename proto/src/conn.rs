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
//!
//! This file has what a connection is and what can be asked of it. What changes it: `recv.rs` has what the peer says, `send.rs` what we
//! say, `line.rs` several requests on one link, `ending.rs` deadlines and ends.

mod ending;
mod line;
mod recv;
mod send;

use crate::error::{CloseReason, Error};
use crate::http::body::{Reader, Writer};
use crate::http::exchange::{Exchange, Phase};
use crate::http::framing::{Asked, Framing};
use crate::http::tunnel::{Flow, Tunnel};
use crate::limits::{Deadlines, Limits};
use crate::link::upgrade::{Profile, Token};
use crate::role::Role;
use crate::time::Instant;
use crate::wire::head::{Scanner, Version};
use line::Line;
pub use line::MOST_IN_LINE;

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

/// One connection. See the [module](self) for the contract.
#[derive(Clone, Debug)]
pub struct Conn {
    state: State,
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

#[derive(Clone, Copy, Debug)]
enum Reading {
    Head { scanner: Scanner, blank: u8 },
    Body(Reader),
}

impl Reading {
    const HEAD: Reading = Reading::Head { scanner: Scanner::new(), blank: 0 };
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
}
