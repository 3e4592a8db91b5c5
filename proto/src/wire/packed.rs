//! The messages of ReactorScram's `ptth` (2020): MessagePack, as its crate for Rust lays its structures out, and an extension
//! of ours for what that has no place for.
//!
//! What the stock programs write ([`Form::Stock`]), one octet of a value an integer:
//!
//! ```text
//! answer to poll  [request, …]
//! request         [id, [{method: nil}, target, {name: [octet, …], …}]]
//! response head   [{status: nil}, {name: [octet, …], …}]
//! ```
//!
//! Method and status are indices into short tables: nothing but GET and HEAD is ever asked, and there are eleven statuses. A
//! name is in lower case and has one value; a request has no body. Our own form ([`Form::Full`]) has room for every message:
//!
//! ```text
//! request         [id, [method, target, [[name, value], …], body]]     strings, but name, value and body are binary
//! response head   [status, [[name, value], …]]                         the status an integer
//! ```
//!
//! Each is told from the other by its types, so that a reader need not know which one comes.
//!
//! MessagePack is written and read here, as far as these messages need it: the crate for it, rmp, stands on `paste`, which
//! nobody keeps any more, and the need is a few dozen lines.

use alloc::vec::Vec;

use super::message::{Ask, Malformed, Pairs, Unsendable, add_field, check_ask, id, is_final};
use crate::wire::fields::{is_token, is_value};
use crate::wire::head::Target;

/// The field that carries a response's head, in base64, on the request that carries its body.
pub const MAGIC_FIELD: &str = "X-PTTH-2LJYXWC4";

/// Requests in the answer to one poll.
const MAX_ASKS: usize = 1024;

/// The methods of the stock programs, under the names that the enum has there. The last two exist and are never sent.
const METHODS: [(&[u8], &[u8]); 4] = [(b"Get", b"GET"), (b"Head", b"HEAD"), (b"Post", b"POST"), (b"Put", b"PUT")];

/// The statuses of the stock programs, likewise.
const STATUSES: [(&[u8], u16); 11] = [
    (b"Ok", 200),
    (b"NoContent", 204),
    (b"PartialContent", 206),
    (b"NotModified", 304),
    (b"TemporaryRedirect", 307),
    (b"BadRequest", 400),
    (b"Forbidden", 403),
    (b"NotFound", 404),
    (b"MethodNotAllowed", 405),
    (b"RangeNotSatisfiable", 416),
    (b"InternalServerError", 500),
];

/// Which messages the peer reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Form {
    /// Those of the stock programs.
    #[default]
    Stock,
    /// Ours too. Used only when both ends say so.
    Full,
}

/// Begins the array of requests of one poll's answer. So many must follow.
pub fn write_array(out: &mut Vec<u8>, count: usize) {
    write_count(0x90, 0xdc, count, out);
}

/// Appends a request.
///
/// # Errors
/// When it is none, or not one that this form has a place for; `out` is as it was then.
pub fn write_ask<'a>(
    out: &mut Vec<u8>,
    form: Form,
    id: &str,
    method: &[u8],
    target: &[u8],
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    body: &[u8],
) -> Result<(), Unsendable> {
    check_ask(id, method, target, fields.clone())?;
    match form {
        Form::Stock => {
            // The enum has four, but nothing was ever seen to send the others, and without a body they say little.
            let index = match method {
                b"GET" => 0,
                b"HEAD" => 1,
                _ => return Err(Unsendable::Method),
            };
            if !body.is_empty() {
                return Err(Unsendable::RequestBody);
            }
            write_array(out, 2);
            write_text(id.as_bytes(), out);
            write_array(out, 3);
            write_index(index, out);
            write_text(target, out);
            write_map(fields, out);
        }
        Form::Full => {
            // The format's own limit; whoever holds such a body has failed before.
            if u32::try_from(body.len()).is_err() {
                return Err(Unsendable::RequestBody);
            }
            write_array(out, 2);
            write_text(id.as_bytes(), out);
            write_array(out, 4);
            write_text(method, out);
            write_text(target, out);
            write_pairs(fields, out);
            write_binary(body, out);
        }
    }
    Ok(())
}

/// Appends a response's head: what stands in [`MAGIC_FIELD`], before base64. Gives the number of fields that it could not
/// carry: in the stock form all `Set-Cookie` but the first, for they can't be joined (RFC 9110 §5.3); in both, those that
/// may not stand in a head at all. A status that the form doesn't have goes as the [`nearest`] one.
pub fn write_head<'a>(
    out: &mut Vec<u8>,
    form: Form,
    status: u16,
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
) -> usize {
    let good = fields.clone().filter(|(name, value)| is_token(name) && is_value(value));
    let bad = fields.count() - good.clone().count();
    write_array(out, 2);
    match form {
        Form::Stock => {
            let status = nearest(status);
            let index = STATUSES.iter().position(|(_, known)| *known == status).unwrap_or_default();
            write_index(index as u8, out);
            bad + write_map(good, out)
        }
        Form::Full => {
            write_number(if is_final(status) { status } else { 500 }, out);
            write_pairs(good, out);
            bad
        }
    }
}

/// The status of the stock form that says most of what this one says: what a client does about it stays the same as far as it
/// can.
pub fn nearest(status: u16) -> u16 {
    match status {
        // A form is to be shown anew: there is nothing to show either way.
        205 => 204,
        401 | 402 | 407 | 451 => 403,
        410 => 404,
        known if STATUSES.iter().any(|(_, status)| *status == known) => known,
        200..300 => 200,
        300..400 => 307,
        400..500 => 400,
        _ => 500,
    }
}

/// Reads the requests in the answer to one poll, in either form.
///
/// # Errors
/// When it is not that, or one of them could not be an HTTP request.
pub fn read_asks(input: &[u8]) -> Result<Vec<Ask>, Malformed> {
    let mut reader = Reader { rest: input };
    let Token::Array(count) = reader.token()? else { return Err(Malformed::Syntax) };
    if count > MAX_ASKS {
        return Err(Malformed::TooMany);
    }
    let mut asks = Vec::new();
    for _ in 0..count {
        asks.push(reader.ask()?);
    }
    reader.end()?;
    Ok(asks)
}

/// Reads a response's head in either form: its status and its fields.
///
/// # Errors
/// When it is not that, or could not be the head of an HTTP response.
pub fn read_head(input: &[u8]) -> Result<(u16, Pairs), Malformed> {
    let mut reader = Reader { rest: input };
    reader.array(2)?;
    let head = match reader.token()? {
        Token::Number(status) => {
            let status = u16::try_from(status).ok().filter(|status| is_final(*status));
            (status.ok_or(Malformed::Status)?, reader.pairs()?)
        }
        first => {
            let (_, status) = STATUSES[reader.variant(first, STATUSES.map(|(name, _)| name), Malformed::Status)?];
            (status, reader.map()?)
        }
    };
    reader.end()?;
    Ok(head)
}

/// What stands at the front of the bytes. A container is only announced: its elements follow.
enum Token<'a> {
    Nil,
    Number(u64),
    Text(&'a [u8]),
    Binary(&'a [u8]),
    Array(usize),
    Map(usize),
}

/// Reads MessagePack, as far as these messages have it: no negative numbers, no floats, no booleans, no extensions.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn token(&mut self) -> Result<Token<'a>, Malformed> {
        let tag = self.number(1)?;
        Ok(match tag {
            0x00..=0x7f => Token::Number(tag),
            0x80..=0x8f => self.container(tag & 0x0f, 2).map(Token::Map)?,
            0x90..=0x9f => self.container(tag & 0x0f, 1).map(Token::Array)?,
            0xa0..=0xbf => self.bytes(tag & 0x1f).map(Token::Text)?,
            0xc0 => Token::Nil,
            0xc4..=0xc6 => {
                let length = self.number(1 << (tag - 0xc4))?;
                self.bytes(length).map(Token::Binary)?
            }
            0xcc..=0xcf => self.number(1 << (tag - 0xcc)).map(Token::Number)?,
            0xd9..=0xdb => {
                let length = self.number(1 << (tag - 0xd9))?;
                self.bytes(length).map(Token::Text)?
            }
            0xdc | 0xdd => {
                let count = self.number(2 << (tag - 0xdc))?;
                self.container(count, 1).map(Token::Array)?
            }
            0xde | 0xdf => {
                let count = self.number(2 << (tag - 0xde))?;
                self.container(count, 2).map(Token::Map)?
            }
            _ => return Err(Malformed::Syntax),
        })
    }

    /// A number of so many bytes, the highest first.
    fn number(&mut self, length: u64) -> Result<u64, Malformed> {
        Ok(self.bytes(length)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn bytes(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(length).map_err(|_| Malformed::Cut)?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Malformed::Cut)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// The count of a container whose elements take at least `least` bytes each: nothing is begun that can't be there.
    fn container(&self, count: u64, least: usize) -> Result<usize, Malformed> {
        let count = usize::try_from(count).map_err(|_| Malformed::Cut)?;
        if count > self.rest.len() / least { Err(Malformed::Cut) } else { Ok(count) }
    }

    /// An array of exactly so many.
    fn array(&mut self, count: usize) -> Result<(), Malformed> {
        match self.token()? {
            Token::Array(found) if found == count => Ok(()),
            _ => Err(Malformed::Syntax),
        }
    }

    fn text(&mut self) -> Result<&'a [u8], Malformed> {
        if let Token::Text(text) = self.token()? { Ok(text) } else { Err(Malformed::Syntax) }
    }

    fn binary(&mut self) -> Result<&'a [u8], Malformed> {
        if let Token::Binary(bytes) = self.token()? { Ok(bytes) } else { Err(Malformed::Syntax) }
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::Trailing) }
    }

    fn ask(&mut self) -> Result<Ask, Malformed> {
        self.array(2)?;
        let id = id(self.text()?.to_vec())?;
        let Token::Array(parts) = self.token()? else { return Err(Malformed::Syntax) };
        let (method, target, fields, body) = match parts {
            3 => {
                let first = self.token()?;
                let (_, method) = METHODS[self.variant(first, METHODS.map(|(name, _)| name), Malformed::Method)?];
                (method, self.text()?, self.map()?, b"".as_slice())
            }
            4 => (self.text()?, self.text()?, self.pairs()?, self.binary()?),
            _ => return Err(Malformed::Syntax),
        };
        if !is_token(method) {
            return Err(Malformed::Method);
        }
        if Target::of(method, target).is_none() {
            return Err(Malformed::Target);
        }
        Ok(Ask { id, method: method.to_vec(), target: target.to_vec(), fields, body: body.to_vec() })
    }

    /// One word of an enum, of which `first` is the first token: `{index: nil}` as the stock programs' serialiser writes it,
    /// or its name, which is what a newer version of that serialiser writes.
    fn variant<const N: usize>(
        &mut self,
        first: Token<'_>,
        names: [&[u8]; N],
        otherwise: Malformed,
    ) -> Result<usize, Malformed> {
        let index = match first {
            Token::Text(name) => names.iter().position(|known| *known == name),
            Token::Map(1) => {
                let (Token::Number(index), Token::Nil) = (self.token()?, self.token()?) else {
                    return Err(Malformed::Syntax);
                };
                usize::try_from(index).ok().filter(|index| *index < N)
            }
            _ => return Err(Malformed::Syntax),
        };
        index.ok_or(otherwise)
    }

    /// The fields of the stock form.
    fn map(&mut self) -> Result<Pairs, Malformed> {
        let Token::Map(count) = self.token()? else { return Err(Malformed::Syntax) };
        let mut fields = Pairs::new();
        for _ in 0..count {
            let name = self.text()?;
            // Of two, one reader would take the first and another the last.
            if fields.iter().any(|(known, _)| known.eq_ignore_ascii_case(name)) {
                return Err(Malformed::Twice);
            }
            let Token::Array(length) = self.token()? else { return Err(Malformed::Syntax) };
            let mut value = Vec::with_capacity(length);
            for _ in 0..length {
                let Token::Number(octet) = self.token()? else { return Err(Malformed::Syntax) };
                value.push(u8::try_from(octet).map_err(|_| Malformed::Syntax)?);
            }
            add_field(&mut fields, name.to_vec(), value)?;
        }
        Ok(fields)
    }

    /// The fields of our own form.
    fn pairs(&mut self) -> Result<Pairs, Malformed> {
        let Token::Array(count) = self.token()? else { return Err(Malformed::Syntax) };
        let mut fields = Pairs::new();
        for _ in 0..count {
            self.array(2)?;
            let name = self.binary()?.to_vec();
            add_field(&mut fields, name, self.binary()?.to_vec())?;
        }
        Ok(fields)
    }
}

/// Appends the head of an array or a map: up to fifteen in the tag itself, then with 16 bits, then with 32.
fn write_count(small: u8, large: u8, count: usize, out: &mut Vec<u8>) {
    match count {
        0..=15 => out.push(small | count as u8),
        16..=0xffff => {
            out.push(large);
            out.extend_from_slice(&(count as u16).to_be_bytes());
        }
        _ => {
            out.push(large + 1);
            out.extend_from_slice(&(count as u32).to_be_bytes());
        }
    }
}

fn write_text(text: &[u8], out: &mut Vec<u8>) {
    match text.len() {
        length @ 0..=31 => out.push(0xa0 | length as u8),
        length => write_length(0xd9, length, out),
    }
    out.extend_from_slice(text);
}

fn write_binary(bytes: &[u8], out: &mut Vec<u8>) {
    write_length(0xc4, bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// Appends a length with 8, 16 or 32 bits, each with the tag next to the one before.
fn write_length(tag: u8, length: usize, out: &mut Vec<u8>) {
    match length {
        0..=0xff => out.extend_from_slice(&[tag, length as u8]),
        0x100..=0xffff => {
            out.push(tag + 1);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(tag + 2);
            out.extend_from_slice(&(length as u32).to_be_bytes());
        }
    }
}

fn write_number(number: u16, out: &mut Vec<u8>) {
    match number {
        0..=0x7f => out.push(number as u8),
        0x80..=0xff => out.extend_from_slice(&[0xcc, number as u8]),
        _ => {
            out.push(0xcd);
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
}

/// Appends a word of an enum.
fn write_index(index: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0x81, index, 0xc0]);
}

/// What joins several values of a name, if anything can.
fn separator(name: &[u8]) -> Option<&'static [u8]> {
    if name.eq_ignore_ascii_case(b"set-cookie") {
        None
    } else if name.eq_ignore_ascii_case(b"cookie") {
        // RFC 6265 §5.4, RFC 9113 §8.2.3.
        Some(b"; ")
    } else {
        Some(b", ")
    }
}

/// Appends the fields of the stock form, each name once. Gives the number of those that can't be joined to an earlier one.
fn write_map<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone, out: &mut Vec<u8>) -> usize {
    let firsts = fields.clone().enumerate().filter(|(at, (name, _))| {
        let mut earlier = fields.clone().take(*at);
        !earlier.any(|(other, _)| other.eq_ignore_ascii_case(name))
    });
    write_count(0x80, 0xde, firsts.clone().count(), out);
    let mut lost = 0;
    for (at, (name, value)) in firsts {
        let more = fields.clone().skip(at + 1).filter(|(other, _)| other.eq_ignore_ascii_case(name));
        let name = name.to_ascii_lowercase();
        write_text(&name, out);
        match separator(&name) {
            None => {
                lost += more.count();
                write_array(out, value.len());
                write_octets(value, out);
            }
            Some(between) => {
                // An empty element of a list says nothing (RFC 9110 §5.6.1).
                let more = more.filter(|(_, value)| !value.is_empty());
                let rest: usize = more.clone().map(|(_, value)| between.len() + value.len()).sum();
                write_array(out, value.len() + rest);
                write_octets(value, out);
                for (_, value) in more {
                    write_octets(between, out);
                    write_octets(value, out);
                }
            }
        }
    }
    lost
}

/// Appends each octet as an integer.
fn write_octets(octets: &[u8], out: &mut Vec<u8>) {
    for octet in octets {
        write_number(u16::from(*octet), out);
    }
}

/// Appends the fields of our own form.
fn write_pairs<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone, out: &mut Vec<u8>) {
    write_array(out, fields.clone().count());
    for (name, value) in fields {
        write_array(out, 2);
        write_binary(name, out);
        write_binary(value, out);
    }
}
