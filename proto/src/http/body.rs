//! Bodies: read as bytes come, written as they are given; never kept.

use alloc::vec::Vec;

use crate::error::{Error, Misuse};
use crate::http::framing::Framing;
use crate::limits::Limits;
use crate::wire::chunk::{self, Decoder, Part};
use crate::wire::fields::{Field, Fields};

/// Reads one body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// So many bytes are left.
    Length(u64),
    /// In the chunked coding.
    Chunked(Decoder),
    /// Up to the end of the connection.
    UntilClose,
}

impl From<Framing> for Reader {
    fn from(framing: Framing) -> Reader {
        match framing {
            Framing::Empty => Reader::Length(0),
            Framing::Length(n) => Reader::Length(n),
            Framing::Chunked => Reader::Chunked(Decoder::Size),
            Framing::UntilClose => Reader::UntilClose,
        }
    }
}

impl Reader {
    /// Reads on: see [`Decoder::read`], which this is for all framings.
    ///
    /// # Errors
    /// When the chunked coding is broken.
    pub fn read<'a>(
        &mut self,
        input: &'a [u8],
        trailers: &mut Fields,
        limits: &Limits,
    ) -> Result<(usize, Option<Part<'a>>), Error> {
        match self {
            Reader::Length(0) => Ok((0, Some(Part::End))),
            _ if input.is_empty() => Ok((0, None)),
            Reader::Length(left) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= n as u64;
                Ok((n, Some(Part::Data(&input[..n]))))
            }
            Reader::Chunked(decoder) => decoder.read(input, trailers, limits),
            Reader::UntilClose => Ok((input.len(), Some(Part::Data(input)))),
        }
    }

    /// How many bytes are left, where that is known and none of them is framing.
    pub fn left(&self) -> Option<u64> {
        match self {
            Reader::Length(left) => Some(*left),
            Reader::Chunked(_) | Reader::UntilClose => None,
        }
    }

    /// So many bytes of it were taken elsewhere.
    ///
    /// # Errors
    /// When so many are not [left](Reader::left).
    pub fn passed(&mut self, n: u64) -> Result<(), Error> {
        match self {
            Reader::Length(left) => pass(left, n),
            Reader::Chunked(_) | Reader::UntilClose => Err(Misuse::OutOfTurn.into()),
        }
    }
}

/// Writes one body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// The message has a length that its body doesn't: a response to HEAD, a 304. What is given is swallowed.
    Swallow,
    /// So many bytes are to come.
    Length(u64),
    /// In the chunked coding.
    Chunked,
    /// Up to the end of the connection.
    UntilClose,
}

impl Writer {
    /// Appends a piece of body.
    ///
    /// # Errors
    /// When it is more than the head announced; nothing was appended then.
    pub fn data(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            Writer::Swallow => {}
            Writer::Length(left) => {
                pass(left, data.len() as u64)?;
                out.extend_from_slice(data);
            }
            Writer::Chunked => chunk::write(data, out),
            Writer::UntilClose => out.extend_from_slice(data),
        }
        Ok(())
    }

    /// How many bytes are left to be said, where that is known and no framing comes between them.
    pub fn left(&self) -> Option<u64> {
        match self {
            Writer::Length(left) => Some(*left),
            Writer::Swallow | Writer::Chunked | Writer::UntilClose => None,
        }
    }

    /// So many bytes of it were sent from elsewhere.
    ///
    /// # Errors
    /// When so many are not [left](Writer::left).
    pub fn passed(&mut self, n: u64) -> Result<(), Error> {
        match self {
            Writer::Length(left) => pass(left, n),
            Writer::Swallow | Writer::Chunked | Writer::UntilClose => Err(Misuse::OutOfTurn.into()),
        }
    }

    /// Appends what ends the body. Trailers go with the chunked coding only and are dropped elsewhere (RFC 9110 §6.5.1).
    ///
    /// # Errors
    /// When less came than the head announced.
    pub fn end(&mut self, trailers: Option<&Fields>, out: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            Writer::Length(left) if *left > 0 => return Err(Misuse::WrongLength.into()),
            Writer::Chunked => {
                out.extend_from_slice(b"0\r\n");
                for field in trailers.into_iter().flat_map(Fields::end_to_end) {
                    if may_trail(field) {
                        out.extend_from_slice(field.name);
                        out.extend_from_slice(b": ");
                        out.extend_from_slice(field.value);
                        out.extend_from_slice(b"\r\n");
                    }
                }
                out.extend_from_slice(b"\r\n");
            }
            _ => {}
        }
        Ok(())
    }
}

/// Takes `n` bytes off what is left of a body.
fn pass(left: &mut u64, n: u64) -> Result<(), Error> {
    *left = left.checked_sub(n).ok_or(Error::Local(Misuse::WrongLength))?;
    Ok(())
}

/// Whether a field may stand behind the body. What would change the message after the fact may not (RFC 9110 §6.5.1), for there
/// are readers that take trailers for fields of the head: routing, authentication, how the body is to be read. These are the
/// names that Go refuses, and cookies; those of one hop are gone before.
fn may_trail(field: Field<'_>) -> bool {
    const NOT: [&[u8]; 15] = [
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"cookie",
        b"expect",
        b"host",
        b"max-forwards",
        b"pragma",
        b"range",
        b"realm",
        b"set-cookie",
        b"trailer",
        b"www-authenticate",
    ];
    let is_condition = field.name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"if-"));
    !field.known.is_forwarding() && !is_condition && !NOT.iter().any(|name| field.name.eq_ignore_ascii_case(name))
}
