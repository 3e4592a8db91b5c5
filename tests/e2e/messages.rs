//! Messages of every shape: versions, framings, bodies that are none, trailers, and many on one connection.

use crate::support::upstream::{After, Upstream};
use crate::support::wire::{Framing, get, ok};
use crate::support::{Agent, Part, Relay, carries};

#[test]
fn trailers_go_both_ways() {
    let upstream = Upstream::start(|asked| {
        let mut body = Vec::new();
        let trailers = asked.wire.rest(&mut body).unwrap();
        assert_eq!(asked.head.get("Trailer"), Some("X-Sum, X-More"));
        assert_eq!(body, b"abc");
        let trailers: String = trailers.iter().map(|(name, value)| format!("{name}={value};")).collect();
        let heard = format!("heard: {trailers}");
        asked.wire.send(format!(
            "HTTP/1.1 200 OK\r\nTrailer: Grpc-Status\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{heard}\r\n0\r\n\
             Grpc-Status: 0\r\nX-Two: b\r\n\r\n",
            heard.len()
        ));
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    for _ in 0..2 {
        visitor.send(
            "POST / HTTP/1.1\r\nHost: demo.localhost\r\nTrailer: X-Sum, X-More\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\nabc\r\n0\r\nX-Sum: 900150983cd24fb0\r\nX-More: 1\r\n\r\n",
        );
        let answer = visitor.response("POST");
        // They go with a body that comes, and not with one that is whole.
        let (heard, trailers) = ("X-Sum=900150983cd24fb0;X-More=1;", [("Grpc-Status", "0"), ("X-Two", "b")]);
        assert_eq!(answer.text(), format!("heard: {}", if carries(Part::ComingRequest) { heard } else { "" }));
        let expected = if carries(Part::ComingResponse) { &trailers[..] } else { &[] };
        let expected: Vec<_> = expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(answer.trailers, expected);
    }
}

#[test]
fn chunks_may_be_cut_and_extended_in_any_way() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let answer = relay
        .visitor()
        .send(
            "POST / HTTP/1.1\r\nHost: demo.localhost\r\ntransfer-encoding: Chunked\r\n\r\n\
             1;ext=\"v\"\r\na\r\n00A\r\n0123456789\r\n000\r\n\r\n",
        )
        .response("POST");
    assert!(answer.text().ends_with("\r\n\r\na0123456789"), "{}", answer.text());
    assert_eq!(answer.head.get("Content-Length"), Some(answer.body.len().to_string().as_str()));
}

#[test]
fn a_visitor_of_http_1_0_gets_what_it_can_read() {
    let upstream = Upstream::start(|asked| {
        asked.body();
        let answer = match asked.head.target() {
            "/length" => ok("a length"),
            _ => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nchunked\r\n0\r\nX-Trailer: 1\r\n\r\n"
                .to_owned(),
        };
        asked.wire.send(answer);
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);

    let mut visitor = relay.visitor();
    let answer = visitor.send("GET /length HTTP/1.0\r\nHost: demo.localhost\r\n\r\n").response("GET");
    assert_eq!((answer.text().as_str(), answer.framing), ("a length", Framing::Length(8)));
    visitor.expect_end();

    // An answer that was whole before it was passed on has a length.
    let framing = if carries(Part::ComingResponse) { Framing::UntilClose } else { Framing::Length(7) };
    let mut visitor = relay.visitor();
    let answer = visitor.send("GET /chunked HTTP/1.0\r\nHost: demo.localhost\r\n\r\n").response("GET");
    assert_eq!((answer.text().as_str(), answer.framing), ("chunked", framing));
    assert!(answer.trailers.is_empty());

    // One that asks for it is kept, as long as the end of a body can be told.
    let mut visitor = relay.visitor();
    let kept = "GET /length HTTP/1.0\r\nHost: demo.localhost\r\nConnection: keep-alive\r\n\r\n";
    for _ in 0..3 {
        let answer = visitor.send(kept).response("GET");
        assert_eq!(answer.head.get("Connection"), Some("keep-alive"));
        assert_eq!(answer.text(), "a length");
    }
    let answer = visitor.send(kept.replace("length", "chunked")).response("GET");
    assert_eq!((answer.text().as_str(), answer.framing), ("chunked", framing));
    let connection = if framing == Framing::UntilClose { "close" } else { "keep-alive" };
    assert_eq!(answer.head.get("Connection"), Some(connection));
}

#[test]
fn a_visitor_of_http_1_0_need_not_name_a_host() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "default", &upstream.address(), &[]);
    assert_eq!(relay.visitor().send("GET /old HTTP/1.0\r\n\r\n").response("GET").status(), 200);
    let head = upstream.last_request();
    // Servers of today refuse HTTP/1.1 without the field, even if it is empty.
    assert_eq!((head.start.as_str(), head.get("Host")), ("GET /old HTTP/1.1", Some("")));
    assert_eq!(head.get("Via"), Some("1.0 ptth-relay"));
}

#[test]
fn an_upstream_of_http_1_0_is_understood() {
    for (answer, keeps) in [
        ("HTTP/1.0 200 OK\r\n\r\nuntil close", After::Close),
        ("HTTP/1.0 200 OK\r\nContent-Length: 11\r\n\r\nuntil close", After::Close),
        ("HTTP/1.0 200 OK\r\nContent-Length: 11\r\nConnection: Keep-Alive\r\n\r\nuntil close", After::Keep),
    ] {
        let upstream = Upstream::start(move |asked| {
            asked.body();
            asked.wire.send(answer);
            keeps
        });
        let relay = Relay::start(&[]);
        let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
        let mut visitor = relay.visitor();
        for _ in 0..5 {
            let answer = visitor.get("demo", "/");
            assert_eq!(answer.text(), "until close");
            assert!(answer.head.start.starts_with("HTTP/1.1 200"), "{}", answer.head.text);
        }
        let expected = if keeps == After::Keep { 1 } else { 5 };
        assert_eq!(upstream.connections(), expected, "{answer}");
    }
}

#[test]
fn what_has_no_body_has_none() {
    let upstream = Upstream::start(|asked| {
        asked.body();
        let answer = match (asked.head.method(), asked.head.target()) {
            ("HEAD", "/chunked") => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            ("HEAD", _) => "HTTP/1.1 200 OK\r\nContent-Length: 1234567\r\n\r\n",
            (_, "/204") => "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
            (_, "/304") => "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 77\r\n\r\n",
            (_, "/205") => "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        };
        asked.wire.send(answer);
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    // All on one connection: a byte too many or too few would be seen in the next answer.
    let mut visitor = relay.visitor();
    for (method, target, status, length) in [
        ("HEAD", "/", 200, Some("1234567")),
        ("GET", "/204", 204, None),
        ("HEAD", "/chunked", 200, None),
        ("GET", "/304", 304, Some("77")),
        ("GET", "/205", 205, Some("0")),
        ("OPTIONS", "/", 200, Some("0")),
        ("HEAD", "/304", 200, Some("1234567")),
        ("DELETE", "/204", 204, None),
        ("GET", "/", 200, Some("0")),
    ] {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: demo.localhost\r\n\r\n");
        let answer = visitor.send(request).response(method);
        assert_eq!((answer.status(), answer.head.get("Content-Length")), (status, length), "{method} {target}");
        assert!(answer.body.is_empty());
        assert!(!answer.head.has("Connection"));
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn our_own_answer_to_a_head_has_no_body() {
    let relay = Relay::start(&["--timeout", "link=100ms"]);
    let mut visitor = relay.visitor();
    for method in ["HEAD", "GET", "HEAD"] {
        let answer = visitor.send(format!("{method} / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n")).response(method);
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.body.is_empty(), method == "HEAD");
    }
}

#[test]
fn requests_sent_ahead_are_answered_in_their_order() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut all = String::new();
    for n in 0..50 {
        all += &match n % 3 {
            0 => get("demo", &format!("/{n}")),
            1 => format!("POST /{n} HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 7\r\n\r\nGET / H"),
            _ => format!(
                "PUT /{n} HTTP/1.1\r\nHost: demo.localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nGET /\r\n2\r\n H\r\n0\r\n\r\n"
            ),
        };
    }
    let mut visitor = relay.visitor();
    visitor.send(all);
    for n in 0..50 {
        let method = ["GET", "POST", "PUT"][n % 3];
        let answer = visitor.response(method).text();
        assert!(answer.starts_with(&format!("{method} /{n} HTTP/1.1\r\n")), "{n}: {answer}");
        assert_eq!(answer.ends_with("\r\n\r\nGET / H"), n % 3 != 0, "{n}: {answer}");
    }
}

#[test]
fn a_visitor_that_says_close_is_closed_behind_its_answer() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send("GET / HTTP/1.1\r\nHost: demo.localhost\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n");
    let answer = visitor.response("GET");
    assert_eq!((answer.text().as_str(), answer.head.get("Connection")), ("fine", Some("close")));
    visitor.expect_end();
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn a_visitor_that_closes_its_side_still_gets_its_answer() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    // From here on a link or a poll is there: who closes its side and would have to wait has gone.
    assert_eq!(relay.get("demo", "/").text(), "fine");
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/")).shut();
    assert_eq!(visitor.response("GET").text(), "fine");
    visitor.expect_end();
}

#[test]
fn connect_is_refused() {
    let relay = Relay::start(&[]);
    let answer =
        relay.visitor().send("CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n").response("CONNECT");
    assert_eq!((answer.status(), answer.code().as_str()), (501, "connect-unsupported"));
}

#[test]
fn heads_up_to_the_limit_go_through() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    let cookie = "c".repeat(60_000);
    let answer =
        visitor.send(format!("GET / HTTP/1.1\r\nHost: demo.localhost\r\nCookie: {cookie}\r\n\r\n")).response("GET");
    assert_eq!(answer.status(), 200);
    assert_eq!(upstream.last_request().get("Cookie"), Some(cookie.as_str()));
    let fields: String = (0..90).map(|n| format!("X-{n}: {n}\r\n")).collect();
    let answer = visitor.send(format!("GET / HTTP/1.1\r\nHost: demo.localhost\r\n{fields}\r\n")).response("GET");
    assert_eq!(answer.status(), 200);
}

#[test]
fn a_head_within_the_visitors_limit_is_within_every_limit() {
    // What the relay adds to a head must not be what makes the agent refuse it.
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let fields: String = (0..99).map(|n| format!("X-{n}: {n}\r\n")).collect();
    let answer =
        relay.visitor().send(format!("GET / HTTP/1.1\r\nHost: demo.localhost\r\n{fields}\r\n")).response("GET");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let start = "GET / HTTP/1.1\r\nHost: demo.localhost\r\nCookie: ";
    let cookie = "c".repeat(64 * 1024 - start.len() - 4);
    let answer = relay.visitor().send(format!("{start}{cookie}\r\n\r\n")).response("GET");
    assert_eq!(answer.status(), 200, "{}", answer.text());
}

#[test]
fn options_of_the_whole_server_are_asked_for_as_such() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let request = "OPTIONS * HTTP/1.1\r\nHost: demo.localhost\r\n\r\n";
    assert_eq!(relay.visitor().send(request).response("OPTIONS").status(), 200);
    assert_eq!(upstream.last_request().start, "OPTIONS * HTTP/1.1");
}
