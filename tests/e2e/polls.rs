//! The agent that polls, against relays by hand: what it sends, how many polls it has out, and what it makes of everything that
//! may happen to a poll or an answer.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;
use std::sync::mpsc::{self, Sender};

use ptth_proto::wire::message::{Pairs, from_base64};
use ptth_proto::wire::packed::{self, Form};
use serde_json::{Value, json};

use crate::support::upstream::{After, Upstream};
use crate::support::wire::{Message, Wire, chunk, ok};
use crate::support::{Program, agent_command, eventually, locked};

/// The answer to a poll of COMET for which there is nothing, of a relay that says what it is.
const NOTHING: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nPtth-Accept: base64\r\nContent-Length: 2\r\n\r\n{}";
/// The same in the `ptth` dialect.
const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\n\r\n";

/// A relay of bare bytes, and an agent that polls it.
struct ByHand {
    listener: TcpListener,
    agent: Program,
}

fn by_hand(dialect: &str, upstream: &Upstream, args: &[&str]) -> ByHand {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let via = format!("http://{}", listener.local_addr().unwrap());
    let quick = ["--timeout", "backoff=20ms", "--timeout", "backoff-max=50ms"];
    let mut command =
        agent_command(&[&upstream.address(), "--via", &via, "--name", "demo", "--dialect", dialect, "-vv"]);
    let agent = Program::start(command.args(quick).args(args));
    ByHand { listener, agent }
}

/// One whose agent has one poll of COMET at a time.
fn comet(upstream: &Upstream) -> ByHand {
    by_hand("comet", upstream, &["--links", "1..1"])
}

fn stock(upstream: &Upstream) -> ByHand {
    by_hand("ptth-relay", upstream, &[])
}

impl ByHand {
    /// The agent's next connection, and its first request.
    fn accept(&self) -> (Wire, Message) {
        let mut wire = Wire::new(self.listener.accept().unwrap().0);
        let request = wire.request();
        (wire, request)
    }

    /// A connection whose first poll was answered with nothing, and whose second one waits.
    fn polling(&self) -> Wire {
        let (mut wire, first) = self.accept();
        assert_eq!(first.head.get("Prefer"), Some("wait=0"));
        wire.send(if first.head.method() == "GET" { NO_CONTENT } else { NOTHING });
        assert!(!wire.request().head.has("Prefer"));
        wire
    }

    /// Whether it has made no other connection.
    fn no_other(&self) -> bool {
        self.listener.set_nonblocking(true).unwrap();
        let other = self.listener.accept();
        self.listener.set_nonblocking(false).unwrap();
        other.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

/// A request of COMET, as an answer to a poll.
fn ask(id: &str, target: &str) -> String {
    let message = json!({
        "message-id": id, "method": "GET", "request-uri": target, "http-version": "PTTH/1.0", "headers": [["Host", "x"]],
        "body": "",
    });
    with_length("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n", &message.to_string())
}

fn with_length(head: &str, body: &str) -> String {
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// Checks that a poll carries this answer.
fn carries(poll: &Message, id: &str, status: u16, body: &str) {
    let reply: Value = serde_json::from_slice(&poll.body).unwrap_or_else(|error| panic!("{error}: {}", poll.text()));
    assert_eq!((&reply["message-id"], &reply["status"], &reply["body"]), (&id.into(), &status.into(), &body.into()));
}

/// Requests of the `ptth` dialect, as the original writes them in answer to a poll.
fn asks(requests: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    packed::write_array(&mut body, requests.len());
    for (id, target) in requests {
        let fields = [(&b"accept"[..], &b"*/*"[..])].into_iter();
        packed::write_ask(&mut body, Form::Stock, id, b"GET", target.as_bytes(), fields, b"").unwrap();
    }
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), &body].concat()
}

/// The head of an answer of the `ptth` dialect.
fn answered(head: &crate::support::wire::Head, id: &str) -> (u16, Pairs) {
    assert_eq!(head.start, format!("POST /7ZSFUKGV/http_response/{id} HTTP/1.1"));
    packed::read_head(&from_base64(head.get("X-PTTH-2LJYXWC4").unwrap().as_bytes()).unwrap()).unwrap()
}

/// An upstream that answers `/slow…` when the sender is dropped, and all else at once.
fn slow() -> (Upstream, Sender<()>) {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::start(move |asked| {
        if asked.head.target().starts_with("/slow") {
            let _ = locked(&wait).recv();
        }
        let _ = asked.wire.try_send(ok("fine"));
        After::Keep
    });
    (upstream, go)
}

#[test]
fn a_poll_is_what_every_known_relay_takes() {
    let upstream = Upstream::saying("fine");
    let version = env!("CARGO_PKG_VERSION");
    for dialect in ["comet", "ptth-relay"] {
        let relay = by_hand(dialect, &upstream, &["--links", "1..1"]);
        let host = relay.listener.local_addr().unwrap();
        let (mut wire, first) = relay.accept();
        let fields = format!("Host: {host}\r\nUser-Agent: ptth-reverse/{version}\r\n");
        let (poll, more, nothing) = match dialect {
            "comet" => ("POST /demo", "Content-Type: application/json\r\nPtth-Accept: base64\r\n", NOTHING),
            _ => ("GET /7ZSFUKGV/http_listen/demo", "Ptth-Accept: full\r\n", NO_CONTENT),
        };
        let length = if dialect == "comet" { "Content-Length: 0\r\n" } else { "" };
        for (request, hurry) in [(first, "Prefer: wait=0\r\n"), {
            wire.send(nothing);
            (wire.request(), "")
        }] {
            let expected = format!("{poll} HTTP/1.1\r\n{fields}{hurry}{more}{length}\r\n");
            let sorted = |text: &str| {
                let mut lines: Vec<_> = text.split("\r\n").map(str::to_owned).collect();
                lines[1..].sort_unstable();
                lines
            };
            assert_eq!(sorted(&request.head.text), sorted(&expected));
            assert!(request.body.is_empty());
        }
    }
}

#[test]
fn two_polls_are_out_and_more_under_load_and_fewer_afterwards() {
    let (upstream, go) = slow();
    let relay = by_hand("comet", &upstream, &["--timeout", "spare=200ms"]);
    let mut lines = vec![relay.polling(), relay.polling()];
    assert!(relay.no_other());
    // For each that gets a request, another one comes.
    for n in 0..6 {
        lines[n].send(ask(&format!("id-{n}"), &format!("/slow/{n}")));
        lines.push(relay.polling());
    }
    drop(go);
    let mut answered: Vec<String> = Vec::new();
    for line in &mut lines[..6] {
        let reply: Value = serde_json::from_slice(&line.request().body).unwrap();
        assert_eq!(reply["body"], "fine");
        answered.push(reply["message-id"].as_str().unwrap().to_owned());
    }
    assert_eq!(answered, ["id-0", "id-1", "id-2", "id-3", "id-4", "id-5"]);
    // Nothing more comes: each poll ends, and is repeated or not, until two are left.
    while lines.len() > 2 {
        lines.retain_mut(|line| {
            line.send(NOTHING);
            line.try_request().unwrap().is_some()
        });
    }
    for (n, line) in lines.iter_mut().enumerate() {
        line.send(ask("last", "/"));
        carries(&line.request(), "last", 200, "fine");
        assert!(n < 2);
    }
}

#[test]
fn no_more_polls_are_out_than_may_be() {
    let (upstream, go) = slow();
    let relay = by_hand("comet", &upstream, &["--links", "2..3"]);
    let mut lines = vec![relay.polling(), relay.polling()];
    lines[0].send(ask("a", "/slow/a"));
    lines.push(relay.polling());
    lines[1].send(ask("b", "/slow/b"));
    lines[2].send(ask("c", "/slow/c"));
    eventually("three requests", || (upstream.requests().len() == 3).then_some(()));
    assert!(relay.no_other());
    drop(go);
    for (line, id) in lines.iter_mut().zip(["a", "b", "c"]) {
        carries(&line.request(), id, 200, "fine");
    }
}

#[test]
fn a_relay_that_does_not_hold_polls_is_not_asked_in_a_circle() {
    let upstream = Upstream::saying("fine");
    for (dialect, nothing) in [("comet", NOTHING), ("ptth-relay", NO_CONTENT)] {
        let relay = by_hand(dialect, &upstream, &["--links", "1..1"]);
        let (mut wire, _) = relay.accept();
        for _ in 0..6 {
            wire.send(nothing);
            wire.request();
        }
        // All but the first one, which was not to be held.
        relay.agent.log.wait_for_count(5, "the relay does not hold polls");
        assert!(relay.no_other());
    }
}

#[test]
fn a_poll_is_held_as_long_as_the_relay_likes() {
    // However little patience there is with the upstream.
    let (upstream, _go) = slow();
    let relay = by_hand("comet", &upstream, &["--timeout", "answer=500ms"]);
    let (mut held, mut other) = (relay.polling(), relay.polling());
    for _ in 0..3 {
        other.send(ask("slow", "/slow"));
        let reply: Value = serde_json::from_slice(&other.request().body).unwrap();
        assert_eq!(reply["status"], 504, "{reply}");
    }
    held.send(ask("id", "/"));
    carries(&held.request(), "id", 200, "fine");
}

#[test]
fn a_relay_of_http_1_0_gets_a_connection_for_each_poll() {
    let upstream = Upstream::saying("fine");
    let relay = comet(&upstream);
    let head = "HTTP/1.0 200 OK\r\nContent-type: application/json\r\n\r\n";
    let (mut wire, _) = relay.accept();
    wire.send(head).send("{}").shut();
    for n in 0..5 {
        let (mut wire, poll) = relay.accept();
        if n > 0 {
            carries(&poll, &(n - 1).to_string(), 200, "fine");
        }
        let message = ask(&n.to_string(), "/");
        wire.send(head).send(message.split_once("\r\n\r\n").unwrap().1).shut();
        wire.expect_end();
    }
    let (_wire, poll) = relay.accept();
    carries(&poll, "4", 200, "fine");
    assert_eq!(relay.agent.log.count("warning"), 0);
}

#[test]
fn an_answer_whose_connection_broke_is_sent_once_more_and_not_again() {
    let upstream = Upstream::saying("fine");
    let relay = comet(&upstream);
    let mut wire = relay.polling();
    wire.send(ask("id", "/"));
    // It may have been read, or not.
    carries(&wire.request(), "id", 200, "fine");
    drop(wire);
    let (again, poll) = relay.accept();
    carries(&poll, "id", 200, "fine");
    drop(again);
    // The next one is a new beginning.
    let (mut wire, poll) = relay.accept();
    assert!(poll.body.is_empty(), "{}", poll.text());
    wire.send(NOTHING);
    wire.request();
    wire.send(ask("next", "/"));
    carries(&wire.request(), "next", 200, "fine");
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn an_answer_that_was_there_already_and_one_that_is_too_late_are_no_trouble() {
    let upstream = Upstream::saying("fine");
    let relay = comet(&upstream);
    let mut wire = relay.polling();
    wire.send(ask("id", "/"));
    wire.request();
    drop(wire);
    let (mut wire, poll) = relay.accept();
    carries(&poll, "id", 200, "fine");
    for n in 0..3 {
        wire.send("HTTP/1.1 404 Not Found\r\nContent-Length: 15\r\n\r\nunknown message");
        assert!(wire.request().body.is_empty());
        wire.send(ask(&n.to_string(), "/"));
        carries(&wire.request(), &n.to_string(), 200, "fine");
    }
    assert!(relay.no_other());
    // Of the first one it knows why.
    assert_eq!(relay.agent.log.wait_for_count(2, "did not want an answer (404): unknown message").len(), 2);
    assert_eq!(relay.agent.log.count("warning"), 0);
}

#[test]
fn a_relay_that_is_not_well_is_left_alone_for_a_while() {
    let upstream = Upstream::saying("fine");
    for (dialect, status) in [("comet", 503), ("comet", 500), ("ptth-relay", 500), ("ptth-relay", 503)] {
        let relay = by_hand(dialect, &upstream, &["--links", "1..1"]);
        let mut wire = relay.polling();
        for n in 1..4 {
            wire.send(with_length(&format!("HTTP/1.1 {status} Not Now\r\n"), "not now"));
            let line = &relay.agent.log.wait_for_count(n, "trying again in")[n - 1];
            assert!(line.contains(&format!("answered {status}")), "{line}");
            wire = relay.polling();
        }
        assert!(relay.agent.out.so_far().len() <= 1, "the URL was printed again");
    }
}

#[test]
fn a_relay_that_does_not_know_the_key_is_told_of() {
    let upstream = Upstream::saying("fine");
    for dialect in ["comet", "ptth-relay"] {
        let mut relay = by_hand(dialect, &upstream, &["--once", "--links", "1..1"]);
        let (mut wire, _) = relay.accept();
        wire.send(with_length("HTTP/1.1 401 Unauthorized\r\n", "Bad API key"));
        assert_eq!(relay.agent.exit_code(), 4);
        relay.agent.log.wait_for("answered 401: it wants a credential that it knows: give it with --token-file");
    }
}

#[test]
fn what_is_no_message_is_no_reason_to_fall() {
    let upstream = Upstream::saying("fine");
    let wrong = |kind: &str, body: &str| with_length(&format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n"), body);
    for (dialect, answers) in [
        (
            "comet",
            [
                wrong("application/json", "{\"message-id\": \"x\""),
                wrong("application/json", "{\"message-id\": \"x\", \"status\": 200}"),
                wrong("text/html", "<html>"),
                wrong(
                    "application/json",
                    "{\"message-id\": \"x\", \"method\": \"GET\", \"request-uri\": \"/\\r\\nX: y\"}",
                ),
            ],
        ),
        (
            "ptth-relay",
            [
                wrong("application/octet-stream", "\u{0}"),
                wrong("application/octet-stream", ""),
                wrong("text/html", "<html>"),
                "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\nand no more".to_owned(),
            ],
        ),
    ] {
        let relay = by_hand(dialect, &upstream, &["--links", "1..1"]);
        for (n, answer) in (1..).zip(&answers) {
            let mut wire = relay.polling();
            wire.send(answer).shut();
            wire.expect_end();
            relay.agent.log.wait_for_count(n, "trying again in");
        }
        assert_eq!(upstream.requests().len(), 0);
    }
}

#[test]
fn a_message_that_has_to_be_answered_by_the_agent_itself_is() {
    // One of a request that can't be passed on, one whose answer is too large, one whose answer has no end.
    let upstream = Upstream::start(|asked| {
        match asked.head.target() {
            "/large" => asked.wire.send(ok(&"x".repeat(2000))),
            _ => asked.wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"),
        };
        let _ = asked.wire.request_head();
        After::Close
    });
    let relay =
        by_hand("comet", &upstream, &["--links", "1..1", "--limit", "message=1000", "--timeout", "half-close=100ms"]);
    let mut wire = relay.polling();
    for (target, code) in [("/large", "answer-too-large"), ("/events", "answer-too-large")] {
        wire.send(ask("id", target));
        let poll = wire.request();
        let reply: Value = serde_json::from_slice(&poll.body).unwrap();
        assert_eq!(reply["status"], 502, "{reply}");
        assert!(reply["body"].as_str().unwrap().contains(&format!("({code})")), "{reply}");
        // It need not go on.
        eventually("the upstream's connection to be closed", || (upstream.open_connections() == 0).then_some(()));
    }
    assert!(relay.no_other());
}

#[test]
fn the_stock_relay_has_one_poll_at_a_time_and_answers_on_other_connections() {
    let (upstream, go) = slow();
    let relay = stock(&upstream);
    let mut poll = relay.polling();
    // Three at once, as its relay may give them.
    poll.send(asks(&[("a", "/slow/a"), ("b", "/b"), ("c", "/c?q")]));
    let next = poll.request();
    assert_eq!(next.head.start, "GET /7ZSFUKGV/http_listen/demo HTTP/1.1");
    for _ in 0..2 {
        let (mut wire, answer) = relay.accept();
        let id = answer.head.target().rsplit('/').next().unwrap().to_owned();
        assert!(id == "b" || id == "c", "{id}");
        assert_eq!(answered(&answer.head, &id).0, 200);
        assert_eq!(answer.text(), "fine");
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\nStreamFinished\n");
    }
    assert!(relay.no_other());
    drop(go);
    // The poll is where it was; a connection for an answer is used again if it is there still.
    poll.send(NO_CONTENT);
    assert_eq!(poll.request().head.method(), "GET");
    poll.send(asks(&[("d", "/d")]));
    poll.request();
    eventually("four requests", || (upstream.requests().len() == 4).then_some(()));
    let targets: Vec<String> = upstream.requests().iter().map(|head| head.target().to_owned()).collect();
    assert!(targets.contains(&"/c?q".to_owned()), "{targets:?}");
    assert_eq!(relay.agent.log.count("warning"), 0);
}

#[test]
fn what_the_stock_relay_has_no_word_for_goes_as_the_nearest_and_is_said_once() {
    let upstream = Upstream::start(|asked| {
        asked.wire.send(
            "HTTP/1.1 302 Found\r\nLocation: /there\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nVary: X\r\nVary: Y\r\n\
             Content-Length: 5\r\n\r\nthere",
        );
        After::Keep
    });
    let relay = stock(&upstream);
    let mut poll = relay.polling();
    let mut answers: Option<Wire> = None;
    for id in ["a", "b"] {
        poll.send(asks(&[(id, "/")]));
        poll.request();
        // The same connection, if it is kept.
        let (mut wire, answer) = match answers.take() {
            Some(mut wire) => {
                let answer = wire.request();
                (wire, answer)
            }
            None => relay.accept(),
        };
        let (status, fields) = answered(&answer.head, id);
        let fields: Vec<(String, String)> = fields
            .into_iter()
            .map(|(name, value)| (String::from_utf8(name).unwrap(), String::from_utf8(value).unwrap()))
            .collect();
        let expected = [("location", "/there"), ("set-cookie", "a=1"), ("vary", "X, Y"), ("content-length", "5")];
        assert_eq!(status, 307);
        assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!((answer.text().as_str(), answer.head.get("Content-Length")), ("there", Some("5")));
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\nStreamFinished\n");
        answers = Some(wire);
    }
    assert_eq!(relay.agent.log.wait_for_count(1, "goes to the relay as 307").len(), 1);
    assert_eq!(relay.agent.log.wait_for_count(1, "fields that come several times").len(), 1);
    assert_eq!(relay.agent.log.count("warning"), 0);
}

#[test]
fn a_visitor_that_left_the_stock_relay_ends_the_upstream() {
    // Without end.
    let upstream = Upstream::start(|asked| {
        if asked.head.target() == "/fine" {
            let _ = asked.wire.try_send(ok("fine"));
            return After::Keep;
        }
        let _ = asked.wire.try_send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while asked.wire.try_send(chunk(&[b'x'; 10_000])).is_ok() {}
        After::Close
    });
    let relay = stock(&upstream);
    let mut poll = relay.polling();
    for id in ["a", "b", "c"] {
        poll.send(asks(&[(id, "/endless")]));
        poll.request();
        let mut wire = Wire::new(relay.listener.accept().unwrap().0);
        let (head, _) = wire.request_head().unwrap().unwrap();
        assert_eq!(answered(&head, id).0, 200);
        assert_eq!(wire.body(100_000), [b'x'; 100_000]);
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\nClientDisconnected\n");
        eventually("the upstream's connection to be closed", || (upstream.open_connections() == 0).then_some(()));
        // The rest of the body is of no use to anybody.
        let mut rest = Vec::new();
        wire.rest(&mut rest).expect_err("a whole body");
    }
    poll.send(asks(&[("d", "/fine")]));
    poll.request();
    let (_wire, answer) = relay.accept();
    assert_eq!((answered(&answer.head, "d").0, answer.text().as_str()), (200, "fine"));
    assert_eq!(relay.agent.log.count("warning"), 0);
}

#[test]
fn an_agent_that_is_asked_to_stop_takes_what_was_under_way_to_it() {
    let upstream = Upstream::saying("fine");
    for dialect in ["comet", "ptth-relay"] {
        let mut relay = by_hand(dialect, &upstream, &["--links", "1..1"]);
        let mut wire = relay.polling();
        relay.agent.terminate();
        relay.agent.log.wait_for("stopping");
        // Its side is closed, and the relay had answered before it knew.
        assert!(wire.try_request().unwrap().is_none());
        if dialect == "comet" {
            wire.send(ask("id", "/"));
            let (mut last, poll) = relay.accept();
            carries(&poll, "id", 200, "fine");
            assert_eq!(poll.head.get("Prefer"), Some("wait=0"));
            last.send(NOTHING);
            last.expect_end();
        } else {
            wire.send(asks(&[("id", "/")]));
            let (mut last, answer) = relay.accept();
            assert_eq!(answered(&answer.head, "id").0, 200);
            last.send("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\nStreamFinished\n");
        }
        assert_eq!(relay.agent.exit_code(), 0);
        wire.expect_end();
    }
}

#[test]
fn an_agent_that_is_asked_to_stop_does_not_wait_for_a_relay_that_does_not_care() {
    let upstream = Upstream::saying("fine");
    for dialect in ["comet", "ptth-relay"] {
        let mut relay = by_hand(dialect, &upstream, &["--links", "1..1", "--timeout", "linger=100ms"]);
        // The poll is held, whatever becomes of its connection.
        let _wire = relay.polling();
        relay.agent.terminate();
        assert_eq!(relay.agent.exit_code(), 0);
    }
    // Nor does it wait for word on its last answer.
    let (upstream, go) = slow();
    let mut relay = by_hand("comet", &upstream, &["--links", "1..1", "--timeout", "linger=100ms"]);
    let mut wire = relay.polling();
    wire.send(ask("id", "/slow"));
    eventually("the request", || (!upstream.requests().is_empty()).then_some(()));
    relay.agent.terminate();
    relay.agent.log.wait_for("stopping: 1 request");
    drop(go);
    carries(&wire.request(), "id", 200, "fine");
    assert_eq!(relay.agent.exit_code(), 0);
    assert_eq!(relay.agent.log.count("warning"), 0);
}
