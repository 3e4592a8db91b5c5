//! The agent against relays by hand: of other makes, and of other times.

use std::net::{Ipv4Addr, TcpListener};

use crate::support::upstream::Upstream;
use crate::support::wire::{Wire, get};
use crate::support::{Program, agent_command, eventually};

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n";

/// A relay of bare bytes, and an agent that dials it.
struct ByHand {
    listener: TcpListener,
    agent: Program,
    upstream: Upstream,
}

fn by_hand(args: &[&str]) -> ByHand {
    let upstream = Upstream::showing();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let via = format!("http://{}", listener.local_addr().unwrap());
    let mut command = agent_command(&[&upstream.address(), "--via", &via, "--name", "demo", "--links", "1..4", "-v"]);
    let agent = Program::start(command.args(args));
    ByHand { listener, agent, upstream }
}

impl ByHand {
    /// The agent's next connection, its offer read.
    fn offered(&self) -> Wire {
        let mut wire = Wire::new(self.listener.accept().unwrap().0);
        assert_eq!(wire.request_head().unwrap().unwrap().0.start, "POST /demo HTTP/1.1");
        wire
    }
}

#[test]
fn the_offer_is_what_every_known_relay_takes() {
    // Who would fall back to polls says so, behind what every relay looks at.
    let falls_back = "Ptth-Accept: comet, base64, ping, pipeline\r\nPrefer: wait=0\r\n";
    for (args, more) in [(&[][..], falls_back), (&["--dialect", "ptth/1.0"], "Ptth-Accept: ping, pipeline\r\n")] {
        let relay = by_hand(args);
        let mut wire = Wire::new(relay.listener.accept().unwrap().0);
        let (head, _) = wire.request_head().unwrap().unwrap();
        let port = relay.listener.local_addr().unwrap().port();
        let version = env!("CARGO_PKG_VERSION");
        // Different for each agent, and as long.
        let me = head.get("Ptth-Aside").unwrap();
        assert!(me.len() == 16 && me.bytes().all(|byte| byte.is_ascii_hexdigit()), "{me}");
        assert_eq!(
            head.text,
            format!(
                "POST /demo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\
                 Content-Length: 0\r\nUser-Agent: ptth-reverse/{version}\r\n{more}Ptth-Aside: {me}\r\n\r\n"
            )
        );
        // Not a byte more before the answer, nor a URL.
        wire.send(SWITCH);
        relay.agent.out.wait_for("http://demo.localhost");
    }
}

#[test]
fn a_relay_that_does_not_answer_an_offer_is_given_up() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let via = format!("http://{}", listener.local_addr().unwrap());
    let mut agent =
        Program::start(&mut agent_command(&["hello", "--via", &via, "--timeout", "upgrade=300ms", "--once"]));
    assert_eq!(agent.exit_code(), 3);
    agent.log.wait_for("did not answer within");
}

#[test]
fn every_known_relays_101_is_taken_with_a_request_right_behind_it() {
    for switch in [
        SWITCH,
        "HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nContent-type: text/plain\r\nUpgrade: PTTH/1.0\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: PTTH/0.9\r\nconnection: keep-alive, upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\nDate: x\nUpgrade: PTTH/1.0\nConnection: Upgrade\n\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n",
    ] {
        let relay = by_hand(&[]);
        let mut link = relay.offered();
        link.send(format!("{switch}{}", get("demo", "/first")));
        let answer = link.response("GET");
        assert!(answer.text().starts_with("GET /first HTTP/1.1\r\n"), "{switch}: {}", answer.text());
        assert_eq!(link.get("demo", "/second").status(), 200, "{switch}");
    }
}

#[test]
fn a_request_without_a_host_is_served() {
    let relay = by_hand(&[]);
    let mut link = relay.offered();
    link.send(SWITCH);
    for request in [
        "GET /none HTTP/1.1\r\n\r\n",
        "GET /empty HTTP/1.1\r\nHost:\r\n\r\n",
        "POST /body HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody",
    ] {
        assert_eq!(link.send(request).response("GET").status(), 200, "{request}");
        assert_eq!(relay.upstream.last_request().get("Host"), Some(""));
    }
}

#[test]
fn requests_sent_ahead_on_a_link_are_answered_in_their_order() {
    let relay = by_hand(&[]);
    let mut link = relay.offered();
    link.send(SWITCH.to_owned() + &(0..10).map(|n| get("demo", &format!("/{n}"))).collect::<String>());
    for n in 0..10 {
        assert!(link.response("GET").text().starts_with(&format!("GET /{n} ")));
    }
}

#[test]
fn a_relay_that_uses_each_link_once_finds_another_waiting() {
    let relay = by_hand(&["--timeout", "backoff=60s", "--timeout", "backoff-max=60s"]);
    // Without a pause: a link that has served is nothing to be careful about.
    for n in 0..10 {
        let mut link = relay.offered();
        link.send(SWITCH);
        let request = format!("GET /{n} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = link.send(request).response("GET");
        assert_eq!((answer.status(), answer.head.get("Connection")), (200, Some("close")));
        link.expect_end();
    }
    assert_eq!(relay.upstream.connections(), 1);
}

#[test]
fn a_link_that_is_in_use_is_replaced_before_it_is_needed() {
    let relay = by_hand(&[]);
    let mut first = relay.offered();
    first.send(SWITCH);
    first.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n");
    // The request is under way: another link is dialled meanwhile.
    let mut second = relay.offered();
    second.send(SWITCH);
    assert_eq!(second.get("demo", "/").status(), 200);
    first.send("body");
    assert!(first.response("POST").text().ends_with("\r\n\r\nbody"));
}

#[test]
fn a_request_that_is_none_ends_its_link_and_no_other() {
    let relay = by_hand(&["--timeout", "backoff=50ms"]);
    let mut first = relay.offered();
    first.send(SWITCH);
    assert_eq!(first.get("demo", "/").status(), 200);
    first.send("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    let answer = first.response("GET");
    assert_eq!((answer.status(), answer.code().as_str()), (400, "two-hosts"));
    first.shut().expect_end();
    let mut second = relay.offered();
    second.send(SWITCH);
    assert_eq!(second.get("demo", "/").status(), 200);
}

#[test]
fn the_public_url_is_printed_once_however_often_links_come_and_go() {
    let relay = by_hand(&["--timeout", "backoff=20ms", "--timeout", "backoff-max=20ms"]);
    for _ in 0..5 {
        let mut link = relay.offered();
        link.send(SWITCH);
        relay.agent.out.wait_for("http://");
    }
    eventually("all links to be dialled again", || (relay.agent.log.count("again") >= 4).then_some(()));
    assert_eq!(relay.agent.out.so_far().len(), 1);
}
