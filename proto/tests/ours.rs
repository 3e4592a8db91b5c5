//! What two sides of ours do on a link beyond the dialect (`docs/links.md`): signs of life, and an agent that goes without
//! losing a request that is on its way to it.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that fails should say where")]

mod words;

use std::time::Duration;

use ptth_proto::conn::{Body, Closing, Config, Conn, Event};
use ptth_proto::error::{CloseReason, Error, Fault};
use ptth_proto::limits::{Deadlines, Wait};
use ptth_proto::link::upgrade::Token;
use ptth_proto::time::Instant;
use ptth_proto::wire::head::Head;
use words::word;

const SECOND: Duration = Duration::from_secs(1);

/// One end of a link: what it has to read, and what it has written.
struct End {
    conn: Conn,
    input: Vec<u8>,
    out: Vec<u8>,
}

impl End {
    /// The next event in a word.
    fn hear(&mut self, now: Instant) -> Result<Option<&'static str>, Error> {
        let mut head = Head::default();
        let (used, event) = self.conn.recv(now, &self.input, &mut head, &Config::default())?;
        let word = event.map(|event| word(&event));
        self.input.drain(..used);
        Ok(word)
    }

    /// All events there are.
    fn hear_all(&mut self, now: Instant) -> Vec<&'static str> {
        std::iter::from_fn(|| self.hear(now).unwrap()).collect()
    }

    fn ask(&mut self, now: Instant) {
        self.conn.send_request(now, &mut self.out, (b"GET", b"/"), Body::None, |f| f.field("Host", "")).unwrap();
        self.conn.send_end(now, None, &mut self.out).unwrap();
    }

    fn answer(&mut self, now: Instant) {
        self.conn.send_response(now, &mut self.out, (200, b"OK"), Body::None, |_| {}).unwrap();
        self.conn.send_end(now, None, &mut self.out).unwrap();
    }

    fn deadline(&self, now: Instant) -> Option<(Duration, Wait)> {
        let deadlines = Deadlines::default();
        self.conn.deadline(&deadlines).map(|(at, wait)| (at.since(now), wait))
    }
}

/// What one has written is there for the other to read.
fn carry(from: &mut End, to: &mut End) {
    to.input.append(&mut from.out);
}

/// An agent and a relay whose connection is turned; `ours`: they recognise each other.
fn turned(now: Instant, ours: bool) -> (End, End) {
    let mut agent = End { conn: Conn::client(now), input: Vec::new(), out: Vec::new() };
    let mut relay = End { conn: Conn::server(now), input: Vec::new(), out: Vec::new() };
    let place = (&b"/demo"[..], &b"relay.example"[..]);
    let fields = |fields: &mut ptth_proto::wire::head::FieldWriter<'_>| {
        if ours {
            fields.field("Ptth-Accept", "ping");
        }
    };
    agent.conn.send_offer(now, &mut agent.out, place, Token::PTTH_1_0, fields).unwrap();
    carry(&mut agent, &mut relay);
    assert_eq!(relay.hear_all(now), ["offer"]);
    relay.conn.accept(now, &mut relay.out).unwrap();
    carry(&mut relay, &mut agent);
    assert_eq!(agent.hear_all(now), ["turned"]);
    assert_eq!((agent.conn.is_ours(), relay.conn.is_ours()), (ours, ours));
    (agent, relay)
}

#[test]
fn an_idle_link_between_our_own_sides_may_not_be_silent_for_ever() {
    let now = Instant::default();
    let (agent, relay) = turned(now, true);
    assert_eq!(agent.deadline(now), Some((SECOND * 30, Wait::Silence)));
    // When to ask is the relay's own choice.
    assert_eq!(relay.deadline(now), None);
    let (agent, relay) = turned(now, false);
    assert_eq!((agent.deadline(now), relay.deadline(now)), (None, None));
}

#[test]
fn an_answer_may_be_late_as_long_as_there_are_signs_and_not_for_ever() {
    let mut now = Instant::default();
    let (mut agent, mut relay) = turned(now, true);
    relay.ask(now);
    carry(&mut relay, &mut agent);
    assert_eq!(agent.hear_all(now), ["request", "end"]);
    let (asked, most) = (now, Deadlines::default().signs);
    loop {
        assert_eq!(agent.deadline(now), Some((SECOND * 10, Wait::Ping)));
        let (left, wait) = relay.deadline(now).unwrap();
        if wait == Wait::Signs {
            assert_eq!(now.since(asked) + left, most);
            break;
        }
        assert_eq!((left, wait), (SECOND * 30, Wait::Silence));
        now = now + SECOND * 10;
        agent.conn.send_sign(now, &mut agent.out).unwrap();
        carry(&mut agent, &mut relay);
        assert_eq!(relay.hear_all(now), ["alive"]);
    }
    agent.answer(now);
    carry(&mut agent, &mut relay);
    assert_eq!(relay.hear_all(now), ["response", "end"]);
    assert!(relay.conn.is_idle() && agent.conn.is_idle());
}

#[test]
fn the_relays_shorter_patience_holds() {
    let now = Instant::default();
    let (_, mut relay) = turned(now, true);
    relay.ask(now);
    let deadlines = Deadlines { link_answer: SECOND, ..Deadlines::default() };
    assert_eq!(relay.conn.deadline(&deadlines), Some((now + SECOND, Wait::Answer)));
    let (_, mut relay) = turned(now, false);
    relay.ask(now);
    assert_eq!(relay.deadline(now), Some((SECOND * 75, Wait::Answer)));
}

#[test]
fn signs_are_for_those_who_understand_them_and_when_an_answer_is_due() {
    let now = Instant::default();
    for ours in [true, false] {
        let (mut agent, mut relay) = turned(now, ours);
        assert!(agent.conn.send_sign(now, &mut agent.out).is_err());
        assert!(relay.conn.send_sign(now, &mut relay.out).is_err());
        relay.ask(now);
        carry(&mut relay, &mut agent);
        agent.hear_all(now);
        assert_eq!(agent.conn.send_sign(now, &mut agent.out).is_ok(), ours);
        assert_eq!(agent.out.is_empty(), !ours);
    }
}

#[test]
fn a_102_of_the_upstream_is_none_of_our_signs() {
    let now = Instant::default();
    for (ours, mark, heard) in [
        (true, "", "informational"),
        (true, "Ptth-Accept: ping\r\n", "alive"),
        (true, "Connection: close\r\n", "alive"),
        (false, "Ptth-Accept: ping\r\n", "informational"),
        (false, "Connection: close\r\n", "informational"),
    ] {
        let (_, mut relay) = turned(now, ours);
        relay.ask(now);
        relay.input = format!("HTTP/1.1 102 Processing\r\n{mark}\r\n").into_bytes();
        assert_eq!(relay.hear_all(now), [heard], "{mark}");
    }
}

#[test]
fn an_agent_that_goes_says_so_and_the_relay_closes() {
    let now = Instant::default();
    let (mut agent, mut relay) = turned(now, true);
    agent.conn.leave(now, &mut agent.out);
    assert!(agent.conn.is_leaving() && agent.conn.is_link() && !agent.conn.is_idle() && agent.conn.closing().is_none());
    assert_eq!(agent.deadline(now), Some((SECOND * 2, Wait::Leave)));
    let said = agent.out.len();
    agent.conn.leave(now, &mut agent.out);
    assert_eq!(agent.out.len(), said, "said twice");
    carry(&mut agent, &mut relay);
    assert_eq!(relay.hear_all(now), ["leaving"]);
    assert_eq!((relay.conn.closing(), relay.conn.close_reason()), (Some(Closing::Flush), Some(CloseReason::NotKept)));
    assert_eq!(agent.conn.eof(now, 0), Ok(Some(Event::Closed)));
    assert!(agent.conn.closing().is_some() && !agent.conn.is_leaving());
}

#[test]
fn a_request_that_crosses_the_agents_leave_is_served_and_the_last() {
    let now = Instant::default();
    let (mut agent, mut relay) = turned(now, true);
    relay.ask(now);
    agent.conn.leave(now, &mut agent.out);
    carry(&mut relay, &mut agent);
    carry(&mut agent, &mut relay);
    assert_eq!(relay.hear_all(now), ["alive"]);
    assert_eq!(agent.hear_all(now), ["request", "end"]);
    agent.answer(now);
    assert!(agent.out.ends_with(b"Connection: close\r\n\r\n"));
    carry(&mut agent, &mut relay);
    assert_eq!(relay.hear_all(now), ["response", "end"]);
    for end in [agent, relay] {
        assert_eq!((end.conn.closing(), end.conn.close_reason()), (Some(Closing::Flush), Some(CloseReason::NotKept)));
    }
}

#[test]
fn an_agent_gives_signs_while_a_request_is_still_coming_and_its_rest_is_not_for_ever() {
    let mut now = Instant::default();
    let (mut agent, mut relay) = turned(now, true);
    relay.conn.send_request(now, &mut relay.out, (b"POST", b"/"), Body::Length(9), |f| f.field("Host", "")).unwrap();
    relay.conn.send_data(now, b"part", &mut relay.out).unwrap();
    carry(&mut relay, &mut agent);
    assert_eq!(agent.hear_all(now), ["request", "data"]);
    let body = Deadlines::default().body;
    for _ in 0..6 {
        assert!(!agent.conn.has_stalled(now, body));
        assert_eq!(agent.deadline(now), Some((SECOND * 10, Wait::Ping)));
        now = now + SECOND * 10;
        agent.conn.send_sign(now, &mut agent.out).unwrap();
        carry(&mut agent, &mut relay);
        assert_eq!(relay.hear_all(now), ["alive"]);
    }
    assert!(agent.conn.has_stalled(now, body));
    // Held back by us, it was not.
    agent.conn.touch(now);
    assert!(!agent.conn.has_stalled(now, body));
    relay.conn.send_data(now, b"whole", &mut relay.out).unwrap();
    relay.conn.send_end(now, None, &mut relay.out).unwrap();
    carry(&mut relay, &mut agent);
    assert_eq!(agent.hear_all(now), ["data", "end"]);
    assert!(!agent.conn.has_stalled(now + body, body));
}

#[test]
fn an_upgrade_that_crosses_the_agents_leave_can_be_taken_or_refused() {
    let now = Instant::default();
    for taken in [true, false] {
        let (mut agent, mut relay) = turned(now, true);
        relay.ask(now);
        relay.conn.offer_switch().unwrap();
        agent.conn.leave(now, &mut agent.out);
        carry(&mut relay, &mut agent);
        carry(&mut agent, &mut relay);
        assert_eq!(agent.hear_all(now), ["request", "end"]);
        agent.conn.offer_switch().unwrap();
        assert_eq!(relay.hear_all(now), ["alive"]);
        if taken {
            agent.conn.send_switch(now, &mut agent.out, |fields| fields.field("Upgrade", "websocket")).unwrap();
            carry(&mut agent, &mut relay);
            assert_eq!(relay.hear_all(now), ["switched"]);
        } else {
            agent.answer(now);
            carry(&mut agent, &mut relay);
            assert_eq!(relay.hear_all(now), ["response", "end"]);
            assert_eq!(relay.conn.close_reason(), Some(CloseReason::NotKept));
            assert!(agent.conn.closing().is_some());
        }
    }
}

#[test]
fn a_leave_comes_in_any_pieces_and_a_link_with_half_of_one_is_asked_nothing() {
    let now = Instant::default();
    let whole = b"HTTP/1.1 102 Processing\r\nConnection: close\r\n\r\n";
    for cut in 1..whole.len() {
        let (_, mut relay) = turned(now, true);
        relay.input = whole[..cut].to_vec();
        assert!(relay.hear_all(now).is_empty());
        assert!(!relay.conn.is_idle());
        assert_eq!(relay.deadline(now), Some((SECOND * 10, Wait::Head)));
        relay.input = whole.to_vec();
        assert_eq!(relay.hear_all(now), ["leaving"]);
    }
}

#[test]
fn nothing_else_may_come_on_an_idle_link() {
    let now = Instant::default();
    let leave = "HTTP/1.1 102 Processing\r\nConnection: close\r\n\r\n";
    for (ours, bytes) in [
        (false, leave),
        (true, "x"),
        (true, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),
        (true, "HTTP/1.1 103 Early Hints\r\nConnection: close\r\n\r\n"),
        (true, "HTTP/1.1 102 Processing\r\nPtth-Accept: ping\r\n\r\n"),
        (true, "HTTP/1.1 102 Processing\r\n\r\n"),
        (true, "\r\nHTTP/1.1 102 Processing\r\nConnection: close\r\n\r\n"),
    ] {
        let (_, mut relay) = turned(now, ours);
        relay.input = bytes.as_bytes().to_vec();
        assert_eq!(relay.hear(now), Err(Fault::UnexpectedData.into()), "{bytes:?}");
    }
}

#[test]
fn half_a_request_that_crosses_the_agents_leave_gets_no_answer() {
    let now = Instant::default();
    let (mut agent, _) = turned(now, true);
    agent.conn.leave(now, &mut agent.out);
    agent.input = b"GET / HT".to_vec();
    assert!(agent.hear_all(now).is_empty());
    assert_eq!(agent.deadline(now), Some((SECOND * 10, Wait::Head)));
    assert!(!agent.conn.can_respond());
}

#[test]
fn an_agent_in_the_middle_of_something_leaves_behind_it() {
    let now = Instant::default();
    for ours in [true, false] {
        let (mut agent, mut relay) = turned(now, ours);
        relay.ask(now);
        carry(&mut relay, &mut agent);
        agent.hear_all(now);
        agent.conn.leave(now, &mut agent.out);
        assert!(agent.out.is_empty() && !agent.conn.is_leaving());
        agent.answer(now);
        assert!(agent.out.ends_with(b"Connection: close\r\n\r\n"));
        // With a relay that would not understand, an idle link is closed.
        let (mut agent, _) = turned(now, false);
        agent.conn.leave(now, &mut agent.out);
        assert!(agent.out.is_empty() && agent.conn.closing().is_some());
    }
}

#[test]
fn a_relay_that_goes_says_so_with_its_last_request() {
    let now = Instant::default();
    for ours in [true, false] {
        let (mut agent, mut relay) = turned(now, ours);
        relay.conn.ask_last();
        assert!(relay.conn.is_idle());
        relay.ask(now);
        assert!(relay.out.ends_with(b"Connection: close\r\n\r\n"));
        carry(&mut relay, &mut agent);
        assert_eq!(agent.hear_all(now), ["request", "end"]);
        agent.answer(now);
        carry(&mut agent, &mut relay);
        assert_eq!(relay.hear_all(now), ["response", "end"]);
        assert!(relay.conn.closing().is_some() && agent.conn.closing().is_some());
    }
}
