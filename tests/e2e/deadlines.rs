//! Nothing waits for ever: each wait has a deadline by name, and the answer says which one it was. The tests set each to a
//! moment and expect what comes of it; none of them measures time.

use std::sync::Mutex;
use std::sync::mpsc;

use crate::support::link::link;
use crate::support::upstream::{After, Upstream};
use crate::support::wire::{get, ok};
use crate::support::{Agent, Part, Relay, carries, expect_broken, lacks, locked};

/// An upstream that never answers, as long as the sender lives.
fn silent() -> (Upstream, mpsc::Sender<()>) {
    let (hold, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let upstream = Upstream::start(move |_| {
        let _ = locked(&held).recv();
        After::Close
    });
    (upstream, hold)
}

#[test]
fn a_head_that_does_not_end_is_a_408() {
    let relay = Relay::start(&["--timeout", "head=300ms"]);
    for part in ["G", "GET / HTTP/1.1\r\nHost: demo", "GET / HTTP/1.1\r\nHost: demo.localhost\r\n"] {
        let mut visitor = relay.visitor();
        visitor.send(part);
        let answer = visitor.response("GET");
        assert_eq!((answer.status(), answer.code().as_str()), (408, "head-timeout"), "{part}");
        assert_eq!(answer.head.get("Connection"), Some("close"));
        visitor.expect_end();
    }
}

#[test]
fn a_head_that_comes_byte_by_byte_has_the_same_deadline() {
    // Each byte is progress, and all of them together are not.
    let relay = Relay::start(&["--timeout", "head=300ms"]);
    let mut visitor = relay.visitor();
    let mut writer = visitor.writer();
    let dripping = std::thread::spawn(move || {
        use std::io::Write;
        while writer.write_all(b"x").is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    });
    assert_eq!(visitor.response("GET").code(), "head-timeout");
    visitor.expect_end();
    drop(visitor);
    dripping.join().unwrap();
}

#[test]
fn a_connection_without_a_request_is_closed_after_a_while() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&["--timeout", "idle=300ms"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut never = relay.visitor();
    never.expect_end();
    let mut once = relay.visitor();
    assert_eq!(once.get("demo", "/").text(), "fine");
    once.expect_end();
    // A link is another matter.
    assert_eq!(relay.get("demo", "/").text(), "fine");
}

#[test]
fn a_request_body_that_stops_is_a_408() {
    let upstream = Upstream::start(|asked| {
        asked.body();
        After::Close
    });
    let relay = Relay::start(&["--timeout", "body=300ms"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    for part in
        ["Content-Length: 5\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "Content-Length: 1\r\n\r\n"]
    {
        let mut visitor = relay.visitor();
        visitor.send(format!("POST / HTTP/1.1\r\nHost: demo.localhost\r\n{part}"));
        let answer = visitor.response("POST");
        assert_eq!((answer.status(), answer.code().as_str()), (408, "body-timeout"), "{part}");
        visitor.expect_end();
    }
    let lines = relay.log().wait_for_count(3, " demo POST / 408 ");
    assert!(lines.iter().all(|line| line.ends_with(" body-timeout")), "{lines:?}");
}

#[test]
fn an_upstream_that_does_not_answer_is_a_504() {
    let (upstream, _hold) = silent();
    let relay = Relay::start(&[]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "answer=300ms"]);
    let answer = relay.get("demo", "/");
    assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream-timeout"));
    assert!(answer.text().contains(&upstream.address()), "{}", answer.text());
    for log in [relay.log(), agent.log()] {
        assert!(log.wait_for(" demo GET / 504 ").ends_with(" upstream-timeout"));
    }
    assert_eq!(upstream.requests().len(), 1, "it was asked again");
}

#[test]
fn an_agent_that_does_not_answer_is_a_504() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&["--timeout", "link-answer=1s"]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    assert_eq!(relay.get("demo", "/").text(), "fine");
    agent.program.freeze();
    let answer = relay.get("demo", "/");
    assert_eq!((answer.status(), answer.code().as_str()), (504, "link-timeout"));
    assert!(answer.text().contains("`demo`") && answer.text().contains("link-answer"), "{}", answer.text());
    agent.program.thaw();
    assert_eq!(relay.get("demo", "/").text(), "fine");
}

#[test]
fn an_upstream_that_can_not_be_connected_in_time_is_a_504() {
    // Nobody answers at a documentation address; where the network refuses at once, that is said instead.
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", "192.0.2.1:80", &["--timeout", "connect=300ms"]);
    let answer = relay.get("demo", "/");
    let code = answer.code();
    let expected = [(504, "upstream-connect-timeout"), (502, "upstream-unreachable"), (502, "upstream-refused")];
    assert!(expected.contains(&(answer.status(), code.as_str())), "{}", answer.text());
}

#[test]
fn a_name_that_nobody_has_is_a_502() {
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", "no-such-host.invalid:80", &[]);
    for _ in 0..2 {
        let answer = relay.get("demo", "/");
        assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream-name"));
        assert!(answer.text().contains("no-such-host.invalid"), "{}", answer.text());
    }
}

#[test]
fn an_answer_whose_body_stops_breaks_off() {
    let (hold, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let upstream = Upstream::start(move |asked| {
        asked.wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
        let _ = locked(&held).recv();
        After::Close
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "stream=300ms"]);
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/"));
    expect_broken(&mut visitor, b"half");
    drop(hold);
}

#[test]
fn a_slow_body_is_not_a_stopped_one() {
    // It takes longer than any of these deadlines, and never as long between two bytes.
    let upstream = Upstream::start(|asked| {
        let mut heard = 0;
        while asked.wire.body_piece(1, |_| heard += 1).unwrap() {}
        asked.wire.send("HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n");
        for _ in 0..16 {
            std::thread::sleep(std::time::Duration::from_millis(100));
            asked.wire.send(heard.to_string());
        }
        After::Keep
    });
    let mut flags = vec!["body=1500ms", "stream=1500ms", "answer=1500ms", "write=1500ms", "head=1500ms"];
    if carries(Part::ComingResponse) {
        // An answer that comes as a whole has begun when it is there.
        flags.push("link-answer=1500ms");
    }
    let mut flags: Vec<&str> = flags.iter().flat_map(|flag| ["--timeout", flag]).collect();
    // It is slower than it may be by default.
    flags.extend(["--limit", "body-rate=1"]);
    let relay = Relay::start(&flags);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &flags);
    let mut visitor = relay.visitor();
    visitor.send("POST / HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 16\r\n\r\n");
    for _ in 0..16 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        visitor.send("x");
    }
    assert_eq!(visitor.response("POST").text(), "16".repeat(16));
}

#[test]
fn a_visitor_that_does_not_take_its_answer_is_let_go() {
    if lacks(Part::ComingResponse) {
        return;
    }
    let upstream = Upstream::start(|asked| {
        asked.wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let block = [b"10000\r\n", &[b'x'; 0x10000][..], b"\r\n"].concat();
        while asked.wire.try_send(&block).is_ok() {}
        After::Close
    });
    let relay = Relay::start(&["--timeout", "write=300ms"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/endless"));
    assert!(relay.log().wait_for(" demo GET /endless 200 ").ends_with(" write-timeout"));
}

#[test]
fn a_visitor_that_takes_its_time_gets_its_whole_answer() {
    // Some of these lie between the programs as a whole when their visitors begin to read, some don't.
    let largest = if carries(Part::ComingResponse) { 16 << 20 } else { 1 << 20 };
    let upstream = Upstream::start(|asked| {
        if let Some(size) = asked.head.target().strip_prefix("/size/") {
            asked.wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"));
            let _ = asked.wire.try_send("x".repeat(size.parse().unwrap()));
        } else {
            // Until it is given up.
            let _ = asked.wire.request_head();
        }
        After::Close
    });
    let relay = Relay::start(&[]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "answer=500ms"]);
    let sizes = (0..).map(|n| (64 << 10) << n).take_while(|size| *size <= largest);
    let mut visitors: Vec<_> = sizes.map(|size: usize| (size, relay.visitor())).collect();
    for (size, visitor) in &mut visitors {
        visitor.send(get("demo", &format!("/size/{size}")));
    }
    // Meanwhile the agent's patience with its upstream ends, and again.
    for _ in 0..2 {
        assert_eq!(relay.get("demo", "/silent").code(), "upstream-timeout");
    }
    for (size, visitor) in &mut visitors {
        assert_eq!(visitor.response("GET").body.len(), *size);
    }
    assert_eq!(agent.log().count("broke in the middle"), 0);
}

#[test]
fn a_visitor_that_half_closed_waits_for_a_moment_only() {
    let (upstream, _hold) = silent();
    let relay = Relay::start(&["--timeout", "half-close=300ms"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/")).shut();
    visitor.expect_end();
    assert!(relay.log().wait_for(" demo GET / 499 ").ends_with(" visitor-gone"));
}

#[test]
fn a_visitor_of_http_1_0_that_half_closed_does_not_take_half_an_answer_for_the_whole() {
    let relay = Relay::start(&["--timeout", "half-close=300ms"]);
    let mut link = link(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send("GET / HTTP/1.0\r\nHost: demo.localhost\r\n\r\n").shut();
    link.request();
    link.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    visitor.expect_reset();
    assert!(relay.log().wait_for(" demo GET / 200 ").ends_with(" visitor-gone"));
}

#[test]
fn a_link_that_stops_in_the_middle_of_its_answer_breaks_off() {
    let relay = Relay::start(&["--timeout", "stream=300ms", "--timeout", "link=300ms"]);
    let mut link = link(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/"));
    link.request();
    link.send(&ok("whole")[..40]);
    let (head, ..) = visitor.response_head("GET").unwrap();
    assert_eq!(head.status(), 200);
    visitor.rest(&mut Vec::new()).expect_err("a clean end");
    link.expect_end();
}
