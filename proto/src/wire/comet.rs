//! The notation of the COMET fallback (Second Life wiki, "Reverse HTTP", 2008): a message is one object. The page calls it
//! JSON and prints what Python writes for a dictionary, quotes and all; both are read, and either is written.
//!
//! ```text
//! {"message-id": "7", "method": "GET", "request-uri": "/", "http-version": "PTTH/1.0",
//!  "headers": [["Host", "a.example"]], "body": ""}
//! {"message-id": "7", "http-version": "PTTH/1.0", "status": 200, "reason": "OK",
//!  "headers": [["Content-type", "text/plain"]], "body": "hello"}
//! {}
//! ```
//!
//! The page says nothing of bytes that are no text, and JSON has no way to write them. Where both ends are known to have it,
//! base64 does: a last member `"encoding": "base64"` speaks of the body, a third element `"base64"` of one field's value.

use alloc::string::String;
use alloc::vec::Vec;
use core::str;

use super::literal::{Reader, Scalar, write_json, write_json_latin, write_python};
use super::message::{
    Ask, Malformed, Pairs, Reply, Unsendable, add_field, check_ask, check_fields, from_base64, id, is_final, is_id,
    to_base64,
};
use crate::wire::fields::{is_token, is_value};
use crate::wire::head::Target;

/// How a message is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Notation {
    /// JSON, as the page calls it.
    #[default]
    Json,
    /// What Python 2 prints for a dictionary, as the page shows it.
    Python,
}

/// What the peer can read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Style {
    /// How messages are written.
    pub notation: Notation,
    /// Whether the peer reads base64 where JSON can't have the bytes themselves. Python's notation has no need of it.
    pub base64: bool,
}

/// A message that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Nothing now: `{}`, or no byte at all.
    Nothing,
    /// A request.
    Ask(Ask),
    /// A response.
    Reply(Reply),
}

/// Appends a request.
///
/// # Errors
/// When it is none, or not one that this peer can read; `out` is as it was then.
pub fn write_ask<'a>(
    out: &mut Vec<u8>,
    style: Style,
    id: &str,
    method: &[u8],
    target: &[u8],
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    body: &[u8],
) -> Result<(), Unsendable> {
    check_ask(id, method, target, fields.clone())?;
    let mut writer = Writer::new(out, style, body)?;
    writer.text("message-id", id.as_bytes());
    writer.text("method", method);
    writer.text("request-uri", target);
    writer.text("http-version", b"PTTH/1.0");
    // The one known document prints the last pair of a request without the space behind its comma, and the Content-Length
    // above it counts it so. No reader minds; those who compare bytes with the document find them the same.
    let last = if style.notation == Notation::Python { b",".as_slice() } else { b", " };
    writer.fields(fields, last);
    writer.body(body);
    Ok(())
}

/// Appends a response.
///
/// # Errors
/// When it is none, or not one that this peer can read; `out` is as it was then.
pub fn write_reply<'a>(
    out: &mut Vec<u8>,
    style: Style,
    id: &str,
    status: u16,
    reason: &[u8],
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    body: &[u8],
) -> Result<(), Unsendable> {
    if !is_id(id.as_bytes()) {
        return Err(Unsendable::Id);
    }
    if !is_final(status) {
        return Err(Unsendable::Status);
    }
    check_fields(fields.clone())?;
    let mut writer = Writer::new(out, style, body)?;
    writer.text("message-id", id.as_bytes());
    writer.text("http-version", b"PTTH/1.0");
    writer.member("status");
    writer.out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    writer.text("reason", if is_value(reason) { reason } else { b"" });
    writer.fields(fields, b", ");
    writer.body(body);
    Ok(())
}

/// Appends the message that says that there is nothing to say.
pub fn write_nothing(out: &mut Vec<u8>) {
    out.extend_from_slice(b"{}");
}

/// Writes the members of one object. Begun only when nothing can go wrong any more.
struct Writer<'o> {
    out: &'o mut Vec<u8>,
    style: Style,
    begun: bool,
}

impl<'o> Writer<'o> {
    fn new(out: &'o mut Vec<u8>, style: Style, body: &[u8]) -> Result<Writer<'o>, Unsendable> {
        if style.notation == Notation::Json && !style.base64 && str::from_utf8(body).is_err() {
            return Err(Unsendable::BinaryBody);
        }
        Ok(Writer { out, style, begun: false })
    }

    fn member(&mut self, name: &str) {
        self.out.extend_from_slice(if self.begun { b", " } else { b"{" });
        self.begun = true;
        self.string(name.as_bytes());
        self.out.extend_from_slice(b": ");
    }

    fn text(&mut self, name: &str, value: &[u8]) {
        self.member(name);
        self.string(value);
    }

    /// A string. In JSON, bytes that are no UTF-8 are what they have been in HTTP from the beginning, ISO-8859-1.
    fn string(&mut self, value: &[u8]) {
        match (self.style.notation, str::from_utf8(value)) {
            (Notation::Python, _) => write_python(value, self.out),
            (Notation::Json, Ok(text)) => write_json(text, self.out),
            (Notation::Json, Err(_)) => write_json_latin(value, self.out),
        }
    }

    /// Whether these bytes go as base64.
    fn needs_base64(&self, bytes: &[u8]) -> bool {
        self.style.notation == Notation::Json && self.style.base64 && str::from_utf8(bytes).is_err()
    }

    /// The list of fields; `last` stands between the last one's name and value.
    fn fields<'a>(&mut self, fields: impl Iterator<Item = (&'a [u8], &'a [u8])>, last: &[u8]) {
        self.member("headers");
        self.out.push(b'[');
        let mut fields = fields.peekable();
        while let Some((name, value)) = fields.next() {
            let more = fields.peek().is_some();
            self.out.push(b'[');
            self.string(name);
            self.out.extend_from_slice(if more { b", " } else { last });
            if self.needs_base64(value) {
                write_json(&to_base64(value), self.out);
                self.out.extend_from_slice(b", \"base64\"");
            } else {
                self.string(value);
            }
            self.out.extend_from_slice(if more { b"], " } else { b"]" });
        }
        self.out.push(b']');
    }

    fn body(mut self, body: &[u8]) {
        if self.needs_base64(body) {
            self.text("body", to_base64(body).as_bytes());
            self.text("encoding", b"base64");
        } else {
            self.text("body", body);
        }
        self.out.push(b'}');
    }
}

/// Reads a message, which must be whole, in either notation. Gives the notation too when it can be told: `{}` is the same in
/// both.
///
/// Members that we don't know are skipped, whatever they hold. `headers` and `body` may be missing, and `reason`; a status may
/// be a string and a field's value a number; `headers` may be an object.
///
/// # Errors
/// When it is no message, or not one that could be an HTTP message.
pub fn read(input: &[u8]) -> Result<(Message, Option<Notation>), Malformed> {
    if let Err(error) = str::from_utf8(input) {
        return Err(if error.error_len().is_none() { Malformed::Cut } else { Malformed::Syntax });
    }
    let mut reader = Reader::new(input);
    let message = if reader.is_done() { Message::Nothing } else { object(&mut reader)? };
    if !reader.is_done() {
        return Err(Malformed::Trailing);
    }
    let notation = match (reader.saw_python(), reader.saw_string()) {
        (true, _) => Some(Notation::Python),
        (false, true) => Some(Notation::Json),
        (false, false) => None,
    };
    Ok((message, notation))
}

/// Whether this is what an agent POSTs to its queue: a response, or nothing. Of a body that is longer than what is at hand, the
/// first member has to be `message-id`, as in every response of this notation that was ever printed.
pub fn looks_like_reply(input: &[u8]) -> bool {
    match read(input) {
        Ok((message, _)) => matches!(message, Message::Nothing | Message::Reply(_)),
        Err(Malformed::Cut) => first_key(input).is_some_and(|key| key == b"message-id"),
        Err(_) => false,
    }
}

/// The `message-id` of a message that is not whole, if it stands at the beginning: who sends one that is too long is told apart by
/// it.
pub fn first_id(input: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader::new(input);
    let mut level = reader.enter_object().ok()??;
    if !reader.more(&mut level).ok()? || reader.key().ok()? != b"message-id" {
        return None;
    }
    match reader.scalar().ok()? {
        Scalar::Text(id) => Some(id),
        _ => None,
    }
}

fn first_key(input: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader::new(input);
    let mut level = reader.enter_object().ok()??;
    if reader.more(&mut level).ok()? { reader.key().ok() } else { None }
}

/// The members of a message as they come.
#[derive(Default)]
struct Parts {
    id: Option<String>,
    method: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    status: Option<u16>,
    reason: Option<Vec<u8>>,
    fields: Option<Pairs>,
    body: Option<Vec<u8>>,
    base64: Option<()>,
}

fn object(reader: &mut Reader<'_>) -> Result<Message, Malformed> {
    let Some(mut level) = reader.enter_object()? else { return Err(Malformed::Syntax) };
    let (mut parts, mut empty) = (Parts::default(), true);
    while reader.more(&mut level)? {
        empty = false;
        match &reader.key()?[..] {
            b"message-id" => set(&mut parts.id, number_or_text(reader, Malformed::Id).and_then(id)?)?,
            b"method" => set(&mut parts.method, text(reader, Malformed::Method)?)?,
            b"request-uri" => set(&mut parts.target, text(reader, Malformed::Target)?)?,
            b"status" => set(&mut parts.status, status(reader)?)?,
            b"reason" => {
                // Nothing depends on it: one that can't stand in a status line is left out.
                let reason = match reader.scalar()? {
                    Scalar::Text(reason) if is_value(&reason) => reason,
                    _ => Vec::new(),
                };
                set(&mut parts.reason, reason)?;
            }
            b"headers" => set(&mut parts.fields, fields(reader)?)?,
            b"body" => set(&mut parts.body, optional(reader, Malformed::Body)?.unwrap_or_default())?,
            b"encoding" => match optional(reader, Malformed::Body)? {
                Some(name) if name == b"base64" => set(&mut parts.base64, ())?,
                Some(_) => return Err(Malformed::Body),
                None => {}
            },
            _ => drop(reader.scalar()?),
        }
    }
    if empty { Ok(Message::Nothing) } else { parts.finish() }
}

impl Parts {
    fn finish(self) -> Result<Message, Malformed> {
        let mut body = self.body.unwrap_or_default();
        if self.base64.is_some() {
            body = from_base64(&body).ok_or(Malformed::Body)?;
        }
        let (id, fields) = (self.id.ok_or(Malformed::Kind)?, self.fields.unwrap_or_default());
        match (self.method, self.status) {
            (Some(method), None) => {
                if !is_token(&method) {
                    return Err(Malformed::Method);
                }
                let target = self.target.filter(|target| Target::of(&method, target).is_some());
                Ok(Message::Ask(Ask { id, target: target.ok_or(Malformed::Target)?, method, fields, body }))
            }
            (None, Some(status)) => {
                Ok(Message::Reply(Reply { id, status, reason: self.reason.unwrap_or_default(), fields, body }))
            }
            _ => Err(Malformed::Kind),
        }
    }
}

/// A member that is there twice is one that two readers understand differently.
fn set<T>(place: &mut Option<T>, value: T) -> Result<(), Malformed> {
    if place.replace(value).is_some() { Err(Malformed::Twice) } else { Ok(()) }
}

fn text(reader: &mut Reader<'_>, otherwise: Malformed) -> Result<Vec<u8>, Malformed> {
    optional(reader, otherwise)?.ok_or(otherwise)
}

/// A string, or nothing for the null of either notation.
fn optional(reader: &mut Reader<'_>, otherwise: Malformed) -> Result<Option<Vec<u8>>, Malformed> {
    match reader.scalar()? {
        Scalar::Text(text) => Ok(Some(text)),
        Scalar::Null => Ok(None),
        _ => Err(otherwise),
    }
}

fn number_or_text(reader: &mut Reader<'_>, otherwise: Malformed) -> Result<Vec<u8>, Malformed> {
    match reader.scalar()? {
        Scalar::Text(text) => Ok(text),
        Scalar::Integer(digits) => Ok(digits.to_vec()),
        _ => Err(otherwise),
    }
}

fn status(reader: &mut Reader<'_>) -> Result<u16, Malformed> {
    let digits = number_or_text(reader, Malformed::Status)?;
    if digits.len() != 3 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed::Status);
    }
    let status = digits.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0'));
    if is_final(status) { Ok(status) } else { Err(Malformed::Status) }
}

/// The fields as a list of pairs, or as an object.
fn fields(reader: &mut Reader<'_>) -> Result<Pairs, Malformed> {
    let mut fields = Pairs::new();
    if let Some(mut level) = reader.enter_object()? {
        while reader.more(&mut level)? {
            let name = reader.key()?;
            add_field(&mut fields, name, number_or_text(reader, Malformed::Field)?)?;
        }
    } else if let Some(mut level) = reader.enter_list()? {
        while reader.more(&mut level)? {
            pair(reader, &mut fields)?;
        }
    } else if !matches!(reader.scalar()?, Scalar::Null) {
        return Err(Malformed::Field);
    }
    Ok(fields)
}

/// A name and a value, and perhaps the word that the value is base64.
fn pair(reader: &mut Reader<'_>, fields: &mut Pairs) -> Result<(), Malformed> {
    let Some(mut level) = reader.enter_list()? else { return Err(Malformed::Field) };
    let mut next = |reader: &mut Reader<'_>| reader.more(&mut level);
    if !next(reader)? {
        return Err(Malformed::Field);
    }
    let name = text(reader, Malformed::Field)?;
    if !next(reader)? {
        return Err(Malformed::Field);
    }
    let mut value = number_or_text(reader, Malformed::Field)?;
    if next(reader)? {
        if text(reader, Malformed::Field)? != b"base64" {
            return Err(Malformed::Field);
        }
        value = from_base64(&value).ok_or(Malformed::Field)?;
        if next(reader)? {
            return Err(Malformed::Field);
        }
    }
    add_field(fields, name, value)
}
