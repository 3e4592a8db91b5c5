//! Visitors that leave a line, links that break under one, and answers that are not what was agreed.

use std::time::Duration;

use super::{CROWD, ONE, OTHER, answers, each_has_its_own, is_one_of_several, line, next, standing, trusted};
use crate::support::Relay;
use crate::support::link::link_lines;
use crate::support::wire::{Wire, ok};

#[test]
fn a_visitor_may_leave_wherever_it_stands() {
    for leaves in 0..CROWD {
        let (relay, mut link, mut visitors) = standing(&[]);
        let mut leaver = visitors.remove(leaves);
        leaver.break_on_drop();
        drop(leaver);
        relay.log().wait_for(&format!("demo GET /{} ", leaves + 1));
        link.send(answers(1..=CROWD));
        let stay = (1..=CROWD).filter(|n| *n != leaves + 1);
        for (n, mut visitor) in stay.zip(visitors) {
            assert_eq!(visitor.response("GET").text(), format!("answer {n}"));
        }
    }
}

#[test]
fn a_link_for_whose_answers_nobody_waits_is_closed() {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]] {
        let relay = Relay::start(&["--timeout", "link-answer=10m", "--timeout", "silence=10m"]);
        let mut link = trusted(&relay, ONE);
        let mut visitors: Vec<Option<Wire>> = line(&relay, &mut link).into_iter().map(Some).collect();
        for leaves in order {
            let mut leaver = visitors[leaves].take().unwrap();
            leaver.break_on_drop();
            drop(leaver);
            relay.log().wait_for(&format!("demo GET /{} ", leaves + 1));
        }
        link.whatever_comes();
    }
}

#[test]
fn a_link_on_which_nothing_is_left_but_what_nobody_waits_for_is_closed() {
    let relay = Relay::start(&["--timeout", "link-answer=10m", "--timeout", "silence=10m"]);
    let mut link = trusted(&relay, ONE);
    let mut visitors = line(&relay, &mut link);
    for mut leaver in visitors.drain(1..) {
        leaver.break_on_drop();
    }
    for n in 2..=CROWD {
        relay.log().wait_for(&format!("demo GET /{n} "));
    }
    link.send(answers([1]));
    assert_eq!(visitors[0].response("GET").text(), "answer 1");
    link.whatever_comes();
}

#[test]
fn what_stood_on_a_link_that_breaks_goes_elsewhere() {
    let (relay, mut first, mut visitors) = standing(&[]);
    first.send(ok("answer 1"));
    assert_eq!(visitors[0].response("GET").text(), "answer 1");
    drop(first);
    let mut other = link_lines(&relay, "demo", OTHER);
    for n in [2, 3, 4] {
        // Each alone, from here on.
        let head = next(&mut other).head;
        assert_eq!(head.target(), format!("/{n}"));
        assert!(!is_one_of_several(&head), "{}", head.text);
        other.send(ok(&format!("answer {n}")));
        assert_eq!(visitors[n - 1].response("GET").text(), format!("answer {n}"));
    }
}

#[test]
fn a_request_of_whose_answer_something_came_is_not_asked_again() {
    let (_relay, mut first, mut visitors) = standing(&[]);
    first.send(answers(1..CROWD) + "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n");
    let last = &mut visitors[CROWD - 1];
    assert_eq!(last.any_response_head("GET").status(), 103);
    drop(first);
    assert_eq!(last.response("GET").code(), "link-lost");
}

#[test]
fn answers_that_are_there_count_although_their_link_has_ended() {
    let (relay, mut link, mut visitors) = standing(&[]);
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nanswer 4";
    // All in one look of the relay's.
    relay.program.freeze();
    link.send(answers(1..CROWD) + last).shut();
    relay.program.thaw();
    each_has_its_own(&mut visitors);
}

#[test]
fn an_answer_that_is_longer_than_agreed_fills_no_memory() {
    let (relay, mut link, mut visitors) = standing(&[]);
    let body = vec![b'x'; 64 << 20];
    link.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()));
    // Its visitor does not read, so neither does the relay.
    link.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    assert!(link.try_send(&body).is_err());
    let peak = relay.program.peak_memory();
    assert!(peak < 20 << 20, "{peak} bytes");
    drop(visitors.remove(0));
    drop(link);
    let mut other = link_lines(&relay, "demo", OTHER);
    for n in [2, 3, 4] {
        next(&mut other);
        other.send(ok(&format!("answer {n}")));
        assert_eq!(visitors[n - 2].response("GET").text(), format!("answer {n}"));
    }
}
