//! Bodies go on as they come: nothing is held back, nothing is waited for.

use std::io::Write;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::upstream::{After, Upstream};
use crate::support::wire::{Framing, chunk};
use crate::support::{Agent, PATIENCE, Part, Relay, lacks, locked};

/// The upstream sends the next byte only when the visitor has said that it has the one before.
#[test]
fn each_byte_of_a_response_arrives_before_the_next_is_sent() {
    if lacks(Part::ComingResponse) {
        return;
    }
    for (head, framed) in [
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n", false),
        ("HTTP/1.0 200 OK\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n", false),
    ] {
        let (confirm, confirmed) = mpsc::channel();
        let confirmed = Mutex::new(confirmed);
        let upstream = Upstream::start(move |asked| {
            let confirmed = locked(&confirmed);
            asked.wire.send(head);
            for byte in b'a'..b'a' + 20 {
                confirmed.recv_timeout(PATIENCE).unwrap();
                asked.wire.send(if framed { chunk(&[byte]) } else { vec![byte] });
            }
            if framed {
                asked.wire.send("0\r\n\r\n");
            }
            After::Close
        });
        let relay = Relay::start(&[]);
        let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
        let mut visitor = relay.visitor();
        visitor.send("GET /events HTTP/1.1\r\nHost: demo.localhost\r\n\r\n");
        // The head arrives before any of the body is there.
        let (answer, framing, _) = visitor.response_head("GET").unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(framing == Framing::Chunked, !head.contains("Content-Length"), "{}", answer.text);
        for byte in b'a'..b'a' + 20 {
            confirm.send(()).unwrap();
            assert_eq!(visitor.body(1), [byte]);
        }
        let mut rest = Vec::new();
        visitor.rest(&mut rest).unwrap();
        assert!(rest.is_empty());
        // What ended the body was not the end of the visitor's connection.
        drop(upstream);
        assert_eq!(visitor.get("demo", "/").status(), 502);
    }
}

/// The visitor sends the next byte only when the upstream has said that it has the one before.
#[test]
fn each_byte_of_a_request_arrives_before_the_next_is_sent() {
    if lacks(Part::ComingRequest) {
        return;
    }
    for framed in [true, false] {
        let (confirm, confirmed) = mpsc::channel();
        let confirm = Mutex::new(confirm);
        let upstream = Upstream::start(move |asked| {
            let confirm = locked(&confirm);
            confirm.send(b'!').unwrap();
            while asked.wire.body_piece(1, |byte| confirm.send(byte[0]).unwrap()).unwrap() {}
            asked.wire.send("HTTP/1.1 204 No Content\r\n\r\n");
            After::Keep
        });
        let relay = Relay::start(&[]);
        let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
        let mut visitor = relay.visitor();
        let framing = if framed { "Transfer-Encoding: chunked" } else { "Content-Length: 20" };
        visitor.send(format!("POST / HTTP/1.1\r\nHost: demo.localhost\r\n{framing}\r\n\r\n"));
        // The head arrives before any of the body is there.
        assert_eq!(confirmed.recv_timeout(PATIENCE).unwrap(), b'!');
        for byte in b'a'..b'a' + 20 {
            visitor.send(if framed { chunk(&[byte]) } else { vec![byte] });
            assert_eq!(confirmed.recv_timeout(PATIENCE).unwrap(), byte);
        }
        if framed {
            visitor.send("0\r\n\r\n");
        }
        assert_eq!(visitor.response("POST").status(), 204);
    }
}

#[test]
fn an_answer_before_the_end_of_its_request_is_heard_at_once() {
    if lacks(Part::ComingRequest) {
        return;
    }
    let upstream = Upstream::start(|asked| {
        asked.wire.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large");
        // What still comes is read, so that the answer is not lost to a reset.
        let mut rest = Vec::new();
        let _ = asked.wire.rest(&mut rest);
        After::Close
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    for _ in 0..3 {
        let mut visitor = relay.visitor();
        visitor.send("POST / HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 1000000\r\n\r\nonly the start");
        let answer = visitor.response("POST");
        assert_eq!((answer.status(), answer.text().as_str()), (413, "too large"));
        // The rest of the request would have to be read as a next one.
        visitor.expect_end();
    }
    // The tunnel lives.
    assert_eq!(relay.get("demo", "/").status(), 413);
}

#[test]
fn a_request_may_go_on_while_its_answer_does() {
    if lacks(Part::ComingRequest) {
        return;
    }
    // A conversation within one exchange: each line is answered before the next is sent.
    let upstream = Upstream::start(|asked| {
        asked.wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let mut line = Vec::new();
        while asked.wire.body_piece(1, |byte| line.extend_from_slice(byte)).unwrap() {
            if line.ends_with(b"\n") {
                asked.wire.send(chunk(&[b"heard ", &line[..]].concat()));
                line.clear();
            }
        }
        asked.wire.send("0\r\n\r\n");
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send("POST / HTTP/1.1\r\nHost: demo.localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(visitor.response_head("POST").unwrap().0.status(), 200);
    for line in ["one\n", "two\n", "three\n"] {
        visitor.send(chunk(line.as_bytes()));
        let expected = format!("heard {line}");
        assert_eq!(visitor.body(expected.len()), expected.as_bytes());
    }
    visitor.send("0\r\n\r\n");
    visitor.rest(&mut Vec::new()).unwrap();
    // The whole request was used up: the connection goes on.
    visitor.send("POST / HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 5\r\n\r\nfour\n");
    assert_eq!(visitor.response("POST").text(), "heard four\n");
}

#[test]
fn a_visitor_who_waits_for_a_100_gets_the_upstreams_own() {
    if lacks(Part::ComingRequest) {
        return;
    }
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&order);
    let upstream = Upstream::start(move |asked| {
        assert_eq!(asked.head.get("Expect"), Some("100-continue"));
        locked(&seen).push("asked");
        asked.wire.send("HTTP/1.1 100 Continue\r\n\r\n");
        let body = asked.body().unwrap();
        asked.wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())).send(body);
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send("PUT / HTTP/1.1\r\nHost: demo.localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(visitor.any_response_head("PUT").status(), 100);
    assert_eq!(*locked(&order), ["asked"]);
    visitor.send("body");
    let answer = visitor.response("PUT");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "body"));
}

#[test]
fn early_hints_arrive_before_the_answer_is_made() {
    if lacks(Part::Interim) {
        return;
    }
    let (go, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let upstream = Upstream::start(move |asked| {
        for hint in ["</a.css>", "</b.css>"] {
            asked
                .wire
                .send(format!("HTTP/1.1 103 Early Hints\r\nLink: {hint}\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n"));
            locked(&wait).recv_timeout(PATIENCE).unwrap();
        }
        asked.wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send("GET / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n");
    for hint in ["</a.css>", "</b.css>"] {
        let head = visitor.any_response_head("GET");
        assert_eq!((head.status(), head.get("Link")), (103, Some(hint)));
        assert!(!head.has("X-Hop") && !head.has("Connection"), "{}", head.text);
        go.send(()).unwrap();
    }
    assert_eq!(visitor.response("GET").text(), "ok");

    // HTTP/1.0 has no 1xx: there it is swallowed.
    let mut old = relay.visitor();
    old.send("GET / HTTP/1.0\r\nHost: demo.localhost\r\n\r\n");
    go.send(()).unwrap();
    go.send(()).unwrap();
    let answer = old.response("GET");
    assert_eq!((answer.text().as_str(), answer.interim.len()), ("ok", 0));
}

#[test]
fn an_upload_that_nobody_wants_gets_its_answer_all_the_same() {
    // It answers at the head, and closes on what it has not read: that resets its connection.
    let upstream = Upstream::start(|asked| {
        asked.wire.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large");
        After::Close
    });
    let relay = Relay::start(&["--timeout", "link=200ms"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    for (tunnel, status) in [("demo", 413), ("nobody", 503)].repeat(5) {
        let mut visitor = relay.visitor();
        let mut writer = visitor.writer();
        let upload = thread::spawn(move || {
            let head = format!("POST / HTTP/1.1\r\nHost: {tunnel}.localhost\r\nContent-Length: 8000000\r\n\r\n");
            let _ = writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&vec![b'x'; 8_000_000]));
        });
        let answer = visitor.response("POST");
        assert_eq!(answer.status(), status, "{}", answer.text());
        upload.join().unwrap();
    }
}

#[test]
fn a_visitor_who_waits_for_a_100_in_vain_is_told_what_is_wrong() {
    let relay = Relay::start(&["--timeout", "link=200ms"]);
    let mut visitor = relay.visitor();
    visitor.send("PUT / HTTP/1.1\r\nHost: nobody.localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    let answer = visitor.response("PUT");
    assert_eq!((answer.code().as_str(), answer.interim.len()), ("no-link", 0));
    // Whether the body comes now or not, nothing that follows could be told from it.
    visitor.expect_end();
}
