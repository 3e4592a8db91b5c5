//! The readers of single values: heads, chunks, and the two sides of the handshake.

use ptth_proto::conn::{Body, Config, Conn, Event};
use ptth_proto::http::framing::{Asked, Framing, framing};
use ptth_proto::limits::{Limits, MAX_FIELDS};
use ptth_proto::link::upgrade::Token;
use ptth_proto::time::Instant;
use ptth_proto::wire::chunk::{self, Decoder, Part};
use ptth_proto::wire::fields::{Fields, Name, is_token, is_value};
use ptth_proto::wire::head::{FieldWriter, Head, LineEnds, Scanner, Target};

const NOW: Instant = Instant::from_micros(0);

/// Bytes as a head: its end is the same however the bytes come; what is read keeps to the grammar; and what we write for it
/// is read as the same again.
pub fn head(data: &[u8]) {
    let limits = Limits::default();
    for ends in [LineEnds::Crlf, LineEnds::LfToo] {
        let whole = Scanner::default().find_end(data, ends, limits.head);
        let mut scanner = Scanner::default();
        let mut slowly = scanner.find_end(b"", ends, limits.head);
        for length in 1..=data.len() {
            if slowly == Ok(None) {
                slowly = scanner.find_end(&data[..length], ends, limits.head);
            }
        }
        assert_eq!(whole, slowly);
        let Ok(Some(length)) = whole else { continue };
        let mut head = Head::default();
        if head.parse_request(&data[..length], &limits).is_ok() {
            assert!(is_token(head.method()));
            assert!(Target::of(head.method(), head.target()).is_some());
            well_formed(&head.fields);
            request_again(&head);
        }
        if head.parse_response(&data[..length], &limits).is_ok() {
            assert!((100..600).contains(&head.status()) && is_value(head.reason()));
            well_formed(&head.fields);
            response_again(&head);
        }
    }
}

fn well_formed(fields: &Fields) {
    for field in fields.iter() {
        assert!(is_token(field.name) && is_value(field.value));
        assert_eq!(field.value.trim_ascii(), field.value);
        assert_eq!(Name::of(field.name), field.known);
        assert!(fields.has(field.known));
    }
}

/// What a relay would send on for a request is read as this request.
fn request_again(first: &Head) {
    let Ok(framing_before) = framing(first, None) else { return };
    let (mut out, start) = (Vec::new(), (first.method(), first.target()));
    let body = Body::from(framing_before);
    Conn::client(NOW).send_request(NOW, &mut out, start, body, |writer| copy(first, writer)).unwrap();
    let second = read(&out, Head::parse_request);
    assert_eq!((second.method(), second.target()), start);
    assert_eq!(fields_of(&second), fields_of(first));
    assert_eq!(framing(&second, None), Ok(framing_before));
}

/// And what it would send back for a response.
fn response_again(first: &Head) {
    let Ok(framing_before) = framing(first, Some(Asked::Other)) else { return };
    if first.status() < 200 {
        return;
    }
    let (mut out, mut head, config) = (Vec::new(), Head::default(), Config::default());
    let mut server = Conn::server(NOW);
    let request = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    server.recv(NOW, request, &mut head, &config).unwrap();
    let (start, body) = ((first.status(), first.reason()), Body::from(framing_before));
    server.send_response(NOW, &mut out, start, body, |writer| copy(first, writer)).unwrap();
    let second = read(&out, Head::parse_response);
    assert_eq!((second.status(), second.reason()), start);
    assert_eq!(fields_of(&second), fields_of(first));
    let expected = if framing_before == Framing::UntilClose { Framing::Chunked } else { framing_before };
    assert_eq!(framing(&second, Some(Asked::Other)), Ok(expected));
}

fn copy(head: &Head, writer: &mut FieldWriter<'_>) {
    head.fields.end_to_end().for_each(|field| writer.copy(field));
}

fn fields_of(head: &Head) -> Vec<(&[u8], &[u8])> {
    head.fields.end_to_end().map(|field| (field.name, field.value)).collect()
}

fn read(out: &[u8], parse: impl FnOnce(&mut Head, &[u8], &Limits) -> Result<(), ptth_proto::error::Error>) -> Head {
    // What we add ourselves may pass the limit that the peer just kept to.
    let limits = Limits { fields: MAX_FIELDS, ..Limits::default() };
    let mut head = Head::default();
    assert_eq!(Scanner::default().find_end(out, LineEnds::Crlf, usize::MAX), Ok(Some(out.len())));
    parse(&mut head, out, &limits).unwrap_or_else(|error| panic!("{error}: {}", out.escape_ascii()));
    head
}

/// Bytes as a chunked body: the same in one piece, byte by byte and in pieces; and what was read, written in chunks of ours,
/// is read as the same again.
pub fn chunk(data: &[u8]) {
    let whole = decode(data, data.len().max(1));
    for piece in [1, 2, 7] {
        assert_eq!(decode(data, piece), whole, "in pieces of {piece}");
    }
    let (body, trailers, end) = whole;
    if !matches!(end, Ok(Some(_))) {
        return;
    }
    let mut out = Vec::new();
    body.chunks(300).for_each(|piece| chunk::write(piece, &mut out));
    out.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(decode(&out, out.len()), (body, Vec::new(), Ok(Some(out.len()))));
    for (name, value) in trailers {
        assert!(is_token(&name) && is_value(&value));
    }
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// The body, the trailers, and where it ended, if it did.
fn decode(data: &[u8], piece: usize) -> (Vec<u8>, Pairs, Result<Option<usize>, ptth_proto::error::Error>) {
    let (mut decoder, mut trailers, mut body) = (Decoder::Size, Fields::default(), Vec::new());
    let (limits, mut used, mut there) = (Limits::default(), 0, 0);
    loop {
        let (n, part) = match decoder.read(&data[used..there], &mut trailers, &limits) {
            Ok(step) => step,
            Err(error) => return (body, Vec::new(), Err(error)),
        };
        used += n;
        match part {
            Some(Part::Data(data)) => {
                assert!(!data.is_empty());
                body.extend_from_slice(data);
            }
            Some(Part::End) => {
                let trailers = trailers.iter().map(|f| (f.name.to_vec(), f.value.to_vec())).collect();
                return (body, trailers, Ok(Some(used)));
            }
            None if there == data.len() => return (body, Vec::new(), Ok(None)),
            None => there = data.len().min(there + piece),
        }
    }
}

/// Bytes as an offer to a relay, and as the answer to an agent's offer: whatever is taken for one leads to a link, and the
/// relay's 101 is one that an agent takes.
pub fn upgrade(data: &[u8]) {
    let (mut head, config, mut out) = (Head::default(), Config::default(), Vec::new());

    let mut relay = Conn::server(NOW);
    if let Ok((used, Some(Event::Offer(token)))) = relay.recv(NOW, data, &mut head, &config) {
        assert_eq!(used, data.len(), "bytes behind an offer");
        assert!(!relay.is_link() && relay.can_respond() && !relay.wants_read());
        relay.accept(NOW, &mut out).unwrap();
        let length = if relay.is_ours() { 76 } else { 57 };
        assert_eq!(out.len(), length);
        assert!(relay.is_link());
        let mut agent = agent(token);
        assert_eq!(agent.recv(NOW, &out, &mut head, &config), Ok((length, Some(Event::Turned))));
        assert!(agent.is_link() && agent.is_idle() && agent.is_ours() == relay.is_ours());
    }

    let mut agent = agent(Token::PTTH_1_0);
    let mut used = 0;
    while let Ok((n, Some(event))) = agent.recv(NOW, &data[used..], &mut head, &config) {
        used += n;
        match event {
            Event::Informational => assert!((100..200).contains(&head.status()) && head.status() != 101),
            Event::Turned => {
                assert_eq!(head.status(), 101);
                assert!(agent.is_link() && agent.is_idle());
                break;
            }
            Event::Response(_) => {
                assert!(head.status() >= 200 && !agent.is_link());
                break;
            }
            other => panic!("{other:?} to an offer"),
        }
    }
}

fn agent(token: Token) -> Conn {
    let (mut agent, mut out) = (Conn::client(NOW), Vec::new());
    agent.send_offer(NOW, &mut out, (b"/", b"a.example"), token, |_| {}).unwrap();
    agent
}
