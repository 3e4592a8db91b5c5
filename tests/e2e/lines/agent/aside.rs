//! An answer that others would have to wait for is set aside, and given to whoever asks for it by its name.

use super::{Slow, answer_to, by_hand, gets_in_line, in_line};
use crate::support::wire::{Wire, get, ok};
use crate::support::{eventually, locked};

/// Asks for two in a line, of which the first is slow, and reads the answer to the second: by what name the first was set aside.
fn first_is_set_aside(link: &mut Wire, targets: &[&str; 2]) -> String {
    link.send(gets_in_line(targets));
    let name = was_set_aside(link);
    answer_to(link, targets[1]);
    name
}

/// Reads that the next answer was set aside, and by what name.
fn was_set_aside(link: &mut Wire) -> String {
    let head = link.any_response_head("GET");
    assert_eq!(head.status(), 102, "{}", head.text);
    let name = head.get("Ptth-Aside").unwrap_or_else(|| panic!("not set aside: {}", head.text));
    name.to_owned()
}

/// A request for an answer that was set aside.
fn again(target: &str, name: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: demo\r\nPtth-Aside: {name}\r\n\r\n")
}

#[test]
fn a_slow_answer_is_set_aside_and_asked_for_once() {
    let slow = Slow::start();
    let relay = by_hand(&slow.upstream, &[]);
    let (mut link, mut other) = (relay.link(), relay.link());
    link.send(gets_in_line(&["/slow", "/slow/1", "/slow/2"]));
    slow.let_go("/slow/1");
    let name = was_set_aside(&mut link);
    answer_to(&mut link, "/slow/1");
    // Only now, for the upstream may take longer over one of two than `turn`.
    slow.let_go("/slow/2");
    answer_to(&mut link, "/slow/2");
    other.send(again("/slow", &name));
    slow.let_go("/slow");
    answer_to(&mut other, "/slow");
    assert_eq!(slow.asked("/slow"), 1);
    // Both are links like any other.
    for link in [&mut link, &mut other] {
        link.send(get("demo", "/3"));
        answer_to(link, "/3");
    }
}

#[test]
fn who_comes_behind_does_not_prolong_the_wait_of_others() {
    let slow = Slow::start();
    let relay = by_hand(&slow.upstream, &["--timeout", "turn=300ms"]);
    let mut link = relay.link();
    link.send(gets_in_line(&["/slow/1", "/2"]));
    slow.wait_for_answered("/2");
    link.send(in_line("GET", "/slow/3"));
    was_set_aside(&mut link);
    answer_to(&mut link, "/2");
    slow.let_go("/slow/3");
    answer_to(&mut link, "/slow/3");
}

#[test]
fn a_part_of_an_answer_is_none() {
    let slow = Slow::start_with(|asked, gate| {
        let part = match asked.head.target() {
            "/slow/head" => "HTTP/1.1 200 OK\r\nContent-",
            "/slow/body" => "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi",
            "/slow/chunk" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfine\r\n",
            _ => return false,
        };
        asked.wire.send(part);
        gate.wait("/slow");
        true
    });
    for part in ["/slow/head", "/slow/body", "/slow/chunk"] {
        let relay = by_hand(&slow.upstream, &[]);
        let mut link = relay.link();
        first_is_set_aside(&mut link, &[part, "/2"]);
    }
    slow.let_go("/slow");
}

#[test]
fn an_answer_that_comes_in_two_pieces_is_whole_with_the_second() {
    let slow = Slow::start_with(|asked, gate| {
        if asked.head.target() == "/pieces" {
            asked.wire.send("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n");
            locked(&gate.answered).push("head".into());
            gate.wait("/slow");
            asked.wire.send("/pieces");
        }
        asked.head.target() == "/pieces"
    });
    let relay = by_hand(&slow.upstream, &["--timeout", "turn=10m"]);
    let (mut link, mut other) = (relay.link(), relay.link());
    link.send(gets_in_line(&["/pieces", "/2"]));
    slow.wait_for_answered("head");
    // By then the agent has read the first.
    other.send(get("demo", "/3"));
    answer_to(&mut other, "/3");
    slow.let_go("/slow");
    answer_to(&mut link, "/pieces");
    answer_to(&mut link, "/2");
}

#[test]
fn a_long_answer_is_set_aside_and_comes_whole() {
    let long = "x".repeat(20_000);
    let body = long.clone();
    let slow = Slow::start_with(move |asked, _| {
        let is_long = asked.head.target() == "/long";
        if is_long {
            asked.wire.send(ok(&body));
        }
        is_long
    });
    let relay = by_hand(&slow.upstream, &["--timeout", "turn=10m"]);
    let (mut link, mut other) = (relay.link(), relay.link());
    link.send(gets_in_line(&["/1", "/long", "/3"]));
    answer_to(&mut link, "/1");
    let name = was_set_aside(&mut link);
    answer_to(&mut link, "/3");
    other.send(again("/long", &name));
    assert_eq!(other.response("GET").text(), long);
    assert_eq!(slow.asked("/long"), 1);
}

#[test]
fn an_answer_whose_head_a_relay_may_refuse_is_set_aside() {
    let large = format!("X-Large: {}\r\n", "x".repeat(17_000));
    let many: String = (0..101).map(|n| format!("X-Field-{n}: x\r\n")).collect();
    let early = format!("HTTP/1.1 103 Early Hints\r\n{large}\r\n");
    let slow = Slow::start_with(move |asked, _| {
        let target = asked.head.target().to_owned();
        let head = match target.as_str() {
            "/large" => format!("HTTP/1.1 200 OK\r\n{large}"),
            "/many" => format!("HTTP/1.1 200 OK\r\n{many}"),
            "/early" => format!("{early}HTTP/1.1 200 OK\r\n"),
            _ => return false,
        };
        asked.wire.send(format!("{head}Content-Length: {}\r\n\r\n{target}", target.len()));
        true
    });
    // One that itself takes more than its relay may.
    let args = ["--timeout", "turn=10m", "--limit", "head=1000000", "--limit", "fields=200"];
    let relay = by_hand(&slow.upstream, &args);
    let (mut link, mut other) = (relay.link(), relay.link());
    link.send(["/1", "/large", "/many", "/early", "/5"].map(|target| in_line("GET", target)).concat());
    answer_to(&mut link, "/1");
    let names = ["/large", "/many"].map(|target| (target, was_set_aside(&mut link)));
    // Without what came early: the relay would have to take that, too.
    answer_to(&mut link, "/early");
    answer_to(&mut link, "/5");
    for (target, name) in names {
        other.send(again(target, &name));
        answer_to(&mut other, target);
        assert_eq!(slow.asked(target), 1);
    }
}

#[test]
fn an_answer_that_goes_on_is_set_aside_and_comes_as_it_is_made() {
    let slow = Slow::start_with(|asked, gate| {
        let goes_on = asked.head.target() == "/events";
        if goes_on {
            asked.wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
            gate.wait("/slow");
            asked.wire.send("3\r\ntwo\r\n0\r\n\r\n");
        }
        goes_on
    });
    let relay = by_hand(&slow.upstream, &[]);
    let (mut link, mut other) = (relay.link(), relay.link());
    // Although nobody waits behind it: somebody may at any time.
    link.send(in_line("GET", "/events"));
    let name = was_set_aside(&mut link);
    other.send(again("/events", &name));
    assert_eq!(other.response_head("GET").unwrap().0.status(), 200);
    assert_eq!(other.body(3), b"one");
    slow.let_go("/slow");
    assert_eq!(other.body(3), b"two");
}

#[test]
fn an_answer_that_nobody_asks_for_is_given_up() {
    let slow = Slow::start_with(|asked, gate| {
        let waits = asked.head.target() == "/slow";
        if waits {
            asked.wire.expect_end();
            locked(&gate.answered).push("end".into());
        }
        waits
    });
    let relay = by_hand(&slow.upstream, &["--timeout", "aside=100ms"]);
    let mut link = relay.link();
    first_is_set_aside(&mut link, &["/slow", "/1"]);
    slow.wait_for_answered("end");
}

#[test]
fn a_name_that_is_none_or_of_something_else_is_asked_like_any_other() {
    let slow = Slow::start();
    let relay = by_hand(&slow.upstream, &[]);
    let (mut link, mut other) = (relay.link(), relay.link());
    let name = first_is_set_aside(&mut link, &["/slow", "/1"]);
    let stranger = format!("{:016x}{}", 1, &name[16..]);
    for (target, name) in [("/2", name.as_str()), ("/3", &stranger), ("/4", "nonsense"), ("/5", &name[..17])] {
        other.send(again(target, name));
        answer_to(&mut other, target);
    }
    slow.let_go("/slow");
    for _ in 0..2 {
        // The second time it is nobody's name any more.
        other.send(again("/slow", &name));
        answer_to(&mut other, "/slow");
    }
    assert_eq!(slow.asked("/slow"), 2);
}

#[test]
fn what_was_set_aside_is_not_found_behind_others() {
    let slow = Slow::start();
    let relay = by_hand(&slow.upstream, &[]);
    let mut link = relay.link();
    let name = first_is_set_aside(&mut link, &["/slow/1", "/2"]);
    link.send(in_line("GET", "/slow/3"));
    slow.wait_for_asked("/slow/3");
    link.send(format!("GET /slow/1 HTTP/1.1\r\nHost: demo\r\nPtth-Accept: aside\r\nPtth-Aside: {name}\r\n\r\n"));
    eventually("both to be asked", || (slow.asked("/slow/1") == 2).then_some(()));
    slow.let_go("/slow/3");
    answer_to(&mut link, "/slow/3");
    slow.let_go("/slow/1");
    answer_to(&mut link, "/slow/1");
}

#[test]
fn an_agent_that_goes_sets_nothing_aside() {
    let slow = Slow::start();
    let mut relay = by_hand(&slow.upstream, &["--timeout", "ping=50ms"]);
    let (mut link, mut other) = (relay.link(), relay.link());
    link.send(gets_in_line(&["/slow/1", "/slow/2"]));
    other.send(gets_in_line(&["/slow/3", "/slow/4"]));
    slow.wait_for_asked("/slow/2");
    slow.wait_for_asked("/slow/4");
    relay.agent.terminate();
    relay.agent.log.wait_for("stopping");
    slow.let_go("/slow/2");
    slow.wait_for_answered("/slow/2");
    slow.let_go("/slow/3");
    assert_eq!(other.response("GET").text(), "/slow/3");
    // By now it has seen the other answer, too. Between two signs of life passes more than `turn`.
    for _ in 0..2 {
        assert_eq!(other.any_response_head("GET").get("Ptth-Accept"), Some("ping"));
    }
    slow.let_go("/slow/4");
    assert_eq!(other.response("GET").text(), "/slow/4");
    slow.let_go("/slow/1");
    // On what link could it be asked for?
    let first = link.response("GET");
    assert_eq!(first.text(), "/slow/1");
    assert!(first.interim.iter().all(|sign| sign.get("Ptth-Aside").is_none()), "{:?}", first.interim);
    let last = link.response("GET");
    assert_eq!((last.text().as_str(), last.head.get("Connection")), ("/slow/2", Some("close")));
    link.expect_end();
    drop(relay.listener);
    assert_eq!(relay.agent.exit_code(), 0);
}

#[test]
fn an_agent_that_goes_gives_what_it_has_set_aside() {
    let slow = Slow::start();
    let mut relay = by_hand(&slow.upstream, &["--timeout", "aside=10m"]);
    let (mut link, mut other) = (relay.link(), relay.link());
    let name = first_is_set_aside(&mut link, &["/slow/1", "/2"]);
    relay.agent.terminate();
    relay.agent.log.wait_for("stopping");
    other.send(again("/slow/1", &name));
    slow.let_go("/slow/1");
    let answer = other.response("GET");
    // Before it the agent did not say that this link goes.
    assert_eq!(answer.interim.len(), 0, "{:?}", answer.interim);
    assert_eq!((answer.text().as_str(), answer.head.get("Connection")), ("/slow/1", Some("close")));
    other.expect_end();
    // Nothing holds the other one any more.
    assert_eq!(link.any_response_head("GET").get("Connection"), Some("close"));
    link.shut();
    drop(relay.listener);
    assert_eq!(relay.agent.exit_code(), 0);
    assert_eq!(slow.asked("/slow/1"), 1);
}

#[test]
fn an_agent_that_goes_keeps_the_links_on_which_it_is_asked_whether_it_is_there() {
    let slow = Slow::start();
    let mut relay = by_hand(&slow.upstream, &["--timeout", "aside=10m"]);
    let (mut link, mut other) = (relay.link(), relay.link());
    link.send(in_line("GET", "/slow/1") + &in_line("GET", "/2"));
    let name = was_set_aside(&mut link);
    answer_to(&mut link, "/2");
    relay.agent.terminate();
    relay.agent.log.wait_for("stopping");
    let is_it_there = "OPTIONS * HTTP/1.1\r\nHost:\r\nMax-Forwards: 0\r\n\r\n";
    for link in [&mut link, &mut other] {
        let answer = link.send(is_it_there).response("OPTIONS");
        assert_eq!((answer.status(), answer.head.get("Connection")), (204, None));
    }
    other.send(again("/slow/1", &name));
    slow.let_go("/slow/1");
    assert_eq!(other.response("GET").text(), "/slow/1");
    other.expect_end();
    assert_eq!(link.any_response_head("GET").get("Connection"), Some("close"));
    link.shut();
    drop(relay.listener);
    assert_eq!(relay.agent.exit_code(), 0);
}
