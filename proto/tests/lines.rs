//! Several requests on a link between our own two sides (`docs/links.md`): what may be said, and what becomes of it when the link ends in
//! between. The bytes are in `fixtures/transcripts/ours-lines.txt`.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that fails should say where")]

mod words;

use ptth_proto::conn::{Body, Closing, Config, Conn, MOST_IN_LINE};
use ptth_proto::error::{CloseReason, Error, Fault};
use ptth_proto::link::upgrade::Token;
use ptth_proto::time::Instant;
use ptth_proto::wire::head::Head;
use words::word;

const NOW: Instant = Instant::from_micros(0);

/// Both ends of a link, and what is on its way.
struct Link {
    relay: Conn,
    agent: Conn,
    there: Vec<u8>,
    home: Vec<u8>,
}

impl Link {
    /// One whose agent has said this of itself, and was told the same.
    fn of(accepts: &str) -> Link {
        let (mut relay, mut agent, mut there, mut home) =
            (Conn::server(NOW), Conn::client(NOW), Vec::new(), Vec::new());
        let place = (&b"/demo"[..], &b"relay.example"[..]);
        let offer = |fields: &mut ptth_proto::wire::head::FieldWriter<'_>| fields.field("Ptth-Accept", accepts);
        agent.send_offer(NOW, &mut home, place, Token::PTTH_1_0, offer).unwrap();
        assert_eq!(hear(&mut relay, &mut home), ["offer"]);
        relay.accept(NOW, &mut there).unwrap();
        assert_eq!(hear(&mut agent, &mut there), ["turned"]);
        Link { relay, agent, there, home }
    }

    fn ours() -> Link {
        Link::of("ping, pipeline")
    }

    /// The relay asks for the first of several.
    fn lead(&mut self) {
        self.relay
            .send_request(NOW, &mut self.there, (b"GET", b"/1"), Body::None, |fields| {
                fields.field("Host", "");
                fields.field("Ptth-Accept", "aside");
            })
            .unwrap();
        self.relay.send_end(NOW, None, &mut self.there).unwrap();
        self.relay.open_line().unwrap();
    }

    fn ask(&mut self, method: &str) -> Result<(), Error> {
        self.relay.send_ahead(&mut self.there, (method.as_bytes(), b"/n"), |fields| {
            fields.field("Host", "");
            fields.field("Ptth-Accept", "aside");
        })
    }

    /// The agent takes what there is: how many requests behind the one in progress.
    fn take(&mut self) -> usize {
        let mut head = Head::default();
        hear(&mut self.agent, &mut self.there);
        let mut taken = 0;
        while let (used, true) = self.agent.recv_ahead(&self.there, &mut head, &Config::default()).unwrap() {
            self.there.drain(..used);
            taken += 1;
        }
        taken
    }

    fn answer(&mut self) {
        self.agent.send_response(NOW, &mut self.home, (200, b"OK"), Body::Length(2), |_| {}).unwrap();
        self.agent.send_data(NOW, b"ok", &mut self.home).unwrap();
        self.agent.send_end(NOW, None, &mut self.home).unwrap();
    }

    fn heard_by_relay(&mut self) -> Vec<&'static str> {
        hear(&mut self.relay, &mut self.home)
    }
}

/// All events there are, in a word each.
fn hear(conn: &mut Conn, input: &mut Vec<u8>) -> Vec<&'static str> {
    let (mut head, mut words) = (Head::default(), Vec::new());
    while let (used, Some(event)) = conn.recv(NOW, input, &mut head, &Config::default()).unwrap() {
        words.push(word(&event));
        input.drain(..used);
    }
    words
}

const ANSWER: [&str; 3] = ["response", "data", "end"];

#[test]
fn answers_come_in_the_order_of_their_requests() {
    let mut link = Link::ours();
    link.lead();
    for method in ["HEAD", "GET", "HEAD"] {
        link.ask(method).unwrap();
    }
    assert_eq!(link.take(), 3);
    for _ in 0..4 {
        link.answer();
    }
    let bodiless = ["response", "end"];
    let expected = [&ANSWER[..], &bodiless, &ANSWER, &bodiless].concat();
    assert_eq!(link.heard_by_relay(), expected);
    assert!(link.relay.is_idle() && link.agent.is_idle());
}

#[test]
fn only_where_both_have_said_so() {
    for accepts in ["ping", "pipeline", "comet"] {
        let mut link = Link::of(accepts);
        let asked = (b"GET".as_slice(), b"/1".as_slice());
        let mark = |fields: &mut ptth_proto::wire::head::FieldWriter<'_>| {
            fields.field("Host", "");
            fields.field("Ptth-Accept", "aside");
        };
        link.relay.send_request(NOW, &mut link.there, asked, Body::None, mark).unwrap();
        link.relay.send_end(NOW, None, &mut link.there).unwrap();
        assert!(link.relay.open_line().is_err() && !link.relay.can_hint());
        assert!(link.ask("GET").is_err());
        assert_eq!(link.take(), 0);
        // To whoever says it, the mark says nothing, and the next request waits.
        assert!(!link.agent.is_in_line() && !link.agent.wants_read());
        assert!(link.agent.send_aside(NOW, &mut link.home, b"x").is_err());
        assert!(link.home.is_empty());
    }
}

#[test]
fn nothing_follows_a_request_that_may_not_be_repeated_or_has_a_body() {
    for (method, body) in [("POST", Body::None), ("GET", Body::Length(2)), ("PUT", Body::Length(0))] {
        let mut link = Link::ours();
        link.relay
            .send_request(NOW, &mut link.there, (method.as_bytes(), b"/1"), body, |fields| {
                fields.field("Host", "");
                fields.field("Ptth-Accept", "aside");
            })
            .unwrap();
        assert!(link.relay.open_line().is_err(), "{method}: before its end");
        if body == Body::Length(2) {
            link.relay.send_data(NOW, b"ok", &mut link.there).unwrap();
        }
        link.relay.send_end(NOW, None, &mut link.there).unwrap();
        link.take();
        assert!(!link.agent.is_in_line(), "{method}");
        assert!(link.agent.send_aside(NOW, &mut link.home, b"x").is_err(), "{method}");
    }
}

#[test]
fn calls_out_of_turn_are_refused_and_leave_nothing() {
    let mut link = Link::ours();
    assert!(link.relay.open_line().is_err() && link.agent.open_line().is_err());
    assert!(link.ask("GET").is_err() && link.there.is_empty());
    assert!(link.agent.send_aside(NOW, &mut link.home, b"x").is_err());
    link.lead();
    let before = link.there.len();
    // A value that can't be sent.
    let wrong = link.relay.send_ahead(&mut link.there, (b"GET", b"/\r\n"), |_| {});
    assert!(matches!(wrong, Err(Error::Local(_))) && link.there.len() == before);
    link.take();
    assert!(link.agent.send_ahead(&mut link.home, (b"GET", b"/"), |_| {}).is_err());
    assert!(link.agent.send_aside(NOW, &mut link.home, b"a\r\nb").is_err() && link.home.is_empty());
    // An answer that has begun is not set aside.
    link.agent.send_response(NOW, &mut link.home, (200, b"OK"), Body::Length(2), |_| {}).unwrap();
    assert!(link.agent.send_aside(NOW, &mut link.home, b"x").is_err());
}

#[test]
fn as_many_as_there_is_room_for() {
    let mut link = Link::ours();
    link.lead();
    for _ in 1..MOST_IN_LINE {
        assert!(link.relay.has_room_behind());
        link.ask("GET").unwrap();
    }
    assert!(!link.relay.has_room_behind() && !link.relay.can_hint());
    assert!(link.ask("GET").is_err());
    assert_eq!(link.take(), MOST_IN_LINE - 1);
    assert!(!link.agent.wants_read());
    link.answer();
    assert!(link.agent.wants_read());
    assert_eq!(link.heard_by_relay(), ANSWER);
    link.ask("GET").unwrap();
    assert_eq!(link.take(), 1);
    for _ in 0..MOST_IN_LINE {
        link.answer();
        assert_eq!(link.heard_by_relay(), ANSWER);
    }
    assert!(link.relay.is_idle());
}

#[test]
fn what_is_set_aside_is_over_here() {
    let mut link = Link::ours();
    link.lead();
    link.ask("HEAD").unwrap();
    assert_eq!(link.take(), 1);
    link.agent.send_informational(&mut link.home, (103, b"Early Hints"), |_| {}).unwrap();
    link.agent.send_aside(NOW, &mut link.home, b"5c1f09e2b7a4d386-0").unwrap();
    link.agent.send_aside(NOW, &mut link.home, b"5c1f09e2b7a4d386-1").unwrap();
    assert_eq!(link.heard_by_relay(), ["informational", "aside", "aside"]);
    assert!(link.relay.is_idle() && link.agent.is_idle());
}

#[test]
fn to_a_request_that_is_alone_it_says_nothing() {
    let mut link = Link::ours();
    link.relay.send_request(NOW, &mut link.there, (b"GET", b"/"), Body::None, |f| f.field("Host", "")).unwrap();
    link.relay.send_end(NOW, None, &mut link.there).unwrap();
    link.take();
    link.home.extend_from_slice(b"HTTP/1.1 102 Processing\r\nPtth-Aside: 5c1f09e2b7a4d386-2a\r\n\r\n");
    link.answer();
    assert_eq!(link.heard_by_relay(), ["informational", "response", "data", "end"]);
}

#[test]
fn whoever_goes_answers_those_that_are_there() {
    let mut link = Link::ours();
    link.lead();
    link.ask("GET").unwrap();
    assert_eq!(link.take(), 1);
    link.agent.do_not_keep();
    // It crosses that, and is not heard.
    link.ask("GET").unwrap();
    assert!(!link.agent.wants_read());
    assert_eq!(link.take(), 0);
    for _ in 0..2 {
        link.answer();
    }
    assert!(link.home.ends_with(b"Connection: close\r\n\r\nok"));
    // Bytes that still come must not reset what was said.
    assert_eq!(link.agent.closing(), Some(Closing::Linger));
    assert_eq!(link.heard_by_relay(), [ANSWER, ANSWER].concat());
    assert_eq!(link.relay.close_reason(), Some(CloseReason::NotKept));
}

#[test]
fn the_end_of_a_link_is_none_of_an_answer() {
    let mut link = Link::ours();
    link.lead();
    link.ask("GET").unwrap();
    link.take();
    link.answer();
    assert_eq!(link.heard_by_relay(), ANSWER);
    assert_eq!(link.relay.eof(NOW, 0), Err(Fault::EarlyEnd.into()));
}

#[test]
fn a_hint_stands_behind_any_whole_request() {
    let mut link = Link::ours();
    let hint = |fields: &mut ptth_proto::wire::head::FieldWriter<'_>| fields.field("Ptth-Accept", "wanted=3");
    assert!(link.relay.send_hint(&mut link.there, hint).is_err());
    link.relay.send_request(NOW, &mut link.there, (b"POST", b"/"), Body::Length(2), |f| f.field("Host", "")).unwrap();
    assert!(link.relay.send_hint(&mut link.there, hint).is_err());
    link.relay.send_data(NOW, b"ok", &mut link.there).unwrap();
    link.relay.send_end(NOW, None, &mut link.there).unwrap();
    link.relay.send_hint(&mut link.there, hint).unwrap();
    // No request may follow all the same.
    assert!(link.ask("GET").is_err());
    assert_eq!(link.take(), 1);
    assert!(link.agent.send_aside(NOW, &mut link.home, b"x").is_err());
    link.answer();
    link.answer();
    assert_eq!(link.heard_by_relay(), [ANSWER, ANSWER].concat());
    assert!(link.relay.is_idle() && link.agent.is_idle());
}

#[test]
fn nothing_stands_behind_a_connect() {
    let mut link = Link::ours();
    let asked = (b"CONNECT".as_slice(), b"demo.example:22".as_slice());
    link.relay.send_request(NOW, &mut link.there, asked, Body::None, |f| f.field("Host", "")).unwrap();
    link.relay.send_end(NOW, None, &mut link.there).unwrap();
    assert!(!link.relay.can_hint());
    assert!(link.relay.send_hint(&mut link.there, |_| {}).is_err());
    link.take();
    // What comes behind it is not for us.
    link.there.extend_from_slice(b"SSH-2.0-x\r\n\r\n");
    assert_eq!(link.take(), 0);
    assert!(link.agent.close_reason().is_none());
}
