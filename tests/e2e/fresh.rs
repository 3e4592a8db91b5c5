//! Links that died in silence, and agents that were frozen: noticed within the bounds that are stated, by both sides; and what of
//! that an agent or a relay of another make gets to see.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use crate::support::link::{PONG, SIGN, SWITCH_OURS, link, link_ours};
use crate::support::upstream::{After, Upstream};
use crate::support::wire::{Message, Wire, get, ok, post};
use crate::support::{Agent, PATIENCE, Program, Relay, agent_command, eventually, locked};

/// Times of a relay that asks often.
const OFTEN: [&str; 4] = ["--timeout", "ping=100ms", "--timeout", "pong=500ms"];

/// An upstream that answers each request when it is told to.
fn holding() -> (Upstream, Sender<()>) {
    let (tell, told) = mpsc::channel::<()>();
    let told = Mutex::new(told);
    let upstream = Upstream::start(move |asked| {
        let told = locked(&told).recv_timeout(PATIENCE);
        if told.is_err() || asked.wire.try_send(ok("late")).is_err() {
            return After::Close;
        }
        After::Keep
    });
    (upstream, tell)
}

fn told(answer: &Message) -> (u16, String) {
    (answer.status(), answer.code())
}

/// The relay's question on an idle link, byte by byte.
fn expect_ping(link: &mut Wire) {
    let ping = "OPTIONS * HTTP/1.1\r\nHost: \r\nMax-Forwards: 0\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&link.raw(ping.len())), ping);
}

#[test]
fn an_agent_that_freezes_with_idle_links_is_noticed_and_comes_back() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&OFTEN);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "backoff=50ms"]);
    assert_eq!(relay.get("demo", "/").text(), "fine");
    agent.program.freeze();
    relay.log().wait_for("did not answer within 0.5 s (--timeout pong)");
    relay.log().wait_for("tunnel `demo` is down");
    agent.program.thaw();
    relay.log().wait_for_count(2, "tunnel `demo` is up");
    assert_eq!(relay.get("demo", "/").text(), "fine");
    // Nobody but the two of them heard of it.
    assert_eq!(upstream.requests().len(), 2);
    assert_eq!((relay.log().count("OPTIONS"), agent.log().count("OPTIONS")), (0, 0));
}

#[test]
fn a_request_that_was_under_way_to_an_agent_that_freezes_is_told_which_hop_is_silent() {
    let (upstream, _tell) = holding();
    // The rest may rest: only what is in the request's way is noticed by itself.
    let relay = Relay::start(&["--timeout", "ping=1h", "--timeout", "pong=300ms", "--timeout", "silence=1s"]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "ping=100ms"]);
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/"));
    eventually("the upstream to be asked", || (!upstream.requests().is_empty()).then_some(()));
    agent.program.freeze();
    let answer = visitor.response("GET");
    assert_eq!(told(&answer), (504, "link-timeout".into()));
    assert!(answer.text().contains("agent `demo`") && answer.text().contains("--timeout silence"), "{}", answer.text());
    assert!(answer.interim.is_empty());
    // The agent's other links are asked at once.
    relay.log().wait_for("(--timeout pong)");
    relay.log().wait_for("tunnel `demo` is down");
}

#[test]
fn an_upstream_may_take_as_long_as_its_agent_allows() {
    let (upstream, tell) = holding();
    let relay = Relay::start(&["--timeout", "silence=400ms", "--timeout", "link-answer=500ms"]);
    let _agent =
        Agent::start(&relay, "slow", &upstream.address(), &["--timeout", "ping=50ms", "--timeout", "answer=5m"]);
    let mut visitor = relay.visitor();
    visitor.send(get("slow", "/"));
    eventually("the upstream to be asked", || (!upstream.requests().is_empty()).then_some(()));
    // Agents that say nothing are given up meanwhile, one after the other.
    for name in ["one", "two", "three"] {
        let _mute = link_ours(&relay, name);
        assert_eq!(told(&relay.get(name, "/")), (504, "link-timeout".into()));
    }
    let _mute = link(&relay, "four");
    assert_eq!(told(&relay.get("four", "/")), (504, "link-timeout".into()));
    tell.send(()).unwrap();
    let answer = visitor.response("GET");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "late"));
    assert!(answer.interim.is_empty(), "the visitor heard of the agent's signs");
}

#[test]
fn signs_of_life_are_believed_up_to_a_bound() {
    let (upstream, _tell) = holding();
    let relay = Relay::start(&["--timeout", "signs=500ms"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "ping=50ms"]);
    let answer = relay.get("demo", "/");
    assert_eq!(told(&answer), (504, "link-timeout".into()));
    assert!(answer.text().contains("--timeout signs"), "{}", answer.text());
}

#[test]
fn an_agent_dials_anew_when_its_relay_freezes() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&["--timeout", "ping=100ms"]);
    let quick = ["--timeout", "silence=1s", "--timeout", "backoff=50ms", "--timeout", "backoff-max=100ms"];
    let agent = Agent::start(&relay, "demo", &upstream.address(), &quick);
    assert_eq!(relay.get("demo", "/").text(), "fine");
    relay.program.freeze();
    let line = agent.log().wait_for("was silent on an idle link for 1 s");
    assert!(line.contains(&relay.url()) && line.contains("--timeout silence"), "{line}");
    relay.program.thaw();
    eventually("the agent to serve again", || (relay.get("demo", "/").status() == 200).then_some(()));
}

#[test]
fn links_that_are_asked_and_answer_stay() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&["--timeout", "ping=20ms"]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "silence=1s"]);
    let mut other = link_ours(&relay, "other");
    // By then each of the agent's has been asked about as often.
    for _ in 0..100 {
        expect_ping(&mut other);
        other.send(PONG);
    }
    for _ in 0..20 {
        assert_eq!(relay.get("demo", "/").text(), "fine");
    }
    assert_eq!(
        (relay.log().count("did not answer"), agent.log().count("silent"), agent.log().count("again")),
        (0, 0, 0)
    );
}

#[test]
fn an_agent_of_another_make_is_asked_nothing() {
    let relay = Relay::start(&["--timeout", "ping=50ms"]);
    let mut other = link(&relay, "other");
    let mut ours = link_ours(&relay, "ours");
    for _ in 0..4 {
        expect_ping(&mut ours);
        ours.send(PONG);
    }
    let mut visitor = relay.visitor();
    visitor.send(get("other", "/first"));
    assert_eq!(other.request().head.target(), "/first");
    other.send(ok("fine"));
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn a_link_that_does_not_answer_is_closed_and_those_of_its_tunnel_are_asked() {
    let relay = Relay::start(&["--timeout", "ping=1h", "--timeout", "silence=500ms", "--timeout", "pong=300ms"]);
    let mut first = link_ours(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/"));
    assert_eq!(first.request().head.target(), "/");
    let mut second = link_ours(&relay, "demo");
    let mut third = link(&relay, "demo");
    assert_eq!(told(&visitor.response("GET")), (504, "link-timeout".into()));
    first.expect_end();
    // The second one hears of it at once, and does not answer either.
    expect_ping(&mut second);
    second.expect_end();
    relay.log().wait_for("did not answer within 0.3 s (--timeout pong)");
    // The third one would not have understood.
    visitor.send(get("demo", "/again"));
    assert_eq!(third.request().head.target(), "/again");
    third.send(ok("fine"));
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn a_request_waits_for_the_answer_of_a_link_that_is_asked() {
    let relay = Relay::start(&["--timeout", "ping=100ms", "--timeout", "pong=1m", "--timeout", "link=1m"]);
    let mut link = link_ours(&relay, "demo");
    expect_ping(&mut link);
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/"));
    // Whatever its status, and even with a body: somebody is there.
    link.send("HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 2\r\n\r\nno");
    assert_eq!(link.request().head.target(), "/");
    link.send(ok("fine"));
    assert_eq!(visitor.response("GET").text(), "fine");
    // And one that says that it won't be kept is not.
    expect_ping(&mut link);
    link.send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
    link.expect_end();
}

#[test]
fn nothing_but_an_answer_is_taken_from_a_link_that_is_asked() {
    let relay = Relay::start(&["--timeout", "ping=100ms"]);
    for bytes in ["nonsense\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"] {
        let mut link = link_ours(&relay, "demo");
        expect_ping(&mut link);
        link.send(bytes);
        link.expect_end();
    }
}

#[test]
fn signs_go_no_further_than_to_the_relay_and_other_1xx_do() {
    let relay = Relay::start(&[]);
    let mut link = link_ours(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/"));
    link.request();
    link.send(SIGN).send("HTTP/1.1 102 Processing\r\nX-From: upstream\r\n\r\n").send(SIGN);
    link.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").send(SIGN).send(ok("fine"));
    let answer = visitor.response("GET");
    let interim: Vec<_> = answer.interim.iter().map(|head| head.text.as_str()).collect();
    assert_eq!(
        interim,
        ["HTTP/1.1 102 Processing\r\nX-From: upstream\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"]
    );
    assert_eq!(answer.text(), "fine");
}

#[test]
fn a_request_whose_link_broke_behind_a_sign_goes_another_way() {
    let relay = Relay::start(&[]);
    let mut first = link_ours(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/"));
    first.request();
    let mut second = link_ours(&relay, "demo");
    first.send(SIGN);
    drop(first);
    assert_eq!(second.request().head.target(), "/");
    second.send(ok("fine"));
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn an_agent_gives_signs_to_a_relay_that_knows_them_and_to_no_other() {
    for (switch, signs) in [
        (SWITCH_OURS, true),
        (&b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n"[..], false),
    ] {
        let (upstream, tell) = holding();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let via = format!("http://{}", listener.local_addr().unwrap());
        let args = [&upstream.address(), "--via", &via, "--links", "1..2", "--timeout", "ping=100ms"];
        let _agent = Program::start(&mut agent_command(&args));
        let mut wire = Wire::new(listener.accept().unwrap().0);
        wire.request_head().unwrap().unwrap();
        wire.send(switch).send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
        if signs {
            for _ in 0..3 {
                assert_eq!(String::from_utf8_lossy(&wire.raw(SIGN.len())), SIGN);
            }
        } else {
            eventually("the upstream to be asked", || (!upstream.requests().is_empty()).then_some(()));
        }
        tell.send(()).unwrap();
        let answer = wire.response("GET");
        assert_eq!((answer.text().as_str(), answer.interim.is_empty() || signs), ("late", true));
        // It answers for itself on either, and asks nobody.
        wire.send("OPTIONS * HTTP/1.1\r\nHost:\r\nMax-Forwards: 0\r\n\r\n");
        assert_eq!(String::from_utf8_lossy(&wire.raw(PONG.len())), PONG);
        assert_eq!(upstream.requests().len(), 1);
    }
}

#[test]
fn whoever_a_request_reaches_that_may_go_no_further_answers_it() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    let mut ask = |method: &str, target: &str, hops: &str| {
        visitor.send(format!("{method} {target} HTTP/1.1\r\nHost: demo.localhost\r\nMax-Forwards: {hops}\r\n\r\n"));
        visitor.response(method)
    };
    for (target, hops) in [("*", "0"), ("/x", "0"), ("/x", "1"), ("*", "1")] {
        assert_eq!(ask("OPTIONS", target, hops).status(), 204);
    }
    relay.log().wait_for_count(4, " OPTIONS ");
    agent.log().wait_for_count(2, " OPTIONS ");
    for hops in ["0", "1"] {
        assert_eq!(told(&ask("TRACE", "/x", hops)), (501, "trace-unsupported".into()));
    }
    assert!(upstream.requests().is_empty());
    for (method, hops, left) in
        [("OPTIONS", "2", "0"), ("TRACE", "12", "10"), ("GET", "0", "0"), ("OPTIONS", "many", "many")]
    {
        assert_eq!(ask(method, "/x", hops).status(), 200);
        assert_eq!(upstream.last_request().get("Max-Forwards"), Some(left), "{method} {hops}");
    }
}

#[test]
fn an_upload_that_lies_in_the_sockets_on_the_way_is_waited_for() {
    // To the relay a request is over when its system has it. Of one of these, the last of it lies behind that.
    let upstream = Upstream::start(|asked| {
        // Only a rest shows it: far longer than an agent may be silent.
        thread::sleep(Duration::from_millis(2500));
        let length = asked.body().map_or(0, |body| body.len());
        let _ = asked.wire.try_send(ok(&length.to_string()));
        After::Keep
    });
    let relay = Relay::start(&["--timeout", "silence=1s", "--timeout", "ping=100ms"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "ping=100ms"]);
    let uploads: Vec<_> = (0..8)
        .map(|n| {
            let (mut visitor, length) = (relay.visitor(), 1 + n * 1_500_000);
            thread::spawn(move || {
                visitor.send(post("demo", "/", &"x".repeat(length)));
                (visitor.response("POST"), length)
            })
        })
        .collect();
    for upload in uploads {
        let (answer, length) = upload.join().unwrap();
        assert_eq!((answer.status(), answer.text()), (200, length.to_string()));
    }
}
