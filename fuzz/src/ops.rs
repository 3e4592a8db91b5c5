//! Two connections and any order of calls and deliveries: what one understood is what the other said.

use std::mem;
use std::time::Duration;

use ptth_proto::conn::{Body, Config, Conn, Event};
use ptth_proto::error::{CloseReason, Error, Fault};
use ptth_proto::http::framing::Asked;
use ptth_proto::http::tunnel;
use ptth_proto::link::upgrade::Token;
use ptth_proto::time::Instant;
use ptth_proto::wire::head::Head;

use crate::sound;

/// How many calls and deliveries there are.
pub(crate) const OPERATIONS: u8 = 20;

struct Peer {
    conn: Conn,
    head: Head,
    input: Vec<u8>,
    /// On the way to the other one.
    out: Vec<u8>,
    said: Vec<Vec<u8>>,
    heard: Vec<Vec<u8>>,
    failed: bool,
    /// It answered what it was not asked, which the other one need not take.
    rash: bool,
    /// The request that it has heard, and that is not whole yet, offers to switch protocols.
    offered: bool,
    /// How much of a body with a length is still to be said.
    left: Option<u64>,
}

impl Peer {
    fn new(conn: Conn) -> Peer {
        let (said, heard) = (Vec::new(), Vec::new());
        Peer {
            conn,
            head: Head::default(),
            input: Vec::new(),
            out: Vec::new(),
            said,
            heard,
            failed: false,
            rash: false,
            offered: false,
            left: None,
        }
    }

    /// Notes what was said, if it was allowed; what was not must have left no bytes.
    fn says(&mut self, before: usize, done: Result<(), Error>, what: &[u8]) -> bool {
        match done {
            Ok(()) => push(&mut self.said, what),
            Err(error) => {
                assert!(matches!(error, Error::Local(_)), "{error:?} is nobody else's mistake");
                assert_eq!(self.out.len(), before, "a refused call has written something");
            }
        }
        done.is_ok()
    }

    /// A message that has a length is whole with its last byte: whoever drives a connection says its end with it.
    fn end_if_whole(&mut self, now: Instant) {
        if self.left == Some(0) {
            self.left = None;
            let before = self.out.len();
            let done = self.conn.send_end(now, None, &mut self.out);
            assert!(self.says(before, done, b"end"));
        }
    }
}

/// Each pair of bytes is a call or a delivery, the first byte says which and on which side. No order of them may panic or
/// lead to anything but what was said.
pub fn conn_ops(data: &[u8]) {
    let config = Config::default();
    let mut now = Instant::default();
    let mut peers = [Peer::new(Conn::client(now)), Peer::new(Conn::server(now))];
    for op in data.chunks_exact(2) {
        let (which, what, arg) = (usize::from(op[0] & 1), op[0] >> 1, op[1]);
        now = now + Duration::from_millis(u64::from(arg));
        let [first, second] = &mut peers;
        let (peer, other) = if which == 0 { (first, second) } else { (second, first) };
        let before = peer.out.len();
        let out = &mut peer.out;
        let size = u64::from(arg >> 2);
        let body = [Body::None, Body::Length(size), Body::Stream, Body::Length(0)][usize::from(arg & 3)];
        let length = match body {
            Body::None => Some(0),
            Body::Length(n) => Some(n),
            Body::Stream => None,
        };
        match what % OPERATIONS {
            0 => {
                let ours = |writer: &mut ptth_proto::wire::head::FieldWriter<'_>| match arg & 3 {
                    0 => {}
                    1 => writer.field("Ptth-Accept", "ping"),
                    _ => writer.field("Ptth-Accept", "ping, pipeline"),
                };
                let done = peer.conn.send_offer(now, out, (b"/", b"a.example"), Token::PTTH_1_0, ours);
                peer.says(before, done, b"offer");
            }
            1 => {
                let done = peer.conn.accept(now, out);
                peer.says(before, done, b"turned");
            }
            2 => {
                let method: &[u8] = match body {
                    Body::None if arg & 0xf0 == 0xf0 => b"CONNECT",
                    _ => [&b"GET"[..], b"HEAD", b"POST"][usize::from(arg) % 3],
                };
                let target: &[u8] = if method == b"CONNECT" { b"a.example:443" } else { b"/" };
                // Whoever closes behind this exchange has nothing to go on with.
                let offers = length == Some(0) && arg & 0xf0 == 0xe0 && peer.conn.is_kept();
                let leads = body == Body::None && matches!(method, b"GET" | b"HEAD") && !offers;
                let done = peer.conn.send_request(now, out, (method, target), body, |writer| {
                    writer.field("Host", "a.example");
                    if leads {
                        writer.field("Ptth-Accept", "aside");
                    }
                    if offers {
                        writer.field("Connection", "Upgrade");
                        writer.field("Upgrade", "websocket");
                    }
                });
                if peer.says(before, done, &[b"request ", method].concat()) {
                    peer.left = length;
                    peer.end_if_whole(now);
                    assert!(!offers || peer.conn.offer_switch().is_ok());
                    assert!(!leads || peer.conn.open_line().is_ok() == peer.conn.has_room_behind());
                }
            }
            3 => {
                let data = vec![arg; usize::from(arg >> 2)];
                let done = if arg & 1 == 1 && peer.conn.left_to_send().is_some() {
                    // From elsewhere, and on the same way.
                    let done = peer.conn.send_passed(now, data.len() as u64);
                    out.extend_from_slice(if done.is_ok() { &data } else { b"" });
                    done
                } else {
                    peer.conn.send_data(now, &data, out)
                };
                if done.is_ok() && out.len() > before {
                    peer.says(before, done, &[b"data ", &data[..]].concat());
                    peer.left = peer.left.map(|left| left - data.len() as u64);
                    peer.end_if_whole(now);
                }
            }
            4 => {
                let done = peer.conn.send_end(now, None, out);
                peer.says(before, done, b"end");
            }
            5 => {
                let status = [200, 204, 304, 404, 500, 200, 200, 200][usize::from(arg >> 5)];
                let (asked, idle) = (peer.conn.is_speaking(), peer.conn.role().is_some());
                let asked_for = peer.conn.asked();
                let done = peer.conn.send_response(now, out, (status, b""), body, |_| {});
                if done.is_ok() && peer.conn.is_tunnel() {
                    peer.says(before, done, format!("switched {status}").as_bytes());
                    peer.left = None;
                } else if peer.says(before, done, format!("response {status}").as_bytes()) {
                    peer.rash |= !asked && idle;
                    let bodiless = asked_for == Asked::Head || matches!(status, 204 | 304);
                    peer.left = if bodiless { Some(0) } else { length };
                    peer.end_if_whole(now);
                }
            }
            6 => {
                let done = peer.conn.send_informational(out, (103, b""), |_| {});
                peer.says(before, done, b"informational 103");
            }
            7..=9 => {
                let count = if what % OPERATIONS == 7 { usize::from(arg) } else { usize::MAX };
                if what % OPERATIONS == 9 {
                    pass(other, &mut peer.out, now);
                }
                let count = peer.out.len().min(count);
                other.input.extend(peer.out.drain(..count));
                hear(other, now, &config, peer.rash);
            }
            10 => {
                let deadline = peer.conn.deadline(&config.deadlines);
                if let Some((at, wait)) = deadline {
                    now = now.max(at);
                    peer.conn.timeout(now, wait);
                }
            }
            11 if arg > 250 => peer.conn.do_not_keep(),
            11 => peer.conn.touch(now),
            12 => {
                let done = peer.conn.send_sign(now, out);
                peer.says(before, done, b"alive");
            }
            13 if arg > 200 => {
                peer.conn.leave(now, out);
                if out.len() > before {
                    peer.says(before, Ok(()), b"alive");
                }
            }
            14 => peer.conn.ask_last(),
            15 => {
                let done = peer.conn.send_switch(now, out, |writer| writer.field("Upgrade", "websocket"));
                peer.says(before, done, b"switched 101");
            }
            16 => {
                let method = [&b"GET"[..], b"HEAD"][usize::from(arg) % 2];
                let done = peer.conn.send_ahead(out, (method, b"/"), |writer| {
                    writer.field("Host", "a.example");
                    writer.field("Ptth-Accept", "aside");
                });
                if peer.says(before, done, &[b"request ", method].concat()) {
                    push(&mut peer.said, b"end");
                }
            }
            17 => {
                let done = peer.conn.send_hint(out, |_| {});
                if peer.says(before, done, b"request OPTIONS") {
                    push(&mut peer.said, b"end");
                }
            }
            18 => {
                let done = peer.conn.send_aside(now, out, b"0123456789abcdef-1");
                peer.says(before, done, b"aside");
            }
            // In a tunnel an end is heard once, and only where it was said.
            _ if peer.conn.is_tunnel() && (peer.conn.has_heard_all() || !has_ended(other)) => {}
            _ if arg > 250 && !peer.failed => {
                let step = peer.conn.eof(now, peer.input.len());
                note(peer, step.map(|event| event.map(|event| describe(&event, &Head::default()))), other.rash);
            }
            _ => {}
        }
        peers.iter().for_each(|peer| sound(&peer.conn, &config));
        for (reader, writer) in [(0, 1), (1, 0)] {
            let (heard, said) = (&peers[reader].heard, &peers[writer].said);
            // An answer that crosses a HEAD on its way is misunderstood: nobody can know what it answers.
            assert!(peers[writer].rash || is_start_of(heard, said), "heard {heard:?}\nsaid {said:?}");
        }
    }
}

/// Whether all of its direction of a tunnel has arrived.
fn has_ended(peer: &Peer) -> bool {
    let over = peer.conn.close_reason() == Some(CloseReason::TunnelOver);
    peer.out.is_empty() && (over || peer.conn.is_half_closed())
}

/// What can go past the connection does.
fn pass(peer: &mut Peer, wire: &mut Vec<u8>, now: Instant) {
    let left = peer.conn.left_to_recv().filter(|_| peer.input.is_empty() && !peer.failed);
    let count = usize::try_from(left.unwrap_or(0)).unwrap_or(usize::MAX).min(wire.len());
    if count > 0 {
        let data: Vec<u8> = wire.drain(..count).collect();
        assert_eq!(peer.conn.recv_passed(now, count as u64), Ok(()));
        push(&mut peer.heard, &[b"data ", &data[..]].concat());
    }
}

fn hear(peer: &mut Peer, now: Instant, config: &Config, rash: bool) {
    while !peer.failed {
        let step = peer.conn.recv(now, &peer.input, &mut peer.head, config);
        let (used, event) = match step {
            Ok((0, None)) => return hear_behind(peer, config, rash),
            Ok((used, event)) => {
                let offered = mem::take(&mut peer.offered);
                match event {
                    Some(Event::Request(framing)) => {
                        peer.offered = tunnel::offered(&peer.head, framing).next().is_some()
                    }
                    // One that is not kept offers nothing.
                    Some(Event::End { .. }) if offered => drop(peer.conn.offer_switch()),
                    _ => {}
                }
                (used, Ok(event.map(|event| describe(&event, &peer.head))))
            }
            Err(error) => (0, Err(error)),
        };
        peer.input.drain(..used);
        note(peer, event, rash);
    }
}

/// Requests behind those under way: each is whole at once.
fn hear_behind(peer: &mut Peer, config: &Config, rash: bool) {
    loop {
        match peer.conn.recv_ahead(&peer.input, &mut peer.head, config) {
            Ok((_, false)) => return,
            Ok((used, true)) => {
                peer.input.drain(..used);
                push(&mut peer.heard, &[b"request ", peer.head.method()].concat());
                push(&mut peer.heard, b"end");
            }
            Err(error) => return note(peer, Err(error), rash),
        }
    }
}

fn note(peer: &mut Peer, event: Result<Option<Vec<u8>>, Error>, rash: bool) {
    match event {
        Ok(Some(event)) => push(&mut peer.heard, &event),
        Ok(None) => {}
        Err(error) => {
            // Whoever calls in any order can close early and answer unasked, nothing else.
            assert!(rash || error == Fault::EarlyEnd.into(), "{error:?}, after {:?}", peer.heard);
            peer.failed = true;
        }
    }
}

fn describe(event: &Event<'_>, head: &Head) -> Vec<u8> {
    match event {
        Event::Request(_) => [b"request ", head.method()].concat(),
        Event::Offer(_) => b"offer".to_vec(),
        Event::Informational => format!("informational {}", head.status()).into_bytes(),
        // A 102 either way: which it is depends on whether a request was on its way.
        Event::Alive | Event::Leaving => b"alive".to_vec(),
        Event::Aside => b"aside".to_vec(),
        Event::Response(_) => format!("response {}", head.status()).into_bytes(),
        Event::Turned => b"turned".to_vec(),
        Event::Switched => format!("switched {}", head.status()).into_bytes(),
        Event::Data(data) => [b"data ", *data].concat(),
        Event::End { .. } => b"end".to_vec(),
        Event::Closed => b"closed".to_vec(),
    }
}

fn push(events: &mut Vec<Vec<u8>>, event: &[u8]) {
    match (events.last_mut(), event.strip_prefix(b"data ")) {
        (Some(last), Some(more)) if last.starts_with(b"data ") => last.extend_from_slice(more),
        _ => events.push(event.to_vec()),
    }
}

/// The end of the bytes is heard and not said.
fn is_start_of(heard: &[Vec<u8>], said: &[Vec<u8>]) -> bool {
    let heard = heard.strip_suffix(&[b"closed".to_vec()]).unwrap_or(heard);
    let Some((last, before)) = heard.split_last() else { return true };
    let Some(whole) = said.get(before.len()) else { return false };
    said.starts_with(before) && (whole == last || last.starts_with(b"data ") && whole.starts_with(last))
}
