//! Several requests on one link (`docs/links.md`): each visitor has its own answer, nobody waits for somebody else's slow one, and
//! the upstream is asked once.

use std::time::Duration;

use crate::support::Relay;
use crate::support::link::{PONG, aside, link, link_lines};
use crate::support::wire::{Head, Message, Wire, get, ok, post};

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
    let (mut link, mut visitor) = (link_lines(relay, "demo", agent), relay.visitor());
    for _ in 0..TRUST {
        visitor.send(get("demo", "/"));
        link.request();
        link.send(ok("fine"));
        visitor.response("GET");
    }
    link
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

#[test]
fn requests_that_wait_go_down_one_link_and_each_visitor_has_its_own_answer() {
    let relay = Relay::start(&[]);
    let mut link = trusted(&relay, ONE);
    let mut visitors = crowd(&relay, &mut link, &gets(16));
    for n in 1..=16 {
        assert_eq!(one_of_several(&mut link).target(), format!("/{n}"));
    }
    link.send(answers(1..=16));
    each_has_its_own(&mut visitors);
    // And it is a link like any other.
    let mut visitor = relay.visitor();
    visitor.send(post("demo", "/", "an order"));
    assert_eq!(next(&mut link).body, b"an order");
    link.send(ok("done"));
    assert_eq!(visitor.response("POST").text(), "done");
}

#[test]
fn answers_of_all_kinds_find_their_visitors() {
    let relay = Relay::start(&[]);
    let mut link = trusted(&relay, ONE);
    let mut requests = gets(6);
    requests[0] = requests[0].replace("GET", "HEAD");
    let mut visitors = crowd(&relay, &mut link, &requests);
    for _ in &requests {
        one_of_several(&mut link);
    }
    let early = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n";
    link.send(
        [
            "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nthree\r\n0\r\nX-Trailer: yes\r\n\r\n",
            early,
            &ok("four"),
            "HTTP/1.1 204 No Content\r\n\r\n",
            &ok("six"),
        ]
        .concat(),
    );
    assert_eq!(visitors[0].response("HEAD").head.get("Content-Length"), Some("1000000"));
    assert_eq!(visitors[1].response("GET").status(), 304);
    assert_eq!(visitors[2].response("GET").text(), "three");
    let four = visitors[3].response("GET");
    assert_eq!((four.text().as_str(), four.interim.len()), ("four", 1));
    assert_eq!(visitors[4].response("GET").status(), 204);
    assert_eq!(visitors[5].response("GET").text(), "six");
}

#[test]
fn a_post_stands_with_nobody_and_keeps_its_place_in_the_queue() {
    let relay = Relay::start(&[]);
    let mut link = trusted(&relay, ONE);
    let mut requests = gets(24);
    requests.insert(1, post("demo", "/order", "an order"));
    let visitors = crowd(&relay, &mut link, &requests);
    // In the order in which they came, as many at once as may.
    assert_eq!(one_of_several(&mut link).target(), "/1");
    link.send(ok("answer"));
    let head = next(&mut link).head;
    assert_eq!((head.method(), head.target()), ("POST", "/order"));
    link.send(ok("answer"));
    for at_once in [2..=17, 18..=24] {
        for n in at_once.clone() {
            assert_eq!(one_of_several(&mut link).target(), format!("/{n}"));
        }
        link.send(answers(at_once));
    }
    for (n, mut visitor) in visitors.into_iter().enumerate() {
        let method = if n == 1 { "POST" } else { "GET" };
        assert_eq!(visitor.response(method).status(), 200);
    }
}

#[test]
fn a_visitor_may_leave_wherever_it_stands() {
    for leaves in 0..CROWD {
        let relay = Relay::start(&[]);
        let mut link = trusted(&relay, ONE);
        let mut visitors = line(&relay, &mut link);
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
fn an_answer_set_aside_is_asked_for_on_a_link_to_the_same_agent() {
    let relay = Relay::start(&[]);
    let mut first = trusted(&relay, ONE);
    let mut visitors = line(&relay, &mut first);
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
    asked_again(&mut first, "/1", &named(ONE, "7"));
    first.send(ok("answer 1"));
    each_has_its_own(&mut visitors);
    other.shut();
    other.expect_end();
}

#[test]
fn an_answer_set_aside_by_an_agent_that_is_gone_comes_from_another() {
    let relay = Relay::start(&["--timeout", "link=10m"]);
    let mut first = trusted(&relay, ONE);
    let mut visitors = line(&relay, &mut first);
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
    let relay = Relay::start(&["--timeout", "link=10m"]);
    let mut first = trusted(&relay, ONE);
    let mut visitors = line(&relay, &mut first);
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
    let relay = Relay::start(&["--timeout", "link=300ms"]);
    let mut link = trusted(&relay, ONE);
    let mut visitors = line(&relay, &mut link);
    // By then the time is over in which they would have to have found one.
    assert_eq!(relay.get("nobody", "/").code(), "no-link");
    link.send(aside(ONE, "7"));
    barrier(&relay);
    link.send(answers([2, 3, 4]));
    asked_again(&mut link, "/1", &named(ONE, "7"));
    link.send(ok("answer 1"));
    each_has_its_own(&mut visitors);
}

#[test]
fn what_stood_on_a_link_that_breaks_goes_elsewhere() {
    let relay = Relay::start(&[]);
    let mut first = trusted(&relay, ONE);
    let mut visitors = line(&relay, &mut first);
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
    let relay = Relay::start(&[]);
    let mut first = trusted(&relay, ONE);
    let mut visitors = line(&relay, &mut first);
    first.send(answers(1..CROWD) + "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n");
    let last = &mut visitors[CROWD - 1];
    assert_eq!(last.any_response_head("GET").status(), 103);
    drop(first);
    assert_eq!(last.response("GET").code(), "link-lost");
}

#[test]
fn answers_that_are_there_count_although_their_link_has_ended() {
    let relay = Relay::start(&[]);
    let mut link = trusted(&relay, ONE);
    let mut visitors = line(&relay, &mut link);
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nanswer 4";
    // All in one look of the relay's.
    relay.program.freeze();
    link.send(answers(1..CROWD) + last).shut();
    relay.program.thaw();
    each_has_its_own(&mut visitors);
}

#[test]
fn an_answer_that_is_longer_than_agreed_fills_no_memory() {
    let relay = Relay::start(&[]);
    let mut link = trusted(&relay, ONE);
    let mut visitors = line(&relay, &mut link);
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

#[test]
fn a_visitor_has_no_say_in_it() {
    let relay = Relay::start(&[]);
    let mut link = trusted(&relay, ONE);
    let name = named(ONE, "7");
    let marked =
        |n| format!("GET /{n} HTTP/1.1\r\nHost: demo.localhost\r\nPtth-Aside: {name}\r\nPtth-Accept: aside\r\n\r\n");
    let mut visitors = crowd(&relay, &mut link, &[1, 2, 3, 4].map(marked));
    for _ in 0..CROWD {
        assert_eq!(one_of_several(&mut link).get("Ptth-Aside"), None);
    }
    link.send(answers(1..=CROWD));
    each_has_its_own(&mut visitors);
    // Alone on a link, it says no more.
    visitors[0].send(marked(1));
    let head = next(&mut link).head;
    assert!(head.get("Ptth-Aside").is_none() && !is_one_of_several(&head), "{}", head.text);
}

#[test]
fn long_and_slow_answers_cost_a_tunnel_its_lines() {
    let relay = Relay::start(&[]);
    let mut link = trusted(&relay, ONE);
    let mut visitors = line(&relay, &mut link);
    link.send(ok(&"x".repeat(17_000)) + &ok("2") + &ok("3") + &ok("4"));
    for visitor in &mut visitors {
        visitor.response("GET");
    }
    let mut visitors = crowd(&relay, &mut link, &gets(4));
    for visitor in &mut visitors {
        assert!(!is_one_of_several(&next(&mut link).head));
        link.send(ok("fine"));
        visitor.response("GET");
    }
}

#[test]
fn only_agents_that_say_so_are_given_several() {
    for (flags, agent) in [(&[][..], None), (&["--limit", "pipeline=1"], Some(ONE))] {
        let relay = Relay::start(flags);
        let mut link = agent.map_or_else(|| link(&relay, "demo"), |agent| link_lines(&relay, "demo", agent));
        let mut visitor = relay.visitor();
        for _ in 0..TRUST {
            visitor.send(get("demo", "/"));
            next(&mut link);
            link.send(ok("fine"));
            visitor.response("GET");
        }
        let mut visitors = crowd(&relay, &mut link, &gets(4));
        for visitor in &mut visitors {
            assert!(!is_one_of_several(&next(&mut link).head));
            link.send(ok("fine"));
            assert_eq!(visitor.response("GET").text(), "fine");
        }
    }
}

#[test]
fn as_many_stand_on_a_link_as_may() {
    for (most, room) in [("pipeline=2", 2), ("pipeline=31", 31), ("pipeline=100", 32)] {
        let relay = Relay::start(&["--limit", most]);
        let mut link = trusted(&relay, ONE);
        let visitors = crowd(&relay, &mut link, &gets(40));
        for n in 1..=room {
            assert_eq!(one_of_several(&mut link).target(), format!("/{n}"));
        }
        barrier(&relay);
        assert!(link.silence(Duration::from_millis(20)));
        link.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".repeat(room));
        assert_eq!(next(&mut link).head.target(), format!("/{}", room + 1));
        drop(visitors);
    }
}

#[test]
fn a_relay_that_goes_asks_for_what_was_set_aside() {
    let mut relay = Relay::start(&["--timeout", "farewell=50ms"]);
    let mut link = trusted(&relay, ONE);
    let mut visitors = line(&relay, &mut link);
    let mut resting = link_lines(&relay, "demo", ONE);
    let mut idle = relay.visitor();
    barrier(&relay);
    relay.program.terminate();
    // By then whatever rests is gone.
    resting.expect_end();
    idle.expect_end();
    link.send(aside(ONE, "7") + &answers([2, 3, 4]));
    asked_again(&mut link, "/1", &named(ONE, "7"));
    link.send(ok("answer 1"));
    each_has_its_own(&mut visitors);
    link.expect_end();
    assert_eq!(relay.program.exit_code(), 0);
}

#[test]
fn a_relay_that_goes_still_asks_for_what_waits_to_be_asked_for() {
    let mut relay = Relay::start(&["--timeout", "farewell=50ms"]);
    let mut link = trusted(&relay, ONE);
    let mut visitors = line(&relay, &mut link);
    link.send(aside(ONE, "7"));
    barrier(&relay);
    let mut idle = relay.visitor();
    barrier(&relay);
    relay.program.terminate();
    idle.expect_end();
    link.send(answers([2, 3, 4]));
    asked_again(&mut link, "/1", &named(ONE, "7"));
    link.send(ok("answer 1"));
    each_has_its_own(&mut visitors);
    assert_eq!(relay.program.exit_code(), 0);
}
