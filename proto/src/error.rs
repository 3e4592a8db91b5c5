//! What can go wrong, by whose fault, and the one place that decides what a peer hears of it.

use core::fmt;

/// Why a connection can't go on. The variants say whose fault it is; everything a peer may hear of it follows from
/// [`Error::status`] and [`Error::code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Error {
    /// The peer sent what may not be sent.
    Peer(Fault),
    /// The peer went beyond a limit of ours.
    Limit(Over),
    /// The caller asked for a move that the state doesn't allow. A bug on this side of the wire; nothing was written.
    Local(Misuse),
}

/// What a peer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// Bytes were found behind an upgrade request whose answer is still out (RFC 9931).
    BytesBehindOffer,
    /// A carriage return that no line feed follows.
    BareCr,
    /// A line feed that no carriage return comes before.
    BareLf,
    /// A `Host` that is no `host[:port]`.
    BadHost,
    /// A field name or value with a byte that may not be there.
    BadField,
    /// A `Content-Length` that is no number.
    BadLength,
    /// A method that is no token.
    BadMethod,
    /// A first line that is no request line or status line.
    BadStartLine,
    /// A status outside 100 to 599.
    BadStatus,
    /// A request-target in none of the four forms, or in one that its method doesn't have.
    BadTarget,
    /// A protocol version other than HTTP/1.0 and HTTP/1.1.
    BadVersion,
    /// Chunk data not followed by CRLF.
    ChunkEnd,
    /// A chunk's size line that is no hexadecimal number, or too large a one.
    ChunkSize,
    /// A `Transfer-Encoding` other than `chunked` alone.
    Coding,
    /// A `Transfer-Encoding` in an HTTP/1.0 message.
    CodingInHttp10,
    /// The connection ended inside a message.
    EarlyEnd,
    /// Both `Content-Length` and `Transfer-Encoding`.
    LengthAndCoding,
    /// No `Host` where there must be one.
    NoHost,
    /// A line that starts with white space: a field value folded the way it was until 1997.
    ObsoleteFolding,
    /// An upgrade request that has a body.
    OfferWithBody,
    /// White space between a field's name and its colon.
    SpaceBeforeColon,
    /// A 101 for another protocol than the one that was offered.
    SwitchedElsewhere,
    /// More than one `Host`.
    TwoHosts,
    /// More than one `Content-Length`, or a list of them.
    TwoLengths,
    /// A 101 that nobody asked for.
    UnaskedSwitch,
    /// Bytes on a connection on which no answer is due.
    UnexpectedData,
}

/// A limit that was passed; the numbers are in [`Limits`](crate::limits::Limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Over {
    /// A chunk's size line.
    ChunkLine,
    /// Fields in a head.
    Fields,
    /// Bytes of a head.
    Head,
    /// Bytes or fields of a trailer section.
    Trailers,
}

/// A call out of turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Misuse {
    /// This message can't be sent in the connection's present state.
    OutOfTurn,
    /// More body than the head announced, or the end before all of it.
    WrongLength,
    /// A field with a byte that would end its line.
    BadField,
}

impl Error {
    /// The status that a server answers with, for errors in a request. `None` when the peer is told nothing and the
    /// connection only closes.
    pub const fn status(self) -> Option<u16> {
        match self {
            Error::Peer(fault) => match fault {
                Fault::BytesBehindOffer | Fault::EarlyEnd | Fault::UnexpectedData => None,
                Fault::UnaskedSwitch | Fault::SwitchedElsewhere | Fault::BadStatus => None,
                Fault::BadVersion => Some(505),
                // RFC 9112 §6.1: "a server that receives a request message with a transfer coding it does not understand
                // SHOULD respond with 501".
                Fault::Coding => Some(501),
                _ => Some(400),
            },
            Error::Limit(Over::ChunkLine) => Some(400),
            Error::Limit(_) => Some(431),
            Error::Local(_) => Some(500),
        }
    }

    /// The stable name of the error: on the visitor's page, in the log, in the fixtures.
    pub const fn code(self) -> &'static str {
        match self {
            Error::Peer(fault) => match fault {
                Fault::BytesBehindOffer => "bytes-behind-offer",
                Fault::BareCr => "bare-cr",
                Fault::BareLf => "bare-lf",
                Fault::BadHost => "bad-host",
                Fault::BadField => "bad-field",
                Fault::BadLength => "bad-length",
                Fault::BadMethod => "bad-method",
                Fault::BadStartLine => "bad-start-line",
                Fault::BadStatus => "bad-status",
                Fault::BadTarget => "bad-target",
                Fault::BadVersion => "bad-version",
                Fault::ChunkEnd => "chunk-end",
                Fault::ChunkSize => "chunk-size",
                Fault::Coding => "transfer-coding",
                Fault::CodingInHttp10 => "transfer-coding-in-1.0",
                Fault::EarlyEnd => "early-end",
                Fault::LengthAndCoding => "length-and-coding",
                Fault::NoHost => "no-host",
                Fault::ObsoleteFolding => "obsolete-folding",
                Fault::OfferWithBody => "offer-with-body",
                Fault::SpaceBeforeColon => "space-before-colon",
                Fault::SwitchedElsewhere => "switched-elsewhere",
                Fault::TwoHosts => "two-hosts",
                Fault::TwoLengths => "two-lengths",
                Fault::UnaskedSwitch => "unasked-switch",
                Fault::UnexpectedData => "unexpected-data",
            },
            Error::Limit(over) => match over {
                Over::ChunkLine => "chunk-line-too-long",
                Over::Fields => "too-many-fields",
                Over::Head => "head-too-large",
                Over::Trailers => "trailers-too-large",
            },
            Error::Local(_) => "internal",
        }
    }
}

impl fmt::Display for Error {
    /// Half a sentence: "the peer " goes well in front of the first two kinds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::Peer(fault) => match fault {
                Fault::BytesBehindOffer => "sent bytes behind its upgrade request before the answer to it",
                Fault::BareCr => "sent a carriage return without a line feed",
                Fault::BareLf => "ended a line with a line feed alone",
                Fault::BadHost => "sent a Host that is no host name with an optional port",
                Fault::BadField => "sent a field with a byte that may not stand there",
                Fault::BadLength => "sent a Content-Length that is no number",
                Fault::BadMethod => "sent a method that is no token",
                Fault::BadStartLine => "sent a first line that is not HTTP",
                Fault::BadStatus => "sent a status outside 100 to 599",
                Fault::BadTarget => "sent a request-target that is none",
                Fault::BadVersion => "speaks a version other than HTTP/1.0 and HTTP/1.1",
                Fault::ChunkEnd => "sent more bytes in a chunk than it had announced",
                Fault::ChunkSize => "sent a chunk size that is none",
                Fault::Coding => "used a transfer coding other than chunked alone",
                Fault::CodingInHttp10 => "used a transfer coding in an HTTP/1.0 message",
                Fault::EarlyEnd => "closed the connection in the middle of a message",
                Fault::LengthAndCoding => "sent both Content-Length and Transfer-Encoding",
                Fault::NoHost => "sent no Host",
                Fault::ObsoleteFolding => "folded a field over two lines",
                Fault::OfferWithBody => "sent an upgrade request with a body",
                Fault::SpaceBeforeColon => "put white space in front of a field's colon",
                Fault::SwitchedElsewhere => "switched to a protocol that was not offered",
                Fault::TwoHosts => "sent more than one Host",
                Fault::TwoLengths => "sent more than one Content-Length",
                Fault::UnaskedSwitch => "switched protocols without having been asked to",
                Fault::UnexpectedData => "sent bytes when nothing was asked of it",
            },
            Error::Limit(over) => match over {
                Over::ChunkLine => "sent a chunk size line over the limit",
                Over::Fields => "sent more fields than the limit",
                Over::Head => "sent a head over the limit",
                Over::Trailers => "sent trailers over the limit",
            },
            Error::Local(misuse) => match misuse {
                Misuse::OutOfTurn => "was to be told something out of turn",
                Misuse::WrongLength => "was to be sent another length than announced",
                Misuse::BadField => "was to be sent a field with a line end in it",
            },
        })
    }
}

impl core::error::Error for Error {}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        Error::Peer(fault)
    }
}

impl From<Over> for Error {
    fn from(over: Over) -> Error {
        Error::Limit(over)
    }
}

impl From<Misuse> for Error {
    fn from(misuse: Misuse) -> Error {
        Error::Local(misuse)
    }
}

/// Why a connection closes when nothing went wrong, or what went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer closed between two exchanges.
    PeerClosed,
    /// One of the two said `Connection: close`, or speaks HTTP/1.0 without keep-alive.
    NotKept,
    /// The body's end could only be shown by closing.
    EndOfBody,
    /// The answer was complete before the request was.
    AnsweredEarly,
    /// The tunnel has ended, in both directions.
    TunnelOver,
    /// We are going away.
    Draining,
    /// The connection failed.
    Failed(Error),
}

impl CloseReason {
    /// A few words for a log line.
    pub const fn explain(self) -> &'static str {
        match self {
            CloseReason::PeerClosed => "the peer closed it",
            CloseReason::NotKept => "it was not to be kept",
            CloseReason::EndOfBody => "closing ended the body",
            CloseReason::AnsweredEarly => "the answer came before the request's end",
            CloseReason::TunnelOver => "both directions of its tunnel have ended",
            CloseReason::Draining => "we are stopping",
            CloseReason::Failed(error) => error.code(),
        }
    }
}
