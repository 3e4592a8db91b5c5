//! The built-in upstream: a page that shows each request as it arrived. It sits at the far end of a pipe, asked as any other
//! upstream is, so that what it shows has come all the way.

use std::collections::HashMap;

use mio::Token;
use ptth_proto::conn::{Body, Conn, Event};
use ptth_proto::wire::fields::Name;

use crate::peer::Seat;
use crate::reactor::Core;

/// How much of a request's body is shown.
const SHOWN: usize = 4 * 1024;

/// A request on its way in.
#[derive(Debug, Default)]
struct Seen {
    head: Vec<u8>,
    body: Vec<u8>,
    length: u64,
}

/// The page's connections.
#[derive(Debug, Default)]
pub struct Hello {
    seen: HashMap<Token, Seen>,
}

impl Hello {
    /// A new connection to the page: gives the client's end; the page's own end gets `key`.
    pub fn connect(&mut self, core: &mut Core, key: usize) -> Token {
        let (near, page) = core.pipe(Conn::client(core.now), Conn::server(core.now));
        if let Some(peer) = core.peer(page) {
            peer.seat = Seat::Own;
            peer.key = key;
        }
        self.seen.insert(page, Seen::default());
        near
    }

    /// A connection is gone.
    pub fn gone(&mut self, token: Token) {
        self.seen.remove(&token);
    }

    /// Something is new on one of the page's connections.
    pub fn step(&mut self, core: &mut Core, token: Token) {
        let now = core.now;
        core.touch(token);
        let Some(seen) = self.seen.get_mut(&token) else { return };
        loop {
            let Some((peer, head, config)) = core.hear(token) else { return };
            let heard = peer.conn.recv(now, peer.input.bytes(), head, config);
            let (used, whole) = match heard {
                Ok((used, Some(Event::Request(_)))) => {
                    *seen = Seen::default();
                    seen.head.extend_from_slice(&[head.method(), b" ", head.target(), b" HTTP/1.1\n"].concat());
                    for field in head.fields.iter() {
                        seen.head.extend_from_slice(&[field.name, b": ", field.value, b"\n"].concat());
                    }
                    if head.fields.lists(Name::Expect, b"100-continue") {
                        // It can be sent in this state, or the request is no more.
                        let _ = peer.conn.send_informational(peer.output.vec(), (100, b"Continue"), |_| {});
                    }
                    (used, false)
                }
                Ok((used, Some(Event::Data(data)))) => {
                    let room = SHOWN - seen.body.len();
                    seen.body.extend_from_slice(&data[..data.len().min(room)]);
                    seen.length += data.len() as u64;
                    (used, false)
                }
                Ok((used, Some(Event::End { .. }))) => (used, true),
                Ok((used, Some(_))) => (used, false),
                Ok((used, None)) => {
                    peer.input.consume(used);
                    if peer.eof {
                        core.drop_peer(token);
                    }
                    return;
                }
                Err(_) => return core.drop_peer(token),
            };
            peer.input.consume(used);
            if whole {
                let page = seen.page();
                if let Some(peer) = core.tell(token) {
                    let length = Body::Length(page.len() as u64);
                    let out = peer.output.vec();
                    let sent = peer
                        .conn
                        .send_response(now, out, (200, b"OK"), length, |fields| {
                            fields.field("Content-Type", "text/plain; charset=utf-8");
                            fields.field("Cache-Control", "no-store");
                            // What visitors send is shown to them, and to nobody's browser as anything but text.
                            fields.field("X-Content-Type-Options", "nosniff");
                        })
                        .and_then(|()| peer.conn.send_data(now, &page, out))
                        .and_then(|()| peer.conn.send_end(now, None, out));
                    if sent.is_err() {
                        core.drop_peer(token);
                    }
                }
            }
        }
    }
}

impl Seen {
    fn page(&self) -> Vec<u8> {
        let mut page =
            b"Hello from ptth-reverse. This is your request as it arrived at this end of the tunnel:\n\n".to_vec();
        page.extend_from_slice(&self.head);
        match self.length {
            0 => page.extend_from_slice(b"\n(no body)\n"),
            length => {
                page.push(b'\n');
                page.extend_from_slice(&self.body);
                let cut = if length > self.body.len() as u64 { ", of which this is the start" } else { "" };
                page.extend_from_slice(format!("\n(a body of {length} bytes{cut})\n").as_bytes());
            }
        }
        page
    }
}
