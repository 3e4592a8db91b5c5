//! A whole request or response as one value: what polls carry where a flipped connection would carry HTTP itself. The two
//! notations for it are [`comet`](super::comet) and [`packed`](super::packed); what both of them ask of a message is here.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::limits::MAX_FIELDS;
use crate::wire::fields::{Name, elements, is_token, is_value};
use crate::wire::head::Target;

/// Names and values of fields, in their order.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// A request. What is read keeps to the grammar of HTTP: the method is a token, the target one that the method may have, and
/// the fields are such as may stand in a head. Which fields make sense is not looked at: `Content-Length` may say anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// By what the response finds back to the request: 1 to 128 printable characters of ASCII.
    pub id: String,
    /// The method.
    pub method: Vec<u8>,
    /// The request-target.
    pub target: Vec<u8>,
    /// Names and values in their order; the values without white space around them.
    pub fields: Pairs,
    /// The whole body.
    pub body: Vec<u8>,
}

/// The response to an [`Ask`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The request's.
    pub id: String,
    /// The status, 200 to 599: there are no interim responses here.
    pub status: u16,
    /// The reason phrase, often empty.
    pub reason: Vec<u8>,
    /// Names and values in their order; the values without white space around them.
    pub fields: Pairs,
    /// The whole body.
    pub body: Vec<u8>,
}

/// Why a message can't be written for this peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unsendable {
    /// A body that is not text, for a peer that reads only text.
    BinaryBody,
    /// A field with a byte that may not be there.
    Field,
    /// An id that is none. A fault of the caller.
    Id,
    /// A method that the peer has no word for.
    Method,
    /// A request with a body, for a peer that has no place for one.
    RequestBody,
    /// A status outside 200 to 599.
    Status,
    /// A request-target in none of the forms that its method has.
    Target,
}

impl fmt::Display for Unsendable {
    /// Half a sentence: "the message " or "it " goes well in front.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unsendable::BinaryBody => "has a body that is not text, and the peer reads only text",
            Unsendable::Field => "has a field with a byte that may not stand there",
            Unsendable::Id => "has an id that can't be sent",
            Unsendable::Method => "has a method that the peer has no word for",
            Unsendable::RequestBody => "is a request with a body, and the peer has no place for one",
            Unsendable::Status => "has a status outside 200 to 599",
            Unsendable::Target => "has a request-target that can't be sent",
        })
    }
}

impl core::error::Error for Unsendable {}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Malformed {
    /// A body that is no text, or whose encoding is unknown or broken.
    Body,
    /// The bytes end before the message does.
    Cut,
    /// Values within values within values.
    Deep,
    /// A field that can't stand in a head.
    Field,
    /// An id that is too long, empty, or has other than printable characters.
    Id,
    /// Neither a request nor a response, or both.
    Kind,
    /// A method that is no token, or that the notation has no number for.
    Method,
    /// A status that is no final one.
    Status,
    /// Bytes that the notation doesn't have, or not there.
    Syntax,
    /// A request-target that is none.
    Target,
    /// More fields or more requests than the limit.
    TooMany,
    /// Bytes behind the message's end.
    Trailing,
    /// A part that is there twice.
    Twice,
}

impl Malformed {
    /// The stable name of the fault: in the log, in the fixtures.
    pub const fn code(self) -> &'static str {
        match self {
            Malformed::Body => "message-body",
            Malformed::Cut => "message-cut",
            Malformed::Deep => "message-too-deep",
            Malformed::Field => "message-field",
            Malformed::Id => "message-id",
            Malformed::Kind => "message-kind",
            Malformed::Method => "message-method",
            Malformed::Status => "message-status",
            Malformed::Syntax => "message-syntax",
            Malformed::Target => "message-target",
            Malformed::TooMany => "message-too-many",
            Malformed::Trailing => "message-trailing",
            Malformed::Twice => "message-twice",
        }
    }
}

impl fmt::Display for Malformed {
    /// Half a sentence: "the peer " goes well in front.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::Body => "sent a message whose body can't be read",
            Malformed::Cut => "sent a message that ends in its middle",
            Malformed::Deep => "sent a message with values too deep within values",
            Malformed::Field => "sent a message with a field that can't stand in a head",
            Malformed::Id => "sent a message with an id that is none",
            Malformed::Kind => "sent a message that is neither a request nor a response",
            Malformed::Method => "sent a message with a method that is none",
            Malformed::Status => "sent a message with a status that is no final one",
            Malformed::Syntax => "sent a message with bytes that don't belong there",
            Malformed::Target => "sent a message with a request-target that is none",
            Malformed::TooMany => "sent more fields or requests in a message than the limit",
            Malformed::Trailing => "sent bytes behind a message",
            Malformed::Twice => "sent a message with one part twice",
        })
    }
}

impl core::error::Error for Malformed {}

/// The id of a message that was read.
pub(super) fn id(bytes: Vec<u8>) -> Result<String, Malformed> {
    if !is_id(&bytes) {
        return Err(Malformed::Id);
    }
    String::from_utf8(bytes).map_err(|_| Malformed::Id)
}

/// Whether this can be an id. It comes back in a path in one dialect and within quotes in the other; nobody has a reason for
/// a long one.
pub(super) fn is_id(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// Whether the status may be a message's.
pub(super) fn is_final(status: u16) -> bool {
    (200..600).contains(&status)
}

/// Adds a field that was read, without the white space around its value.
pub(super) fn add_field(fields: &mut Pairs, name: Vec<u8>, mut value: Vec<u8>) -> Result<(), Malformed> {
    let space = |b: &u8| matches!(b, b' ' | b'\t');
    value.truncate(value.iter().rposition(|b| !space(b)).map_or(0, |last| last + 1));
    value.drain(..value.iter().take_while(|b| space(b)).count());
    if !is_token(&name) || !is_value(&value) {
        return Err(Malformed::Field);
    }
    if fields.len() >= MAX_FIELDS {
        return Err(Malformed::TooMany);
    }
    fields.push((name, value));
    Ok(())
}

/// Looks at what all notations ask of a request before it is written.
pub(super) fn check_ask<'a>(
    id: &str,
    method: &[u8],
    target: &[u8],
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<(), Unsendable> {
    if !is_id(id.as_bytes()) {
        return Err(Unsendable::Id);
    }
    if !is_token(method) {
        return Err(Unsendable::Method);
    }
    if Target::of(method, target).is_none() {
        return Err(Unsendable::Target);
    }
    check_fields(fields)
}

/// The same for fields alone.
pub(super) fn check_fields<'a>(mut fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<(), Unsendable> {
    if fields.all(|(name, value)| is_token(name) && is_value(value)) { Ok(()) } else { Err(Unsendable::Field) }
}

/// The fields of a message that go on: all but those of the hop that it came by, the framing, and those that `Connection` names
/// (RFC 9110 §7.6.1). `ptth_relay` puts a visitor's into its messages just as they came.
pub fn end_to_end(fields: &[(Vec<u8>, Vec<u8>)]) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
    let named = move |name: &[u8]| {
        let connection = fields.iter().filter(|(name, _)| Name::of(name) == Name::Connection);
        connection.flat_map(|(_, value)| elements(value)).any(|element| element.eq_ignore_ascii_case(name))
    };
    fields.iter().map(|(name, value)| (&name[..], &value[..])).filter(move |(name, _)| {
        let known = Name::of(name);
        !known.is_hop_by_hop() && known != Name::ContentLength && !named(name)
    })
}

/// The bytes that a text in base64 (RFC 4648 §4) stands for, `None` when it is none. Strictly: with its padding, and without a
/// bit that means nothing.
pub fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Bytes as base64.
pub fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
