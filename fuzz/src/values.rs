//! The readers of single values: heads, chunks, and the two sides of the handshake.

use ptth_proto::conn::{Body, Config, Conn, Event};
use ptth_proto::error::Error;
use ptth_proto::http::framing::{Asked, Framing, framing};
use ptth_proto::limits::{Limits, MAX_FIELDS};
use ptth_proto::link::upgrade::Token;
use ptth_proto::time::Instant;
use ptth_proto::wire::chunk::{Decoder, Part};
use ptth_proto::wire::fields::{Field, Fields, Name, is_token, is_value};
use ptth_proto::wire::head::{Head, LineEnds, Scanner, Target};

const NOW: Instant = Instant::from_micros(0);

/// Reads bytes as a head: its end is the same however the bytes come; what is read keeps to the grammar; and what we write
/// for it is read as the same again.
pub fn head(data: &[u8]) {
    let limits = Limits::default();
    for ends in [LineEnds::Crlf, LineEnds::LfToo] {
        let whole = Scanner::default().find_end(data, ends, limits.head);
        let mut scanner = Scanner::default();
        let mut slowly = Ok(None);
        for length in 0..=data.len() {
            slowly = scanner.find_end(&data[..length], ends, limits.head);
            if slowly != Ok(None) {
                break;
            }
        }
        assert_eq!(whole, slowly);
        let Ok(Some(length)) = whole else { continue };
        let mut head = Head::default();
        if head.parse_request(&data[..length], &limits).is_ok() {
            well_formed(&head.fields);
            assert!(is_token(head.method()));
            assert!(Target::of(head.method(), head.target()).is_some());
            request_again(&head);
        }
        if head.parse_response(&data[..length], &limits).is_ok() {
            well_formed(&head.fields);
            assert!((100..600).contains(&head.status()) && is_value(head.reason()));
            response_again(&head);
        }
    }
}

fn well_formed(fields: &Fields) {
    assert!(fields.len() <= MAX_FIELDS);
    for field in fields.iter() {
        assert!(is_token(field.name) && is_value(field.value));
        assert_eq!(field.value.trim_ascii(), field.value);
        assert_eq!(Name::of(field.name), field.known);
    }
}

fn end_to_end(head: &Head) -> Vec<(&[u8], &[u8])> {
    head.fields.end_to_end().map(|field: Field<'_>| (field.name, field.value)).collect()
}

/// What a relay would write for a request is read as this request.
fn request_again(first: &Head) {
    let Ok(framing) = framing(first, None) else { return };
    let mut out = Vec::new();
    let start = (first.method(), first.target());
    let copy = |writer: &mut ptth_proto::wire::head::FieldWriter<'_>| {
        first.fields.end_to_end().for_each(|field| writer.copy(field));
    };
    Conn::client(NOW).send_request(NOW, &mut out, start, Body::from(framing), copy).unwrap();
    let second = parse(&out, true);
    assert_eq!((second.method(), second.target()), start);
    assert_eq!(end_to_end(&second), end_to_end(first));
    assert_eq!(self::framing(&second), Ok(framing));

    fn parse(out: &[u8], request: bool) -> Head {
        again(out, request)
    }
}

fn framing_of(head: &Head) -> Result<Framing, Error> {
    framing(head, None)
}

fn again(out: &[u8], request: bool) -> Head {
    // Our own head has a line more than the one that was copied at most; the limit on fields is not the point here.
    let limits = Limits { fields: MAX_FIELDS, ..Limits::default() };
    let mut head = Head::default();
    assert_eq!(Scanner::default().find_end(out, LineEnds::Crlf, usize::MAX), Ok(Some(out.len())));
    let done = if request { head.parse_request(out, &limits) } else { head.parse_response(out, &limits) };
    done.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(out)));
    head
}
