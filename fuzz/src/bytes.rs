//! One connection and any bytes: however they are cut, it is the same conversation.

use std::mem;

use ptth_proto::conn::{Body, Config, Conn, Event};
use ptth_proto::error::{Error, Fault};
use ptth_proto::http::tunnel;
use ptth_proto::limits::{Limits, Wait};
use ptth_proto::link::upgrade::Token;
use ptth_proto::role::Role;
use ptth_proto::time::Instant;
use ptth_proto::wire::head::Head;

use crate::sound;

const NOW: Instant = Instant::from_micros(0);

/// How many connections the first byte can choose from: those of [`connection`].
pub(crate) const STARTS: u8 = 26;

/// Added to the first byte: limits so low that a short input reaches them.
pub(crate) const LOW_LIMITS: u8 = 0x80;

/// The first byte chooses the connection, the next two where it is cut, the others come in: byte by byte, whole, and cut at
/// random. The events, the error, what is left over and what we say ourselves must be the same.
pub fn conn_bytes(data: &[u8]) {
    let [start, seed, more, input @ ..] = data else { return };
    let byte_by_byte = converse(*start, input, &[], || 1);
    // Whoever offers to turn the connection waits for what becomes of it.
    let stops = byte_by_byte.offers.clone();
    let whole = converse(*start, input, &stops, || usize::MAX);
    assert_eq!(whole, byte_by_byte, "byte by byte");
    let mut state = u32::from(*seed) << 8 | u32::from(*more) | 1;
    let cut = converse(*start, input, &stops, || {
        // As even as it must be for cuts.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        1 + (state >> 24) as usize % 40
    });
    assert_eq!(whole, cut, "cut at random");
}

/// What the connection's driver does with what it hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// A server answers each whole request and leaves offers unanswered; a client asks again after each answer.
    Plain,
    /// A server that takes the offer, and then asks.
    Accepts,
    /// A server that refuses each offer and goes on.
    Refuses,
    /// A server that answers as soon as it has heard the head.
    Early,
    /// A server that takes every offer to switch protocols.
    Switches,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Log {
    events: Vec<Vec<u8>>,
    error: Option<Error>,
    left: usize,
    out: Vec<u8>,
    /// How many bytes had come in when an offer was answered.
    offers: Vec<usize>,
}

fn connection(start: u8, out: &mut Vec<u8>) -> (Conn, Manner) {
    let conn = match start {
        0 => Conn::server(NOW),
        1 => return (Conn::server(NOW), Manner::Accepts),
        2 => return (Conn::server(NOW), Manner::Refuses),
        3 => return (Conn::server(NOW), Manner::Early),
        4 => asked(Conn::client(NOW), (b"GET", b"/"), out),
        5 => asked(Conn::client(NOW), (b"HEAD", b"/"), out),
        6 => asked(Conn::client(NOW), (b"CONNECT", b"a.example:443"), out),
        7 => asking(Conn::client(NOW), out),
        8 => offering(out),
        9 => asked(relay(""), (b"GET", b"/"), out),
        10 => asking(relay(""), out),
        11 => asked(relay("User-Agent: Ruby\r\n"), (b"GET", b"/"), out),
        12 => agent(b"HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n"),
        13 => return (agent(b"HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\n\r\n"), Manner::Early),
        14 => agent(b"HTTP/1.1 101 \nUpgrade: PTTH/1.0\n\n"),
        15 => Conn::link(Role::Server, NOW),
        16 => asked(Conn::link(Role::Client, NOW), (b"GET", b"/"), out),
        17 => switching(Conn::client(NOW), out),
        18 => switching(relay(""), out),
        19 => asked(relay(""), (b"CONNECT", b"a.example:443"), out),
        20 => return (Conn::server(NOW), Manner::Switches),
        21 => Conn::tunnel(NOW),
        22 => asked(relay("Ptth-Accept: ping\r\n"), (b"GET", b"/"), out),
        23 => relay("Ptth-Accept: ping\r\n"),
        24 => agent(OURS),
        _ => {
            let mut conn = agent(OURS);
            conn.leave(NOW, out);
            conn
        }
    };
    (conn, Manner::Plain)
}

/// The 101 of a relay of ours.
const OURS: &[u8] = b"HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\nPtth-Accept: ping\r\n\r\n";

/// It has asked, and waits for the answer.
fn asked(mut conn: Conn, start: (&[u8], &[u8]), out: &mut Vec<u8>) -> Conn {
    conn.send_request(NOW, out, start, Body::None, |_| {}).unwrap();
    conn.send_end(NOW, None, out).unwrap();
    conn
}

/// It is in the middle of a request's body.
fn asking(mut conn: Conn, out: &mut Vec<u8>) -> Conn {
    conn.send_request(NOW, out, (b"POST", b"/"), Body::Stream, |_| {}).unwrap();
    conn
}

/// It has asked, and offered to go on with another protocol.
fn switching(mut conn: Conn, out: &mut Vec<u8>) -> Conn {
    let sent = conn.send_request(NOW, out, (b"GET", b"/"), Body::None, |writer| {
        writer.field("Connection", "Upgrade");
        writer.field("Upgrade", "websocket");
    });
    sent.unwrap();
    conn.send_end(NOW, None, out).unwrap();
    conn.offer_switch().unwrap();
    conn
}

fn offering(out: &mut Vec<u8>) -> Conn {
    let mut conn = Conn::client(NOW);
    conn.send_offer(NOW, out, (b"/", b"a.example"), Token::PTTH_1_0, |_| {}).unwrap();
    conn
}

/// The relay's end of a link, whose agent has offered it with this in its head.
fn relay(more: &str) -> Conn {
    let mut conn = Conn::server(NOW);
    let offer = format!("POST / HTTP/1.1\r\nUpgrade: PTTH/1.0\r\n{more}\r\n");
    conn.recv(NOW, offer.as_bytes(), &mut Head::default(), &Config::default()).unwrap();
    conn.accept(NOW, &mut Vec::new()).unwrap();
    conn.timeout(NOW, Wait::Pause);
    conn
}

/// The agent's end of a link, whose relay has said this.
fn agent(switch: &[u8]) -> Conn {
    let mut conn = offering(&mut Vec::new());
    let (used, event) = conn.recv(NOW, switch, &mut Head::default(), &Config::default()).unwrap();
    assert_eq!((used, event), (switch.len(), Some(Event::Turned)));
    conn
}

fn converse(start: u8, input: &[u8], stops: &[usize], mut piece: impl FnMut() -> usize) -> Log {
    let mut log = Log::default();
    let (mut head, mut config) = (Head::default(), Config::default());
    if start & LOW_LIMITS != 0 {
        config.limits = Limits { head: 200, fields: 5, chunk_line: 12, trailers: 40, ..Limits::default() };
    }
    let (mut conn, manner) = connection((start & !LOW_LIMITS) % STARTS, &mut log.out);
    let mut offered = false;
    let (mut used, mut there) = (0, 0);
    loop {
        let wanted = conn.wants_read();
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
                assert!(wanted, "{event:?} of a connection that has no use for bytes");
                note(&mut log, &event, &head);
                if matches!(event, Event::Offer(_)) && manner != Manner::Plain {
                    log.offers.push(there);
                }
                if let Event::Request(framing) = event {
                    offered = tunnel::offered(&head, framing).next().is_some();
                }
                // One that is not kept offers nothing.
                let ended = matches!(event, Event::End { .. });
                let manner = match ended && mem::take(&mut offered) && conn.offer_switch().is_ok() {
                    false if manner == Manner::Switches => Manner::Plain,
                    _ => manner,
                };
                react(&mut conn, manner, &event, &mut log);
            }
            None if n == 0 && there == input.len() => break,
            None if n == 0 => {
                let stop = stops.iter().copied().find(|stop| *stop > there).unwrap_or(usize::MAX);
                there = input.len().min(there.saturating_add(piece())).min(stop);
            }
            None => {}
        }
        sound(&conn, &config);
    }
    log.left = input.len() - used;
    if let Some((at, Wait::Quiet)) = conn.deadline(&config.deadlines)
        && let Some(event) = conn.timeout(at, Wait::Quiet)
    {
        note(&mut log, &event, &head);
        react(&mut conn, Manner::Plain, &event, &mut log);
        sound(&conn, &config);
    }
    match conn.eof(NOW, log.left) {
        Ok(Some(event)) => {
            note(&mut log, &event, &head);
            react(&mut conn, Manner::Plain, &event, &mut log);
        }
        Ok(None) => {}
        Err(error) => fail(&mut conn, error, &mut log),
    }
    sound(&conn, &config);
    log
}

fn fail(conn: &mut Conn, error: Error, log: &mut Log) {
    assert!(!matches!(error, Error::Local(_)), "bytes of a peer are not our mistake");
    let (mut head, config) = (Head::default(), Config::default());
    assert_eq!(conn.recv(NOW, b"x", &mut head, &config), Err(error));
    assert_eq!(conn.eof(NOW, 0), Err(error));
    sound(conn, &config);
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

fn react(conn: &mut Conn, manner: Manner, event: &Event<'_>, log: &mut Log) {
    match event {
        Event::Offer(_) if manner == Manner::Accepts => {
            conn.accept(NOW, &mut log.out).unwrap();
            conn.timeout(NOW, Wait::Pause);
            ask(conn, log);
        }
        Event::Offer(_) if manner != Manner::Plain => answer(conn, log),
        Event::Request(_) if manner == Manner::Early => answer(conn, log),
        Event::End { .. } if manner == Manner::Switches => {
            conn.send_switch(NOW, &mut log.out, |writer| writer.field("Upgrade", "websocket")).unwrap();
        }
        // In a tunnel the peer gets back what it says.
        Event::Data(data) if conn.is_tunnel() && conn.is_speaking() => {
            conn.send_data(NOW, data, &mut log.out).unwrap();
        }
        Event::End { .. } if conn.is_tunnel() && conn.is_speaking() => {
            conn.send_end(NOW, None, &mut log.out).unwrap();
        }
        Event::End { .. } if conn.can_respond() && conn.has_heard_all() => answer(conn, log),
        Event::End { .. } if conn.role() == Some(Role::Client) && conn.is_idle() => ask(conn, log),
        _ => {}
    }
}

fn ask(conn: &mut Conn, log: &mut Log) {
    conn.send_request(NOW, &mut log.out, (b"GET", b"/"), Body::None, |_| {}).unwrap();
    conn.send_end(NOW, None, &mut log.out).unwrap();
}

/// With a body in each framing by turns, for that of the request decides what becomes of it.
fn answer(conn: &mut Conn, log: &mut Log) {
    let out = &mut log.out;
    let (status, body, data): (u16, Body, &[u8]) = match log.events.len() % 4 {
        0 => (200, Body::None, b""),
        1 => (200, Body::Length(5), b"hello"),
        2 => (404, Body::Stream, b"hello"),
        _ => (304, Body::Length(5), b""),
    };
    conn.send_response(NOW, out, (status, b""), body, |_| {}).unwrap();
    conn.send_data(NOW, data, out).unwrap();
    conn.send_end(NOW, None, out).unwrap();
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
