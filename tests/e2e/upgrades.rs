//! WebSocket and other protocols that a visitor goes on with by `Upgrade`: nothing flows before the upstream's own 101, behind it
//! both directions flow until each ends by itself, and a refusal leaves everything as it was.

use std::io::Write as _;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use crate::support::link::{SWITCH, link};
use crate::support::random::Random;
use crate::support::upstream::{After, Asked, Upstream};
use crate::support::wire::{Head, Wire, get, ok, post, serve};
use crate::support::{Agent, PATIENCE, Relay, agent_command, eventually, locked};

/// A visitor's request to go on with a protocol.
fn offer(tunnel: &str, token: &str) -> String {
    format!(
        "GET /chat?a=b HTTP/1.1\r\nHost: {tunnel}.localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {token}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

const TAKEN: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Takes every offer, and gives back what comes until it ends; then says goodbye.
fn echo(asked: &mut Asked<'_>) -> After {
    if !asked.head.has("Upgrade") {
        asked.body();
        let _ = asked.wire.try_send(ok("no upgrade"));
        return After::Keep;
    }
    let _ = asked.wire.try_send(TAKEN);
    while let Some(bytes) = asked.wire.piece() {
        if asked.wire.try_send(&bytes).is_err() {
            return After::Close;
        }
    }
    let _ = asked.wire.try_send("goodbye");
    After::Close
}

/// The head of the 101, which must be one.
fn switched(visitor: &mut Wire) -> Head {
    let head = visitor.any_response_head("GET");
    assert_eq!(head.status(), 101, "{}", head.text);
    head
}

#[test]
fn bytes_flow_both_ways_behind_the_upstreams_101_and_each_way_ends_by_itself() {
    let relay = Relay::start(&[]);
    let upstream = Upstream::start(echo);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send(offer("demo", "websocket"));
    let head = switched(&mut visitor);
    assert_eq!(head.get("Upgrade"), Some("websocket"));
    assert_eq!(head.get("Connection"), Some("Upgrade"));
    assert_eq!(head.get("Sec-WebSocket-Accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert!(!head.has("Content-Length") && !head.has("Transfer-Encoding"));
    let asked = upstream.last_request();
    assert_eq!(
        (asked.target(), asked.get("Upgrade"), asked.get("Connection")),
        ("/chat?a=b", Some("websocket"), Some("Upgrade"))
    );
    assert_eq!(asked.get("Sec-WebSocket-Key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    assert_eq!(asked.get("X-Forwarded-For"), Some("127.0.0.1"));
    // Whatever looks like HTTP is none here.
    for bytes in
        [&b"\x81\x05hello"[..], b"\0", b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]
    {
        assert_eq!(visitor.send(bytes).raw(bytes.len()), bytes);
    }
    // Our end comes through, and the other direction goes on behind it.
    visitor.shut();
    assert_eq!(visitor.raw(7), b"goodbye");
    visitor.expect_end();
    let line = relay.log().wait_for("/chat?a=b 101");
    assert!(line.contains(" demo GET /chat?a=b 101 64 71 ") && line.ends_with(" -"), "{line}");
    assert_eq!(relay.get("demo", "/").text(), "no upgrade");
}

#[test]
fn a_large_stream_both_ways_at_once_arrives_whole() {
    const BYTES: usize = 5_000_000;
    let relay = Relay::start(&[]);
    let upstream = Upstream::start(echo);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send(offer("demo", "websocket"));
    switched(&mut visitor);
    let bytes = Random::seeded(4).bytes(BYTES);
    let (mut writer, sent) = (visitor.writer(), bytes.clone());
    let writing = thread::spawn(move || {
        for piece in sent.chunks(77_777) {
            writer.write_all(piece).unwrap();
        }
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    assert!(visitor.raw(BYTES) == bytes, "other bytes than were sent");
    writing.join().unwrap();
    assert_eq!(visitor.raw(7), b"goodbye");
    visitor.expect_end();
}

#[test]
fn who_reads_from_a_tunnel_may_rest_for_longer_than_others() {
    // More than lies in the sockets on the way.
    const BYTES: usize = 64 << 20;
    let patience = ["--timeout", "write=200ms"];
    let relay = Relay::start(&patience);
    let upstream = Upstream::start(|asked| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
        let head = if asked.head.has("Upgrade") { TAKEN } else { &head };
        let _ = asked.wire.try_send(head).and_then(|()| asked.wire.try_send(vec![b'x'; BYTES]));
        After::Close
    });
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &patience);
    let mut resting = relay.visitor();
    resting.send(offer("demo", "websocket"));
    switched(&mut resting);
    // When those that came later have been given up, the one before would have been.
    for n in 0..3 {
        let mut visitor = relay.visitor();
        visitor.send(get("demo", &format!("/large/{n}")));
        relay.log().wait_for(&format!(" demo GET /large/{n} 200 "));
    }
    assert!(resting.raw(BYTES).iter().all(|byte| *byte == b'x'));
    resting.expect_end();
}

#[test]
fn who_reads_the_end_of_a_tunnel_may_rest_too() {
    // About what lies in the sockets on the way: of one of these, the last bytes lie in ours.
    for bytes in (0..10).map(|n| (n + 2) * 700_000) {
        let patience = ["--timeout", "write=200ms"];
        let relay = Relay::start(&patience);
        let upstream = serve(move |wire| {
            wire.request();
            wire.send(TAKEN);
            while wire.piece().is_some() {}
            wire.send(vec![b'x'; bytes]);
        });
        let _agent = Agent::start(&relay, "demo", &upstream, &patience);
        let mut resting = relay.visitor();
        resting.send(offer("demo", "websocket"));
        switched(&mut resting);
        resting.shut();
        // Only rest shows it: far longer than those may who read from anything else.
        thread::sleep(Duration::from_millis(600));
        assert_eq!(resting.raw(bytes).len(), bytes);
        resting.expect_end();
    }
}

#[test]
fn bytes_behind_the_101_in_the_same_write_are_data() {
    let relay = Relay::start(&[]);
    let upstream = Upstream::start(|asked| {
        let _ = asked.wire.try_send([TAKEN, "\x01first frame"].concat());
        while asked.wire.piece().is_some() {}
        After::Close
    });
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send(offer("demo", "websocket"));
    switched(&mut visitor);
    assert_eq!(visitor.raw(12), b"\x01first frame");
    visitor.shut();
    visitor.expect_end();
}

#[test]
fn nothing_goes_to_the_upstream_before_it_has_switched() {
    let relay = Relay::start(&[]);
    let (early, seen) = mpsc::channel();
    let early = Mutex::new(early);
    let upstream = Upstream::start(move |asked| {
        // Long enough for bytes to arrive that should not.
        let nothing = asked.wire.silence(Duration::from_millis(200));
        locked(&early).send(nothing).unwrap();
        let _ = asked.wire.try_send(TAKEN);
        echo_all(asked.wire);
        After::Close
    });
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send([offer("demo", "websocket").as_str(), "early"].concat());
    assert!(seen.recv_timeout(PATIENCE).unwrap(), "bytes came before the 101");
    switched(&mut visitor);
    // Once it is a tunnel, they are data.
    assert_eq!(visitor.raw(5), b"early");
    visitor.shut();
    visitor.expect_end();
}

fn echo_all(wire: &mut Wire) {
    while let Some(bytes) = wire.piece() {
        if wire.try_send(&bytes).is_err() {
            return;
        }
    }
}

#[test]
fn a_refusal_leaves_the_link_and_the_visitor_usable() {
    let relay = Relay::start(&["-vv"]);
    let upstream = Upstream::start(|asked| {
        asked.body();
        let answer = match asked.head.target() {
            "/chat?a=b" => {
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 2\r\n\r\nno".to_owned()
            }
            _ => ok("fine"),
        };
        let _ = asked.wire.try_send(answer);
        After::Keep
    });
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["--links", "1..1"]);
    let mut visitor = relay.visitor();
    // The next request comes behind the offer: after the refusal it is read as what it is.
    visitor.send([offer("demo", "websocket"), post("demo", "/next", "body")].concat());
    let answer = visitor.response("GET");
    assert_eq!((answer.status(), answer.text().as_str()), (401, "no"));
    assert_eq!(visitor.response("POST").text(), "fine");
    assert_eq!(visitor.get("demo", "/more").text(), "fine");
    assert_eq!(upstream.connections(), 1);
    assert_eq!(relay.log().count("an agent has connected"), 1);
}

#[test]
fn a_refusal_that_asks_for_another_protocol_says_which() {
    let relay = Relay::start(&[]);
    let upstream = Upstream::start(|asked| {
        asked.body();
        assert!(asked.head.all("Connection") == ["Upgrade"] && !asked.head.has("TE"), "{}", asked.head.text);
        let fields =
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nContent-Length: 0\r\n\r\n";
        let _ = asked.wire.try_send(["HTTP/1.1 426 Upgrade Required\r\n", fields].concat());
        After::Keep
    });
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    for _ in 0..2 {
        visitor.send(offer("demo", "websocket").replace("\r\n\r\n", "\r\nTE: trailers\r\n\r\n"));
        let answer = visitor.response("GET");
        assert_eq!((answer.status(), answer.head.get("Upgrade")), (426, Some("websocket")));
        assert_eq!(answer.head.get("Connection"), Some("Upgrade"));
    }
}

#[test]
fn a_200_to_an_offer_never_opens_a_tunnel() {
    // Pingora's CVE-2026-2833: what came behind the request was passed on although the answer was a 200.
    let relay = Relay::start(&[]);
    let upstream = Upstream::showing();
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send([offer("demo", "websocket").as_str(), "GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n"].concat());
    assert!(visitor.response("GET").text().starts_with("GET /chat?a=b "));
    // It is a request of its own, routed as what it says: to another tunnel.
    assert_eq!(visitor.response("GET").code(), "no-link");
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn the_link_is_used_up_and_the_agent_opens_another() {
    let relay = Relay::start(&[]);
    let upstream = Upstream::start(echo);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["--links", "1..8"]);
    let mut visitors: Vec<Wire> = (0..5).map(|_| relay.visitor()).collect();
    for visitor in &mut visitors {
        visitor.send(offer("demo", "websocket"));
        switched(visitor);
    }
    // All stand at once, and others are served meanwhile.
    assert_eq!(relay.get("demo", "/").text(), "no upgrade");
    for (number, visitor) in visitors.iter_mut().enumerate() {
        let bytes = [b'0' + number as u8; 3];
        assert_eq!(visitor.send(bytes).raw(3), bytes);
    }
    drop(visitors);
    eventually("the upstream's connections to be closed", || (upstream.open_connections() <= 1).then_some(()));
    assert_eq!(relay.get("demo", "/").text(), "no upgrade");
}

#[test]
fn protocols_that_are_not_allowed_are_not_offered_on() {
    let relay = Relay::start(&[]);
    let upstream = Upstream::showing();
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    for token in ["h2c", "spdy/3.1", "PTTH/2.0", "TLS/1.2"] {
        visitor.send(
            offer("demo", token).replace("Sec-WebSocket-Version: 13", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"),
        );
        let shown = visitor.response("GET").text();
        for field in ["upgrade:", "http2-settings:", "connection:"] {
            assert!(!shown.to_lowercase().contains(field), "{token}: {shown}");
        }
    }
    // Of several, those that are allowed.
    let mut visitor = relay.visitor();
    visitor.send(offer("demo", "h2c, WebSocket, foo"));
    let shown = visitor.response("GET").text();
    assert!(shown.contains("Upgrade: WebSocket\r\n") && !shown.contains("h2c"), "{shown}");
}

#[test]
fn other_protocols_can_be_allowed_but_never_another_http() {
    let relay = Relay::start(&["--allow-upgrade", "tcp", "--allow-upgrade", "spdy/3.1"]);
    let upstream = Upstream::start(|asked| {
        let token = asked.head.get("Upgrade").unwrap_or("none").to_owned();
        let _ = asked.wire.try_send(match token.as_str() {
            "none" | "websocket" => ok(&token),
            _ => format!("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: {token}\r\n\r\n{token}"),
        });
        After::Keep
    });
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    for token in ["tcp", "SPDY/3.1"] {
        let mut visitor = relay.visitor();
        visitor.send(offer("demo", token));
        assert_eq!(switched(&mut visitor).get("Upgrade"), Some(token));
        assert_eq!(visitor.raw(token.len()), token.as_bytes());
    }
    let mut visitor = relay.visitor();
    assert_eq!(visitor.send(offer("demo", "websocket")).response("GET").text(), "none");
    let all = Relay::start(&["--allow-upgrade", "*"]);
    let _agent = Agent::start(&all, "demo", &upstream.address(), &[]);
    let mut visitor = all.visitor();
    visitor.send(offer("demo", "h2c, anything"));
    assert_eq!(switched(&mut visitor).get("Upgrade"), Some("anything"));
}

#[test]
fn what_is_no_offer_is_an_ordinary_request() {
    let relay = Relay::start(&[]);
    let upstream = Upstream::showing();
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    for request in [
        // Meant for another hop.
        offer("demo", "websocket").replace("keep-alive, Upgrade", "keep-alive"),
        offer("demo", "websocket").replace("Connection: keep-alive, Upgrade\r\n", ""),
        // HTTP/1.0 has none.
        offer("demo", "websocket").replace("HTTP/1.1", "HTTP/1.0"),
        // The connection ends with its answer.
        offer("demo", "websocket").replace("keep-alive, Upgrade", "close, Upgrade"),
        // A body could be read as the old protocol or as the new one.
        offer("demo", "websocket").replace("\r\n\r\n", "\r\nContent-Length: 4\r\n\r\nbody"),
        offer("demo", "websocket").replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"),
    ] {
        let mut visitor = relay.visitor();
        let shown = visitor.send(&request).response("GET").text();
        assert!(!shown.contains("Upgrade:"), "{request}\n{shown}");
        assert_eq!(shown.ends_with("body"), request.contains("body"), "{shown}");
    }
    // A length of nothing is no body.
    let mut visitor = relay.visitor();
    visitor.send(offer("demo", "websocket").replace("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n"));
    assert!(visitor.response("GET").text().contains("Upgrade: websocket\r\n"));
}

#[test]
fn a_101_that_was_not_asked_for_or_to_something_else_is_refused() {
    for (answer, code) in [
        ("HTTP/1.1 101 x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", "switched-elsewhere"),
        ("HTTP/1.1 101 x\r\nUpgrade: websocket, h2c\r\nConnection: Upgrade\r\n\r\n", "switched-elsewhere"),
        ("HTTP/1.1 101 x\r\nConnection: Upgrade\r\n\r\n", "switched-elsewhere"),
    ] {
        let relay = Relay::start(&[]);
        let upstream = Upstream::answering(answer);
        let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
        let mut visitor = relay.visitor();
        let page = visitor.send(offer("demo", "websocket, h2c")).response("GET");
        assert_eq!((page.status(), page.code().as_str()), (502, "upstream-protocol"));
        assert!(page.text().contains(code), "{}", page.text());
        // Neither the link nor the visitor has suffered.
        assert_eq!(visitor.get("demo", "/").code(), "upstream-protocol");
    }
    // Of an agent just as little.
    let relay = Relay::start(&[]);
    let mut agent = link(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/"));
    assert_eq!(agent.request().head.target(), "/");
    agent.send(TAKEN);
    let page = visitor.response("GET");
    assert_eq!((page.status(), page.code().as_str()), (502, "link-protocol"));
    agent.expect_end();
}

#[test]
fn an_upstream_that_breaks_off_breaks_the_visitors_end_too() {
    let relay = Relay::start(&[]);
    let upstream = serve(|wire| {
        assert!(wire.request().head.has("Upgrade"));
        wire.send(TAKEN);
        wire.piece();
        wire.break_on_drop();
    });
    let _agent = Agent::start(&relay, "demo", &upstream, &[]);
    let mut visitor = relay.visitor();
    visitor.send(offer("demo", "websocket"));
    switched(&mut visitor);
    visitor.send("now");
    visitor.expect_reset();
    assert!(relay.log().wait_for("/chat?a=b 101").ends_with("link-lost"));
}

#[test]
fn a_visitor_that_breaks_off_frees_the_upstream() {
    let relay = Relay::start(&[]);
    let upstream = Upstream::start(echo);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send(offer("demo", "websocket"));
    switched(&mut visitor);
    visitor.break_on_drop();
    drop(visitor);
    eventually("the upstream to be left", || (upstream.open_connections() == 0).then_some(()));
    assert!(relay.log().wait_for("/chat?a=b 101").ends_with("visitor-gone"));
    assert!(agent.log().wait_for("/chat?a=b 101").ends_with("visitor-gone"));
}

#[test]
fn a_visitor_that_leaves_before_the_101_takes_the_offer_back() {
    let relay = Relay::start(&[]);
    let upstream = Upstream::start(|asked| {
        // It never answers.
        while asked.wire.piece().is_some() {}
        After::Close
    });
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "half-close=50ms"]);
    let mut visitor = relay.visitor();
    visitor.send(offer("demo", "websocket"));
    eventually("the request to arrive", || (upstream.requests().len() == 1).then_some(()));
    drop(visitor);
    eventually("the upstream to be left", || (upstream.open_connections() == 0).then_some(()));
}

#[test]
fn a_tunnel_that_rests_too_long_is_ended() {
    let relay = Relay::start(&["--timeout", "tunnel=300ms"]);
    let upstream = Upstream::start(echo);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send(offer("demo", "websocket"));
    switched(&mut visitor);
    assert_eq!(visitor.send("x").raw(1), b"x");
    visitor.whatever_comes();
    assert!(relay.log().wait_for("/chat?a=b 101").ends_with("tunnel-silent"));
}

#[test]
fn a_half_that_rests_too_long_is_ended() {
    let relay = Relay::start(&["--timeout", "tunnel-end=300ms"]);
    let upstream = serve(|wire| {
        wire.send(TAKEN);
        // It hears the end, and neither says anything nor closes.
        while wire.piece().is_some() {}
        thread::park();
    });
    let _agent = Agent::start(&relay, "demo", &upstream, &[]);
    let mut visitor = relay.visitor();
    visitor.send(offer("demo", "websocket"));
    switched(&mut visitor);
    visitor.shut();
    visitor.whatever_comes();
    assert!(relay.log().wait_for("/chat?a=b 101").ends_with("tunnel-silent"));
}

#[test]
fn an_agent_that_polls_gets_no_websocket() {
    let relay = Relay::start(&[]);
    let upstream = Upstream::start(echo);
    for (name, dialect) in [("comet", "comet"), ("packed", "ptth-relay")] {
        let agent = Agent::run(&mut agent_command(&[
            &upstream.address(),
            "--via",
            &relay.url(),
            "--name",
            name,
            "--dialect",
            dialect,
        ]));
        let mut visitor = relay.visitor();
        let page = visitor.send(offer(name, "websocket")).response("GET");
        assert_eq!((page.status(), page.code().as_str()), (501, "dialect-limit"), "{}", page.text());
        // The visitor and the agent go on.
        assert_eq!(visitor.get(name, "/").text(), "no upgrade");
        drop(agent);
    }
}

#[test]
fn a_foreign_agent_gets_the_offer_as_any_request() {
    let relay = Relay::start(&[]);
    let mut agent = link(&relay, "demo");
    assert_eq!(SWITCH.len(), 57);
    let mut visitor = relay.visitor();
    visitor.send(offer("demo", "websocket"));
    let request = agent.request();
    assert_eq!((request.head.get("Upgrade"), request.head.get("Connection")), (Some("websocket"), Some("Upgrade")));
    agent.send(TAKEN);
    switched(&mut visitor);
    assert_eq!(agent.send("from behind").raw(0), b"");
    assert_eq!(visitor.raw(11), b"from behind");
    visitor.send("to behind").shut();
    assert_eq!(agent.raw(9), b"to behind");
    agent.expect_end();
    // The visitor's direction is still there to be written to.
    agent.send("more").shut();
    assert_eq!(visitor.raw(4), b"more");
    visitor.expect_end();
}

#[test]
fn with_several_workers_any_of_them_carries_it() {
    let relay = Relay::start(&["--workers", "3"]);
    let upstream = Upstream::start(echo);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["--links", "1..20"]);
    for round in 0..10 {
        let mut visitor = relay.visitor();
        visitor.send(offer("demo", "websocket"));
        switched(&mut visitor);
        let text = format!("round {round}");
        assert_eq!(visitor.send(&text).raw(text.len()), text.as_bytes());
        visitor.shut();
        assert_eq!(visitor.raw(7), b"goodbye");
    }
}

#[test]
fn a_stop_gives_tunnels_their_time_and_then_ends_them() {
    let relay = Relay::start(&["--timeout", "drain=500ms"]);
    let upstream = Upstream::start(echo);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send(offer("demo", "websocket"));
    switched(&mut visitor);
    relay.program.terminate();
    relay.log().wait_for("stopping");
    assert_eq!(visitor.send("still").raw(5), b"still");
    visitor.whatever_comes();
    let mut relay = relay;
    assert_eq!(relay.program.exit_code(), 0);
}

#[test]
fn a_visitor_that_ends_its_direction_with_its_offer_still_gets_the_other_one() {
    let relay = Relay::start(&["--timeout", "half-close=10s"]);
    let upstream = Upstream::start(echo);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send([offer("demo", "websocket").as_str(), "early"].concat()).shut();
    switched(&mut visitor);
    assert_eq!(visitor.raw(12), b"earlygoodbye");
    visitor.expect_end();
    assert!(relay.log().wait_for("/chat?a=b 101 5 12 ").ends_with(" -"));
}
