//! What a connection is after a 101 that a visitor asked for, and after a 2xx to CONNECT (RFC 9110 §7.8 and §9.3.6): bytes that
//! mean nothing to us, both ways, each direction ending by itself. And which upgrades are passed on at all.

use crate::error::{Error, Misuse};
use crate::http::framing::Framing;
use crate::time::Instant;
use crate::wire::fields::Name;
use crate::wire::head::{Head, Version};

/// Which directions still carry bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Both,
    /// We have ended ours.
    Theirs,
    /// The peer has ended its.
    Ours,
    Neither,
}

/// Bytes both ways.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tunnel {
    pub(crate) flow: Flow,
    /// The last byte, either way: the patience with silence counts from here.
    pub(crate) since: Instant,
}

impl Tunnel {
    pub(crate) const fn new(since: Instant) -> Tunnel {
        Tunnel { flow: Flow::Both, since }
    }

    pub(crate) const fn we_speak(&self) -> bool {
        matches!(self.flow, Flow::Both | Flow::Ours)
    }

    pub(crate) const fn they_speak(&self) -> bool {
        matches!(self.flow, Flow::Both | Flow::Theirs)
    }

    /// Our direction ends.
    ///
    /// # Errors
    /// When it has ended already.
    pub(crate) fn end_ours(&mut self, now: Instant) -> Result<(), Error> {
        self.flow = match self.flow {
            Flow::Both => Flow::Theirs,
            Flow::Ours => Flow::Neither,
            Flow::Theirs | Flow::Neither => return Err(Misuse::OutOfTurn.into()),
        };
        self.since = now;
        Ok(())
    }

    /// The peer's direction has ended.
    pub(crate) fn end_theirs(&mut self, now: Instant) {
        self.flow = match self.flow {
            Flow::Both => Flow::Ours,
            Flow::Theirs => Flow::Neither,
            ended => ended,
        };
        self.since = now;
    }
}

/// Protocols that are never passed on by an upgrade, whatever else is allowed: with another HTTP, requests would come behind the
/// upgrade that nobody on the way has looked at (what is known as h2c smuggling); with TLS likewise. PTTH is between an agent and
/// its relay.
pub fn is_never_passed(token: &[u8]) -> bool {
    let name = token.split(|b| *b == b'/').next().unwrap_or_default();
    [&b"h2c"[..], b"h2", b"h3", b"http", b"tls", b"ptth", b"h2c-reverse", b"reverse"]
        .iter()
        .any(|never| name.eq_ignore_ascii_case(never))
}

/// The protocols that a visitor offers to go on with, in its order: none in HTTP/1.0 (RFC 9110 §7.8), none that `Connection` does
/// not name, none behind a body, which could be read as the old protocol or as the new one (RFC 9931).
pub fn offered(head: &Head, framing: Framing) -> impl Iterator<Item = &[u8]> {
    let fields = &head.fields;
    let counts = fields.has(Name::Upgrade)
        && head.version() == Version::Http11
        && matches!(framing, Framing::Empty | Framing::Length(0))
        && fields.lists(Name::Connection, b"upgrade");
    fields.list(Name::Upgrade).filter(move |_| counts)
}

/// Whether a 101 switches to what the request offered, as far as that was passed on, and to nothing else.
pub fn is_answer_to(response: &Head, request: &Head, passed: impl Fn(&[u8]) -> bool) -> bool {
    let mut switched = response.fields.list(Name::Upgrade).peekable();
    switched.peek().is_some() && switched.all(|token| request.fields.lists(Name::Upgrade, token) && passed(token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use alloc::format;
    use alloc::vec::Vec;

    fn request(fields: &str, version: &str) -> Head {
        let mut head = Head::default();
        let text = format!("GET / HTTP/{version}\r\nHost: x\r\n{fields}\r\n");
        head.parse_request(text.as_bytes(), &Limits::default()).unwrap();
        head
    }

    #[test]
    fn what_is_offered() {
        for (fields, version, framing, expected) in [
            ("Upgrade: websocket\r\nConnection: Upgrade\r\n", "1.1", Framing::Empty, &["websocket"][..]),
            ("Upgrade: a/1, b\r\nConnection: keep-alive, upgrade\r\n", "1.1", Framing::Empty, &["a/1", "b"]),
            ("Upgrade: a\r\nConnection: keep-alive\r\n", "1.1", Framing::Empty, &[]),
            ("Upgrade: a\r\n", "1.1", Framing::Empty, &[]),
            ("Upgrade: a\r\nConnection: Upgrade\r\n", "1.0", Framing::Empty, &[]),
            ("Upgrade: a\r\nConnection: Upgrade\r\n", "1.1", Framing::Length(1), &[]),
            ("Upgrade: a\r\nConnection: Upgrade\r\n", "1.1", Framing::Chunked, &[]),
        ] {
            let head = request(fields, version);
            let tokens: Vec<_> = offered(&head, framing).map(|t| core::str::from_utf8(t).unwrap()).collect();
            assert_eq!(tokens, expected, "{fields:?}");
        }
    }

    #[test]
    fn what_is_never_passed() {
        for never in ["h2c", "H2C", "HTTP/2.0", "TLS/1.0", "PTTH/1.0", "ptth", "h2c-reverse"] {
            assert!(is_never_passed(never.as_bytes()), "{never}");
        }
        for token in ["websocket", "tcp", "SPDY/3.1", "connect-udp"] {
            assert!(!is_never_passed(token.as_bytes()), "{token}");
        }
    }

    #[test]
    fn a_101_names_what_was_offered() {
        let asked = request("Upgrade: websocket, foo, h2c\r\nConnection: Upgrade\r\n", "1.1");
        for (fields, expected) in [
            ("Upgrade: websocket\r\n", true),
            ("Upgrade: WebSocket\r\n", true),
            ("Upgrade: bar\r\n", false),
            ("Upgrade: h2c\r\n", false),
            ("Upgrade: websocket, bar\r\n", false),
            ("", false),
        ] {
            let mut head = Head::default();
            let text = format!("HTTP/1.1 101 x\r\n{fields}\r\n");
            head.parse_response(text.as_bytes(), &Limits::default()).unwrap();
            assert_eq!(is_answer_to(&head, &asked, |token| !is_never_passed(token)), expected, "{fields:?}");
        }
    }

    #[test]
    fn each_direction_ends_once() {
        let now = Instant::default();
        let mut tunnel = Tunnel::new(now);
        tunnel.end_theirs(now);
        assert!(tunnel.we_speak() && !tunnel.they_speak());
        tunnel.end_ours(now).unwrap();
        assert!(tunnel.end_ours(now).is_err());
        assert_eq!(tunnel.flow, Flow::Neither);
    }
}
