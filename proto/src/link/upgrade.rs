//! The handshake of the `PTTH/1.0` and `PTTH/0.9` dialects, in both roles. What is sent is what every known peer accepts;
//! what is tolerated is tolerated of a peer that is named here, and nothing else.

use alloc::vec::Vec;

use crate::error::{Error, Fault};
use crate::http::framing::{Framing, framing};
use crate::wire::fields::Name;
use crate::wire::head::{FieldWriter, Head, LineEnds, Version, write_request_line};

/// The offered protocol in the spelling of the offer: `PTTH/1.0`, or the `PTTH/0.9` of the Second Life wiki's later
/// revisions. An answer echoes it, for npm `reverse-http` and Go compare it byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token([u8; 8]);

impl Token {
    /// What our agent offers.
    pub const PTTH_1_0: Token = Token(*b"PTTH/1.0");

    /// The token as it stands in `Upgrade`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads a token. Protocol names are compared without case (RFC 9110 §7.8).
    pub fn of(token: &[u8]) -> Option<Token> {
        let known = token.eq_ignore_ascii_case(b"PTTH/1.0") || token.eq_ignore_ascii_case(b"PTTH/0.9");
        known.then(|| token.try_into().ok().map(Token)).flatten()
    }
}

/// What a known peer needs beyond the rules, once its connection is turned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Profile {
    /// A peer that keeps to the rules.
    #[default]
    Standard,
    /// A peer that has said so with `Ptth-Accept: ping`: it gives signs of life, and says on an idle link that it goes
    /// (`docs/links.md`).
    Ours,
    /// The same, that has said `pipeline` as well: it takes further requests before it has answered, and sets an answer aside that
    /// others would have to wait for.
    Pipelining,
    /// Ruby's net-ptth as an agent: it ends lines with LF alone, loses a request that comes in the same read as the 101, and
    /// ends a body without a length by falling silent.
    NetPtth,
    /// A relay whose 101 ended lines with LF alone, net-ptth's test server for one: its requests do too.
    LoneLf,
}

impl Profile {
    /// The line ends to take from this peer.
    pub const fn line_ends(self) -> LineEnds {
        match self {
            Profile::Standard | Profile::Ours | Profile::Pipelining => LineEnds::Crlf,
            Profile::NetPtth | Profile::LoneLf => LineEnds::LfToo,
        }
    }

    /// Whether it knows what `docs/links.md` says.
    pub const fn is_ours(self) -> bool {
        matches!(self, Profile::Ours | Profile::Pipelining)
    }

    /// The profile of one that has said these words in `Ptth-Accept`.
    fn said(head: &Head) -> Profile {
        match (head.fields.lists(Name::PtthAccept, PING), head.fields.lists(Name::PtthAccept, PIPELINE)) {
            (true, true) => Profile::Pipelining,
            (true, false) => Profile::Ours,
            (false, _) => Profile::Standard,
        }
    }
}

/// The relay's side: whether a request offers to be turned, and what is known of who offers it. `None` for an ordinary
/// request.
///
/// - No `Connection` at all is taken from the clients of 2008 (Second Life wiki); one that doesn't name `upgrade` is not,
///   for then the field was meant for another hop.
/// - No `Host` is taken from net-ptth and from AirPlay senders.
/// - `Upgrade` in an HTTP/1.0 request is ignored (RFC 9110 §7.8).
///
/// # Errors
/// When the request has a body (RFC 9931): it would have to be read as the new protocol or as the old one, and two readers
/// may choose differently.
pub fn offered(head: &Head) -> Result<Option<(Token, Profile)>, Error> {
    let fields = &head.fields;
    if !fields.has(Name::Upgrade) || head.version() == Version::Http10 {
        return Ok(None);
    }
    if fields.has(Name::Connection) && !fields.lists(Name::Connection, b"upgrade") {
        return Ok(None);
    }
    let Some(token) = fields.list(Name::Upgrade).find_map(Token::of) else { return Ok(None) };
    match framing(head, None)? {
        Framing::Empty | Framing::Length(0) => {}
        // An answer of the COMET fallback from an agent that offers the upgrade with each request: it is read as the request it
        // is, and nothing is switched.
        _ if fields.is_json() => return Ok(None),
        _ => return Err(Fault::OfferWithBody.into()),
    }
    let ruby = fields.first(Name::UserAgent).is_some_and(|agent| agent.starts_with(b"Ruby"));
    let profile = match ruby && !fields.has(Name::Host) {
        true => Profile::NetPtth,
        false => Profile::said(head),
    };
    Ok(Some((token, profile)))
}

/// The element of `Ptth-Accept` by which two sides tell each other that they know what `docs/links.md` says.
pub const PING: &[u8] = b"ping";

/// The element by which they tell each other that a link may carry several requests at once.
pub const PIPELINE: &[u8] = b"pipeline";

/// The element that marks a request which others may follow before its answer, and whose answer may be set aside.
pub const ASIDE: &[u8] = b"aside";

/// Appends the 101: 57 bytes, the one form that satisfies every known agent, among them sketches on Arduino boards that count
/// them. No reason, one value each, nothing else; but for an agent that has said [`PING`], which hears the same.
pub fn write_switch(token: Token, profile: Profile, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 101 \r\nUpgrade: ");
    out.extend_from_slice(token.as_bytes());
    out.extend_from_slice(b"\r\nConnection: Upgrade\r\n");
    match profile {
        Profile::Ours => out.extend_from_slice(b"Ptth-Accept: ping\r\n"),
        Profile::Pipelining => out.extend_from_slice(b"Ptth-Accept: ping, pipeline\r\n"),
        Profile::Standard | Profile::NetPtth | Profile::LoneLf => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the agent's request: both values exactly as the Go library compares them. `more` adds fields behind them.
///
/// # Errors
/// When `path` or what `more` adds can't stand in a head.
pub fn write_offer(
    path: &[u8],
    host: &[u8],
    token: Token,
    more: impl FnOnce(&mut FieldWriter<'_>),
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    write_request_line(b"POST", path, out)?;
    let mut fields = FieldWriter::new(out);
    fields.field("Host", host);
    fields.field("Upgrade", token.as_bytes());
    fields.field("Connection", "Upgrade");
    fields.field("Content-Length", "0");
    more(&mut fields);
    fields.finish()
}

/// The agent's side: what a 101 switched to, whatever else it carries.
///
/// - Either of the two versions answers an offer of either: the wiki's text of 2008 has `PTTH/1.0` in the answer to
///   `PTTH/0.9`.
/// - No `Connection` is taken from the server of the Second Life wiki, `Content-Length: 0` too.
/// - Lines that end in LF alone are taken from Kodi (the status line only) and net-ptth's test server (all of them).
///
/// # Errors
/// When it switched to something else.
pub fn switched(head: &Head, lone_lf: bool) -> Result<Profile, Error> {
    if head.fields.list(Name::Upgrade).find_map(Token::of).is_none() {
        return Err(Fault::SwitchedElsewhere.into());
    }
    Ok(match lone_lf {
        true => Profile::LoneLf,
        false => Profile::said(head),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use alloc::format;

    fn offer(fields: &str) -> Result<Option<(Token, Profile)>, Error> {
        let mut head = Head::default();
        head.parse_request(format!("POST /x HTTP/1.1\r\n{fields}\r\n").as_bytes(), &Limits::default())?;
        offered(&head)
    }

    #[test]
    fn who_offers() {
        let standard = |spelling: &[u8; 8]| Ok(Some((Token(*spelling), Profile::Standard)));
        for (fields, expected) in [
            ("Host: x\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\nContent-Length: 0\r\n", standard(b"PTTH/1.0")),
            ("Host: x\r\nUpgrade: PTTH/0.9\r\n", standard(b"PTTH/0.9")),
            ("Upgrade: ptth/1.0\r\nConnection: keep-alive, upgrade\r\n", standard(b"ptth/1.0")),
            ("Upgrade: foo, PTTH/1.0\r\n", standard(b"PTTH/1.0")),
            ("Upgrade: PTTH/1.0\r\nConnection: keep-alive\r\n", Ok(None)),
            ("Upgrade: websocket\r\nConnection: Upgrade\r\n", Ok(None)),
            ("Upgrade: ptth\r\nConnection: upgrade\r\nALPN: h2\r\n", Ok(None)),
            ("Upgrade: PTTH/2.0\r\n", Ok(None)),
            ("User-Agent: Ruby\r\nUpgrade: PTTH/1.0\r\n", Ok(Some((Token::PTTH_1_0, Profile::NetPtth)))),
            (
                "Upgrade: PTTH/1.0\r\nPtth-Accept: comet\r\nPtth-Accept: base64, PING\r\n",
                Ok(Some((Token::PTTH_1_0, Profile::Ours))),
            ),
            ("Upgrade: PTTH/1.0\r\nPtth-Accept: ping, pipeline\r\n", Ok(Some((Token::PTTH_1_0, Profile::Pipelining)))),
            ("Upgrade: PTTH/1.0\r\nPtth-Accept: comet, pipeline\r\n", standard(b"PTTH/1.0")),
            ("Upgrade: PTTH/1.0\r\nContent-Length: 1\r\n", Err(Fault::OfferWithBody.into())),
            ("Upgrade: PTTH/1.0\r\nTransfer-Encoding: chunked\r\n", Err(Fault::OfferWithBody.into())),
            ("Upgrade: PTTH/1.0\r\nContent-Type: application/json\r\nContent-Length: 2\r\n", Ok(None)),
        ] {
            assert_eq!(offer(fields), expected, "{fields:?}");
        }
        let mut head = Head::default();
        head.parse_request(b"POST / HTTP/1.0\r\nUpgrade: PTTH/1.0\r\n\r\n", &Limits::default()).unwrap();
        assert_eq!(offered(&head), Ok(None));
    }

    #[test]
    fn the_101_has_57_bytes_for_all_who_have_not_asked_for_more() {
        let mut out = Vec::new();
        write_switch(Token::PTTH_1_0, Profile::Ours, &mut out);
        assert_eq!(out, b"HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\nPtth-Accept: ping\r\n\r\n");
        out.clear();
        write_switch(Token::PTTH_1_0, Profile::Pipelining, &mut out);
        assert_eq!(
            out,
            b"HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\nPtth-Accept: ping, pipeline\r\n\r\n"
        );
        out.clear();
        write_switch(Token::PTTH_1_0, Profile::Standard, &mut out);
        assert_eq!(out, b"HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n");
        assert_eq!(out.len(), 57);
    }

    #[test]
    fn the_offer_is_the_one_that_every_relay_takes() {
        let mut out = Vec::new();
        write_offer(b"/demo", b"relay:9999", Token::PTTH_1_0, |_| {}, &mut out).unwrap();
        let expected = "POST /demo HTTP/1.1\r\nHost: relay:9999\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\
                        Content-Length: 0\r\n\r\n";
        assert_eq!(out, expected.as_bytes());
    }
}
