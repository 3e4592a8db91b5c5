//! Streams, and what is said around a body: events, uploads without end, words in front of an answer, trailers behind it, answers
//! before their request is whole, and requests sent ahead.

use std::io::Write;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::link::link;
use crate::support::upstream::{After, Upstream};
use crate::support::wire::{Framing, Message, Wire, chunk, get, ok, post};
use crate::support::{Agent, PATIENCE, Part, Relay, carries, eventually, lacks, locked};

/// A gate: what waits at it goes on when it is opened, one for each opening, or all when the opener is gone.
fn gate() -> (Sender<()>, Mutex<Receiver<()>>) {
    let (open, wait) = mpsc::channel();
    (open, Mutex::new(wait))
}

fn pass(gate: &Mutex<Receiver<()>>) {
    let _ = locked(gate).recv_timeout(PATIENCE);
}

fn pairs(fields: &[(String, String)]) -> Vec<(&str, &str)> {
    fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn each_reader_has_an_event_before_the_next_is_sent() {
    const READERS: usize = 5;
    if lacks(Part::ComingResponse) {
        return;
    }
    // An event goes to all readers, in two pieces, and the next one when all have said that they have both.
    let open: Arc<Mutex<Vec<Sender<String>>>> = Arc::default();
    let readers = Arc::clone(&open);
    let upstream = Upstream::start(move |asked| {
        if asked.head.target() != "/events" {
            asked.wire.send(ok("no event"));
            return After::Keep;
        }
        let (sender, events) = mpsc::channel::<String>();
        let first = asked.head.get("Last-Event-ID").unwrap_or("none").to_owned();
        asked
            .wire
            .send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            .send(chunk(format!(": behind {first}\n\n").as_bytes()));
        locked(&readers).push(sender);
        for piece in events {
            asked.wire.send(chunk(piece.as_bytes()));
        }
        asked.wire.send("0\r\n\r\n");
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitors: Vec<Wire> = (0..READERS).map(|_| relay.visitor()).collect();
    for (n, visitor) in visitors.iter_mut().enumerate() {
        visitor.send(format!(
            "GET /events HTTP/1.1\r\nHost: demo.localhost\r\nAccept: text/event-stream\r\nLast-Event-ID: {n}\r\n\r\n"
        ));
        let (head, ..) = visitor.response_head("GET").unwrap();
        assert_eq!(head.get("Content-Type"), Some("text/event-stream"));
        assert_eq!(visitor.body(12), format!(": behind {n}\n\n").as_bytes());
    }
    eventually("all readers", || (locked(&open).len() == READERS).then_some(()));
    for n in 0..20 {
        for piece in [format!("id: {n}\ndata: the first line\n"), "data: the second line\n\n".to_owned()] {
            for reader in locked(&open).iter() {
                reader.send(piece.clone()).unwrap();
            }
            for visitor in &mut visitors {
                assert_eq!(visitor.body(piece.len()), piece.as_bytes());
            }
        }
        // Open streams are in nobody's way.
        assert_eq!(relay.get("demo", "/").text(), "no event");
    }
    locked(&open).clear();
    for visitor in &mut visitors {
        visitor.rest(&mut Vec::new()).unwrap();
        assert_eq!(visitor.get("demo", "/").text(), "no event");
    }
}

#[test]
fn an_upload_without_end_is_answered_as_it_goes_and_never_taken_for_whole() {
    const PIECE: usize = 64 * 1024;
    if lacks(Part::ComingRequest) {
        return;
    }
    let (ended, end) = mpsc::channel();
    let ended = Mutex::new(ended);
    let upstream = Upstream::start(move |asked| {
        if asked.head.method() == "GET" {
            asked.wire.send(ok("fine"));
            return After::Keep;
        }
        asked.wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let mut length = 0;
        let broken = loop {
            match asked.wire.body_piece(PIECE, |piece| length += piece.len()) {
                Ok(true) if length % PIECE == 0 => {
                    asked.wire.send(chunk(format!("{:08}\n", length / PIECE).as_bytes()));
                }
                Ok(true) => {}
                Ok(false) => break None,
                Err(error) => break Some(error.kind()),
            }
        };
        locked(&ended).send(broken).unwrap();
        After::Close
    });
    let relay = Relay::start(&[]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send("POST /upload HTTP/1.1\r\nHost: demo.localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(visitor.response_head("POST").unwrap().0.status(), 200);
    let piece = chunk(&vec![b'x'; PIECE]);
    for n in 1..=200 {
        visitor.send(&piece);
        assert_eq!(visitor.body(9), format!("{n:08}\n").as_bytes());
        assert_eq!(end.try_recv(), Err(mpsc::TryRecvError::Empty));
    }
    for program in [&relay.program, &agent.program] {
        let peak = program.peak_memory();
        assert!(peak < 16 << 20, "{peak} bytes");
    }
    // In the middle of a chunk: what the upstream has is not the whole, and it can tell.
    visitor.send(&piece[..PIECE / 2]);
    drop(visitor);
    assert!(end.recv_timeout(PATIENCE).unwrap().is_some(), "half an upload has a clean end");
    relay.log().wait_for(" demo POST /upload 200 ");
    assert_eq!(relay.get("demo", "/").text(), "fine");
}

#[test]
fn a_body_that_is_not_wanted_is_never_sent_and_its_connection_ends() {
    if lacks(Part::ComingRequest) {
        return;
    }
    for (status, framing) in
        [(417, "Content-Length: 31"), (413, "Transfer-Encoding: chunked"), (401, "Content-Length: 31")]
    {
        // An answer of a length, and one that ends only later: whoever waits is told with its head.
        for whole in [true, false] {
            let (go, wait) = gate();
            let (ended, end) = mpsc::channel();
            let ended = Mutex::new(ended);
            let upstream = Upstream::start(move |asked| {
                if asked.head.method() == "GET" {
                    asked.wire.send(ok("fine"));
                    return After::Keep;
                }
                assert_eq!(asked.head.get("Expect"), Some("100-continue"));
                if whole {
                    asked.wire.send(format!("HTTP/1.1 {status} No\r\nContent-Length: 2\r\n\r\nno"));
                } else {
                    asked.wire.send(format!("HTTP/1.1 {status} No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n"));
                    pass(&wait);
                    asked.wire.send("0\r\n\r\n");
                }
                let mut rest = Vec::new();
                let broken = asked.wire.rest(&mut rest).is_err();
                locked(&ended).send((rest, broken)).unwrap();
                After::Close
            });
            let relay = Relay::start(&[]);
            let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
            let mut visitor = relay.visitor();
            visitor
                .send(format!("PUT / HTTP/1.1\r\nHost: demo.localhost\r\nExpect: 100-continue\r\n{framing}\r\n\r\n"));
            let (head, _, interim) = visitor.response_head("PUT").unwrap();
            assert_eq!((head.status(), interim.len()), (status, 0));
            assert_eq!(head.get("Connection"), Some("close"), "{}", head.text);
            assert_eq!(visitor.body(2), b"no");
            go.send(()).unwrap();
            visitor.rest(&mut Vec::new()).unwrap();
            // The upstream's connection has half a request on it: nothing more comes on it but its end.
            assert_eq!(end.recv_timeout(PATIENCE).unwrap(), (Vec::new(), true));
            // A body that comes all the same is none, and no request either.
            let _ = visitor.try_send(get("demo", "/body"));
            visitor.expect_end();
            assert_eq!(relay.get("demo", "/next").text(), "fine");
            let targets: Vec<String> = upstream.requests().iter().map(|head| head.target().to_owned()).collect();
            assert_eq!(targets, ["/", "/next"]);
            assert_eq!(upstream.connections(), 2);
        }
    }
}

#[test]
fn a_visitor_that_does_not_wait_for_a_100_loses_nothing() {
    // One that gives its leave, and one that doesn't care for it. Where bodies are whole, the relay gives leave itself.
    let upstream = Upstream::start(|asked| {
        if asked.head.target() == "/leave" && asked.head.has("Expect") {
            asked.wire.send("HTTP/1.1 100 Continue\r\n\r\n");
        }
        let Some(body) = asked.body() else { return After::Close };
        asked.wire.send(ok(&String::from_utf8(body).unwrap()));
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    for n in 0..6 {
        let target = ["/leave", "/ignored"][n % 2];
        let head = format!("PUT {target} HTTP/1.1\r\nHost: demo.localhost\r\nExpect: 100-continue\r\n");
        if n < 4 {
            visitor.send(format!("{head}Content-Length: 4\r\n\r\nbody"));
        } else {
            visitor.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"));
        }
        let answer = visitor.response("PUT");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "body"));
        let given = target == "/leave" || !carries(Part::ComingRequest);
        let interim: Vec<u16> = answer.interim.iter().map(|head| head.status()).collect();
        assert_eq!(interim, if given { &[100][..] } else { &[] });
        assert!(!answer.head.has("Connection"), "{}", answer.head.text);
    }
}

#[test]
fn a_visitor_of_http_1_0_can_expect_nothing() {
    let upstream = Upstream::start(|asked| {
        // Unasked, as some servers do it.
        asked.wire.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n");
        let Some(body) = asked.body() else { return After::Close };
        asked.wire.send(ok(&String::from_utf8(body).unwrap()));
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send("PUT / HTTP/1.0\r\nHost: demo.localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\nbody");
    let answer = visitor.response("PUT");
    assert_eq!((answer.status(), answer.interim.len(), answer.text().as_str()), (200, 0, "body"));
    // The upstream would take it for the word of one who can wait.
    assert!(!upstream.last_request().has("Expect"));
    // Any other expectation is for the upstream to judge, where it has a place.
    let mut visitor = relay.visitor();
    visitor.send("PUT / HTTP/1.1\r\nHost: demo.localhost\r\nExpect: a-miracle\r\nContent-Length: 4\r\n\r\nbody");
    assert_eq!(visitor.response("PUT").status(), 200);
    assert_eq!(upstream.last_request().get("Expect"), carries(Part::ComingRequest).then_some("a-miracle"));
}

#[test]
fn what_comes_in_front_of_an_answer_is_not_the_answer() {
    let upstream = Upstream::start(|asked| {
        asked.body();
        // No response of 1xx has a body, but one may say that it does.
        let says = asked.head.target() == "/4";
        let length = if says { "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n" } else { "" };
        asked.wire.send(format!(
            "HTTP/1.1 102 Processing\r\n\r\n\
             HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nLink: </b.js>; rel=preload\r\n\
             Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nProxy-Connection: close\r\n\r\n\
             HTTP/1.1 103 Early Hints\r\nLink: </c.css>; rel=preload\r\n{length}Connection: close\r\n\r\n\
             HTTP/1.1 100 Continue\r\n\r\n\
             HTTP/1.1 199 Whatever\r\n\r\n",
        ));
        asked.wire.send(match asked.head.method() {
            "HEAD" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
            "DELETE" => "HTTP/1.1 204 No Content\r\n\r\n",
            _ => "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok",
        });
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    for (n, (method, status)) in
        [("GET", 201), ("HEAD", 200), ("POST", 201), ("DELETE", 204), ("GET", 201)].into_iter().enumerate()
    {
        visitor.send(format!("{method} /{n} HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 0\r\n\r\n"));
        let answer = visitor.response(method);
        assert_eq!(answer.status(), status);
        assert!(!answer.head.has("Link") && !answer.head.has("Connection"), "{}", answer.head.text);
        let interim: Vec<String> = answer.interim.iter().map(|head| head.text.clone()).collect();
        let expected = [
            "HTTP/1.1 102 Processing\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nLink: </b.js>; rel=preload\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nLink: </c.css>; rel=preload\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 199 Whatever\r\n\r\n",
        ];
        assert_eq!(interim, if carries(Part::Interim) { &expected[..] } else { &[] });
        relay.log().wait_for(&format!(" demo {method} /{n} {status} "));
    }
    // `close` in front of an answer is not its own. A body that can't be is a reason not to ask there again.
    assert_eq!(upstream.connections(), 1);
    assert_eq!(visitor.get("demo", "/5").status(), 201);
    assert_eq!(upstream.connections(), 2);
    relay.log().wait_for(" demo GET /5 201 ");
    assert_eq!(relay.log().count(" demo "), 6);
}

#[test]
fn a_request_is_not_sent_again_behind_a_word_in_front_of_its_answer() {
    let upstream = Upstream::start(|asked| {
        if asked.head.target() == "/first" {
            asked.wire.send(ok("fine"));
            return After::Keep;
        }
        asked.wire.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
        After::Close
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    assert_eq!(visitor.get("demo", "/first").text(), "fine");
    let answer = visitor.get("demo", "/second");
    assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream-lost"));
    assert_eq!(answer.interim.len(), usize::from(carries(Part::Interim)));
    assert_eq!(upstream.requests().len(), 2);
    // The visitor's connection is none the worse for it.
    assert_eq!(visitor.get("demo", "/first").text(), "fine");
}

#[test]
fn who_takes_trailers_is_said_at_each_hop() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut hand = link(&relay, "hand");
    let mut told = |version: &str, fields: &str| {
        let request = |name| format!("GET / HTTP/{version}\r\nHost: {name}.localhost\r\n{fields}\r\n");
        assert_eq!(relay.visitor().send(request("demo")).response("GET").status(), 200);
        let mut visitor = relay.visitor();
        visitor.send(request("hand"));
        let on_link = hand.request().head;
        hand.send(ok("fine"));
        assert_eq!(visitor.response("GET").text(), "fine");
        for head in [&on_link, &upstream.last_request()] {
            let trailers = head.get("TE");
            // It is of one hop, and says so.
            assert_eq!(head.get("Connection"), trailers.map(|_| "TE"), "{}", head.text);
            assert!(trailers.is_none_or(|codings| codings == "trailers"), "{}", head.text);
        }
        (on_link.has("TE"), upstream.last_request().has("TE"))
    };
    // Where answers are messages, they have no trailers, and nobody is told that they had.
    let both = (true, carries(Part::ComingResponse));
    for fields in [
        "TE: trailers\r\nConnection: TE\r\n",
        "te: Trailers\r\n",
        "TE: gzip;q=0.5, trailers, deflate\r\nConnection: close, TE\r\n",
        "TE: deflate\r\nTE: trailers\r\n",
    ] {
        assert_eq!(told("1.1", fields), both, "{fields}");
    }
    for fields in ["", "TE: gzip\r\nConnection: TE\r\n", "TE: trailer, x-trailers\r\n", "TE:\r\n", "Connection: TE\r\n"]
    {
        assert_eq!(told("1.1", fields), (false, false), "{fields}");
    }
    assert_eq!(told("1.0", "TE: trailers\r\nConnection: TE\r\n"), (false, false));
}

#[test]
fn an_upstream_that_asks_who_takes_trailers_sends_them() {
    // As servers of gRPC's kind: a status behind the body, or nothing but it; and in the head for those who don't take it.
    let upstream = Upstream::start(|asked| {
        asked.body();
        let body = if asked.head.target() == "/empty" { "" } else { "4\r\nbody\r\n" };
        let (head, trailer) = if asked.head.get("TE") == Some("trailers") {
            ("Trailer: Grpc-Status", "Grpc-Status: 0\r\nGrpc-Message: all is well\r\n")
        } else {
            ("Grpc-Status: 0", "")
        };
        asked
            .wire
            .send(format!("HTTP/1.1 200 OK\r\n{head}\r\nTransfer-Encoding: chunked\r\n\r\n{body}0\r\n{trailer}\r\n"));
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    for target in ["/empty", "/", "/empty", "/"] {
        for te in ["TE: trailers\r\nConnection: TE\r\n", ""] {
            let answer =
                visitor.send(format!("POST {target} HTTP/1.1\r\nHost: demo.localhost\r\n{te}\r\n")).response("POST");
            assert_eq!(answer.text(), if target == "/" { "body" } else { "" });
            if te.is_empty() || !carries(Part::ComingResponse) {
                assert_eq!((answer.head.get("Grpc-Status"), answer.trailers.len()), (Some("0"), 0));
            } else {
                assert_eq!(answer.head.get("Trailer"), Some("Grpc-Status"));
                assert_eq!(pairs(&answer.trailers), [("Grpc-Status", "0"), ("Grpc-Message", "all is well")]);
            }
        }
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn what_belongs_in_the_head_does_not_go_through_behind_the_body() {
    const TRAILERS: &str = "X-First: 1\r\nContent-Length: 7\r\nTransfer-Encoding: gzip\r\nHost: evil.localhost\r\n\
         Authorization: Basic eDp5\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\nContent-Range: bytes 0-1/2\r\n\
         Connection: X-Hop, close\r\nX-Hop: 1\r\nTE: gzip\r\nTrailer: X-Other\r\nUpgrade: h2c\r\nKeep-Alive: timeout=1\r\n\
         X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nVia: 1.1 evil\r\n\
         Expect: 100-continue\r\nCache-Control: no-store\r\nMax-Forwards: 0\r\nRange: bytes=0-1\r\nCookie: a=1\r\nSet-Cookie: a=1\r\nIf-Match: \"x\"\r\n\
         X-Last: 2\r\n\r\n";
    let heard = Arc::new(Mutex::new(Vec::new()));
    let trailers = Arc::clone(&heard);
    let upstream = Upstream::start(move |asked| {
        let mut body = Vec::new();
        *locked(&trailers) = asked.wire.rest(&mut body).unwrap();
        assert_eq!(body, b"abc");
        asked.wire.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n0\r\n{TRAILERS}"));
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    let kept = [("X-First", "1"), ("X-Last", "2")];
    for _ in 0..2 {
        let answer = visitor
            .send("POST / HTTP/1.1\r\nHost: demo.localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n")
            .send(TRAILERS)
            .response("POST");
        assert_eq!(answer.text(), "xyz");
        assert_eq!(pairs(&answer.trailers), if carries(Part::ComingResponse) { &kept[..] } else { &[] });
        assert_eq!(pairs(&locked(&heard)), if carries(Part::ComingRequest) { &kept[..] } else { &[] });
    }
    // `close` behind a body is no word on the connection.
    assert_eq!(upstream.connections(), 1);
}

/// Answers of all kinds to a request that is not whole: how they start, whether in chunks, and how many pieces their body has.
const EARLY: [(&str, bool, usize); 6] = [
    ("204 No Content\r\n", false, 0),
    ("200 OK\r\nContent-Length: 0\r\n", false, 0),
    ("200 OK\r\nContent-Length: 65536\r\n", false, 1),
    ("200 OK\r\nContent-Length: 16777216\r\n", false, 256),
    ("200 OK\r\nTransfer-Encoding: chunked\r\n", true, 1),
    ("200 OK\r\nTransfer-Encoding: chunked\r\n", true, 256),
];

#[test]
fn an_answer_before_its_requests_end_is_whole_and_the_last_on_every_connection() {
    if lacks(Part::ComingRequest) {
        return;
    }
    for (start, chunked, pieces) in EARLY {
        for framing in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
            let (ended, end) = mpsc::channel();
            let ended = Mutex::new(ended);
            let upstream = Upstream::start(move |asked| {
                if asked.head.method() == "GET" {
                    asked.wire.send(ok("fine"));
                    return After::Keep;
                }
                let block = vec![b'x'; 65536];
                asked.wire.send(format!("HTTP/1.1 {start}\r\n"));
                for _ in 0..pieces {
                    asked.wire.send(if chunked { chunk(&block) } else { block.clone() });
                }
                if chunked {
                    asked.wire.send("0\r\n\r\n");
                }
                // Nothing behind it but the end: no next request, and no end of this one.
                let broken = asked.wire.rest(&mut Vec::new()).is_err();
                locked(&ended).send(broken).unwrap();
                After::Close
            });
            let relay = Relay::start(&[]);
            let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
            let mut visitor = relay.visitor();
            visitor.send(format!("POST / HTTP/1.1\r\nHost: demo.localhost\r\n{framing}\r\n\r\n"));
            if framing.starts_with("Transfer") {
                visitor.send("f4240\r\n");
            }
            visitor.send("the start");
            let answer = visitor.response("POST");
            assert!(start.starts_with(&answer.status().to_string()), "{}", answer.head.text);
            assert_eq!(answer.body.len(), pieces * 65536, "{start}{framing}");
            if pieces == 0 {
                assert_eq!(answer.head.get("Connection"), Some("close"), "{}", answer.head.text);
            }
            assert!(end.recv_timeout(PATIENCE).unwrap(), "the upstream's connection was used again");
            // The rest of the request comes all the same, and looks like another one.
            let _ = visitor.try_send(get("demo", "/smuggled").repeat(10));
            visitor.expect_end();
            let mut next = relay.visitor();
            for _ in 0..3 {
                assert_eq!(next.get("demo", "/next").text(), "fine");
            }
            let targets: Vec<String> = upstream.requests().iter().map(|head| head.target().to_owned()).collect();
            assert_eq!(targets, ["/", "/next", "/next", "/next"]);
            assert_eq!(upstream.connections(), 2);
        }
    }
}

#[test]
fn an_upstream_that_answers_need_not_take_the_rest_of_the_request() {
    // More than lies in the sockets on the way.
    const LENGTH: usize = 64 << 20;
    if lacks(Part::ComingRequest) {
        return;
    }
    let (go, wait) = gate();
    let (over, end) = gate();
    let upstream = Upstream::start(move |asked| {
        if asked.head.target() == "/unanswered" {
            pass(&end);
            return After::Close;
        }
        asked.wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n");
        pass(&wait);
        asked.wire.send("4\r\nover\r\n0\r\n\r\n");
        asked.body();
        After::Close
    });
    let patience = ["--timeout", "write=200ms"];
    let relay = Relay::start(&patience);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &patience);
    let begin = |target: &str| {
        let mut visitor = relay.visitor();
        visitor.send(format!("POST {target} HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: {LENGTH}\r\n\r\n"));
        visitor
    };
    let upload = |visitor: &Wire| {
        let mut writer = visitor.writer();
        thread::spawn(move || drop(writer.write_all(&vec![b'x'; LENGTH])))
    };
    let mut answered = begin("/answered");
    // Before any of the body can be in the way.
    assert_eq!(answered.response_head("POST").unwrap().0.status(), 200);
    assert_eq!(answered.body(5), b"begun");
    let sent = upload(&answered);
    // When those that came later have been given up for what the upstream doesn't take, the one before would have been.
    for _ in 0..3 {
        let mut unanswered = begin("/unanswered");
        let sent = upload(&unanswered);
        assert_eq!(unanswered.response("POST").status(), 504);
        drop(unanswered);
        sent.join().unwrap();
    }
    drop(over);
    go.send(()).unwrap();
    let mut rest = Vec::new();
    answered.rest(&mut rest).unwrap();
    assert_eq!(rest, b"over");
    drop(answered);
    sent.join().unwrap();
}

#[test]
fn an_upstream_that_says_close_in_the_middle_of_a_request_says_so_to_the_visitor() {
    if lacks(Part::ComingRequest) {
        return;
    }
    for (head, end) in [
        ("HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n", "0\r\n\r\n"),
        ("HTTP/1.0 200 OK\r\n\r\n", ""),
    ] {
        let upstream = Upstream::start(move |asked| {
            asked.wire.send(head);
            asked.body();
            asked.wire.send(end);
            After::Close
        });
        let relay = Relay::start(&[]);
        let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
        let mut visitor = relay.visitor();
        visitor.send("POST / HTTP/1.1\r\nHost: demo.localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
        let (answer, ..) = visitor.response_head("POST").unwrap();
        assert_eq!(answer.get("Connection"), Some("close"), "{}", answer.text);
        // It goes on reading, and so do we.
        visitor.send("1\r\nb\r\n0\r\n\r\n");
        visitor.rest(&mut Vec::new()).unwrap();
        visitor.expect_end();
        // Said while nothing of a request is missing, it is a word on the upstream's connection alone.
        let mut visitor = relay.visitor();
        for _ in 0..2 {
            let answer = visitor.get("demo", "/");
            assert_eq!((answer.status(), answer.head.get("Connection")), (200, None), "{}", answer.head.text);
        }
    }
}

/// One of the requests that are sent ahead below, and whether this is the answer to it.
fn ahead(n: usize, connection: &str) -> (&'static str, String) {
    let fields = format!("Host: demo.localhost\r\n{connection}");
    match n % 6 {
        0 => ("GET", format!("GET /{n} HTTP/1.1\r\n{fields}\r\n")),
        1 => ("POST", format!("POST /{n} HTTP/1.1\r\n{fields}Content-Length: 12\r\n\r\nGET /x HTTP/")),
        2 => ("HEAD", format!("HEAD /{n} HTTP/1.1\r\n{fields}\r\n")),
        3 => (
            "PUT",
            format!(
                "PUT /{n} HTTP/1.1\r\n{fields}Transfer-Encoding: chunked\r\n\r\n7\r\nGET /x \r\n5\r\nHTTP/\r\n0\r\nX-T: 1\r\n\r\n"
            ),
        ),
        4 => ("DELETE", format!("DELETE /{n} HTTP/1.1\r\n{fields}\r\n")),
        _ => ("OPTIONS", format!("OPTIONS /{n} HTTP/1.1\r\n{fields}Content-Length: 0\r\n\r\n")),
    }
}

fn expect_answer(n: usize, method: &str, answer: &Message) {
    let body = answer.text();
    let said = answer.head.get("X-Asked").unwrap_or_default();
    assert_eq!(said, format!("{method} /{n}"), "{n}: {body}");
    assert_eq!(body.is_empty(), matches!(method, "HEAD" | "DELETE"), "{n}: {body}");
    assert_eq!(body.ends_with("GET /x HTTP/"), matches!(method, "POST" | "PUT"), "{n}: {body}");
}

/// Answers what [`ahead`] asks, in as many ways.
fn answering_ahead() -> Upstream {
    Upstream::start(|asked| {
        let Some(body) = asked.body() else { return After::Close };
        let (method, target) = (asked.head.method().to_owned(), asked.head.target().to_owned());
        let shown = [format!("{method} {target}\n").as_bytes(), &body].concat();
        let said = format!("X-Asked: {method} {target}\r\n");
        let length = shown.len();
        asked.wire.send(match &method[..] {
            "HEAD" => format!("HTTP/1.1 200 OK\r\n{said}Content-Length: 1000\r\n\r\n").into_bytes(),
            "DELETE" => format!("HTTP/1.1 204 No Content\r\n{said}\r\n").into_bytes(),
            "GET" | "PUT" => {
                let head = format!("HTTP/1.1 200 OK\r\n{said}Transfer-Encoding: chunked\r\n\r\n");
                [head.as_bytes(), &chunk(&shown), b"0\r\nX-T: 1\r\n\r\n"].concat()
            }
            _ => [format!("HTTP/1.1 200 OK\r\n{said}Content-Length: {length}\r\n\r\n").as_bytes(), &shown].concat(),
        });
        if target.ends_with('5') { After::Close } else { After::Keep }
    })
}

#[test]
fn behind_a_close_in_the_middle_of_requests_sent_ahead_there_is_nothing() {
    const ALL: usize = 50;
    const LAST: usize = 32;
    let upstream = answering_ahead();
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    for last in [LAST, LAST + 1, ALL] {
        let before = upstream.requests().len();
        let mut visitor = relay.visitor();
        let all: String = (0..ALL).map(|n| ahead(n, if n == last { "Connection: close\r\n" } else { "" }).1).collect();
        visitor.send(all);
        for n in 0..ALL.min(last + 1) {
            let (method, _) = ahead(n, "");
            let answer = visitor.response(method);
            expect_answer(n, method, &answer);
            assert_eq!(answer.head.get("Connection"), (n == last).then_some("close"), "{n}");
        }
        if last < ALL {
            visitor.expect_end();
        } else {
            assert_eq!(visitor.send(ahead(0, "").1).response("GET").head.get("X-Asked"), Some("GET /0"));
        }
        let asked: Vec<String> = upstream.requests()[before..].iter().map(|head| head.target().to_owned()).collect();
        let mut expected: Vec<String> = (0..ALL.min(last + 1)).map(|n| format!("/{n}")).collect();
        expected.extend((last == ALL).then(|| "/0".to_owned()));
        assert_eq!(asked, expected);
    }
}

#[test]
fn requests_sent_ahead_in_any_pieces_are_answered_in_their_order() {
    let upstream = answering_ahead();
    // Buffers so small that requests and answers are cut in all places.
    let relay = Relay::start(&["--limit", "buffer=64"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["--limit", "buffer=64"]);
    let all: String = (0..24).map(|n| ahead(n, "").1).collect();
    for length in [1, 7, 64, 1000] {
        let mut visitor = relay.visitor();
        for piece in all.as_bytes().chunks(length) {
            visitor.send(piece);
        }
        for n in 0..24 {
            let (method, _) = ahead(n, "");
            expect_answer(n, method, &visitor.response(method));
        }
    }
}

#[test]
fn a_slow_answer_delays_what_was_sent_behind_it_and_nobody_else() {
    let (go, wait) = gate();
    let upstream = Upstream::start(move |asked| {
        asked.body();
        if asked.head.target() == "/slow" {
            pass(&wait);
        }
        let target = asked.head.target().to_owned();
        asked.wire.send(ok(&target));
        After::Keep
    });
    let other = Upstream::saying("the other");
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    // One that can serve one request at a time: it would show if it were kept for a request that can't begin yet.
    let _single = Agent::start(&relay, "other", &other.address(), &["--links", "1..1"]);
    let mut visitor = relay.visitor();
    visitor.send(
        [
            get("demo", "/slow"),
            get("demo", "/behind"),
            post("other", "/behind", "a body"),
            get("demo", "/last"),
            get("nobody", "/"),
        ]
        .concat(),
    );
    eventually("the slow request", || (!upstream.requests().is_empty()).then_some(()));
    for _ in 0..20 {
        assert_eq!(relay.get("other", "/").text(), "the other");
        assert_eq!(relay.get("demo", "/quick").text(), "/quick");
    }
    // Nothing of what waits has been asked for.
    let targets: Vec<String> = upstream.requests().iter().map(|head| head.target().to_owned()).collect();
    assert!(!targets.iter().any(|target| matches!(&target[..], "/behind" | "/last")), "{targets:?}");
    assert!(other.requests().iter().all(|head| head.target() == "/"));
    go.send(()).unwrap();
    for expected in ["/slow", "/behind", "the other", "/last"] {
        assert_eq!(visitor.response("GET").text(), expected);
    }
    // What waits for an agent that never comes holds nobody up either.
    eventually("the last one to wait", || {
        (relay.get("demo", "/quick").text() == "/quick" && relay.log().count(" demo GET /last 200 ") == 1).then_some(())
    });
    drop(visitor);
    relay.log().wait_for(" nobody GET / 499 ");
}

#[test]
fn a_visitor_that_reads_no_answers_holds_its_own_requests_back_alone() {
    // Each answer is more than lies in sockets between the two: the second request is not asked before the first is read.
    const LENGTH: usize = 32 << 20;
    if lacks(Part::ComingResponse) {
        return;
    }
    let upstream = Upstream::start(|asked| {
        if asked.head.target() == "/small" {
            asked.wire.send(ok("small"));
            return After::Keep;
        }
        let block = vec![b'x'; 1 << 20];
        let mut sent = asked.wire.try_send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
        for _ in 0..LENGTH / block.len() {
            sent = sent.and_then(|()| asked.wire.try_send(&block));
        }
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send([get("demo", "/large"), get("demo", "/large/2"), get("demo", "/small")].concat());
    assert_eq!(visitor.response_head("GET").unwrap().1, Framing::Length(LENGTH as u64));
    for _ in 0..10 {
        assert_eq!(relay.get("demo", "/small").text(), "small");
    }
    assert!(!upstream.requests().iter().any(|head| head.target() == "/large/2"));
    let mut body = Vec::new();
    visitor.rest(&mut body).unwrap();
    assert_eq!(body.len(), LENGTH);
    assert_eq!(visitor.response("GET").body.len(), LENGTH);
    assert_eq!(visitor.response("GET").text(), "small");
}
