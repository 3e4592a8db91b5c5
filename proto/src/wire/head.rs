//! Heads of requests and responses, and trailer sections: found, read, written. The end of a head is looked for once per
//! byte, however slowly it arrives; `httparse` sees only whole heads.

use alloc::vec::Vec;
use core::mem::MaybeUninit;

use crate::error::{Error, Fault, Misuse, Over};
use crate::limits::{Limits, MAX_FIELDS};
use crate::wire::bytes::{Label, are_of_host, are_of_target};
use crate::wire::fields::{Fields, Name, Span, is_token, is_value};

/// HTTP/1.0 or HTTP/1.1; there is no other in this crate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    #[default]
    Http11,
}

/// Which line ends a reader takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LineEnds {
    /// CRLF and nothing else. RFC 9112 §2.2 would allow a lone LF; two parsers that differ there can be played off against
    /// each other.
    #[default]
    Crlf,
    /// A lone LF too: for peers that are known to send it, on their dialect only.
    LfToo,
}

/// Looks for the empty line that ends a head, and remembers how far it has looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scanner {
    seen: usize,
    line: usize,
    lone_lf: bool,
}

impl Scanner {
    /// A scanner that has seen nothing.
    pub const fn new() -> Scanner {
        Scanner { seen: 0, line: 0, lone_lf: false }
    }

    /// Whether it has looked at nothing yet.
    pub const fn is_fresh(&self) -> bool {
        self.seen == 0 && self.line == 0
    }

    /// Gives the length of the head, its empty line included, or `None` when `input` does not hold the whole of it yet. Each
    /// call must be given the same bytes as the one before, and more.
    ///
    /// # Errors
    /// At a CR without its LF, at a LF without its CR unless `ends` allows it, and beyond `limit` bytes.
    pub fn find_end(&mut self, input: &[u8], ends: LineEnds, limit: usize) -> Result<Option<usize>, Error> {
        let window = &input[..input.len().min(limit)];
        self.skip(window);
        while let Some(at) = memchr::memchr2(b'\r', b'\n', &window[self.seen..]) {
            let at = self.seen + at;
            let next = match (window[at], window.get(at + 1)) {
                (b'\r', Some(b'\n')) => at + 2,
                (b'\r', Some(_)) => return Err(Fault::BareCr.into()),
                (b'\r', None) => {
                    self.seen = at;
                    return self.within(input, limit);
                }
                _ if ends == LineEnds::Crlf => return Err(Fault::BareLf.into()),
                _ => {
                    self.lone_lf = true;
                    at + 1
                }
            };
            if at == self.line {
                return Ok(Some(next));
            }
            self.seen = next;
            self.line = next;
        }
        self.seen = window.len();
        self.within(input, limit)
    }

    /// Passes over blocks in which lines end as they should and the head does not: many bytes at a time, where the search goes from
    /// line to line.
    fn skip(&mut self, window: &[u8]) {
        let rest = &window[self.seen..];
        if matches!(rest, [] | [b'\r' | b'\n', ..]) {
            // Perhaps the empty line.
            return;
        }
        let mut n = 0;
        while rest[n..].first_chunk().is_some_and(is_plain) {
            n += BLOCK;
        }
        // A line end stays together.
        n -= usize::from(n > 0 && rest[n - 1] == b'\r');
        if let Some(end) = memchr::memrchr(b'\n', &rest[..n]) {
            self.line = self.seen + end + 1;
        }
        self.seen += n;
    }

    /// Whether any line ended in a lone LF.
    pub const fn saw_lone_lf(&self) -> bool {
        self.lone_lf
    }

    fn within(&self, input: &[u8], limit: usize) -> Result<Option<usize>, Error> {
        if input.len() >= limit { Err(Over::Head.into()) } else { Ok(None) }
    }
}

/// Bytes that [`Scanner`] looks at together.
const BLOCK: usize = 64;

/// Whether CR and LF are only together in a block and the byte behind it, and no line end follows another.
fn is_plain(block: &[u8; BLOCK + 1]) -> bool {
    let pairs = block.iter().zip(&block[1..]);
    let odd = pairs.fold(0, |odd, (a, b)| {
        let end = u8::from(*a == b'\r') ^ u8::from(*b == b'\n');
        odd | end | (u8::from(*a == b'\n') & u8::from(*b == b'\r'))
    });
    odd == 0
}

/// The first line of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Start {
    #[default]
    None,
    Request {
        method: Span,
        target: Span,
    },
    Response {
        status: u16,
        reason: Span,
    },
}

/// The head of a request or of a response. Made once and filled again for each message: see [`Fields`].
#[derive(Clone, Debug, Default)]
pub struct Head {
    start: Start,
    version: Version,
    /// The head's fields.
    pub fields: Fields,
}

impl Head {
    /// Forgets the message, keeps the memory.
    pub fn clear(&mut self) {
        self.start = Start::None;
        self.fields.clear();
    }

    /// Bytes of memory that it keeps.
    pub fn memory(&self) -> usize {
        self.fields.memory()
    }

    /// Bytes of the whole head, as it came.
    pub fn size(&self) -> usize {
        self.fields.bytes.len()
    }

    /// The request's method; empty for a response.
    pub fn method(&self) -> &[u8] {
        match self.start {
            Start::Request { method, .. } => method.get(&self.fields.bytes),
            _ => b"",
        }
    }

    /// The request-target as it was sent; empty for a response.
    pub fn target(&self) -> &[u8] {
        match self.start {
            Start::Request { target, .. } => target.get(&self.fields.bytes),
            _ => b"",
        }
    }

    /// The request-target in its form; `None` for a response.
    pub fn form(&self) -> Option<Target<'_>> {
        match self.target() {
            // It was looked at when it was read, and none of the other forms starts like this one.
            target @ [b'/', ..] => Some(Target::Origin(target)),
            target => Target::of(self.method(), target),
        }
    }

    /// The response's status; 0 for a request.
    pub fn status(&self) -> u16 {
        match self.start {
            Start::Response { status, .. } => status,
            _ => 0,
        }
    }

    /// The response's reason phrase, often empty.
    pub fn reason(&self) -> &[u8] {
        match self.start {
            Start::Response { reason, .. } => reason.get(&self.fields.bytes),
            _ => b"",
        }
    }

    /// The message's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Reads a request's head, which must be whole: what [`Scanner::find_end`] measured.
    ///
    /// # Errors
    /// When it is not the head of an HTTP/1 request, or one that two readers could understand differently.
    pub fn parse_request(&mut self, whole: &[u8], limits: &Limits) -> Result<(), Error> {
        self.clear();
        let mut table = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut parsed = httparse::Request::new(&mut []);
        let done = parsed.parse_with_uninit_headers(whole, room(&mut table, limits));
        let (Ok(httparse::Status::Complete(_)), Some(method), Some(target), Some(version)) =
            (done, parsed.method, parsed.path, parsed.version)
        else {
            return Err(diagnose(whole, done.err(), true));
        };
        if !is_target(method.as_bytes(), target.as_bytes()) {
            return Err(Fault::BadTarget.into());
        }
        self.start =
            Start::Request { method: Span::of(method.as_bytes(), whole), target: Span::of(target.as_bytes(), whole) };
        self.version = version_of(version);
        self.fields.fill(whole, parsed.headers.iter().map(|h| (h.name.as_bytes(), h.value)));
        Ok(())
    }

    /// Reads a response's head, which must be whole.
    ///
    /// # Errors
    /// When it is not the head of an HTTP/1 response.
    pub fn parse_response(&mut self, whole: &[u8], limits: &Limits) -> Result<(), Error> {
        self.clear();
        let mut table = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let done = config.parse_response_with_uninit_headers(&mut parsed, whole, room(&mut table, limits));
        let (Ok(httparse::Status::Complete(_)), Some(status), Some(version)) = (done, parsed.code, parsed.version)
        else {
            return Err(diagnose(whole, done.err(), false));
        };
        if !(100..600).contains(&status) {
            return Err(Fault::BadStatus.into());
        }
        // httparse gives a reason with bytes beyond ASCII as an empty one: nothing depends on it.
        let reason = parsed.reason.unwrap_or_default().as_bytes();
        let reason = if reason.is_empty() { Span::default() } else { Span::of(reason, whole) };
        self.start = Start::Response { status, reason };
        self.version = version_of(version);
        self.fields.fill(whole, parsed.headers.iter().map(|h| (h.name.as_bytes(), h.value)));
        Ok(())
    }
}

/// Reads a trailer section from behind the last chunk. Gives its length with the empty line, `None` for more.
///
/// # Errors
/// When it is broken or over [`Limits::trailers`].
pub(crate) fn trailers(
    input: &[u8],
    scanner: &mut Scanner,
    into: &mut Fields,
    limits: &Limits,
) -> Result<Option<usize>, Error> {
    let end = scanner.find_end(input, LineEnds::Crlf, limits.trailers).map_err(|error| match error {
        Error::Limit(_) => Over::Trailers.into(),
        other => other,
    })?;
    let Some(n) = end else { return Ok(None) };
    into.clear();
    if n > 2 {
        let mut table = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let table = &mut table[..limits.fields.min(MAX_FIELDS)];
        match httparse::parse_headers(&input[..n], table) {
            Ok(httparse::Status::Complete((_, fields))) => {
                into.fill(&input[..n], fields.iter().map(|h| (h.name.as_bytes(), h.value)));
            }
            Ok(httparse::Status::Partial) => return Err(Fault::BadField.into()),
            Err(httparse::Error::TooManyHeaders) => return Err(Over::Trailers.into()),
            Err(_) => return Err(diagnose_fields(&input[..n])),
        }
    }
    Ok(Some(n))
}

fn room<'t, 'b>(
    table: &'t mut [MaybeUninit<httparse::Header<'b>>; MAX_FIELDS],
    limits: &Limits,
) -> &'t mut [MaybeUninit<httparse::Header<'b>>] {
    &mut table[..limits.fields.min(MAX_FIELDS)]
}

const fn version_of(minor: u8) -> Version {
    if minor == 0 { Version::Http10 } else { Version::Http11 }
}

/// The parts of a request-target (RFC 9112 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// `/path?query`
    Origin(&'a [u8]),
    /// `http://authority/path?query`. The path is empty or starts with `/` or `?`.
    Absolute {
        /// `host[:port]`
        authority: &'a [u8],
        /// What follows it.
        path: &'a [u8],
    },
    /// `host:port`, of a CONNECT.
    Authority(&'a [u8]),
    /// `*`, of an OPTIONS.
    Asterisk,
}

impl<'a> Target<'a> {
    /// Reads a request-target in the form that its method allows; `None` when it is none.
    pub fn of(method: &[u8], target: &'a [u8]) -> Option<Target<'a>> {
        if !are_of_target(target) {
            return None;
        }
        if method == b"CONNECT" {
            let (_, port) = split_port(target)?;
            return (!port?.is_empty() && is_host(target)).then_some(Target::Authority(target));
        }
        match target {
            b"*" => (method == b"OPTIONS").then_some(Target::Asterisk),
            [b'/', ..] => Some(Target::Origin(target)),
            _ => {
                let rest = after_prefix(target, b"http://").or_else(|| after_prefix(target, b"https://"))?;
                let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
                let (authority, path) = rest.split_at(end);
                (!authority.is_empty() && is_host(authority)).then_some(Target::Absolute { authority, path })
            }
        }
    }
}

fn is_target(method: &[u8], target: &[u8]) -> bool {
    Target::of(method, target).is_some()
}

fn after_prefix<'a>(target: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = target.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Splits `host[:port]`; the port is `None` when there is no colon. `None` in all when brackets don't match.
pub fn split_port(authority: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    if authority.first() == Some(&b'[') {
        let end = authority.iter().position(|b| *b == b']')? + 1;
        let (host, rest) = authority.split_at(end);
        return match rest {
            [] => Some((host, None)),
            [b':', port @ ..] => Some((host, Some(port))),
            _ => None,
        };
    }
    match authority.iter().position(|b| *b == b':') {
        Some(colon) => Some((&authority[..colon], Some(&authority[colon + 1..]))),
        None => Some((authority, None)),
    }
}

/// Whether this is `host[:port]` (RFC 9110 §7.2), without user information, and without the comma that joins two.
pub fn is_host(value: &[u8]) -> bool {
    let Some((host, port)) = split_port(value) else { return false };
    let host_ok = match host {
        [b'[', inner @ .., b']'] => inner.iter().all(|b| b.is_ascii_hexdigit() || b":.".contains(b)),
        _ => are_of_host(host),
    };
    host_ok && port.is_none_or(|p| p.len() <= 5 && p.iter().all(u8::is_ascii_digit))
}

/// Says more exactly than the parser what is wrong with a head. Only runs when something is.
#[cold]
fn diagnose(whole: &[u8], error: Option<httparse::Error>, request: bool) -> Error {
    let mut parts = whole.splitn(2, |b| *b == b'\n');
    let first = parts.next().unwrap_or_default();
    let first = first.strip_suffix(b"\r").unwrap_or(first);
    match error {
        Some(httparse::Error::TooManyHeaders) => Over::Fields.into(),
        Some(httparse::Error::HeaderName | httparse::Error::HeaderValue) => {
            diagnose_fields(parts.next().unwrap_or_default())
        }
        Some(httparse::Error::Status) => Fault::BadStatus.into(),
        _ => diagnose_start(first, request),
    }
}

fn diagnose_start(line: &[u8], request: bool) -> Error {
    if !request {
        return Fault::BadStartLine.into();
    }
    let mut words = line.split(|b| *b == b' ');
    let (method, target, version) = (words.next().unwrap_or_default(), words.next(), words.next());
    let fault = match (target, version, words.next()) {
        _ if !is_token(method) => Fault::BadMethod,
        (Some(_), Some(version), None) if !version.starts_with(b"HTTP/") => Fault::BadStartLine,
        (Some(target), Some(_), None) if !is_target(method, target) => Fault::BadTarget,
        (Some(_), Some(_), None) => Fault::BadVersion,
        _ => Fault::BadStartLine,
    };
    fault.into()
}

fn diagnose_fields(lines: &[u8]) -> Error {
    for line in lines.split(|b| *b == b'\n') {
        if matches!(line, [b' ' | b'\t', ..]) {
            return Fault::ObsoleteFolding.into();
        }
        let name = line.split(|b| *b == b':').next().unwrap_or_default();
        if name.len() < line.len() && is_token(name.trim_ascii_end()) && !is_token(name) {
            return Fault::SpaceBeforeColon.into();
        }
    }
    Fault::BadField.into()
}

/// Appends the fields of a head that is being written. Framing and `Connection` are not its business: whoever made it adds
/// them at the end.
#[derive(Debug)]
pub struct FieldWriter<'a> {
    out: &'a mut Vec<u8>,
    bad: bool,
}

impl<'a> FieldWriter<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>) -> FieldWriter<'a> {
        FieldWriter { out, bad: false }
    }

    /// Appends `name: value`. A name that is no token or a value with a control byte is not written, and the whole message
    /// is given up afterwards.
    pub fn field(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.parts(name.as_ref(), &[value.as_ref()]);
    }

    /// Appends a field whose value is made of parts.
    pub fn parts(&mut self, name: &[u8], value: &[&[u8]]) {
        if is_token(name) {
            self.line(name, value);
        } else {
            self.bad = true;
        }
    }

    /// Appends a field whose name is the program's own.
    pub fn known(&mut self, name: Label, value: &[&[u8]]) {
        self.line(name.as_bytes(), value);
    }

    fn line(&mut self, name: &[u8], value: &[&[u8]]) {
        let start = self.out.len();
        self.out.extend_from_slice(name);
        self.out.extend_from_slice(b": ");
        let from = self.out.len();
        for part in value {
            self.out.extend_from_slice(part);
        }
        // Where it stands it is in one piece.
        if !is_value(&self.out[from..]) {
            self.out.truncate(start);
            self.bad = true;
            return;
        }
        self.out.extend_from_slice(b"\r\n");
    }

    /// Appends a field as it was read. It was checked then.
    pub fn copy(&mut self, field: crate::wire::fields::Field<'_>) {
        if !field.line.is_empty() {
            return self.out.extend_from_slice(field.line);
        }
        self.out.extend_from_slice(field.name);
        self.out.extend_from_slice(b": ");
        self.out.extend_from_slice(field.value);
        self.out.extend_from_slice(b"\r\n");
    }

    pub(crate) fn length(&mut self, value: u64) {
        self.out.extend_from_slice(b"Content-Length: ");
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    pub(crate) fn finish(self) -> Result<(), Error> {
        if self.bad {
            return Err(Misuse::BadField.into());
        }
        self.out.extend_from_slice(b"\r\n");
        Ok(())
    }
}

/// Appends a request line.
pub(crate) fn write_request_line(method: &[u8], target: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    if !is_token(method) || target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return Err(Misuse::BadField.into());
    }
    out.extend_from_slice(method);
    out.push(b' ');
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    Ok(())
}

/// Appends a status line. The space behind the status stays even when there is no reason: npm's parser asks for it.
pub(crate) fn write_status_line(status: u16, reason: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    if !(100..600).contains(&status) || !is_value(reason) {
        return Err(Misuse::BadField.into());
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// The reason phrase of the statuses that a relay or an agent makes itself (RFC 9110 §15).
pub const fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        200 => "OK",
        204 => "No Content",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        421 => "Misdirected Request",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// Whether the method is idempotent (RFC 9110 §9.2.2): such a request may be sent again when its connection broke before
/// any byte of the answer.
pub fn is_idempotent(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
}

/// The one `Host` of a request: its value, or what is wrong with it. `None` when there is none.
pub(crate) fn host(fields: &Fields) -> Result<Option<&[u8]>, Error> {
    let mut hosts = fields.all(Name::Host);
    let Some(host) = hosts.next() else { return Ok(None) };
    if hosts.next().is_some() {
        return Err(Fault::TwoHosts.into());
    }
    if !is_host(host) {
        return Err(Fault::BadHost.into());
    }
    Ok(Some(host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn request(text: &str) -> Result<Head, Error> {
        let mut head = Head::default();
        let n = Scanner::default().find_end(text.as_bytes(), LineEnds::Crlf, 65536)?.expect("a whole head");
        head.parse_request(&text.as_bytes()[..n], &Limits::default())?;
        Ok(head)
    }

    #[test]
    fn a_request_is_read() {
        let head = request("GET /a?b HTTP/1.1\r\nHost: x:80 \r\nX:  y z\t\r\nACCEPT: */*\r\nx:2\r\n\r\nrest").unwrap();
        assert_eq!((head.method(), head.target(), head.version()), (&b"GET"[..], &b"/a?b"[..], Version::Http11));
        assert_eq!(head.fields.first(Name::Host), Some(&b"x:80"[..]));
        assert_eq!(head.fields.first(Name::Accept), Some(&b"*/*"[..]));
        let all: Vec<_> = head.fields.iter().map(|f| (f.name, f.value)).collect();
        assert_eq!(all[1], (&b"X"[..], &b"y z"[..]));
        assert_eq!(all[3], (&b"x"[..], &b"2"[..]));
    }

    #[test]
    fn each_thing_that_may_not_be_sent_has_its_name() {
        for (text, fault) in [
            ("GET / HTTP/1.1\r\nA : b\r\n\r\n", Fault::SpaceBeforeColon),
            ("GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", Fault::ObsoleteFolding),
            ("GET / HTTP/1.1\r\n A: b\r\n\r\n", Fault::ObsoleteFolding),
            ("GET / HTTP/1.1\r\nA: b\x01\r\n\r\n", Fault::BadField),
            ("GET / HTTP/1.1\r\nA: b\x7f\r\n\r\n", Fault::BadField),
            ("GET / HTTP/1.1\r\nA: b\x00\r\n\r\n", Fault::BadField),
            ("GET / HTTP/1.1\r\nA(: b\r\n\r\n", Fault::BadField),
            ("GET / HTTP/1.1\r\nnothing\r\n\r\n", Fault::BadField),
            ("GET / HTTP/1.1\r\n: b\r\n\r\n", Fault::BadField),
            ("GET / HTTP/2.0\r\n\r\n", Fault::BadVersion),
            ("GET / HTTP/1.2\r\n\r\n", Fault::BadVersion),
            ("GET / http/1.1\r\n\r\n", Fault::BadStartLine),
            ("GET /\r\n\r\n", Fault::BadStartLine),
            ("GET  / HTTP/1.1\r\n\r\n", Fault::BadStartLine),
            ("GET /a b HTTP/1.1\r\n\r\n", Fault::BadStartLine),
            ("GET /a HTTP/1.1 \r\n\r\n", Fault::BadStartLine),
            ("G(T / HTTP/1.1\r\n\r\n", Fault::BadMethod),
            ("GET a HTTP/1.1\r\n\r\n", Fault::BadTarget),
            ("GET /#a HTTP/1.1\r\n\r\n", Fault::BadTarget),
            ("GET * HTTP/1.1\r\n\r\n", Fault::BadTarget),
            ("GET /\u{e9} HTTP/1.1\r\n\r\n", Fault::BadTarget),
            ("GET http:///a HTTP/1.1\r\n\r\n", Fault::BadTarget),
            ("GET http://u@h/a HTTP/1.1\r\n\r\n", Fault::BadTarget),
            ("CONNECT / HTTP/1.1\r\n\r\n", Fault::BadTarget),
            ("CONNECT h HTTP/1.1\r\n\r\n", Fault::BadTarget),
            ("GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", Fault::BareCr),
            ("GET / HTTP/1.1\nA: b\r\n\r\n", Fault::BareLf),
            ("GET / HTTP/1.1\r\nA: b\n\r\n", Fault::BareLf),
        ] {
            assert_eq!(request(text).map(|_| ()), Err(fault.into()), "{text:?}");
        }
    }

    #[test]
    fn the_four_forms_of_a_target() {
        assert_eq!(Target::of(b"GET", b"/x"), Some(Target::Origin(b"/x")));
        let absolute = |authority, path| Some(Target::Absolute { authority, path });
        assert_eq!(Target::of(b"GET", b"HTTP://h:1/x?y"), absolute(b"h:1", b"/x?y"));
        assert_eq!(Target::of(b"GET", b"http://h"), absolute(b"h", b""));
        assert_eq!(Target::of(b"GET", b"https://[::1]:1?y"), absolute(b"[::1]:1", b"?y"));
        assert_eq!(Target::of(b"CONNECT", b"h:1"), Some(Target::Authority(b"h:1")));
        assert_eq!(Target::of(b"OPTIONS", b"*"), Some(Target::Asterisk));
    }

    #[test]
    fn hosts() {
        for good in ["", "a", "a.b:80", "[::1]:80", "127.0.0.1", "a_b", "a:"] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in ["a b", "a,b", "u@a", "a/b", "a:b", "a:123456", "[::1", "[::1]x", "a?b", "a#b", "a\\b"] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn the_end_is_found_at_every_cut_and_only_once_looked_for() {
        let text = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nmore\r\n\r\n";
        for cut in 0..text.len() {
            let mut scanner = Scanner::default();
            let first = scanner.find_end(&text[..cut], LineEnds::Crlf, 65536).unwrap();
            assert_eq!(first, (cut >= 27).then_some(27));
            if first.is_none() {
                assert_eq!(scanner.find_end(text, LineEnds::Crlf, 65536), Ok(Some(27)));
            }
        }
        let mut scanner = Scanner::default();
        assert_eq!(scanner.find_end(text, LineEnds::Crlf, 20), Err(Over::Head.into()));
        let mut scanner = Scanner::default();
        assert_eq!(scanner.find_end(b"A 1\nB: c\r\n\nx", LineEnds::LfToo, 99), Ok(Some(11)));
        assert!(scanner.saw_lone_lf());
    }

    #[test]
    fn a_head_in_one_piece_ends_where_one_in_many_does() {
        let line = "X-Some-Field: a value\r\n".repeat(12);
        let good = alloc::format!("GET / HTTP/1.1\r\n{line}\r\nbehind it: more\r\n\r\n").into_bytes();
        let find = |text: &[u8], ends, step| {
            let mut scanner = Scanner::new();
            let mut cuts = (0..text.len()).step_by(step).chain([text.len()]);
            cuts.find_map(|cut| scanner.find_end(&text[..cut], ends, 65536).transpose())
        };
        for at in 0..good.len() {
            for odd in [&b"\r"[..], b"\n", b"\r\n", b"\n\n", b"\r\r\n", b"\r\n\r\n", b"x", b""] {
                let text = [&good[..at], odd, &good[at + 1..]].concat();
                for ends in [LineEnds::Crlf, LineEnds::LfToo] {
                    let (whole, byte_by_byte) = (find(&text, ends, text.len()), find(&text, ends, 1));
                    assert_eq!(whole, byte_by_byte, "{at} {odd:?} {ends:?}");
                    assert_eq!(find(&text, ends, 100), byte_by_byte, "{at} {odd:?} {ends:?}");
                }
            }
        }
    }

    #[test]
    fn a_field_is_copied_in_one_form_whatever_it_was_read_in() {
        let head =
            request("GET / HTTP/1.1\r\nA: b\r\nC:d\r\nE:  f \r\nG:\r\nH: \r\nI: j\tk\t\r\nL:\tm\r\n\r\n").unwrap();
        let mut out = Vec::new();
        let mut writer = FieldWriter::new(&mut out);
        head.fields.iter().for_each(|field| writer.copy(field));
        writer.finish().unwrap();
        assert_eq!(out.escape_ascii().to_string(), r"A: b\r\nC: d\r\nE: f\r\nG: \r\nH: \r\nI: j\tk\r\nL: m\r\n\r\n");
    }

    #[test]
    fn what_connection_names_stays_behind() {
        let head = request(
            "GET / HTTP/1.1\r\nA: 1\r\nConnection: a, , Keep-Alive\r\nB: 2\r\nb: 3\r\nconnection:B\r\nC: 4\r\n\r\n",
        );
        let head = head.unwrap();
        let names: Vec<_> = head.fields.end_to_end().map(|field| field.name).collect();
        assert_eq!(names, [b"C"]);
    }

    #[test]
    fn a_response_is_read() {
        let mut head = Head::default();
        for (text, status, reason) in [
            ("HTTP/1.1 200 OK\r\n\r\n", 200, "OK"),
            ("HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\n\r\n", 101, ""),
            ("HTTP/1.0 404\r\n\r\n", 404, ""),
        ] {
            head.parse_response(text.as_bytes(), &Limits::default()).unwrap();
            assert_eq!((head.status(), head.reason()), (status, reason.as_bytes()), "{text:?}");
        }
        for text in
            ["HTTP/1.1 099 \r\n\r\n", "HTTP/1.1 600 \r\n\r\n", "EVENT/1.0 200 OK\r\n\r\n", "HTTP/1.1 2x0 \r\n\r\n"]
        {
            assert!(head.parse_response(text.as_bytes(), &Limits::default()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn too_many_fields() {
        let mut text = alloc::string::String::from("GET / HTTP/1.1\r\n");
        for _ in 0..101 {
            text.push_str("a: b\r\n");
        }
        text.push_str("\r\n");
        assert_eq!(request(&text).map(|_| ()), Err(Over::Fields.into()));
    }

    #[test]
    fn nothing_is_written_that_could_end_a_line() {
        let mut out = Vec::new();
        let mut fields = FieldWriter::new(&mut out);
        fields.field("A", "b\r\nC: d");
        assert!(fields.finish().is_err());
        assert!(write_request_line(b"GET", b"/ x", &mut out).is_err());
        assert!(write_status_line(200, b"O\nK", &mut out).is_err());
    }
}
