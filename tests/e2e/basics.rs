//! What the README promises: two commands, and a local port has a URL.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::thread;

use crate::support::upstream::Upstream;
use crate::support::wire::{Wire, get, post};
use crate::support::{Agent, Program, Relay, TempPath, agent_command, dialect};

#[test]
fn a_visitor_reaches_a_tunnel_by_its_host_name() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    assert_eq!(agent.url, dialect().public_url(relay.port, "demo"));

    for host in [format!("demo.localhost:{}", relay.port), "DEMO.LocalHost".into(), "demo.localhost.".into()] {
        let answer = relay.visitor().send(format!("GET /x?y HTTP/1.1\r\nHost: {host}\r\n\r\n")).response("GET");
        assert_eq!(answer.status(), 200);
        assert!(answer.text().starts_with("GET /x?y HTTP/1.1\r\n"), "{}", answer.text());
        assert_eq!(upstream.last_request().get("Host"), Some(host.as_str()));
    }
    let answer = relay.visitor().send(post("demo", "/form", "a=1&b=2")).response("POST");
    assert!(answer.text().ends_with("\r\n\r\na=1&b=2"), "{}", answer.text());
}

#[test]
fn a_visitor_reaches_a_tunnel_by_its_path() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    for (target, seen) in [
        ("/frontend/servers/demo/x?y", "/x?y"),
        ("/frontend/servers/demo/", "/"),
        ("/frontend/servers/demo", "/"),
        ("/frontend/servers/demo?q", "/?q"),
        ("/frontend/servers/demo/a/../b%2f//c", "/a/../b%2f//c"),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\r\n", relay.port);
        assert_eq!(relay.visitor().send(request).response("GET").status(), 200);
        assert_eq!(upstream.last_request().target(), seen, "{target}");
    }
}

#[test]
fn any_other_request_goes_to_the_default_tunnel() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let agent = Agent::run(&mut agent_command(&[&upstream.address(), "--via", &relay.url()]));
    assert_eq!(agent.url, dialect().public_url(relay.port, "default"));
    for host in ["localhost", "127.0.0.1", "www.example.org", "[::1]:9999", "a.b.localhost", ""] {
        let answer = relay.visitor().send(format!("GET /d HTTP/1.1\r\nHost: {host}\r\n\r\n")).response("GET");
        assert_eq!(answer.status(), 200, "{host}");
    }
}

#[test]
fn tunnels_do_not_mix() {
    let (one, two) = (Upstream::saying("one"), Upstream::saying("two"));
    let relay = Relay::start(&["--domain", "tunnels.example"]);
    let _one = Agent::start(&relay, "one", &one.address(), &[]);
    let _two = Agent::start(&relay, "two", &two.address(), &[]);
    let mut visitor = relay.visitor();
    for name in ["one", "two", "one", "two"] {
        let request = format!("GET / HTTP/1.1\r\nHost: {name}.tunnels.example\r\n\r\n");
        assert_eq!(visitor.send(request).response("GET").text(), name);
    }
}

#[test]
fn stdout_has_the_url_and_nothing_else() {
    let upstream = Upstream::saying("hello");
    let relay = Relay::start(&[]);
    let mut agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    assert_eq!(relay.get("demo", "/").text(), "hello");
    agent.program.terminate();
    assert_eq!(agent.program.exit_code(), 0);
    assert_eq!(agent.program.out.all(), [agent.url.clone()]);
    agent.log().wait_for(&format!("tunnel `demo` stands: {} -> {}", agent.url, upstream.address()));
    assert!(relay.program.out.so_far().is_empty());
}

#[test]
fn hello_shows_a_request_as_it_arrived() {
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", "hello", &[]);
    let mut visitor = relay.visitor();
    let page = visitor.get("demo", "/some/where?x=1");
    assert_eq!(page.status(), 200);
    assert!(page.text().contains("\nGET /some/where?x=1 HTTP/1.1\n"), "{}", page.text());
    assert!(page.text().contains("\nX-Forwarded-For: 127.0.0.1\n"), "{}", page.text());
    let page = visitor.send(post("demo", "/", "what was sent")).response("POST");
    assert!(page.text().contains("\nwhat was sent\n(a body of 13 bytes)"), "{}", page.text());
    assert_eq!(visitor.send("HEAD / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n").response("HEAD").status(), 200);
    assert_eq!(visitor.get("demo", "/").status(), 200);
}

#[test]
fn one_command_alone_shows_the_whole_thing() {
    // The port is part of the promise, so that it can't be another one here.
    if TcpListener::bind((Ipv4Addr::LOCALHOST, 9999)).is_err() {
        eprintln!("not tested: something listens on port 9999");
        return;
    }
    let mut program = Program::start(&mut agent_command(&["hello"]));
    assert_eq!(program.out.wait_for("http"), dialect().public_url(9999, "default"));
    let page = Wire::connect(9999).send("GET /x HTTP/1.1\r\nHost: localhost:9999\r\n\r\n").response("GET");
    assert!(page.text().contains("\nGET /x HTTP/1.1\n"), "{}", page.text());
    program.terminate();
    assert_eq!(program.exit_code(), 0);
}

#[test]
fn an_upstream_may_listen_on_a_unix_socket() {
    let path = TempPath::new("upstream");
    let listener = UnixListener::bind(&path.0).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nby a path");
        }
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &format!("unix:{}", path.text()), &[]);
    for _ in 0..3 {
        assert_eq!(relay.get("demo", "/").text(), "by a path");
    }
}

#[test]
fn a_name_is_looked_up_and_localhost_is_both_of_its_addresses() {
    let upstream = Upstream::saying("hello");
    let relay = Relay::start(&[]);
    let via = format!("http://localhost:{}", relay.port);
    // The upstream is given as a port alone, which is `localhost` too.
    let port = upstream.port.to_string();
    let _agent = Agent::run(&mut agent_command(&[&port, "--via", &via, "--name", "demo"]));
    assert_eq!(relay.visitor().send(get("demo", "/")).response("GET").text(), "hello");
}

#[test]
fn a_relay_listens_on_every_address_that_it_is_given() {
    let upstream = Upstream::showing();
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("not tested: this machine has no IPv6");
        return;
    }
    let relay = Relay::start(&["--listen", "[::1]:0"]);
    let line = relay.log().wait_for("listening on http://[::1]:");
    let port: u16 = line.split("[::1]:").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    // The agent on one of them, visitors on both.
    let via = format!("http://[::1]:{port}");
    let _agent = Agent::run(&mut agent_command(&[&upstream.address(), "--via", &via, "--name", "demo"]));
    assert_eq!(relay.get("demo", "/").status(), 200);
    assert_eq!(upstream.last_request().get("X-Forwarded-For"), Some("127.0.0.1"));
    let mut visitor = Wire::new(TcpStream::connect(("::1", port)).unwrap());
    assert_eq!(visitor.get("demo", "/").status(), 200);
    let head = upstream.last_request();
    assert_eq!(head.get("X-Forwarded-For"), Some("::1"));
    assert_eq!(head.get("Forwarded"), Some("for=\"[::1]\";host=\"demo.localhost\";proto=http"));
}
