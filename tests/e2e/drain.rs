//! Programs that go: whoever was on the way to them is served, and nobody is left without an answer.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use socket2::{Domain, Socket, Type};

use crate::support::link::{LEAVE, SWITCH_OURS, link, link_ours};
use crate::support::upstream::{After, Upstream};
use crate::support::wire::{Wire, chunk, get, ok, post};
use crate::support::{Agent, Program, Relay, agent_command, eventually, free_port};

/// Flags of an agent that is quick to dial again.
const QUICK: [&str; 4] = ["--timeout", "backoff=20ms", "--timeout", "backoff-max=50ms"];

/// An upstream that answers with the target and the body that it was sent.
fn echoing() -> Upstream {
    Upstream::start(|asked| {
        let Some(body) = asked.body() else { return After::Close };
        let _ = asked.wire.try_send(ok(&format!("{}{}", asked.head.target(), String::from_utf8_lossy(&body))));
        After::Keep
    })
}

/// What became of a visitor's request: its status and code, or how its connection failed.
type Kinds = BTreeMap<String, usize>;

/// One visitor that asks again and again: GETs and POSTs by turns, on one connection as long as it is kept, or on a new one for
/// each. Counts what becomes of each request by its kind.
fn ask_again_and_again(port: u16, keeps: bool, over: &AtomicBool, asked: &AtomicUsize) -> Kinds {
    let mut kinds = Kinds::new();
    let mut kept: Option<(Wire, bool)> = None;
    let mut n = 0;
    while !over.load(Ordering::Relaxed) {
        let (mut wire, used) = match kept.take() {
            Some(wire) => wire,
            None => match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                Ok(stream) => (Wire::new(stream), false),
                Err(error) => {
                    *kinds.entry(format!("not connected: {:?}", error.kind())).or_default() += 1;
                    thread::yield_now();
                    continue;
                }
            },
        };
        n += 1;
        asked.fetch_add(1, Ordering::Relaxed);
        let target = format!("/{n}");
        let body = "x".repeat(n * 37 % 5000);
        let (request, method, expected) = match n % 2 {
            0 => (get("demo", &target), "GET", target.clone()),
            _ => (post("demo", &target, &body), "POST", format!("{target}{body}")),
        };
        let answer = wire.try_send(request).and_then(|()| wire.try_response(method));
        let kind = match answer {
            Ok(answer) if answer.status() == 200 => {
                assert_eq!(answer.text(), expected);
                if keeps && answer.head.get("Connection") != Some("close") {
                    kept = Some((wire, true));
                }
                "200".to_owned()
            }
            Ok(answer) => format!("{} {}", answer.status(), answer.code()),
            // On a connection that was to be kept, this is how its end and a request cross: a client asks anew.
            Err(error) => match error.kind() {
                ErrorKind::TimedOut => panic!("no answer: {error}"),
                kind => format!("{}: {kind:?}", if used { "kept connection ended" } else { "no answer" }),
            },
        };
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

/// Six visitors all the while that `disturb` does its worst: what became of their requests in all.
fn visitors_while(port: u16, disturb: impl FnOnce(&AtomicUsize)) -> Kinds {
    let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let (over, asked) = (&over, &asked);
        let visitors: Vec<_> =
            (0..6).map(|n| scope.spawn(move || ask_again_and_again(port, n < 4, over, asked))).collect();
        disturb(asked);
        over.store(true, Ordering::Relaxed);
        let mut all = Kinds::new();
        for visitor in visitors {
            for (kind, count) in visitor.join().unwrap() {
                *all.entry(kind).or_default() += count;
            }
        }
        all
    })
}

/// Waits until so many more were asked.
fn after_more(asked: &AtomicUsize, more: usize) {
    let before = asked.load(Ordering::Relaxed);
    eventually("more requests", || (asked.load(Ordering::Relaxed) >= before + more).then_some(()));
}

#[test]
fn no_request_is_lost_across_restarts_of_the_agent() {
    let upstream = echoing();
    for flags in [&[][..], &["--workers", "2"]] {
        let relay = Relay::start(&[flags, &["--timeout", "link=60s"]].concat());
        let mut agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "spare=300ms"]);
        let kinds = visitors_while(relay.port, |asked| {
            for _ in 0..5 {
                after_more(asked, 300);
                agent.program.terminate();
                assert_eq!(agent.program.exit_code(), 0);
                agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "spare=300ms"]);
            }
            after_more(asked, 300);
        });
        eprintln!("across restarts of the agent, {flags:?}: {kinds:?}");
        assert!(kinds.keys().eq(["200"]), "{kinds:?}");
    }
}

#[test]
fn no_request_is_left_without_an_answer_across_restarts_of_the_relay() {
    const RESTARTS: usize = 5;
    let upstream = echoing();
    for workers in ["1", "2"] {
        let port = free_port();
        let flags = ["--timeout", "link=60s", "--workers", workers];
        let mut relay = Relay::start_on(port, &flags);
        let _agent = Agent::start(&relay, "demo", &upstream.address(), &QUICK);
        let kinds = visitors_while(port, |asked| {
            for _ in 0..RESTARTS {
                after_more(asked, 300);
                relay.program.terminate();
                assert_eq!(relay.program.exit_code(), 0);
                relay = Relay::start_on(port, &flags);
            }
            after_more(asked, 300);
        });
        eprintln!("across restarts of a relay of {workers}: {kinds:?}");
        // Who is let into a listener's queue between our last look and its close is reset by the system: one for each, and no
        // request that was read.
        let unanswered: usize =
            kinds.iter().filter(|(kind, _)| kind.starts_with("no answer")).map(|(_, count)| count).sum();
        assert!(unanswered <= RESTARTS * workers.parse::<usize>().unwrap(), "{kinds:?}");
        let broken = ["no answer: ConnectionReset", "no answer: BrokenPipe"];
        let good = |kind: &str| ["200", "503 stopping"].contains(&kind) || broken.contains(&kind);
        assert!(kinds.keys().all(|kind| good(kind) || kind.starts_with("not connected: ")), "{kinds:?}");
    }
}

#[test]
fn a_visitor_that_does_not_know_that_the_relay_goes_is_served_once_more() {
    let upstream = Upstream::saying("fine");
    let mut relay = Relay::start(&["--timeout", "farewell=10m"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut kept = relay.visitor();
    assert_eq!(kept.get("demo", "/").head.get("Connection"), None);
    let mut fresh = relay.visitor();
    relay.program.terminate();
    relay.log().wait_for("stopping");
    eventually("the port to be closed", || TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port)).err());
    for visitor in [&mut kept, &mut fresh] {
        let answer = visitor.get("demo", "/");
        assert_eq!((answer.text().as_str(), answer.head.get("Connection")), ("fine", Some("close")));
        visitor.expect_end();
    }
    // Behind the last one nobody is waited for.
    assert_eq!(relay.program.exit_code(), 0);
}

#[test]
fn a_relay_without_a_visitor_ends_at_once() {
    let mut relay = Relay::start(&["--timeout", "farewell=10m"]);
    let _agent = Agent::start(&relay, "demo", "hello", &[]);
    let mut idle = link(&relay, "demo");
    relay.program.terminate();
    idle.expect_end();
    assert_eq!(relay.program.exit_code(), 0);
}

#[test]
fn a_visitor_that_says_nothing_is_let_go_behind_the_farewell() {
    let mut relay = Relay::start(&["--timeout", "farewell=300ms", "--timeout", "link=10m"]);
    let mut idle = relay.visitor();
    let mut waiting = relay.visitor();
    waiting.send(get("demo", "/"));
    relay.program.terminate();
    idle.expect_end();
    let answer = waiting.response("GET");
    assert_eq!((answer.status(), answer.code().as_str()), (503, "stopping"));
    assert_eq!(relay.program.exit_code(), 0);
}

#[test]
fn those_who_have_knocked_when_the_relay_is_told_to_stop_are_let_in() {
    let upstream = Upstream::saying("fine");
    let mut relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    assert_eq!(relay.get("demo", "/").text(), "fine");
    relay.program.freeze();
    let mut crowd: Vec<Wire> = (0..100).map(|_| relay.visitor()).collect();
    for visitor in &mut crowd {
        visitor.send(get("demo", "/"));
    }
    relay.program.terminate();
    relay.program.thaw();
    for mut visitor in crowd {
        assert_eq!(visitor.response("GET").text(), "fine");
        visitor.expect_end();
    }
    assert_eq!(relay.program.exit_code(), 0);
}

#[test]
fn a_relay_that_goes_tells_its_agents_with_the_requests() {
    let mut relay = Relay::start(&["--timeout", "farewell=10m"]);
    // Of two links that rest, the first is not needed any more; the second is, for whoever may still come.
    let mut links = [link(&relay, "demo"), link_ours(&relay, "demo")];
    let mut visitors = [relay.visitor(), relay.visitor(), relay.visitor()];
    for visitor in &mut visitors {
        assert_eq!(
            visitor.send("OPTIONS * HTTP/1.1\r\nHost: x\r\nMax-Forwards: 0\r\n\r\n").response("OPTIONS").status(),
            204
        );
    }
    relay.program.terminate();
    relay.log().wait_for("stopping");
    for (visitor, (at, close)) in visitors.iter_mut().zip([(0, Some("close")), (1, None), (1, None)]) {
        visitor.send(get("demo", "/"));
        assert_eq!(links[at].request().head.get("Connection"), close);
        links[at].send(ok("fine"));
        assert_eq!(visitor.response("GET").text(), "fine");
    }
    links.iter_mut().for_each(Wire::expect_end);
    assert_eq!(relay.program.exit_code(), 0);
}

/// A relay of bare bytes, an agent that dials it, and its first connection, on which the offer was read.
fn by_hand(upstream: &Upstream, args: &[&str]) -> (TcpListener, Program, Wire) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let via = format!("http://{}", listener.local_addr().unwrap());
    let mut command = agent_command(&[&upstream.address(), "--via", &via, "--links", "1..1"]);
    let agent = Program::start(command.args(args));
    let mut wire = Wire::new(listener.accept().unwrap().0);
    wire.request_head().unwrap().unwrap();
    (listener, agent, wire)
}

fn expect_leave(wire: &mut Wire) {
    assert_eq!(String::from_utf8_lossy(&wire.raw(LEAVE.len())), LEAVE);
}

#[test]
fn an_agent_that_goes_serves_what_is_on_its_way_to_it() {
    let upstream = Upstream::saying("fine");
    let (_listener, mut agent, mut wire) = by_hand(&upstream, &["--timeout", "linger=10m"]);
    wire.send(SWITCH_OURS);
    agent.out.wait_for("http://");
    agent.terminate();
    expect_leave(&mut wire);
    wire.send(post("demo", "/", "an order"));
    let answer = wire.response("POST");
    assert_eq!((answer.text().as_str(), answer.head.get("Connection")), ("fine", Some("close")));
    wire.expect_end();
    assert_eq!(agent.exit_code(), 0);
}

#[test]
fn an_agent_that_goes_waits_for_its_relay_and_not_for_ever() {
    let upstream = Upstream::saying("fine");
    for closes in [true, false] {
        let patience = if closes { "linger=10m" } else { "linger=200ms" };
        let (_listener, mut agent, mut wire) = by_hand(&upstream, &["--timeout", patience]);
        wire.send(SWITCH_OURS);
        agent.out.wait_for("http://");
        agent.terminate();
        expect_leave(&mut wire);
        if closes {
            wire.shut();
        }
        wire.expect_end();
        assert_eq!(agent.exit_code(), 0);
    }
}

#[test]
fn an_agent_that_goes_says_nothing_to_a_relay_of_another_make() {
    let upstream = Upstream::saying("fine");
    let (_listener, mut agent, mut wire) = by_hand(&upstream, &["--timeout", "linger=10m"]);
    wire.send("HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n");
    agent.out.wait_for("http://");
    agent.terminate();
    wire.expect_end();
    assert_eq!(agent.exit_code(), 0);
}

#[test]
fn an_offer_that_is_taken_when_the_agent_goes_is_kept() {
    let upstream = Upstream::saying("fine");
    let (_listener, mut agent, mut wire) = by_hand(&upstream, &["--timeout", "linger=10m"]);
    agent.terminate();
    agent.log.wait_for("stopping");
    wire.send([SWITCH_OURS, post("demo", "/", "an order").as_bytes()].concat());
    expect_leave(&mut wire);
    let answer = wire.response("POST");
    assert_eq!((answer.text().as_str(), answer.head.get("Connection")), ("fine", Some("close")));
    wire.expect_end();
    assert_eq!(agent.exit_code(), 0);
    assert!(agent.out.so_far().is_empty());
}

#[test]
fn the_relay_closes_a_link_whose_agent_goes() {
    let relay = Relay::start(&[]);
    let mut idle = link_ours(&relay, "demo");
    idle.send(LEAVE).expect_end();
    // One on which a request is, only behind the answer to that.
    let mut busy = link_ours(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send(post("demo", "/", "an order"));
    busy.request();
    busy.send(LEAVE).send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfine");
    let answer = visitor.response("POST");
    assert_eq!((answer.text().as_str(), answer.interim.len()), ("fine", 0));
    busy.expect_end();
    // From an agent that has not said that it knows of this, it is not taken.
    let mut other = link(&relay, "demo");
    other.send(LEAVE).expect_end();
    relay.log().wait_for("unexpected-data");
}

#[test]
fn spare_links_go_without_a_request_in_their_way() {
    let upstream = Upstream::saying("fine");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let via = format!("http://{}", listener.local_addr().unwrap());
    let flags = ["--links", "1..4", "--timeout", "spare=300ms", "--timeout", "linger=10m"];
    let mut command = agent_command(&[&upstream.address(), "--via", &via]);
    let agent = Program::start(command.args(flags));
    let accept = || {
        let mut wire = Wire::new(listener.accept().unwrap().0);
        wire.request_head().unwrap().unwrap();
        wire.send(SWITCH_OURS);
        wire
    };
    let mut first = accept();
    first.send(get("demo", "/"));
    // While the first is busy, a second one is there to be idle.
    let mut second = accept();
    assert_eq!(first.response("GET").text(), "fine");
    // Then there is one more than is needed, and the agent says so on either of them.
    let goes = [&mut first, &mut second].map(|wire| wire.writer());
    for stream in &goes {
        stream.set_nonblocking(true).unwrap();
    }
    let mut byte = [0];
    let going =
        eventually("a link to go", || goes.iter().position(|stream| stream.peek(&mut byte).is_ok_and(|n| n > 0)));
    for stream in &goes {
        stream.set_nonblocking(false).unwrap();
    }
    let wire = if going == 0 { &mut first } else { &mut second };
    expect_leave(wire);
    wire.send(get("demo", "/late"));
    let answer = wire.response("GET");
    assert_eq!((answer.text().as_str(), answer.head.get("Connection")), ("fine", Some("close")));
    wire.expect_end();
    drop(agent);
}

#[test]
fn who_has_no_time_left_and_no_answer_gets_one() {
    let upstream = Upstream::start(|asked| {
        asked.wire.expect_end();
        After::Close
    });
    let relay = Relay::start(&["--timeout", "drain=300ms"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/"));
    eventually("the request to be there", || (upstream.requests().len() == 1).then_some(()));
    relay.program.terminate();
    let answer = visitor.response("GET");
    assert_eq!((answer.status(), answer.code().as_str()), (503, "stopping"));
    assert_eq!(answer.head.get("Connection"), Some("close"));
}

#[test]
fn who_has_no_time_left_is_not_told_that_it_has_the_whole() {
    let upstream = Upstream::start(|asked| {
        asked.wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n");
        asked.wire.expect_end();
        After::Close
    });
    let relay = Relay::start(&["--timeout", "drain=300ms"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    // To it the end of the connection is the end of the body.
    let mut visitor = relay.visitor();
    visitor.send("GET / HTTP/1.0\r\nHost: demo.localhost\r\n\r\n");
    assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
    assert_eq!(visitor.body(5), b"begun");
    relay.program.terminate();
    visitor.expect_reset();
    assert!(relay.log().wait_for(" demo GET / 200 ").ends_with("stopping"));
}

#[test]
fn a_second_signal_ends_no_answer_as_if_it_were_whole() {
    let upstream = Upstream::start(|asked| {
        if asked.head.target() == "/begun" {
            asked.wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n");
        }
        asked.wire.expect_end();
        After::Close
    });
    for workers in ["1", "2"] {
        let mut relay = Relay::start(&["--workers", workers, "--tcp", "127.0.0.1:0=demo"]);
        let line = relay.log().wait_for("tcp://127.0.0.1:");
        let port = line.split("tcp://127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap();
        let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
        let mut cut: Vec<Wire> = (0..8).map(|_| relay.visitor()).collect();
        for visitor in &mut cut {
            // To it the end of the connection is the end of the body; so it is to whoever has a tunnel.
            visitor.send("GET /begun HTTP/1.0\r\nHost: demo.localhost\r\n\r\n");
        }
        cut.extend((0..4).map(|_| Wire::connect(port)));
        for visitor in &mut cut[8..] {
            visitor.send(get("demo", "/begun"));
        }
        for visitor in &mut cut {
            assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
        }
        let before = upstream.requests().len();
        let mut told = relay.visitor();
        told.send(get("demo", "/waits"));
        eventually("the request to be there", || (upstream.requests().len() > before).then_some(()));
        relay.program.terminate();
        relay.log().wait_for("stopping");
        relay.program.terminate();
        for visitor in &mut cut {
            visitor.expect_reset();
        }
        let answer = told.response("GET");
        assert_eq!((answer.status(), answer.code().as_str()), (503, "stopping"));
        assert_eq!(relay.program.exit_code(), 130);
    }
}

#[test]
fn a_second_signal_is_heard_when_the_worker_that_hears_signals_has_ended() {
    let upstream = Upstream::start(|asked| {
        asked.wire.expect_end();
        After::Close
    });
    // The one request is on either worker.
    for _ in 0..6 {
        let mut relay = Relay::start(&["--workers", "2", "--timeout", "drain=10m", "--timeout", "farewell=10ms"]);
        let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
        let before = upstream.requests().len();
        let mut visitor = relay.visitor();
        visitor.send(get("demo", "/waits"));
        eventually("the request to be there", || (upstream.requests().len() > before).then_some(()));
        relay.program.terminate();
        // Where the other worker has the request, the first one ends, and its thread waits for that one's.
        let (place, mut looks) = (format!("/proc/{}/wchan", relay.program.id()), 0);
        eventually("the first worker to have had the time to end", || {
            looks += 1;
            let waits = std::fs::read_to_string(&place).is_ok_and(|place| place.contains("futex"));
            (waits || looks > 50).then_some(())
        });
        relay.program.terminate();
        assert_eq!(relay.program.exit_code(), 130);
    }
}

#[test]
fn what_was_not_sent_of_an_answer_when_the_relay_ends_is_seen_to_lack() {
    const CHUNKS: usize = 8000;
    let upstream = Upstream::start(|asked| {
        let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for _ in 0..CHUNKS {
            answer.extend(chunk(&[b'x'; 1000]));
        }
        answer.extend(b"0\r\n\r\n");
        let _ = asked.wire.try_send(answer);
        After::Keep
    });
    for twice in [true, false] {
        let mut relay = Relay::start(&["--timeout", "drain=300ms", "--limit", "buffer=32000000"]);
        let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
        // It doesn't read, and its system takes little for it.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, relay.port)).into()).unwrap();
        let mut visitor = Wire::new(socket.into());
        visitor.send("GET / HTTP/1.0\r\nHost: demo.localhost\r\n\r\n");
        // The relay has all of it.
        relay.log().wait_for(" demo GET / 200 ");
        relay.program.terminate();
        if twice {
            relay.log().wait_for("stopping");
            relay.program.terminate();
        }
        assert_eq!(relay.program.exit_code(), if twice { 130 } else { 0 });
        visitor.expect_reset();
    }
}

#[test]
fn an_agent_that_is_told_twice_to_stop_leaves_its_requests_to_others() {
    let upstream = Upstream::start(|asked| {
        asked.wire.expect_end();
        After::Close
    });
    let relay = Relay::start(&[]);
    let mut first = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/"));
    eventually("the request to be there", || (upstream.requests().len() == 1).then_some(()));
    let other = Upstream::saying("fine");
    let _second = Agent::start(&relay, "demo", &other.address(), &[]);
    first.program.terminate();
    first.log().wait_for("stopping");
    first.program.terminate();
    assert_eq!(first.program.exit_code(), 130);
    assert_eq!(visitor.response("GET").text(), "fine");
}
