//! A relay before links of bare bytes: which requests it sends down one of them, and what becomes of each.

mod aside;
mod endings;
mod sharing;

use crate::support::Relay;
use crate::support::link::{PONG, link_lines};
use crate::support::wire::{Head, Message, Wire, get, ok};

/// Agents of bare bytes.
const ONE: u64 = 0x0123_4567_89ab_cdef;
const OTHER: u64 = 0xfedc_ba98_7654_3210;

/// Answers that a tunnel has to have given before its requests share a link, and how many of those there have to be.
const TRUST: usize = 32;
const CROWD: usize = 4;

/// Waits until the relay has taken in all that it was sent before.
fn barrier(relay: &Relay) {
    let ask = "OPTIONS * HTTP/1.1\r\nHost: x\r\nMax-Forwards: 0\r\n\r\n";
    assert_eq!(relay.visitor().send(ask).response("OPTIONS").status(), 204);
}

/// What the relay asks next on a link, other than how many requests wait for one, which it says in front of it.
fn next(link: &mut Wire) -> Message {
    loop {
        let request = link.request();
        if request.head.method() != "OPTIONS" {
            return request;
        }
        link.send(PONG);
    }
}

/// Whether others may follow a request before its answer.
fn is_one_of_several(head: &Head) -> bool {
    head.text.contains("\r\nPtth-Accept: aside\r\n")
}

/// A link of this agent, on which a visitor has had so many quick answers that several requests may go down it.
fn trusted(relay: &Relay, agent: u64) -> Wire {
    let mut link = link_lines(relay, "demo", agent);
    quick_answers(relay, &mut link, TRUST);
    link
}

/// Lets a visitor have so many.
fn quick_answers(relay: &Relay, link: &mut Wire, many: usize) {
    let mut visitor = relay.visitor();
    for _ in 0..many {
        visitor.send(get("demo", "/"));
        link.request();
        link.send(ok("fine"));
        visitor.response("GET");
    }
}

/// Visitors who have sent these requests, in this order.
fn visitors(relay: &Relay, requests: &[String]) -> Vec<Wire> {
    let mut visitors = Vec::new();
    for request in requests {
        let mut visitor = relay.visitor();
        visitor.send(request);
        barrier(relay);
        visitors.push(visitor);
    }
    visitors
}

/// GETs of `/1` to `/most`.
fn gets(most: usize) -> Vec<String> {
    (1..=most).map(|n| get("demo", &format!("/{n}"))).collect()
}

/// Lets visitors wait with these requests until the link is busy no more.
fn crowd(relay: &Relay, link: &mut Wire, requests: &[String]) -> Vec<Wire> {
    let mut first = relay.visitor();
    first.send(get("demo", "/"));
    assert!(!is_one_of_several(&next(link).head));
    let visitors = visitors(relay, requests);
    link.send(ok("fine"));
    first.response("GET");
    visitors
}

/// The next request on a link, which is one of several.
fn one_of_several(link: &mut Wire) -> Head {
    let head = next(link).head;
    assert!(is_one_of_several(&head), "{}", head.text);
    head
}

/// Visitors whose requests for `/1` and so on all stand on this link.
fn line(relay: &Relay, link: &mut Wire) -> Vec<Wire> {
    let visitors = crowd(relay, link, &gets(CROWD));
    for n in 1..=CROWD {
        assert_eq!(one_of_several(link).target(), format!("/{n}"));
    }
    visitors
}

/// A relay, a link, and visitors in a line on it.
fn standing(flags: &[&str]) -> (Relay, Wire, Vec<Wire>) {
    let relay = Relay::start(flags);
    let mut link = trusted(&relay, ONE);
    let visitors = line(&relay, &mut link);
    (relay, link, visitors)
}

/// Answers to the requests for these, as an agent sends them.
fn answers(to: impl IntoIterator<Item = usize>) -> String {
    to.into_iter().map(|n| ok(&format!("answer {n}"))).collect()
}

/// Every visitor has its own answer.
fn each_has_its_own(visitors: &mut [Wire]) {
    for (n, visitor) in (1..).zip(visitors) {
        assert_eq!(visitor.response("GET").text(), format!("answer {n}"));
    }
}

/// What the relay asks for again, alone on its link.
fn asked_again(link: &mut Wire, target: &str, name: &str) {
    let head = next(link).head;
    assert_eq!((head.target(), head.get("Ptth-Aside")), (target, Some(name)));
    assert!(!is_one_of_several(&head), "{}", head.text);
}

fn named(agent: u64, rest: &str) -> String {
    format!("{agent:016x}-{rest}")
}
