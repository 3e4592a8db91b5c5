//! Fields of a head or of a trailer section: all values of a name, comma lists, what belongs to one hop only.

use alloc::vec::Vec;

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
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        match name.len() {
            2 if is(b"te") => Name::Te,
            3 if is(b"via") => Name::Via,
            4 if is(b"host") => Name::Host,
            4 if is(b"date") => Name::Date,
            4 if is(b"alpn") => Name::Alpn,
            6 if is(b"accept") => Name::Accept,
            6 if is(b"expect") => Name::Expect,
            6 if is(b"prefer") => Name::Prefer,
            7 if is(b"upgrade") => Name::Upgrade,
            7 if is(b"trailer") => Name::Trailer,
            9 if is(b"forwarded") => Name::Forwarded,
            10 if is(b"connection") => Name::Connection,
            10 if is(b"keep-alive") => Name::KeepAlive,
            10 if is(b"user-agent") => Name::UserAgent,
            10 if is(b"ptth-aside") => Name::PtthAside,
            11 if is(b"ptth-accept") => Name::PtthAccept,
            12 if is(b"content-type") => Name::ContentType,
            12 if is(b"max-forwards") => Name::MaxForwards,
            12 if is(b"proxy-status") => Name::ProxyStatus,
            13 if is(b"authorization") => Name::Authorization,
            14 if is(b"content-length") => Name::ContentLength,
            14 if is(b"http2-settings") => Name::Http2Settings,
            15 if is(b"x-forwarded-for") => Name::XForwardedFor,
            16 if is(b"x-forwarded-host") => Name::XForwardedHost,
            16 if is(b"proxy-connection") => Name::ProxyConnection,
            17 if is(b"transfer-encoding") => Name::TransferEncoding,
            17 if is(b"x-forwarded-proto") => Name::XForwardedProto,
            18 if is(b"proxy-authenticate") => Name::ProxyAuthenticate,
            19 if is(b"proxy-authorization") => Name::ProxyAuthorization,
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
            self.entries.push(Entry { known, name: Span::of(name, whole), value: Span::of(value, whole) });
        }
    }

    /// The fields in the order they were sent in.
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> + Clone {
        self.entries.iter().map(|e| Field {
            known: e.known,
            name: e.name.get(&self.bytes),
            value: e.value.get(&self.bytes),
        })
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

    /// Whether `Connection` names this field, so that it belongs to this hop (RFC 9110 §7.6.1).
    pub fn is_named_by_connection(&self, field: Field<'_>) -> bool {
        self.has(Name::Connection) && self.lists(Name::Connection, field.name)
    }

    /// The fields that go on to the next connection: all but those of this hop, the framing, and those that `Connection`
    /// names. Framing is the business of whoever writes the next message.
    pub fn end_to_end(&self) -> impl Iterator<Item = Field<'_>> + Clone {
        self.iter()
            .filter(|f| !f.known.is_hop_by_hop() && f.known != Name::ContentLength && !self.is_named_by_connection(*f))
    }
}

/// The elements of one comma-separated value. Quoted strings are not looked into: none of the lists that we read has them.
pub fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|e| !e.is_empty())
}

/// Whether every byte may stand in a field value (RFC 9110 §5.5): no control bytes but the tab.
pub fn is_value(value: &[u8]) -> bool {
    value.iter().all(|b| matches!(b, b'\t' | 0x20..=0x7e | 0x80..))
}

/// Whether this is a token (RFC 9110 §5.6.2).
pub fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
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
