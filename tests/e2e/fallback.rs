//! Agents that are left to find out how to reach their relay: when they poll instead, when they don't, and how they come back.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::support::upstream::Upstream;
use crate::support::wire::{Message, Wire, get, post};
use crate::support::{Agent, Program, Relay, agent_command, eventually, free_port};

/// The line of an agent that polls from now on, and that of one that does so no more.
const POLLS: &str = "polling instead";
const TURNS: &str = "turns connections again";

/// The answer to a poll for which there is nothing.
const NOTHING: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";

/// A proxy in front of a relay.
struct Proxy {
    url: String,
    /// Whether it takes the upgrade out of requests.
    strips: Arc<AtomicBool>,
    /// How many it took it out of.
    stripped: Arc<AtomicUsize>,
}

fn proxy(relay: &Relay) -> Proxy {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (strips, stripped, port) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)), relay.port);
    let proxy = Proxy { url, strips: Arc::clone(&strips), stripped: Arc::clone(&stripped) };
    thread::spawn(move || {
        for agent in listener.incoming().map_while(Result::ok) {
            let Ok(relay) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
            let (strips, stripped) = (Arc::clone(&strips), Arc::clone(&stripped));
            let (to_agent, from_relay) = (agent.try_clone().unwrap(), relay.try_clone().unwrap());
            thread::spawn(move || pass_on(from_relay, to_agent, &[]));
            thread::spawn(move || {
                let (agent, head) = first_head(agent);
                let head = if strips.load(Ordering::SeqCst) {
                    let without = head.replace("Upgrade: PTTH/1.0\r\nConnection: Upgrade\r\n", "");
                    stripped.fetch_add(usize::from(without != head), Ordering::SeqCst);
                    without
                } else {
                    head
                };
                pass_on(agent, relay, head.as_bytes());
            });
        }
    });
    proxy
}

/// The first head of a connection, and no byte more.
fn first_head(mut stream: TcpStream) -> (TcpStream, String) {
    let (mut head, mut byte) = (String::new(), [0]);
    while !head.ends_with("\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
        head.push(char::from(byte[0]));
    }
    (stream, head)
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, first: &[u8]) {
    if to.write_all(first).is_ok() {
        let _ = std::io::copy(&mut from, &mut to);
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// An agent that dials this URL, which is left to find out.
fn agent(url: &str, upstream: &Upstream, args: &[&str]) -> Agent {
    Agent::run(agent_command(&[&upstream.address(), "--via", url, "--name", "demo", "-v"]).args(args))
}

#[test]
fn a_relay_that_turns_no_connections_is_polled() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&["--no-upgrade"]);
    let agent = agent(&relay.url(), &upstream, &[]);
    let mut visitor = relay.visitor();
    for n in 0..20 {
        assert_eq!(visitor.get("demo", &format!("/{n}")).status(), 200);
        let answer = visitor.send(post("demo", "/", "a body")).response("POST");
        assert!(answer.text().ends_with("\r\n\r\na body"), "{}", answer.text());
    }
    relay.log().wait_for("tunnel `demo` is up: an agent polls from");
    // It says so once, and the URL is printed once.
    let line = agent.log().wait_for(POLLS);
    assert!(line.contains(&relay.url()) && line.contains("every 300 s"), "{line}");
    assert_eq!((agent.log().count(POLLS), agent.program.out.so_far().len()), (1, 1));
}

#[test]
fn a_relay_behind_a_proxy_that_takes_the_upgrade_away_is_polled() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&[]);
    let proxy = proxy(&relay);
    let agent = agent(&proxy.url, &upstream, &[]);
    for _ in 0..20 {
        assert_eq!(relay.get("demo", "/").text(), "fine");
    }
    agent.log().wait_for(POLLS);
    assert!(proxy.stripped.load(Ordering::SeqCst) > 0);
}

#[test]
fn an_agent_comes_back_to_the_upgrade_and_loses_nothing_meanwhile() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let proxy = proxy(&relay);
    let agent = agent(&proxy.url, &upstream, &["--timeout", "upgrade-again=50ms", "--json"]);
    agent.log().wait_for(POLLS);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let visitors: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut asked = 0;
                    while !over.load(Ordering::SeqCst) {
                        let answer = relay.get("demo", "/");
                        assert_eq!(answer.status(), 200, "{}", answer.text());
                        let answer = relay.visitor().send(post("demo", "/", "an order")).response("POST");
                        assert_eq!(answer.status(), 200, "{}", answer.text());
                        asked += 2;
                    }
                    asked
                })
            })
            .collect();
        // It tries in vain, and does not speak of it.
        eventually("five attempts", || (proxy.stripped.load(Ordering::SeqCst) >= 5).then_some(()));
        proxy.strips.store(false, Ordering::SeqCst);
        agent.log().wait_for(TURNS);
        let so_far = upstream.requests().len();
        eventually("more requests", || (upstream.requests().len() > so_far + 100).then_some(()));
        over.store(true, Ordering::SeqCst);
        let asked: usize = visitors.into_iter().map(|visitor| visitor.join().unwrap()).sum();
        assert_eq!(upstream.requests().len(), asked);
    });
    assert_eq!((agent.log().count(POLLS), agent.log().count(TURNS)), (1, 1));
    assert_eq!(agent.log().count("warning"), 0);
    let out = agent.program.out.so_far();
    let dialects: Vec<_> = out.iter().filter(|line| line.contains("\"event\":\"dialect\"")).collect();
    assert_eq!(dialects.len(), 2, "{out:?}");
    assert!(dialects[0].contains("\"comet\"") && dialects[1].contains("\"ptth/1.0\""), "{dialects:?}");
    // It streams again.
    agent.log().wait_for(" demo GET / 200 ");
}

#[test]
fn a_relay_that_turns_connections_after_a_restart_is_found_again() {
    let upstream = Upstream::saying("fine");
    let port = free_port();
    let mut relay = Relay::start_on(port, &["--no-upgrade"]);
    let quick = ["--timeout", "backoff=50ms", "--timeout", "backoff-max=200ms", "--timeout", "upgrade-again=100ms"];
    let agent = agent(&relay.url(), &upstream, &quick);
    for round in 1..=3 {
        agent.log().wait_for_count(round, POLLS);
        assert_eq!(relay.get("demo", "/").text(), "fine");
        relay.program.kill();
        drop(relay);
        relay = Relay::start_on(port, &["--timeout", "link=60s"]);
        assert_eq!(relay.get("demo", "/").text(), "fine");
        agent.log().wait_for_count(round, TURNS);
        relay.program.kill();
        drop(relay);
        relay = Relay::start_on(port, &["--no-upgrade", "--timeout", "link=60s"]);
        assert_eq!(relay.get("demo", "/").text(), "fine");
    }
    assert_eq!(agent.program.out.so_far().len(), 1, "the URL was printed again");
}

#[test]
fn what_is_no_answer_to_a_poll_is_a_refusal() {
    for (answer, said) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
            "answered 200 instead of 101",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "answered 200 instead of 101"),
        (
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n",
            "answered 200 instead of 101",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{\"ok\": 1}", "instead of 101"),
        ("HTTP/1.1 204 No Content\r\n\r\n", "answered 204 instead of 101"),
        ("HTTP/1.1 301 Moved\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "it points elsewhere"),
        ("HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", "--token-file"),
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "--token-file"),
        ("HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", "answered 404"),
        ("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "answered 503"),
    ] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let via = format!("http://{}", listener.local_addr().unwrap());
        let mut agent = Program::start(&mut agent_command(&["hello", "--via", &via, "--once", "--links", "1..1"]));
        let mut wire = Wire::new(listener.accept().unwrap().0);
        assert_eq!(wire.request().head.get("Upgrade"), Some("PTTH/1.0"));
        wire.send(answer);
        assert_eq!(agent.exit_code(), 4, "{answer}");
        let log = agent.log.all().join("\n");
        assert!(log.contains(said) && !log.contains(POLLS), "{answer}: {log}");
        wire.expect_end();
        assert!(agent.out.all().is_empty());
    }
}

#[test]
fn one_that_was_told_to_use_the_upgrade_never_polls() {
    let relay = Relay::start(&["--no-upgrade", "--timeout", "poll=100ms"]);
    let mut command = agent_command(&["hello", "--via", &relay.url(), "--dialect", "ptth/1.0", "--once"]);
    let mut agent = Program::start(&mut command);
    assert_eq!(agent.exit_code(), 4);
    let log = agent.log.all().join("\n");
    assert!(log.contains("answered 200 instead of 101") && !log.contains(POLLS), "{log}");
}

#[test]
fn the_path_of_the_ptth_relay_says_what_it_is() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let agent = agent(&format!("{}/7ZSFUKGV", relay.url()), &upstream, &[]);
    assert_eq!(agent.url, format!("{}/frontend/servers/demo/", relay.url()));
    relay.log().wait_for("(ptth-relay)");
    let request = format!("GET /frontend/servers/demo/x?y HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\r\n", relay.port);
    assert_eq!(relay.visitor().send(request).response("GET").status(), 200);
    assert_eq!(upstream.last_request().target(), "/x?y");
    assert_eq!(agent.log().count(POLLS), 0);
}

/// The request of the page of 2008, for an upstream that has it say what it likes.
fn of_2008(target: &str) -> String {
    let message = format!(
        "{{'message-id': 'xxx', 'method': 'GET', 'request-uri': '{target}', 'http-version': 'PTTH/1.0', 'headers': [['Host', \
         '127.0.0.1:65331'], ['Accept-Encoding', 'identity'], ['Accept','text/plain;q=1,*/*;q=0']], 'body': ''}}"
    );
    format!(
        "HTTP/1.1 200 OK\r\nContent-type: application/json\r\nDate: Tue, 13 May 2008 20:14:45 GMT\r\n\
         Content-Length: {}\r\n\r\n{message}",
        message.len()
    )
}

#[test]
fn a_server_of_2008_is_polled_in_its_own_notation() {
    let upstream = Upstream::answering(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nDate: Tue, 13 May 2008 20:14:45 GMT\r\nContent-Length: 13\r\n\r\n\
         rdlrow ,olleH",
    );
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let via = format!("http://{}", listener.local_addr().unwrap());
    let agent = Program::start(&mut agent_command(&[&upstream.address(), "--via", &via, "--links", "1..1", "-v"]));
    let mut wire = Wire::new(listener.accept().unwrap().0);
    let offer = wire.request();
    assert_eq!((offer.head.start.as_str(), offer.head.get("Upgrade")), ("POST / HTTP/1.1", Some("PTTH/1.0")));
    for n in 0..3 {
        wire.send(of_2008(&format!("/{n}")));
        let Message { head, body, .. } = wire.request();
        assert_eq!((head.start.as_str(), head.get("Content-Type")), ("POST / HTTP/1.1", Some("application/json")));
        assert!(!head.has("Upgrade") && !head.has("Connection"), "{}", head.text);
        assert_eq!(
            String::from_utf8(body).unwrap(),
            "{'message-id': 'xxx', 'http-version': 'PTTH/1.0', 'status': 200, 'reason': 'OK', 'headers': [['Content-Type', \
             'text/plain'], ['Date', 'Tue, 13 May 2008 20:14:45 GMT']], 'body': 'rdlrow ,olleH'}"
        );
        assert_eq!(upstream.last_request().target(), format!("/{n}"));
        assert_eq!(upstream.last_request().get("Host"), Some("127.0.0.1:65331"));
    }
    agent.log.wait_for(POLLS);
    assert_eq!(agent.log.count("warning"), 0);
}

#[test]
fn an_attempt_at_the_upgrade_is_heard_while_the_polls_go_on() {
    // A server that answers an offer like a poll: with nothing, with a request, and not at all.
    let upstream = Upstream::saying("fine");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let via = format!("http://{}", listener.local_addr().unwrap());
    let flags = ["--via", &via, "--name", "demo", "--links", "1..1", "--timeout", "upgrade-again=50ms", "-v"];
    let agent = Program::start(agent_command(&[&upstream.address()]).args(flags));
    let mut held = Vec::new();
    let mut offers = 0;
    while offers < 4 {
        let mut wire = Wire::new(listener.accept().unwrap().0);
        let first = wire.request();
        offers += usize::from(first.head.has("Upgrade"));
        match offers {
            1 => {
                wire.send(of_2008("/first"));
                assert!(!wire.request().head.has("Upgrade"));
                held.push(wire);
            }
            2 => {
                wire.send(NOTHING);
                wire.expect_end();
            }
            3 => {
                wire.send(of_2008("/late"));
                let reply = wire.request();
                assert!(reply.text().contains("'body': 'fine'"), "{}", reply.text());
                wire.send(NOTHING);
                wire.expect_end();
            }
            _ => drop(wire),
        }
    }
    assert_eq!((agent.log.wait_for_count(1, POLLS).len(), agent.log.count("warning")), (1, 0));
    // The upgrade at last: what comes on it is served, and the polls end when they are answered.
    let mut link = loop {
        let mut wire = Wire::new(listener.accept().unwrap().0);
        if wire.request().head.has("Upgrade") {
            wire.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n");
            break wire;
        }
    };
    assert_eq!(link.get("demo", "/").text(), "fine");
    agent.log.wait_for(TURNS);
    held[0].send(of_2008("/last"));
    let reply = held[0].request();
    assert!(reply.text().contains("'body': 'fine'"), "{}", reply.text());
    assert_eq!(reply.head.get("Prefer"), Some("wait=0"));
    held[0].send(NOTHING);
    held[0].expect_end();
    assert_eq!(link.send(get("demo", "/")).response("GET").text(), "fine");
}
