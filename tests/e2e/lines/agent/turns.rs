//! Requests of a line at the upstream, all at once as far as there is room, and their answers each in its turn.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{Slow, answer_to, by_hand, by_hand_with, gets_in_line, in_line};
use crate::support::link::SWITCH;
use crate::support::wire::{Wire, get};

#[test]
fn requests_of_one_write_run_at_once_and_are_answered_in_their_order() {
    let slow = Slow::start();
    let relay = by_hand(&slow.upstream, &["--timeout", "turn=10m"]);
    let mut link = relay.link();
    // More than have room before the first is answered.
    let targets: Vec<String> = (0..40).map(|n| if n == 0 { "/slow".into() } else { format!("/{n}") }).collect();
    link.send(targets.iter().map(|target| in_line("GET", target)).collect::<String>());
    slow.wait_for_answered("/31");
    slow.let_go("/slow");
    for target in &targets {
        answer_to(&mut link, target);
    }
}

#[test]
fn requests_beyond_what_the_upstream_is_asked_at_once_wait_where_they_are() {
    let slow = Slow::start();
    let relay = by_hand(&slow.upstream, &["--limit", "upstream=2", "--timeout", "turn=10m"]);
    let (mut link, mut other) = (relay.link(), relay.link());
    link.send(["/slow/1", "/slow/2", "/slow/3", "/4"].map(|target| in_line("GET", target)).concat());
    slow.wait_for_asked("/slow/2");
    // What comes alone does not wait for those.
    other.send(get("demo", "/5"));
    answer_to(&mut other, "/5");
    assert_eq!(slow.asked("/slow/3"), 0);
    slow.let_go("/slow/1");
    answer_to(&mut link, "/slow/1");
    slow.wait_for_asked("/slow/3");
    other.send(get("demo", "/6"));
    answer_to(&mut other, "/6");
    assert_eq!(slow.asked("/4"), 0);
    for target in ["/slow/2", "/slow/3", "/4"] {
        slow.let_go(target);
        answer_to(&mut link, target);
    }
}

#[test]
fn a_request_that_is_left_for_want_of_room_is_asked_when_there_is_some() {
    let slow = Slow::start();
    let relay = by_hand(&slow.upstream, &["--limit", "upstream=2", "--timeout", "turn=10m"]);
    let (mut link, mut other) = (relay.link(), relay.link());
    other.send(in_line("GET", "/slow/1"));
    slow.wait_for_asked("/slow/1");
    link.send(in_line("GET", "/slow/2") + &in_line("GET", "/3"));
    slow.wait_for_asked("/slow/2");
    slow.let_go("/slow/1");
    answer_to(&mut other, "/slow/1");
    // The one before it is not answered yet.
    slow.wait_for_asked("/3");
    slow.let_go("/slow/2");
    answer_to(&mut link, "/slow/2");
    answer_to(&mut link, "/3");
}

#[test]
fn a_line_for_which_there_are_no_files_waits_where_it_is() {
    let slow = Slow::start();
    let relay = by_hand_with("2..2", &slow.upstream, &[]);
    let (mut link, mut other) = (relay.link(), relay.link());
    relay.agent.leave_files(1);
    link.send(["/slow/1", "/2", "/3"].map(|target| in_line("GET", target)).concat());
    relay.agent.log.wait_for("no more connections to the upstream");
    other.send(in_line("GET", "/4") + &in_line("GET", "/5"));
    slow.let_go("/slow/1");
    // None is set aside for want of a file: where would it be asked for?
    for (link, targets) in [(&mut link, &["/slow/1", "/2", "/3"][..]), (&mut other, &["/4", "/5"])] {
        targets.iter().for_each(|target| answer_to(link, target));
    }
    assert_eq!(slow.upstream.connections(), 1);
}

#[test]
fn a_connection_that_ends_before_its_turn_is_replaced_before_it() {
    let asked_before = AtomicBool::new(false);
    let slow = Slow::start_with(move |asked, _| {
        // As a server closes one that has been idle, in the moment in which it is asked.
        asked.head.target() == "/stale" && !asked_before.swap(true, Ordering::Relaxed)
    });
    let relay = by_hand(&slow.upstream, &["--timeout", "turn=10m"]);
    let mut link = relay.link();
    // Two connections that are kept.
    link.send(gets_in_line(&["/slow/1", "/2"]));
    slow.wait_for_answered("/2");
    slow.let_go("/slow/1");
    answer_to(&mut link, "/slow/1");
    answer_to(&mut link, "/2");
    link.send(gets_in_line(&["/slow", "/stale"]));
    slow.wait_for_answered("/stale");
    assert_eq!(slow.asked("/stale"), 2);
    slow.let_go("/slow");
    answer_to(&mut link, "/slow");
    answer_to(&mut link, "/stale");
}

#[test]
fn what_was_not_agreed_on_is_a_visitors_word() {
    let slow = Slow::start();
    let relay = by_hand(&slow.upstream, &[]);
    // A relay of another make, which passes on whatever it does not know.
    let mut link = Wire::new(relay.listener.accept().unwrap().0);
    link.request_head().unwrap().unwrap();
    link.send(SWITCH);
    for target in ["/1", "/2"] {
        link.send(format!("GET {target} HTTP/1.1\r\nHost: demo\r\nPtth-Accept: wanted=4\r\n\r\n"));
        answer_to(&mut link, target);
    }
    // The spare ones, and one for that which was busy.
    relay.listener.set_nonblocking(true).unwrap();
    let dialled = std::iter::from_fn(|| relay.listener.accept().ok()).count();
    assert!(dialled <= 2, "{dialled} more links");
}

#[test]
fn answers_of_our_own_have_their_turn() {
    let slow = Slow::start_with(|asked, _| asked.head.target() == "/close");
    let relay = by_hand(&slow.upstream, &["--timeout", "turn=10m"]);
    let mut link = relay.link();
    link.send(gets_in_line(&["/1", "/close", "/3", "/close"]));
    for (target, code) in
        [("/1", None), ("/close", Some("upstream-lost")), ("/3", None), ("/close", Some("upstream-lost"))]
    {
        match code {
            None => answer_to(&mut link, target),
            Some(code) => assert_eq!(link.response("GET").code(), code),
        }
    }
    drop(slow);
    link.send(gets_in_line(&["/1", "/2"]));
    for _ in 0..2 {
        assert_eq!(link.response("GET").code(), "upstream-refused");
    }
}

#[test]
fn upstreams_answer_in_many_ways_in_a_line() {
    let slow = Slow::start_with(|asked, _| {
        let (answer, closes) = match asked.head.target() {
            "/head" => ("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", false),
            "/304" => ("HTTP/1.1 304 Not Modified\r\nContent-Length: 1000000\r\n\r\n", false),
            "/chunked" => (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n/chu\r\n4\r\nnked\r\n0\r\nX-Trailer: y\r\n\r\n",
                false,
            ),
            "/until-close" => ("HTTP/1.1 200 OK\r\n\r\n/until-close", true),
            "/early" => ("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", false),
            "/garbage" => ("nonsense\r\n\r\n", true),
            _ => return false,
        };
        asked.wire.send(answer);
        if !closes {
            asked.wire.expect_end();
        }
        true
    });
    let relay = by_hand(&slow.upstream, &["--timeout", "turn=10m"]);
    let mut link = relay.link();
    link.send(
        gets_in_line(&["/chunked", "/until-close", "/304", "/early", "/garbage", "/last"])
            + &in_line("HEAD", "/head")
            + &in_line("GET", "/end"),
    );
    answer_to(&mut link, "/chunked");
    answer_to(&mut link, "/until-close");
    assert_eq!(link.response("GET").status(), 304);
    let early = link.response("GET");
    assert_eq!((early.status(), early.interim.len()), (204, 1));
    assert_eq!(link.response("GET").code(), "upstream-protocol");
    answer_to(&mut link, "/last");
    assert_eq!(link.response("HEAD").head.get("Content-Length"), Some("1000000"));
    answer_to(&mut link, "/end");
}

#[test]
fn what_may_not_stand_behind_others_waits_until_they_are_answered() {
    for behind in [
        "POST /order HTTP/1.1\r\nHost: demo\r\nPtth-Accept: aside\r\nContent-Length: 0\r\n\r\n",
        "POST /order HTTP/1.1\r\nHost: demo\r\nPtth-Accept: aside\r\n\r\n",
        "GET /order HTTP/1.1\r\nHost: demo\r\nPtth-Accept: aside\r\nContent-Length: 3\r\n\r\nabc",
        "GET /order HTTP/1.1\r\nHost: demo\r\n\r\n",
        "GET /order HTTP/1.0\r\nHost: demo\r\nPtth-Accept: aside\r\n\r\n",
    ] {
        let slow = Slow::start();
        let relay = by_hand(&slow.upstream, &["--timeout", "turn=10m"]);
        let (mut link, mut other) = (relay.link(), relay.link());
        link.send(gets_in_line(&["/slow/1", "/slow/2"]) + behind);
        slow.wait_for_asked("/slow/2");
        other.send(get("demo", "/3"));
        answer_to(&mut other, "/3");
        assert_eq!(slow.asked("/order"), 0, "{behind}");
        slow.let_go("/slow/1");
        slow.let_go("/slow/2");
        for target in ["/slow/1", "/slow/2", "/order"] {
            answer_to(&mut link, target);
        }
    }
}

#[test]
fn what_is_no_request_ends_a_link_with_all_that_stand_on_it() {
    let slow = Slow::start();
    let relay = by_hand(&slow.upstream, &["--timeout", "turn=10m"]);
    let mut link = relay.link();
    link.send(gets_in_line(&["/slow/1", "/slow/2"]) + "nonsense\r\n\r\n");
    link.expect_end();
    relay.agent.log.wait_for("a link is closed: the relay");
    slow.let_go("/slow/1");
    slow.let_go("/slow/2");
}
