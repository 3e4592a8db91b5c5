//! Fields of a head or of a trailer section: all values of a name, comma lists, what belongs to one hop only.

use alloc::vec::Vec;

pub use crate::wire::bytes::{Label, is_token, is_value};

/// A place in a [`Fields`]' own bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Where `part` lies within `whole`, of which it must be a slice.
    pub(crate) fn of(part: &[u8], whole: &[u8]) -> Span {
        let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
        debug_assert!(start + part.len() <= whole.len());
        Span { start: start as u32, end: (start + part.len()) as u32 }
    }

    /// What is between this and `next`, which stands behind it.
    fn until(self, next: Span) -> Span {
        Span { start: self.end, end: next.start }
    }

    /// From here to the end of `last`.
    fn to(self, last: Span) -> Span {
        Span { start: self.start, end: last.end }
    }

    /// The next `n` bytes behind it.
    fn behind(self, n: u32) -> Span {
        Span { start: self.end, end: self.end.saturating_add(n) }
    }

    pub(crate) fn get(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// The field names that this crate and its programs look at, found once while a head is parsed, so that later questions
/// compare a byte and not a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "each is the field of its name")]
pub enum Name {
    Accept,
    Alpn,
    Authorization,
    Connection,
    ContentLength,
    ContentType,
    Date,
    Expect,
    Forwarded,
    Host,
    Http2Settings,
    KeepAlive,
    MaxForwards,
    Prefer,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    ProxyStatus,
    /// `Ptth-Accept`: what a relay or an agent of ours understands beyond the dialect it speaks (`docs/comet.md`,
    /// `docs/links.md`).
    PtthAccept,
    /// `Ptth-Aside`: by what name an agent of ours has set an answer aside, and a relay of ours asks for it again
    /// (`docs/links.md`).
    PtthAside,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    UserAgent,
    Via,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    /// `X-Real-IP`, any other `X-Forwarded-…`, and their like: what servers behind proxies are known to believe.
    XForwardedOther,
    /// Any other name.
    Other,
}

impl Name {
    /// The name's class, in any case.
    pub fn of(name: &[u8]) -> Name {
        let Some(first) = name.first() else { return Name::Other };
        // Length and first letter leave one name to compare with, and for most names none.
        match (name.len(), first.to_ascii_lowercase()) {
            (2, b't') if is(name, b"te") => Name::Te,
            (3, b'v') if is(name, b"via") => Name::Via,
            (4, b'h') if is(name, b"host") => Name::Host,
            (4, b'd') if is(name, b"date") => Name::Date,
            (4, b'a') if is(name, b"alpn") => Name::Alpn,
            (6, b'a') if is(name, b"accept") => Name::Accept,
            (6, b'e') if is(name, b"expect") => Name::Expect,
            (6, b'p') if is(name, b"prefer") => Name::Prefer,
            (7, b'u') if is(name, b"upgrade") => Name::Upgrade,
            (7, b't') if is(name, b"trailer") => Name::Trailer,
            (9, b'f') if is(name, b"forwarded") => Name::Forwarded,
            (10, b'c') if is(name, b"connection") => Name::Connection,
            (10, b'k') if is(name, b"keep-alive") => Name::KeepAlive,
            (10, b'u') if is(name, b"user-agent") => Name::UserAgent,
            (10, b'p') if is(name, b"ptth-aside") => Name::PtthAside,
            (11, b'p') if is(name, b"ptth-accept") => Name::PtthAccept,
            (12, b'c') if is(name, b"content-type") => Name::ContentType,
            (12, b'm') if is(name, b"max-forwards") => Name::MaxForwards,
            (12, b'p') if is(name, b"proxy-status") => Name::ProxyStatus,
            (13, b'a') if is(name, b"authorization") => Name::Authorization,
            (14, b'c') if is(name, b"content-length") => Name::ContentLength,
            (14, b'h') if is(name, b"http2-settings") => Name::Http2Settings,
            (15, b'x') if is(name, b"x-forwarded-for") => Name::XForwardedFor,
            (16, b'x') if is(name, b"x-forwarded-host") => Name::XForwardedHost,
            (16, b'p') if is(name, b"proxy-connection") => Name::ProxyConnection,
            (17, b't') if is(name, b"transfer-encoding") => Name::TransferEncoding,
            (17, b'x') if is(name, b"x-forwarded-proto") => Name::XForwardedProto,
            (18, b'p') if is(name, b"proxy-authenticate") => Name::ProxyAuthenticate,
            (19, b'p') if is(name, b"proxy-authorization") => Name::ProxyAuthorization,
            _ if is_identity(name) => Name::XForwardedOther,
            _ => Name::Other,
        }
    }

    /// Whether the field speaks of one connection only and never goes on to the next (RFC 9110 §7.6.1, and the names that
    /// RFC 2616 §13.5.1 had). `Trailer` stays: it speaks of the body, and the trailers go with it.
    pub const fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Name::Connection
                | Name::Http2Settings
                | Name::KeepAlive
                | Name::ProxyAuthenticate
                | Name::ProxyAuthorization
                | Name::ProxyConnection
                | Name::PtthAccept
                | Name::PtthAside
                | Name::Te
                | Name::TransferEncoding
                | Name::Upgrade
        )
    }

    /// Whether the field says where a request came from: nothing of it is believed unless configured.
    pub const fn is_forwarding(self) -> bool {
        matches!(
            self,
            Name::Forwarded
                | Name::Via
                | Name::XForwardedFor
                | Name::XForwardedHost
                | Name::XForwardedOther
                | Name::XForwardedProto
        )
    }
}

/// Whether this is the known name, which is in lower case and as long. Two pieces that overlap are compared at once, where the
/// length alone would have it done byte by byte.
#[inline(always)]
fn is<const N: usize>(name: &[u8], known: &[u8; N]) -> bool {
    match N {
        0..4 => name.eq_ignore_ascii_case(known),
        4..8 => same::<4>(name, known),
        8..=16 => same::<8>(name, known),
        _ => same::<16>(name, known),
    }
}

#[inline(always)]
fn same<const PIECE: usize>(name: &[u8], known: &[u8]) -> bool {
    name.len() == known.len()
        && differs::<PIECE>(name.first_chunk(), known.first_chunk())
            | differs::<PIECE>(name.last_chunk(), known.last_chunk())
            == 0
}

#[inline(always)]
fn differs<const PIECE: usize>(name: Option<&[u8; PIECE]>, known: Option<&[u8; PIECE]>) -> u8 {
    let (Some(name), Some(known)) = (name, known) else { return 1 };
    name.iter().zip(known).fold(0, |differs, (n, k)| differs | (n.to_ascii_lowercase() ^ k))
}

/// Whether the field is one of those by which a proxy says who its client is. CGI and WSGI read `_` and `-` alike, so a name
/// with either is meant.
fn is_identity(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 5] =
        [b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-connecting-ip", b"x-cluster-client-ip"];
    let same = |part: &[u8], known: &[u8]| {
        let dashed = |b: &u8| if *b == b'_' { b'-' } else { b.to_ascii_lowercase() };
        part.len() == known.len() && part.iter().map(dashed).eq(known.iter().copied())
    };
    // Nearly all names end here: none of these is short, and few fields start like them.
    if name.len() < 9 || !matches!(name[0] | 0x20, b'x' | b't' | b'c' | b'f') {
        return false;
    }
    name.get(..12).is_some_and(|start| same(start, b"x-forwarded-"))
        || same(name, b"forwarded")
        || NAMES.iter().any(|known| same(name, known))
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    known: Name,
    /// It goes on to the next connection.
    passes: bool,
    /// It stands in the head as we would write it.
    plain: bool,
    name: Span,
    value: Span,
}

/// One field as it arrived; the value without the white space around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// The name's class.
    pub known: Name,
    /// The name in the case it was sent in.
    pub name: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// The whole line with its end, if it is as we would write it; else nothing.
    pub(crate) line: &'a [u8],
}

/// The fields of a head in their order. Cleared and filled again, it keeps its memory, so that the thousandth head on a
/// connection allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    /// The bytes of the whole head; the spans point into it.
    pub(crate) bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// A bit for each [`Name`] that is there at all.
    present: u32,
}

impl Fields {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
        self.present = 0;
    }

    pub(crate) fn memory(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    /// Takes over what the parser found in `whole`, of which names and values are slices.
    pub(crate) fn fill<'a>(&mut self, whole: &'a [u8], parsed: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
        self.clear();
        self.bytes.extend_from_slice(whole);
        for (name, value) in parsed {
            let known = Name::of(name);
            self.present |= 1 << known as u32;
            let passes = !known.is_hop_by_hop() && known != Name::ContentLength;
            let (name, value) = (Span::of(name, whole), Span::of(value, whole));
            let plain = name.until(value).get(whole) == b": " && value.behind(2).get(whole) == b"\r\n";
            self.entries.push(Entry { known, passes, plain, name, value });
        }
        if self.has(Name::Connection) {
            self.keep_back();
        }
    }

    /// What `Connection` names belongs to this hop (RFC 9110 §7.6.1).
    fn keep_back(&mut self) {
        let Fields { bytes, entries, .. } = self;
        for at in 0..entries.len() {
            if entries[at].known == Name::Connection {
                for element in elements(entries[at].value.get(bytes)) {
                    for entry in entries.iter_mut() {
                        entry.passes &= !entry.name.get(bytes).eq_ignore_ascii_case(element);
                    }
                }
            }
        }
    }

    /// The fields in the order they were sent in.
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> + Clone {
        self.entries.iter().map(|e| self.field(e))
    }

    fn field(&self, entry: &Entry) -> Field<'_> {
        let Entry { known, plain, name, value, .. } = *entry;
        let line = if plain { name.to(value.behind(2)) } else { Span::default() };
        Field { known, name: name.get(&self.bytes), value: value.get(&self.bytes), line: line.get(&self.bytes) }
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether there is a field of this name.
    pub fn has(&self, name: Name) -> bool {
        self.present & (1 << name as u32) != 0
    }

    /// All values of a name, in order. Not for [`Name::Other`], which is many names.
    pub fn all(&self, name: Name) -> impl Iterator<Item = &[u8]> {
        let entries = if self.has(name) { &self.entries[..] } else { &[] };
        entries.iter().filter(move |e| e.known == name).map(|e| e.value.get(&self.bytes))
    }

    /// The first value of a name. For fields where a second one would change the meaning, ask [`Fields::all`].
    pub fn first(&self, name: Name) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// The elements of all values of a name as one comma-separated list (RFC 9110 §5.6.1), empty elements left out.
    pub fn list(&self, name: Name) -> impl Iterator<Item = &[u8]> {
        self.all(name).flat_map(elements)
    }

    /// Whether a list has this element, in any case.
    pub fn lists(&self, name: Name, element: &[u8]) -> bool {
        self.list(name).any(|e| e.eq_ignore_ascii_case(element))
    }

    /// Whether `Content-Type` is JSON's, whatever its parameters.
    pub fn is_json(&self) -> bool {
        let kind = self.first(Name::ContentType).unwrap_or_default().split(|b| *b == b';').next();
        kind.is_some_and(|kind| kind.trim_ascii().eq_ignore_ascii_case(b"application/json"))
    }

    /// The fields that go on to the next connection: all but those of this hop, the framing, and those that `Connection`
    /// names. Framing is the business of whoever writes the next message.
    pub fn end_to_end(&self) -> impl Iterator<Item = Field<'_>> + Clone {
        self.entries.iter().filter(|e| e.passes).map(|e| self.field(e))
    }
}

/// The elements of one comma-separated value. Quoted strings are not looked into: none of the lists that we read has them.
pub fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|e| !e.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_says_who_asks_is_known_in_any_spelling() {
        for name in
            ["X-Forwarded-Port", "X_Forwarded_For", "x-real-ip", "X_REAL_IP", "True-Client-IP", "CF_Connecting-IP"]
        {
            assert!(Name::of(name.as_bytes()).is_forwarding(), "{name}");
        }
        for name in ["X-Forwarded", "X-Real-IPs", "Content-Type", "Cookie", "X-Requested-With", "Transfer_Encoding"] {
            assert!(!Name::of(name.as_bytes()).is_forwarding(), "{name}");
        }
    }
}
