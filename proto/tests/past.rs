//! Bytes of a body that go past a connection: it hears how many, and goes on as if it had seen them.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that fails should say where")]

use std::time::Duration;

use ptth_proto::conn::{Body, Config, Conn, Event};
use ptth_proto::error::{Error, Fault, Misuse};
use ptth_proto::http::framing::Framing;
use ptth_proto::limits::{Deadlines, Wait};
use ptth_proto::role::Role;
use ptth_proto::time::Instant;
use ptth_proto::wire::head::Head;

const SECOND: Duration = Duration::from_secs(1);

/// Hears one event, and gives how many bytes it took.
fn hear<'a>(conn: &mut Conn, now: Instant, input: &'a [u8]) -> (usize, Option<Event<'a>>) {
    conn.recv(now, input, &mut Head::default(), &Config::default()).unwrap()
}

/// A client that has asked with this body.
fn asking(now: Instant, body: Body) -> (Conn, Vec<u8>) {
    let (mut conn, mut out) = (Conn::client(now), Vec::new());
    conn.send_request(now, &mut out, (b"POST", b"/"), body, |f| f.field("Host", "a.example")).unwrap();
    (conn, out)
}

#[test]
fn a_body_that_passes_ends_with_its_last_byte_and_the_next_message_follows() {
    let now = Instant::default();
    let (mut client, mut wire) = asking(now, Body::Length(10));
    let mut server = Conn::server(now);
    assert_eq!((client.left_to_send(), client.left_to_recv()), (Some(10), None));
    assert_eq!((server.left_to_send(), server.left_to_recv()), (None, None));
    client.send_data(now, b"abc", &mut wire).unwrap();
    let (used, event) = hear(&mut server, now, &wire);
    assert_eq!((used + 3, event), (wire.len(), Some(Event::Request(Framing::Length(10)))));
    assert_eq!(server.left_to_recv(), Some(10));
    assert_eq!(hear(&mut server, now, b"abc"), (3, Some(Event::Data(b"abc"))));
    // One part of it in front, one behind.
    for part in [4, 2] {
        client.send_passed(now, part).unwrap();
        server.recv_passed(now, part).unwrap();
    }
    client.send_data(now, b"z", &mut wire).unwrap();
    assert_eq!(hear(&mut server, now, b"zGET"), (1, Some(Event::Data(b"z"))));
    assert_eq!((client.left_to_send(), server.left_to_recv()), (Some(0), Some(0)));
    client.send_end(now, None, &mut wire).unwrap();
    assert_eq!(hear(&mut server, now, b"GET"), (0, Some(Event::End { trailers: false })));
    assert_eq!((client.left_to_send(), server.left_to_recv()), (None, None));

    // The same the other way; what comes behind it is for the next exchange.
    wire.clear();
    server.send_response(now, &mut wire, (200, b"OK"), Body::Length(5), |_| {}).unwrap();
    assert!(matches!(hear(&mut client, now, &wire), (_, Some(Event::Response(Framing::Length(5))))));
    server.send_passed(now, 5).unwrap();
    server.send_end(now, None, &mut wire).unwrap();
    client.recv_passed(now, 5).unwrap();
    assert_eq!(hear(&mut client, now, b""), (0, Some(Event::End { trailers: false })));
    assert!(client.is_idle() && server.is_idle());
}

#[test]
fn no_more_passes_than_was_announced() {
    let now = Instant::default();
    let wrong = Err(Error::Local(Misuse::WrongLength));
    let (mut client, wire) = asking(now, Body::Length(10));
    let mut server = Conn::server(now);
    hear(&mut server, now, &wire);
    assert_eq!((client.send_passed(now, 11), server.recv_passed(now, 11)), (wrong, wrong));
    client.send_passed(now, 10).unwrap();
    server.recv_passed(now, 10).unwrap();
    assert_eq!((client.send_passed(now, 1), server.recv_passed(now, 1)), (wrong, wrong));
    // Less is no whole message.
    let (mut client, wire) = asking(now, Body::Length(10));
    let mut server = Conn::server(now);
    hear(&mut server, now, &wire);
    client.send_passed(now, 9).unwrap();
    server.recv_passed(now, 9).unwrap();
    assert_eq!(client.send_end(now, None, &mut Vec::new()), wrong);
    assert_eq!(server.eof(now, 0), Err(Fault::EarlyEnd.into()));
}

#[test]
fn only_what_is_nothing_but_body_passes() {
    let now = Instant::default();
    let turn = Err(Error::Local(Misuse::OutOfTurn));
    let no_way = |conn: &mut Conn| {
        assert_eq!((conn.left_to_recv(), conn.left_to_send()), (None, None));
        assert_eq!((conn.recv_passed(now, 1), conn.send_passed(now, 1)), (turn, turn));
    };
    // Between messages, in a head, where each piece has framing around it, and where the body is swallowed.
    no_way(&mut Conn::client(now));
    let mut server = Conn::server(now);
    hear(&mut server, now, b"GET / HTTP/1.1\r\nHost");
    no_way(&mut server);
    let (mut client, wire) = asking(now, Body::Stream);
    let mut server = Conn::server(now);
    hear(&mut server, now, &wire);
    no_way(&mut client);
    no_way(&mut server);
    let mut server = Conn::server(now);
    let (_, event) = hear(&mut server, now, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(event, Some(Event::Request(Framing::Empty)));
    hear(&mut server, now, b"");
    server.send_response(now, &mut Vec::new(), (200, b"OK"), Body::Length(10), |_| {}).unwrap();
    no_way(&mut server);
    // A body that its connection ends: only the end tells how long it is.
    let mut client = Conn::client(now);
    let (mut out, method) = (Vec::new(), (&b"GET"[..], &b"/"[..]));
    client.send_request(now, &mut out, method, Body::None, |f| f.field("Host", "a")).unwrap();
    client.send_end(now, None, &mut out).unwrap();
    hear(&mut client, now, b"HTTP/1.0 200 OK\r\n\r\n");
    no_way(&mut client);
}

#[test]
fn a_tunnel_lets_pass_what_comes_until_either_way_ends() {
    let mut now = Instant::default();
    let mut conn = Conn::tunnel(now);
    assert_eq!((conn.left_to_recv(), conn.left_to_send()), (Some(u64::MAX), Some(u64::MAX)));
    now = now + SECOND;
    conn.recv_passed(now, 1 << 40).unwrap();
    let patience = Deadlines::default().tunnel;
    assert_eq!(conn.deadline(&Deadlines::default()), Some((now + patience, Wait::Tunnel)));
    now = now + SECOND;
    conn.send_passed(now, 1 << 40).unwrap();
    assert_eq!(conn.deadline(&Deadlines::default()), Some((now + patience, Wait::Tunnel)));
    conn.send_end(now, None, &mut Vec::new()).unwrap();
    assert_eq!((conn.left_to_recv(), conn.left_to_send()), (Some(u64::MAX), None));
    conn.eof(now, 0).unwrap();
    assert_eq!((conn.left_to_recv(), conn.left_to_send()), (None, None));
    assert!(conn.recv_passed(now, 1).is_err() && conn.send_passed(now, 1).is_err());
}

#[test]
fn what_passes_is_a_sign_of_life_like_what_is_read() {
    let mut now = Instant::default();
    let deadlines = Deadlines::default();
    let (_, wire) = asking(now, Body::Length(10));
    for role in [Role::Server, Role::Client] {
        let (mut conn, wait, patience) = match role {
            Role::Server => {
                let mut server = Conn::server(now);
                hear(&mut server, now, &wire);
                (server, Wait::Body, deadlines.body)
            }
            Role::Client => {
                let (mut client, mut out) = asking(now, Body::None);
                client.send_end(now, None, &mut out).unwrap();
                hear(&mut client, now, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
                (client, Wait::Stream, deadlines.stream)
            }
        };
        for _ in 0..3 {
            now = now + SECOND * 10;
            conn.recv_passed(now, 1).unwrap();
            assert_eq!(conn.deadline(&deadlines), Some((now + patience, wait)));
            assert!(!conn.has_stalled(now + SECOND * 10, deadlines.body));
        }
    }
}
