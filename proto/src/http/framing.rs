//! How long a message's body is: RFC 9112 §6.3 in one function, in the RFC's steps.

use crate::error::{Error, Fault};
use crate::wire::fields::{Fields, Name};
use crate::wire::head::{Head, Version};

/// How a message's end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// So many bytes.
    Length(u64),
    /// The chunked coding, with trailers.
    Chunked,
    /// Everything up to the end of the connection.
    UntilClose,
}

/// What a response answers, as far as its framing depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Asked {
    /// A HEAD: the response never has a body.
    Head,
    /// A CONNECT: a 2xx is followed by no body but by the tunnel.
    Connect,
    /// Anything else.
    #[default]
    Other,
}

impl Asked {
    /// What a request of this method asks for.
    pub fn by(method: &[u8]) -> Asked {
        match method {
            b"HEAD" => Asked::Head,
            b"CONNECT" => Asked::Connect,
            _ => Asked::Other,
        }
    }
}

/// The framing of a message: `asked` is `None` for a request, and for a response what it answers.
///
/// Stricter than the RFC where it leaves a choice: both a length and a coding, or two lengths even if they are equal, are
/// refused in either direction, because someone further on may choose differently.
///
/// # Errors
/// When the framing can't be told beyond doubt.
pub fn framing(head: &Head, asked: Option<Asked>) -> Result<Framing, Error> {
    let fields = &head.fields;
    // 1. Any response to HEAD, and any 1xx, 204, 304 ends with its head.
    if let Some(asked) = asked {
        if asked == Asked::Head || matches!(head.status(), 100..200 | 204 | 304) {
            return Ok(Framing::Empty);
        }
        // 2. Any 2xx to CONNECT turns the connection into a tunnel.
        if asked == Asked::Connect && matches!(head.status(), 200..300) {
            return Ok(Framing::Empty);
        }
    }
    let coding = fields.has(Name::TransferEncoding);
    // 3. Both: "ought to be handled as an error".
    if coding && fields.has(Name::ContentLength) {
        return Err(Fault::LengthAndCoding.into());
    }
    // 4. Transfer-Encoding: chunked alone is all that we understand.
    if coding {
        if head.version() == Version::Http10 {
            return Err(Fault::CodingInHttp10.into());
        }
        let mut codings = fields.all(Name::TransferEncoding);
        return match (codings.next(), codings.next()) {
            (Some(only), None) if only.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
            _ => Err(Fault::Coding.into()),
        };
    }
    // 5. and 6. Content-Length: one decimal number.
    if let Some(length) = content_length(fields)? {
        return Ok(Framing::Length(length));
    }
    // 7. A request without either has no body. 8. A response without either ends with the connection.
    Ok(if asked.is_none() { Framing::Empty } else { Framing::UntilClose })
}

/// Whether a response speaks of a body that its status does not let it have, or in two ways of one that it need not have. Its end
/// is beyond doubt, but whoever says so may send that body after all, and it would be taken for the next answer.
pub fn is_doubtful(head: &Head) -> bool {
    let fields = &head.fields;
    let coding = fields.has(Name::TransferEncoding);
    match head.status() {
        100..200 | 204 => coding || fields.all(Name::ContentLength).any(|length| length != b"0"),
        _ => coding && fields.has(Name::ContentLength),
    }
}

/// The one `Content-Length`, if there is any.
///
/// # Errors
/// When there are two, or one that is no number of at most 64 bits.
pub fn content_length(fields: &Fields) -> Result<Option<u64>, Error> {
    let mut values = fields.all(Name::ContentLength);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() || value.contains(&b',') {
        return Err(Fault::TwoLengths.into());
    }
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Fault::BadLength.into());
    }
    let mut length: u64 = 0;
    for digit in value {
        length = length
            .checked_mul(10)
            .and_then(|n| n.checked_add(u64::from(digit - b'0')))
            .ok_or(Error::Peer(Fault::BadLength))?;
    }
    Ok(Some(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use alloc::format;

    fn of(start: &str, fields: &str, asked: Option<Asked>) -> Result<Framing, Error> {
        let mut head = Head::default();
        let text = format!("{start}\r\n{fields}\r\n");
        match asked {
            None => head.parse_request(text.as_bytes(), &Limits::default())?,
            Some(_) => head.parse_response(text.as_bytes(), &Limits::default())?,
        }
        framing(&head, asked)
    }

    const BOTH: &str = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";

    #[test]
    fn the_grid_of_requests() {
        use Framing::{Chunked, Empty, Length};
        for (fields, expected) in [
            ("", Ok(Empty)),
            ("Content-Length: 0\r\n", Ok(Length(0))),
            ("Content-Length: 18446744073709551615\r\n", Ok(Length(u64::MAX))),
            ("Content-Length: 18446744073709551616\r\n", Err(Fault::BadLength)),
            ("Content-Length: +5\r\n", Err(Fault::BadLength)),
            ("Content-Length: -5\r\n", Err(Fault::BadLength)),
            ("Content-Length: 0x5\r\n", Err(Fault::BadLength)),
            ("Content-Length: 5 5\r\n", Err(Fault::BadLength)),
            ("Content-Length:\r\n", Err(Fault::BadLength)),
            ("Content-Length: 5, 5\r\n", Err(Fault::TwoLengths)),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", Err(Fault::TwoLengths)),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", Err(Fault::TwoLengths)),
            ("Transfer-Encoding: chunked\r\n", Ok(Chunked)),
            ("Transfer-Encoding: Chunked\r\n", Ok(Chunked)),
            ("Transfer-Encoding: chunked, gzip\r\n", Err(Fault::Coding)),
            ("Transfer-Encoding: gzip, chunked\r\n", Err(Fault::Coding)),
            ("Transfer-Encoding: gzip\r\n", Err(Fault::Coding)),
            ("Transfer-Encoding: identity\r\n", Err(Fault::Coding)),
            ("Transfer-Encoding: xchunked\r\n", Err(Fault::Coding)),
            ("Transfer-Encoding:\r\n", Err(Fault::Coding)),
            ("Transfer-Encoding: chunked,\r\n", Err(Fault::Coding)),
            ("Transfer-Encoding: , chunked\r\n", Err(Fault::Coding)),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Err(Fault::Coding)),
            (BOTH, Err(Fault::LengthAndCoding)),
        ] {
            assert_eq!(of("POST / HTTP/1.1", fields, None), expected.map_err(Error::Peer), "{fields:?}");
        }
        assert_eq!(of("POST / HTTP/1.0", "Transfer-Encoding: chunked\r\n", None), Err(Fault::CodingInHttp10.into()));
    }

    #[test]
    fn who_says_that_there_is_a_body_where_none_can_be_is_doubted() {
        for (status, fields, doubtful) in [
            ("204", "", false),
            ("204", "Content-Length: 0\r\n", false),
            ("204", "Content-Length: 5\r\n", true),
            ("204", "Transfer-Encoding: chunked\r\n", true),
            ("103", "Content-Length: 5\r\n", true),
            ("304", "Content-Length: 5\r\n", false),
            ("304", BOTH, true),
            ("200", BOTH, true),
            ("200", "Transfer-Encoding: chunked\r\n", false),
        ] {
            let mut head = Head::default();
            head.parse_response(format!("HTTP/1.1 {status} x\r\n{fields}\r\n").as_bytes(), &Limits::default()).unwrap();
            assert_eq!(is_doubtful(&head), doubtful, "{status} {fields:?}");
        }
    }

    #[test]
    fn the_grid_of_responses() {
        use Framing::{Chunked, Empty, Length, UntilClose};
        let (five, chunked) = ("Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n");
        for (status, fields, asked, expected) in [
            ("200", "", Asked::Other, Ok(UntilClose)),
            ("200", five, Asked::Other, Ok(Length(5))),
            ("200", chunked, Asked::Other, Ok(Chunked)),
            ("200", BOTH, Asked::Other, Err(Fault::LengthAndCoding)),
            ("200", five, Asked::Head, Ok(Empty)),
            ("200", BOTH, Asked::Head, Ok(Empty)),
            ("200", "", Asked::Connect, Ok(Empty)),
            ("407", five, Asked::Connect, Ok(Length(5))),
            ("101", five, Asked::Other, Ok(Empty)),
            ("204", five, Asked::Other, Ok(Empty)),
            ("304", five, Asked::Other, Ok(Empty)),
            ("404", "", Asked::Other, Ok(UntilClose)),
        ] {
            let start = format!("HTTP/1.1 {status} x");
            assert_eq!(of(&start, fields, Some(asked)), expected.map_err(Error::Peer), "{status} {fields:?} {asked:?}");
        }
        assert_eq!(of("HTTP/1.0 200 x", chunked, Some(Asked::Other)), Err(Fault::CodingInHttp10.into()));
    }
}
