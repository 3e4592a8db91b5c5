//! What we say: each call appends to the driver's buffer, or changes nothing at all. What the peer says is in [`recv`](super::recv); what
//! is said on a link before its time has come, in [`line`](super::line); the words of one that goes, in [`ending`](super::ending).

use alloc::vec::Vec;

use super::{Body, Conn, Http, State};
use crate::error::{Error, Misuse};
use crate::http::body::Writer;
use crate::http::exchange::{Move, Phase};
use crate::http::framing::Asked;
use crate::http::tunnel::Tunnel;
use crate::link::upgrade::{self, Profile, Token};
use crate::role::Role;
use crate::time::Instant;
use crate::wire::fields::Fields;
use crate::wire::head::{self, FieldWriter, Version};

impl Conn {
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
    /// for one known peer takes a moment ([`Wait::Pause`](crate::limits::Wait::Pause)).
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

    /// How many bytes of body may be sent as they are, without framing between them; in a tunnel there is no end of them.
    pub fn left_to_send(&self) -> Option<u64> {
        match &self.state {
            State::Tunnel(tunnel) => tunnel.we_speak().then_some(u64::MAX),
            State::Http(http) | State::Link(http) if http.ours() == Phase::Body => http.writing.left(),
            _ => None,
        }
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
}

/// A head that could not be written is taken back whole.
pub(super) fn undo(done: Result<(), Error>, out: &mut Vec<u8>, start: usize) -> Result<(), Error> {
    if done.is_err() {
        out.truncate(start);
    }
    done
}

impl Http {
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
}
