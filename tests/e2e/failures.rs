//! When the upstream fails: the visitor is told which hop it was, by a code that both logs have too, and it passes.

use std::io::ErrorKind;
use std::sync::Mutex;
use std::sync::mpsc;

use crate::support::upstream::{After, Upstream};
use crate::support::wire::{ok, post};
use crate::support::{
    Agent, Dialect, PATIENCE, Part, Relay, dialect, eventually, expect_broken, free_port, lacks, locked,
};

#[test]
fn an_upstream_that_is_down_is_a_502_until_it_is_up_again() {
    let port = free_port();
    let relay = Relay::start(&[]);
    let agent = Agent::start(&relay, "demo", &format!("127.0.0.1:{port}"), &[]);

    let answer = relay.get("demo", "/page");
    assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream-refused"));
    assert!(answer.text().starts_with("502 Bad Gateway (upstream-refused)\n"), "{}", answer.text());
    assert!(answer.text().contains(&format!("127.0.0.1:{port}")), "{}", answer.text());
    assert!(answer.text().contains("`demo`") && answer.text().contains("ptth-reverse, request"), "{}", answer.text());
    assert_eq!(answer.head.get("Cache-Control"), Some("no-store"));
    for log in [relay.log(), agent.log()] {
        let line = log.wait_for(" demo GET /page 502 ");
        assert!(line.ends_with(" upstream-refused"), "{line}");
    }

    let request = "GET / HTTP/1.1\r\nHost: demo.localhost\r\nAccept: application/json\r\n\r\n";
    let answer = relay.visitor().send(request).response("GET");
    assert_eq!(answer.head.get("Content-Type"), Some("application/json"));
    let page: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((&page["status"], &page["code"]), (&502.into(), &"upstream-refused".into()));
    assert_eq!(page["program"], "ptth-reverse");
    assert!(page["message"].as_str().unwrap().contains(&port.to_string()));

    // A request with a body hears of it too, and its connection goes on unless the answer, which was faster than the body, says so.
    let mut visitor = relay.visitor();
    for _ in 0..3 {
        let answer = visitor.send(post("demo", "/", "a body")).response("POST");
        assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream-refused"));
        if answer.head.get("Connection") == Some("close") {
            visitor.expect_end();
            visitor = relay.visitor();
        }
    }

    for text in ["first", "second"] {
        let upstream = Upstream::start_on(port, move |asked| {
            asked.body();
            asked.wire.send(ok(text));
            After::Keep
        });
        let answer = visitor.get("demo", "/");
        assert_eq!((answer.status(), answer.text().as_str()), (200, text));
        drop(upstream);
        assert_eq!(visitor.get("demo", "/").status(), 502);
    }
}

#[test]
fn a_body_that_breaks_off_is_never_taken_for_whole() {
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\nX-Trailer: but no end\r\n",
    ] {
        let upstream = Upstream::start(move |asked| {
            let whole = asked.head.target() == "/whole";
            asked.wire.send(if whole { ok("whole") } else { head.to_owned() });
            if whole { After::Keep } else { After::Close }
        });
        let relay = Relay::start(&[]);
        let agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
        let mut visitor = relay.visitor();
        visitor.send("GET /half HTTP/1.1\r\nHost: demo.localhost\r\n\r\n");
        let (status, code) = expect_broken(&mut visitor, b"half");
        assert!(relay.log().wait_for(&format!(" demo GET /half {status} ")).ends_with(&format!(" {code}")));
        assert!(agent.log().wait_for(" demo GET /half 200 ").ends_with(" upstream-lost"));
        // The tunnel lives.
        assert_eq!(relay.get("demo", "/whole").text(), "whole");
    }
}

#[test]
fn an_answer_that_breaks_at_once_is_asked_for_once_and_laid_at_the_right_door() {
    // Head and fault arrive together.
    for (bytes, code) in [
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n", "upstream-protocol"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "upstream-protocol"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "upstream-lost"),
    ] {
        let upstream = Upstream::answering(bytes);
        let relay = Relay::start(&[]);
        let agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
        let mut visitor = relay.visitor();
        visitor.send("GET / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n");
        // What had begun breaks off; what had not is a 502 of the agent's. What goes as a message can't say more than that it broke.
        match visitor.try_response("GET") {
            Ok(answer) => {
                let told = if dialect() == Dialect::Flip { code } else { "upstream-lost" };
                assert_eq!((answer.status(), answer.code().as_str()), (502, told), "{bytes}");
            }
            Err(error) => assert_ne!(error.kind(), ErrorKind::TimedOut, "{bytes}"),
        }
        assert!(agent.log().wait_for(" demo GET / ").ends_with(code), "{bytes}");
        assert_eq!(upstream.requests().len(), 1, "{bytes}: asked again");
    }
}

#[test]
fn a_visitor_of_http_1_0_can_tell_a_body_that_broke_off() {
    if lacks(Part::ComingResponse) {
        return;
    }
    // To it the end of the connection is the end of the body: only a reset is none.
    let upstream = Upstream::answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send("GET / HTTP/1.0\r\nHost: demo.localhost\r\n\r\n");
    visitor.try_response("GET").expect_err("a clean end");
}

#[test]
fn a_connection_that_the_upstream_has_closed_meanwhile_costs_no_request() {
    // It says that it keeps the connection, and closes it.
    let upstream = Upstream::start(|asked| {
        asked.body();
        asked.wire.send(ok("fine"));
        After::Close
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    for _ in 0..100 {
        assert_eq!(visitor.get("demo", "/").text(), "fine");
    }
}

#[test]
fn a_get_that_meets_the_end_of_a_kept_connection_is_asked_again_and_a_post_is_not() {
    // The second request on each connection is heard, and not answered.
    let upstream = Upstream::start(|asked| {
        asked.body();
        if asked.number == 1 {
            return After::Close;
        }
        asked.wire.send(ok("fine"));
        After::Keep
    });
    let relay = Relay::start(&[]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    assert_eq!(visitor.get("demo", "/1").text(), "fine");
    assert_eq!(visitor.get("demo", "/2").text(), "fine");
    let targets = |method: &str| {
        let requests = upstream.requests();
        requests.iter().filter(|head| head.method() == method).map(|head| head.target().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(targets("GET"), ["/1", "/2", "/2"]);

    let answer = visitor.send(post("demo", "/3", "once")).response("POST");
    assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream-lost"));
    assert_eq!(targets("POST"), ["/3"]);
    agent.log().wait_for(" demo POST /3 502 4 ");
    // A PUT whose body is gone can't be sent again either.
    assert_eq!(visitor.get("demo", "/4").text(), "fine");
    let put = "PUT /5 HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 4\r\n\r\nonce";
    assert_eq!(visitor.send(put).response("PUT").code(), "upstream-lost");
    assert_eq!(targets("PUT"), ["/5"]);
}

#[test]
fn kept_connections_to_the_upstream_are_used_again() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    for _ in 0..50 {
        assert_eq!(visitor.get("demo", "/").text(), "fine");
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn kept_connections_to_the_upstream_are_closed_after_a_while() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "upstream-idle=200ms"]);
    for round in 1..=3 {
        assert_eq!(relay.get("demo", "/").text(), "fine");
        assert_eq!(upstream.connections(), round);
        eventually("the connection to be closed", || (upstream.open_connections() == 0).then_some(()));
    }
}

/// What an upstream may not say, and why.
const WRONG: [(&str, &str); 10] = [
    ("hello\r\n\r\n", "bad-start-line"),
    ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "length-and-coding"),
    ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab", "two-lengths"),
    ("HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab", "bad-length"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "transfer-coding"),
    ("HTTP/1.1 200 OK\r\nX : y\r\n\r\n", "space-before-colon"),
    ("HTTP/1.1 200 OK\r\nX: y\r\n folded\r\nContent-Length: 0\r\n\r\n", "obsolete-folding"),
    ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", "unasked-switch"),
    ("HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n", "bad-status"),
    ("HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", "bad-start-line"),
];

#[test]
fn an_answer_that_is_none_is_a_502_that_says_why() {
    let next = Mutex::new(WRONG.iter());
    let upstream = Upstream::start(move |asked| {
        asked.wire.send(locked(&next).next().unwrap().0);
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    for (bytes, why) in WRONG {
        let answer = visitor.get("demo", "/");
        assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream-protocol"), "{bytes}");
        assert!(answer.text().contains(&format!("({why})")), "{bytes}: {}", answer.text());
    }
    // Not one of those connections was trusted again, nor was any request sent twice.
    assert_eq!((upstream.connections(), upstream.requests().len()), (WRONG.len(), WRONG.len()));
}

#[test]
fn bytes_behind_an_answer_are_nobodys_answer() {
    let upstream = Upstream::start(|asked| {
        asked.body();
        let planted = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nplanted";
        let bytes = match asked.head.method() {
            // A body where none may be.
            "HEAD" => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{planted}", planted.len()),
            "DELETE" => format!("HTTP/1.1 204 No Content\r\n\r\n{planted}"),
            _ => ok("fine") + planted,
        };
        asked.wire.send(bytes);
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    for method in ["GET", "HEAD", "DELETE", "GET", "HEAD", "HEAD", "DELETE", "GET"] {
        let answer = visitor.send(format!("{method} / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n")).response(method);
        let expected = if method == "GET" { "fine" } else { "" };
        assert_eq!(answer.text(), expected, "{method}");
        assert_eq!(answer.status(), if method == "DELETE" { 204 } else { 200 });
    }
}

#[test]
fn a_slow_exchange_holds_up_nobody_else() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::start(move |asked| {
        if asked.head.target() == "/slow" {
            locked(&wait).recv_timeout(PATIENCE).unwrap();
        }
        asked.wire.send(ok("fine"));
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut slow = relay.visitor();
    slow.send("GET /slow HTTP/1.1\r\nHost: demo.localhost\r\n\r\n");
    for _ in 0..20 {
        assert_eq!(relay.get("demo", "/").text(), "fine");
    }
    go.send(()).unwrap();
    assert_eq!(slow.response("GET").text(), "fine");
}

#[test]
fn an_agent_says_when_its_links_are_all_busy() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::start(move |asked| {
        if asked.head.target() == "/slow" {
            locked(&wait).recv_timeout(PATIENCE).unwrap();
        }
        asked.wire.send(ok("fine"));
        After::Keep
    });
    let relay = Relay::start(&["--timeout", "link=500ms"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["--links", "1..1"]);
    let mut slow = relay.visitor();
    slow.send("GET /slow HTTP/1.1\r\nHost: demo.localhost\r\n\r\n");
    eventually("the slow request", || (!upstream.requests().is_empty()).then_some(()));
    let answer = relay.get("demo", "/");
    assert_eq!((answer.status(), answer.code().as_str()), (503, "links-busy"));
    go.send(()).unwrap();
    assert_eq!(slow.response("GET").text(), "fine");
    assert_eq!(relay.get("demo", "/").text(), "fine");
}
