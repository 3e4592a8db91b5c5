//! An answer that an agent has set aside: the relay asks for it on a link of its own, of the same agent as long as that is there.

use super::{
    CROWD, ONE, OTHER, answers, asked_again, barrier, each_has_its_own, gets, named, next, one_of_several, standing,
    trusted, visitors,
};
use crate::support::Relay;
use crate::support::link::{aside, link_lines};
use crate::support::wire::{Wire, get, ok, post};

/// The answer to the first of these, set aside under the name `7`, is asked for here: then every visitor has its own.
fn first_comes_last(link: &mut Wire, visitors: &mut [Wire]) {
    asked_again(link, "/1", &named(ONE, "7"));
    link.send(ok("answer 1"));
    each_has_its_own(visitors);
}

#[test]
fn an_answer_set_aside_is_asked_for_on_a_link_to_the_same_agent() {
    let (relay, mut first, mut visitors) = standing(&[]);
    let mut other = link_lines(&relay, "demo", OTHER);
    let mut second = link_lines(&relay, "demo", ONE);
    first.send(aside(ONE, "7") + &ok("answer 2"));
    assert_eq!(visitors[1].response("GET").text(), "answer 2");
    asked_again(&mut second, "/1", &named(ONE, "7"));
    first.send(answers([3, 4]));
    assert_eq!(visitors[2].response("GET").text(), "answer 3");
    second.send(ok("answer 1"));
    let answer = visitors[0].response("GET");
    assert_eq!((answer.text().as_str(), answer.interim.len()), ("answer 1", 0));
    // The other one was asked nothing.
    other.shut();
    other.expect_end();
}

#[test]
fn an_answer_set_aside_waits_for_a_link_to_its_agent_as_long_as_there_is_one() {
    let relay = Relay::start(&[]);
    let mut first = trusted(&relay, ONE);
    let mut second = link_lines(&relay, "demo", ONE);
    let mut busy = visitors(&relay, &[get("demo", "/"), post("demo", "/order", "an order")]);
    next(&mut first);
    next(&mut second);
    let mut visitors = visitors(&relay, &gets(CROWD));
    first.send(ok("fine"));
    busy[0].response("GET");
    for _ in 0..CROWD {
        one_of_several(&mut first);
    }
    let mut other = link_lines(&relay, "demo", OTHER);
    first.send(aside(ONE, "7"));
    // One of its links goes, and the agent is there still.
    second.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone").whatever_comes();
    busy[1].response("POST");
    barrier(&relay);
    first.send(answers([2, 3, 4]));
    first_comes_last(&mut first, &mut visitors);
    other.shut();
    other.expect_end();
}

#[test]
fn an_answer_set_aside_by_an_agent_that_is_gone_comes_from_another() {
    let (relay, mut first, mut visitors) = standing(&["--timeout", "link=10m"]);
    let mut other = link_lines(&relay, "demo", OTHER);
    first.send(aside(ONE, "7") + &answers([2, 3, 4]));
    asked_again(&mut first, "/1", &named(ONE, "7"));
    drop(first);
    assert_eq!(next(&mut other).head.target(), "/1");
    other.send(ok("answer 1"));
    each_has_its_own(&mut visitors);
}

#[test]
fn an_answer_set_aside_for_nobody_known_comes_from_whoever_is_there() {
    let (relay, mut first, mut visitors) = standing(&["--timeout", "link=10m"]);
    let mut other = link_lines(&relay, "demo", OTHER);
    first.send(aside(0x5eed, "7"));
    assert_eq!(next(&mut other).head.target(), "/1");
    first.send("HTTP/1.1 102 Processing\r\nPtth-Aside: nonsense\r\n\r\n".to_owned() + &answers([3, 4]));
    assert_eq!(next(&mut first).head.target(), "/2");
    other.send(ok("answer 1"));
    first.send(ok("answer 2"));
    each_has_its_own(&mut visitors);
}

#[test]
fn to_wait_for_a_link_again_is_a_wait_of_its_own() {
    // The crowd has to have gathered within that.
    let (relay, mut link, mut visitors) = standing(&["--timeout", "link=2s"]);
    // By then the time is over in which they would have to have found one.
    assert_eq!(relay.get("nobody", "/").code(), "no-link");
    link.send(aside(ONE, "7"));
    barrier(&relay);
    link.send(answers([2, 3, 4]));
    first_comes_last(&mut link, &mut visitors);
}

#[test]
fn a_relay_that_goes_asks_for_what_was_set_aside() {
    let (mut relay, mut link, mut visitors) = standing(&["--timeout", "farewell=50ms"]);
    let mut resting = link_lines(&relay, "demo", ONE);
    let mut idle = relay.visitor();
    barrier(&relay);
    relay.program.terminate();
    // By then whatever rests is gone.
    resting.expect_end();
    idle.expect_end();
    link.send(aside(ONE, "7") + &answers([2, 3, 4]));
    first_comes_last(&mut link, &mut visitors);
    link.expect_end();
    assert_eq!(relay.program.exit_code(), 0);
}

#[test]
fn a_relay_that_goes_still_asks_for_what_waits_to_be_asked_for() {
    let (mut relay, mut link, mut visitors) = standing(&["--timeout", "farewell=50ms"]);
    link.send(aside(ONE, "7"));
    barrier(&relay);
    let mut idle = relay.visitor();
    barrier(&relay);
    relay.program.terminate();
    idle.expect_end();
    link.send(answers([2, 3, 4]));
    first_comes_last(&mut link, &mut visitors);
    assert_eq!(relay.program.exit_code(), 0);
}
