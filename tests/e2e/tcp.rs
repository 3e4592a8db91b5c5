//! TCP tunnels: connections of any kind through a port of the relay (`--tcp`), which ask the agent by CONNECT.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::Duration;

use crate::support::link::{SWITCH, link, link_lines};
use crate::support::random::Random;
use crate::support::wire::{Wire, get, serve};
use crate::support::{Agent, Program, Relay, agent_command, eventually, free_port, relay_command};

/// A relay with a TCP port for the tunnel `demo`, and that port.
fn relay(args: &[&str]) -> (Relay, u16) {
    let relay = Relay::start(&[&["--tcp", "127.0.0.1:0=demo"], args].concat());
    let line = relay.log().wait_for("tcp://127.0.0.1:");
    assert!(line.ends_with("is the tunnel `demo`"), "{line}");
    let port = line.split("tcp://127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    (relay, port.unwrap())
}

/// An agent of this relay, which the test plays.
fn agent_of(relay: &TcpListener, upstream: &str) -> Program {
    let via = format!("http://{}", relay.local_addr().unwrap());
    Program::start(&mut agent_command(&[upstream, "--via", &via, "--links", "1..1", "-v"]))
}

/// Takes the agent's link.
fn accept(relay: &TcpListener) -> Wire {
    let mut link = Wire::new(relay.accept().unwrap().0);
    assert_eq!(link.request_head().unwrap().unwrap().0.start, "POST / HTTP/1.1");
    link.send(SWITCH);
    link
}

fn echo(wire: &mut Wire) {
    while let Some(bytes) = wire.piece() {
        if wire.try_send(&bytes).is_err() {
            return;
        }
    }
    let _ = wire.try_send("the end");
    wire.shut();
}

#[test]
fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let (relay, port) = relay(&[]);
    let agent = Agent::start(&relay, "demo", &serve(echo), &[]);
    let mut client = Wire::connect(port);
    for bytes in [&b"hello"[..], b"\0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"] {
        assert_eq!(client.send(bytes).raw(bytes.len()), bytes);
    }
    client.shut();
    assert_eq!(client.raw(7), b"the end");
    client.expect_end();
    let line = relay.log().wait_for(" CONNECT demo.localhost:");
    assert!(
        line.contains(&format!(" demo CONNECT demo.localhost:{port} 200 28 35 ")) && line.ends_with(" -"),
        "{line}"
    );
    assert!(agent.log().wait_for(" CONNECT demo.localhost:").contains(" 200 28 35 "));
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    let (relay, port) = relay(&[]);
    let address = serve(|wire| {
        wire.send("220 ready\r\n");
        echo(wire);
    });
    let _agent = Agent::start(&relay, "demo", &address, &[]);
    let mut client = Wire::connect(port);
    assert_eq!(client.raw(11), b"220 ready\r\n");
    client.shut();
    assert_eq!(client.raw(7), b"the end");
    client.expect_end();
}

#[test]
fn the_servers_end_comes_first_and_the_clients_direction_goes_on() {
    let (relay, port) = relay(&[]);
    let (heard, seen) = std::sync::mpsc::channel();
    let heard = std::sync::Mutex::new(heard);
    let address = serve(move |wire| {
        wire.send("over").shut();
        let all = wire.whatever_comes();
        crate::support::locked(&heard).send(all).unwrap();
    });
    let _agent = Agent::start(&relay, "demo", &address, &[]);
    let mut client = Wire::connect(port);
    assert_eq!(client.raw(4), b"over");
    client.expect_end();
    client.send("all of this still arrives").shut();
    assert_eq!(seen.recv_timeout(crate::support::PATIENCE).unwrap(), b"all of this still arrives");
}

#[test]
fn a_client_that_ends_at_once_gets_its_answer() {
    // `printf x | nc -N`: the end is there before a link is.
    let (relay, port) = relay(&[]);
    let _agent = Agent::start(&relay, "demo", &serve(echo), &[]);
    for _ in 0..20 {
        let mut client = Wire::connect(port);
        client.send("x").shut();
        assert_eq!(client.raw(8), b"xthe end");
        client.expect_end();
    }
}

#[test]
fn much_at_once_arrives_whole() {
    const BYTES: usize = 3_000_000;
    let (relay, port) = relay(&[]);
    let _agent = Agent::start(&relay, "demo", &serve(echo), &[]);
    let clients: Vec<_> = (0..4)
        .map(|seed| {
            thread::spawn(move || {
                let bytes = Random::seeded(seed).bytes(BYTES);
                let mut client = Wire::connect(port);
                let (mut writer, sent) = (client.writer(), bytes.clone());
                let writing = thread::spawn(move || {
                    writer.write_all(&sent).unwrap();
                    writer.shutdown(std::net::Shutdown::Write).unwrap();
                });
                assert!(client.raw(BYTES) == bytes, "other bytes than were sent");
                writing.join().unwrap();
                assert_eq!(client.raw(7), b"the end");
                client.expect_end();
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
}

#[test]
fn without_an_agent_it_closes_at_once_and_says_so() {
    let (relay, port) = relay(&["--timeout", "link=1h"]);
    let mut client = Wire::connect(port);
    client.expect_end();
    let line = relay.log().wait_for("was closed (no-link)");
    assert!(line.contains("127.0.0.1:") && line.contains("`demo`"), "{line}");
    assert!(relay.log().wait_for(" CONNECT ").ends_with("no-link"));
}

#[test]
fn an_upstream_that_refuses_closes_the_client_and_the_link() {
    let (relay, port) = relay(&[]);
    let upstream = format!("127.0.0.1:{}", free_port());
    let agent = Agent::start(&relay, "demo", &upstream, &["--links", "1..1"]);
    for round in 1..4 {
        let mut client = Wire::connect(port);
        client.expect_end();
        relay.log().wait_for_count(round, "was refused with 502 (upstream-refused)");
        // The link went with the refusal (RFC 9931), and there is another one.
        relay.log().wait_for_count(round, " CONNECT ");
        eventually("the next link", || (relay.get("demo", "/").code() == "upstream-refused").then_some(()));
    }
    assert!(agent.log().wait_for(" CONNECT ").ends_with("upstream-refused"));
}

#[test]
fn the_agent_connects_to_its_own_upstream_whatever_the_authority_says() {
    let relay = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let other = serve(|wire| {
        wire.send("other");
    });
    let upstream = serve(|wire| {
        wire.send("own");
        echo(wire);
    });
    let _agent = agent_of(&relay, &upstream);
    let mut link = accept(&relay);
    link.send(format!("CONNECT {other} HTTP/1.1\r\nHost: {other}\r\n\r\n"));
    assert_eq!(link.any_response_head("CONNECT").status(), 200);
    assert_eq!(link.raw(3), b"own");
    link.shut();
    assert_eq!(link.raw(7), b"the end");
    link.expect_end();
}

#[test]
fn what_comes_behind_a_connect_is_not_sent_before_the_200() {
    let relay = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let agent = agent_of(&relay, &format!("127.0.0.1:{}", free_port()));
    let mut link = accept(&relay);
    // It is refused; and what came behind it is not read as a request.
    link.send("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    let refusal = link.response("CONNECT");
    assert_eq!((refusal.status(), refusal.code().as_str()), (502, "upstream-refused"));
    assert_eq!(refusal.head.get("Connection"), Some("close"));
    link.expect_end();
    assert_eq!(agent.log.count("/smuggled"), 0);
}

#[test]
fn the_built_in_page_is_no_upstream_for_it() {
    let (relay, port) = relay(&[]);
    let _agent = Agent::start(&relay, "demo", "hello", &[]);
    Wire::connect(port).expect_end();
    relay.log().wait_for("was refused with 501 (connect-unsupported)");
}

#[test]
fn a_visitors_connect_is_refused_and_its_connection_closed() {
    let (relay, _) = relay(&[]);
    let _agent = Agent::start(&relay, "demo", &serve(echo), &[]);
    let mut visitor = relay.visitor();
    visitor.send("CONNECT demo.localhost:80 HTTP/1.1\r\nHost: demo.localhost:80\r\n\r\nGET / HTTP/1.1\r\n\r\n");
    let refusal = visitor.response("CONNECT");
    assert_eq!((refusal.status(), refusal.code().as_str()), (501, "connect-unsupported"));
    assert_eq!(refusal.head.get("Connection"), Some("close"));
    visitor.expect_end();
}

#[test]
fn an_agent_that_polls_has_no_tcp_tunnels() {
    let (relay, port) = relay(&[]);
    let _agent = Agent::start(&relay, "demo", "hello", &["--dialect", "comet"]);
    Wire::connect(port).expect_end();
    let line = relay.log().wait_for("was closed (dialect-limit)");
    assert!(line.contains("tunnel `demo`"), "{line}");
    assert_eq!(relay.get("demo", "/").status(), 200);
}

#[test]
fn an_agent_by_hand_hears_a_connect_without_a_byte_behind_it() {
    let (relay, port) = relay(&[]);
    let mut agent = link(&relay, "demo");
    let mut client = Wire::connect(port);
    client.send("early");
    let request = agent.request();
    assert_eq!((request.head.method(), request.head.target()), ("CONNECT", &*format!("demo.localhost:{port}")));
    assert!(!request.head.has("Content-Length") && !request.head.has("Transfer-Encoding"));
    assert!(agent.silence(Duration::from_millis(100)), "bytes came before the answer");
    // As Yaler's devices answer, and with the first bytes in the same write.
    agent.send("HTTP/1.1 200 OK\r\n\r\nback");
    assert_eq!(client.raw(4), b"back");
    assert_eq!(agent.raw(5), b"early");
    // One link for each connection.
    let mut second = link(&relay, "demo");
    let mut other = Wire::connect(port);
    assert_eq!(second.request().head.method(), "CONNECT");
    second.send("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    other.expect_end();
    second.expect_end();
    relay.log().wait_for("was refused with 404 (-)");
    drop(client);
    agent.expect_end();
}

#[test]
fn behind_a_connect_nothing_is_said_but_bytes() {
    // A relay of ours tells an agent of ours on a busy link that others wait: behind a CONNECT that would be the client's own words.
    let (relay, port) = relay(&["--workers", "1"]);
    let mut link = link_lines(&relay, "demo", 7);
    let mut first = Wire::connect(port);
    assert_eq!(link.request().head.method(), "CONNECT");
    let _second = Wire::connect(port);
    let mut other = relay.visitor();
    other.send(get("demo", "/"));
    link.send("HTTP/1.1 200 OK\r\n\r\n");
    first.send("hello");
    assert_eq!(link.raw(5), b"hello");
    // The others have what they were waiting for.
    let mut more = [link_lines(&relay, "demo", 7), link_lines(&relay, "demo", 7)];
    let mut asked: Vec<String> = more.iter_mut().map(|link| link.request().head.method().to_owned()).collect();
    asked.sort();
    assert_eq!(asked, ["CONNECT", "GET"]);
}

#[test]
fn a_reset_goes_through_in_either_direction() {
    let (relay, port) = relay(&[]);
    let address = serve(|wire| {
        if wire.piece().as_deref() == Some(b"you") {
            wire.break_on_drop();
        } else {
            wire.send("me");
            wire.expect_reset();
        }
    });
    let _agent = Agent::start(&relay, "demo", &address, &[]);
    let mut client = Wire::connect(port);
    client.send("you");
    client.expect_reset();
    let mut client = Wire::connect(port);
    client.send("me");
    assert_eq!(client.raw(2), b"me");
    client.break_on_drop();
    drop(client);
    relay.log().wait_for_count(2, " CONNECT ");
    assert_eq!(relay.log().wait_for_count(1, "visitor-gone").len(), 1);
}

#[test]
fn with_several_workers_and_agents_each_connection_finds_one() {
    let (relay, port) = relay(&["--workers", "2"]);
    let address = serve(echo);
    let _agents = [Agent::start(&relay, "demo", &address, &[]), Agent::start(&relay, "demo", &address, &[])];
    for _ in 0..30 {
        let mut client = Wire::connect(port);
        assert_eq!(client.send("ping").raw(4), b"ping");
    }
}

#[test]
fn its_flag_is_looked_at() {
    for flag in ["2222=demo", "127.0.0.1:2222", "127.0.0.1:2222=", "127.0.0.1:2222=a.b", "127.0.0.1=demo"] {
        let mut relay = Program::start(&mut relay_command(&["--listen", "127.0.0.1:0", "--tcp", flag]));
        assert_eq!(relay.exit_code(), 2, "{flag}");
    }
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let flag = format!("{}=demo", taken.local_addr().unwrap());
    let mut relay = Program::start(&mut relay_command(&["--listen", "127.0.0.1:0", "--tcp", &flag]));
    assert_eq!(relay.exit_code(), 1);
    relay.log.wait_for("another program listens there; stop it or choose another address with --tcp");
}

#[test]
fn the_same_tunnel_serves_http_beside_it() {
    let (relay, port) = relay(&[]);
    let upstream = crate::support::upstream::Upstream::saying("fine");
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    // HTTP by the TCP port is just bytes: the Host is the upstream's business.
    let mut client = Wire::connect(port);
    assert_eq!(client.send(get("whoever", "/")).response("GET").text(), "fine");
    assert_eq!(relay.get("demo", "/").text(), "fine");
}

#[test]
fn a_connection_too_many_is_closed() {
    let (relay, port) = relay(&["--limit", "connections=1", "-v"]);
    // Until a link is turned, it is a visitor's connection like any other.
    let _agent = Agent::start(&relay, "demo", &serve(echo), &["--links", "8..8"]);
    relay.log().wait_for_count(7, "tunnel `demo`: another link");
    let mut first = Wire::connect(port);
    assert_eq!(first.send("here").raw(4), b"here");
    Wire::connect(port).expect_end();
    relay.log().wait_for("--limit connections");
    assert_eq!(first.send("still").raw(5), b"still");
    // Its place is free for another when it has gone.
    first.shut();
    assert_eq!(first.raw(7), b"the end");
    eventually("room for another", || {
        let mut next = Wire::connect(port);
        let sent = next.try_send("next").is_ok();
        (sent && next.piece().as_deref() == Some(b"next")).then_some(())
    });
}

#[test]
fn a_client_that_breaks_off_when_both_directions_are_full_frees_the_other_end() {
    let (relay, port) = relay(&[]);
    let agent = Agent::start(&relay, "demo", &serve(echo), &[]);
    let mut client = Wire::connect(port);
    // It never reads: so the echo stops to read, and so on, back to here.
    client.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let bytes = vec![b'x'; 64 * 1024];
    while client.try_send(&bytes).is_ok() {}
    client.break_on_drop();
    drop(client);
    for log in [relay.log(), agent.log()] {
        assert!(log.wait_for(" CONNECT demo.localhost:").ends_with("visitor-gone"));
    }
}
