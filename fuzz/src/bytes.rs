//! One connection and any bytes: however they are cut, it is the same conversation.

use ptth_proto::conn::{Body, Config, Conn, Event};
use ptth_proto::error::{Error, Fault};
use ptth_proto::limits::Wait;
use ptth_proto::link::upgrade::Token;
use ptth_proto::role::Role;
use ptth_proto::time::Instant;
use ptth_proto::wire::head::Head;

const NOW: Instant = Instant::from_micros(0);

/// How many connections the first byte can choose from.
pub(crate) const STARTS: u8 = 8;

/// The first byte chooses the connection, the next two where it is cut, the others come in: whole, byte by byte, and cut at
/// random. The events, the error and what is left over must be the same.
pub fn conn_bytes(data: &[u8]) {
    let [start, seed, more, input @ ..] = data else { return };
    let whole = converse(*start, input, |_| usize::MAX);
    let byte_by_byte = converse(*start, input, |_| 1);
    assert_eq!(whole, byte_by_byte, "byte by byte");
    let mut state = u32::from(*seed) << 8 | u32::from(*more) | 1;
    let cut = converse(*start, input, |_| {
        // As even as it must be for cuts.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        1 + (state >> 24) as usize % 40
    });
    assert_eq!(whole, cut, "cut at random");
}

#[derive(Debug, PartialEq, Eq)]
struct Log {
    events: Vec<Vec<u8>>,
    error: Option<Error>,
    left: usize,
    out: Vec<u8>,
}

fn connection(start: u8, out: &mut Vec<u8>) -> Conn {
    let (mut head, config) = (Head::default(), Config::default());
    let client = |method: &[u8], out: &mut Vec<u8>| {
        let mut conn = Conn::client(NOW);
        let target: &[u8] = if method == b"CONNECT" { b"a.example:443" } else { b"/" };
        conn.send_request(NOW, out, (method, target), Body::None, |_| {}).unwrap();
        conn.send_end(NOW, None, out).unwrap();
        conn
    };
    let mut link = |more: &str, out: &mut Vec<u8>| {
        let mut conn = Conn::server(NOW);
        let offer = format!("POST / HTTP/1.1\r\nUpgrade: PTTH/1.0\r\n{more}\r\n");
        conn.recv(NOW, offer.as_bytes(), &mut head, &config).unwrap();
        conn.accept(NOW, out).unwrap();
        conn.timeout(NOW, Wait::Pause);
        conn.send_request(NOW, out, (b"GET", b"/"), Body::None, |_| {}).unwrap();
        conn.send_end(NOW, None, out).unwrap();
        conn
    };
    match start % STARTS {
        0 => Conn::server(NOW),
        1 => client(b"GET", out),
        2 => client(b"HEAD", out),
        3 => client(b"CONNECT", out),
        4 => {
            let mut conn = Conn::client(NOW);
            conn.send_request(NOW, out, (b"POST", b"/"), Body::Stream, |_| {}).unwrap();
            conn
        }
        5 => {
            let mut conn = Conn::client(NOW);
            conn.send_offer(NOW, out, (b"/", b"a.example"), Token::PTTH_1_0, |_| {}).unwrap();
            conn
        }
        6 => link("", out),
        _ => link("User-Agent: Ruby\r\n", out),
    }
}

fn converse(start: u8, input: &[u8], mut piece: impl FnMut(usize) -> usize) -> Log {
    let (mut head, config) = (Head::default(), Config::default());
    let mut log = Log { events: Vec::new(), error: None, left: 0, out: Vec::new() };
    let mut conn = connection(start, &mut log.out);
    let (mut used, mut there) = (0, 0);
    loop {
        let step = conn.recv(NOW, &input[used..there], &mut head, &config);
        let (n, event) = match step {
            Ok(step) => step,
            Err(error) => {
                fail(&mut conn, error, &mut log);
                return log;
            }
        };
        used += n;
        match event {
            Some(event) => {
                note(&mut log, &event, &head);
                react(&mut conn, matches!(event, Event::End { .. }), &mut log);
            }
            None if n == 0 && there == input.len() => break,
            None if n == 0 => there = input.len().min(there.saturating_add(piece(there))),
            None => {}
        }
    }
    log.left = input.len() - used;
    match conn.eof(NOW, log.left) {
        Ok(Some(event)) => note(&mut log, &event, &head),
        Ok(None) => {}
        Err(error) => fail(&mut conn, error, &mut log),
    }
    log
}

fn fail(conn: &mut Conn, error: Error, log: &mut Log) {
    assert!(!matches!(error, Error::Local(_)), "bytes of a peer are not our mistake");
    let (mut head, config) = (Head::default(), Config::default());
    assert_eq!(conn.recv(NOW, b"x", &mut head, &config), Err(error));
    assert_eq!(conn.eof(NOW, 0), Err(error));
    // An offer is seen where nothing was behind it yet.
    let behind = error == Fault::BytesBehindOffer.into();
    if behind && log.events.last().is_some_and(|event| event.starts_with(b"Offer")) {
        log.events.pop();
    }
    if let Some(status) = error.status()
        && conn.can_respond()
    {
        conn.send_response(NOW, &mut log.out, (status, b""), Body::None, |_| {}).unwrap();
        conn.send_end(NOW, None, &mut log.out).unwrap();
    }
    assert!(conn.closing().is_some() || conn.role() == Some(Role::Server));
    log.error = Some(error);
}

/// A server answers each whole request, a client asks again after each answer.
fn react(conn: &mut Conn, end: bool, log: &mut Log) {
    let out = &mut log.out;
    if end && conn.can_respond() && conn.has_heard_all() {
        conn.send_response(NOW, out, (200, b"OK"), Body::None, |_| {}).unwrap();
        conn.send_end(NOW, None, out).unwrap();
    } else if end && conn.role() == Some(Role::Client) && conn.is_idle() {
        conn.send_request(NOW, out, (b"GET", b"/"), Body::None, |_| {}).unwrap();
        conn.send_end(NOW, None, out).unwrap();
    }
}

fn note(log: &mut Log, event: &Event<'_>, head: &Head) {
    let mut text = match event {
        Event::Data(data) => {
            assert!(!data.is_empty());
            match log.events.last_mut() {
                Some(last) if last.starts_with(b"data ") => last.extend_from_slice(data),
                _ => log.events.push([b"data ", *data].concat()),
            }
            return;
        }
        Event::End { trailers: false } | Event::Closed => {
            log.events.push(format!("{event:?}").into_bytes());
            return;
        }
        event => format!("{event:?} {} ", head.status()).into_bytes(),
    };
    text.extend_from_slice(&[head.method(), b" ", head.target(), b" ", head.reason()].concat());
    for field in head.fields.iter() {
        text.extend_from_slice(&[b"\n", field.name, b": ", field.value].concat());
    }
    log.events.push(text);
}
