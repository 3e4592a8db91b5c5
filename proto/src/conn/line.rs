//! Several requests on one link, between our own two sides: what is said and heard on it before an answer is there, and what is
//! remembered of it. Whose turn it is, and which answer is set aside, is the driver's to settle. `docs/links.md` has the words.

use alloc::vec::Vec;

use super::recv::is_kept;
use super::send::undo;
use super::{Config, Conn, Http, Reading, State};
use crate::error::{Error, Misuse};
use crate::http::exchange::{Move, Phase};
use crate::http::framing::{Asked, Framing, framing};
use crate::limits::Limits;
use crate::link::upgrade::{self, Profile};
use crate::role::Role;
use crate::time::Instant;
use crate::wire::fields::Name;
use crate::wire::head::{self, FieldWriter, Head, LineEnds, Version};

/// Requests on a link behind the one in progress: whole ones without a body, of methods that may be repeated, between our own two
/// sides (`docs/links.md`).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Line {
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
    pub(super) fn is_line(&self) -> bool {
        matches!(self.state, Follow::Yes | Follow::NoMore)
    }

    /// Whether nothing stands behind the request in progress.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// More may follow the request in progress.
    pub(super) fn open(&mut self) {
        self.state = Follow::Yes;
    }

    /// No exchange follows those that are there.
    pub(super) fn end(&mut self) {
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
    pub(super) fn pop(&mut self) -> Option<(Asked, bool)> {
        self.count = self.count.checked_sub(1)?;
        let asked = if self.heads & 1 == 1 { Asked::Head } else { Asked::Other };
        self.heads >>= 1;
        Some((asked, self.count == 0 && self.is_ending()))
    }
}

impl Conn {
    /// Whether requests can be sent on this link before those that are there are answered, once its line is [open](Conn::open_line).
    pub fn can_pipeline(&self) -> bool {
        self.http().is_some_and(|http| http.profile == Profile::Pipelining)
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
        http.behind.open();
        Ok(())
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
}

impl Http {
    /// Whether a relay of ours may say more before it has its answer: a request or, in front of any answer, a hint.
    pub(super) fn takes_more(&self) -> bool {
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
}
