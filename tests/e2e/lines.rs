//! Several requests on one link (`docs/links.md`): each visitor has its own answer, nobody waits for somebody else's slow one, and
//! the upstream is asked once.

use std::collections::HashSet;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use crate::support::link::{PONG, SWITCH, SWITCH_LINES, aside, link, link_lines};
use crate::support::random::Random;
use crate::support::upstream::{After, Asked, Upstream};
use crate::support::wire::{Head, Message, Wire, get, ok, post};
use crate::support::{Agent, Program, Relay, agent_command, eventually, locked};

/// Agents of bare bytes.
const ONE: u64 = 0x0123_4567_89ab_cdef;
const OTHER: u64 = 0xfedc_ba98_7654_3210;

/// Answers that a tunnel has to have given before its requests share a link, how many of those there have to be, and how many answers
/// a slow one costs.
const TRUST: usize = 32;
const CROWD: usize = 4;
const COSTS: usize = 20;

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

/// Each of those who wait is asked for alone.
fn each_is_asked_alone(link: &mut Wire, visitors: &mut [Wire]) {
    for visitor in visitors {
        assert!(!is_one_of_several(&next(link).head));
        link.send(ok("fine"));
        assert_eq!(visitor.response("GET").text(), "fine");
    }
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

/// The answer to the first of these, set aside under the name `7`, is asked for here: then every visitor has its own.
fn first_comes_last(link: &mut Wire, visitors: &mut [Wire]) {
    asked_again(link, "/1", &named(ONE, "7"));
    link.send(ok("answer 1"));
    each_has_its_own(visitors);
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
fn a_link_that_is_asked_whether_it_is_there_is_told_nothing_behind_that() {
    let relay = Relay::start(&["--timeout", "ping=200ms"]);
    let mut link = trusted(&relay, ONE);
    assert_eq!(link.request().head.start, "OPTIONS * HTTP/1.1");
    let mut visitors = visitors(&relay, &gets(CROWD));
    link.send(PONG);
    for n in 1..=CROWD {
        assert_eq!(link.request().head.target(), format!("/{n}"));
    }
    link.send(answers(1..=CROWD));
    each_has_its_own(&mut visitors);
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
    let (relay, mut link, mut visitors) = standing(&[]);
    link.send(ok(&"x".repeat(17_000)) + &ok("2") + &ok("3") + &ok("4"));
    for visitor in &mut visitors {
        visitor.response("GET");
    }
    let mut visitors = crowd(&relay, &mut link, &gets(4));
    each_is_asked_alone(&mut link, &mut visitors);
}

/// Whether those who wait with these requests go down the link together, when it is free. Each has its answer then.
fn go_together(relay: &Relay, link: &mut Wire) -> bool {
    let mut visitors = crowd(relay, link, &gets(CROWD));
    let together = (1..=CROWD).map(|n| {
        let together = is_one_of_several(&next(link).head);
        link.send(ok(&format!("answer {n}")));
        visitors[n - 1].response("GET");
        together
    });
    let together: Vec<bool> = together.collect();
    assert!(together.iter().all(|one| *one == together[0]), "{together:?}");
    together[0]
}

#[test]
fn a_tunnel_earns_its_lines_by_quick_answers() {
    // As long as requests may wait, a question for a tunnel without an agent takes: longer than a quick answer.
    let relay = Relay::start(&["--timeout", "link=2s"]);
    let mut link = link_lines(&relay, "demo", ONE);
    quick_answers(&relay, &mut link, TRUST - 2);
    // An answer that is nobody's upstream's shows nothing, nor does one that was long in coming.
    let failed = "HTTP/1.1 502 Bad Gateway\r\nProxy-Status: ptth-reverse; error=x; details=\"upstream-lost\"\r\n\
                  Content-Length: 0\r\n\r\n";
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/failed"));
    next(&mut link);
    link.send(failed);
    assert_eq!(visitor.response("GET").status(), 502);
    visitor.send(get("demo", "/slow"));
    next(&mut link);
    assert_eq!(relay.get("nobody", "/").code(), "no-link");
    link.send(ok("fine"));
    assert_eq!(visitor.response("GET").status(), 200);
    // With the one that the crowd waits for, one is still lacking.
    assert!(!go_together(&relay, &mut link));
    assert!(go_together(&relay, &mut link));
}

#[test]
fn an_answer_set_aside_costs_as_much_as_twenty_quick_ones_earn() {
    // Of its line all the others are quick, and so is the one that its crowd waited for.
    let earned = CROWD;
    // Whether the one that the next crowd waits for counts already is a matter of what else is said on the link.
    for (more, together) in [(COSTS - earned - 2, false), (COSTS - earned, true)] {
        let relay = Relay::start(&[]);
        let mut link = trusted(&relay, ONE);
        let mut visitors = line(&relay, &mut link);
        link.send(aside(ONE, "7") + &answers(2..=CROWD));
        asked_again(&mut link, "/1", &named(ONE, "7"));
        link.send(ok("answer 1"));
        each_has_its_own(&mut visitors);
        quick_answers(&relay, &mut link, more);
        assert_eq!(go_together(&relay, &mut link), together, "behind {more} more");
    }
}

#[test]
fn few_requests_share_no_link() {
    let relay = Relay::start(&[]);
    let mut link = trusted(&relay, ONE);
    let mut visitors = crowd(&relay, &mut link, &gets(CROWD - 1));
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
        quick_answers(&relay, &mut link, TRUST);
        let mut visitors = crowd(&relay, &mut link, &gets(4));
        each_is_asked_alone(&mut link, &mut visitors);
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
        // What the relay sends is here before what it says next to anybody else.
        barrier(&relay);
        assert!(link.silence(Duration::from_millis(20)));
        link.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".repeat(room));
        assert_eq!(next(&mut link).head.target(), format!("/{}", room + 1));
        drop(visitors);
    }
}

#[test]
fn nothing_is_said_behind_a_connect_whoever_waits() {
    let relay = Relay::start(&["--tcp", "127.0.0.1:0=demo"]);
    let line = relay.log().wait_for("tcp://127.0.0.1:");
    let port = line.split("tcp://127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap();
    let mut link = link_lines(&relay, "demo", ONE);
    let mut service = Wire::connect(port);
    assert_eq!(link.request().head.method(), "CONNECT");
    let _waiting = visitors(&relay, &gets(2));
    service.send("hello");
    link.send("HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(link.raw(5).escape_ascii().to_string(), "hello");
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

/// An upstream that answers with the target; of those that begin with `/slow`, when it is told to.
struct Slow {
    upstream: Upstream,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    open: Mutex<HashSet<String>>,
    news: Condvar,
    answered: Mutex<Vec<String>>,
}

impl Gate {
    fn open(&self, target: &str) {
        locked(&self.open).insert(target.to_owned());
        self.news.notify_all();
    }

    fn wait(&self, target: &str) {
        let open = locked(&self.open);
        drop(self.news.wait_while(open, |open| !open.contains(target)));
    }
}

impl Slow {
    fn start() -> Slow {
        Slow::start_with(|_, _| false)
    }

    /// One that does with some requests what `does` says.
    fn start_with(does: impl Fn(&mut Asked<'_>, &Gate) -> bool + Send + Sync + 'static) -> Slow {
        let gate = Arc::new(Gate::default());
        let told = Arc::clone(&gate);
        let upstream = Upstream::start(move |asked| {
            asked.body();
            if does(asked, &told) {
                return After::Close;
            }
            let target = asked.head.target().to_owned();
            if target.starts_with("/slow") {
                told.wait(&target);
            }
            let sent = asked.wire.try_send(ok(&target));
            locked(&told.answered).push(target);
            if sent.is_ok() { After::Keep } else { After::Close }
        });
        Slow { upstream, gate }
    }

    fn let_go(&self, target: &str) {
        self.gate.open(target);
    }

    /// How often this was asked for.
    fn asked(&self, target: &str) -> usize {
        self.upstream.requests().iter().filter(|head| head.target() == target).count()
    }

    fn wait_for_asked(&self, target: &str) {
        eventually("a request at the upstream", || (self.asked(target) > 0).then_some(()));
    }

    fn wait_for_answered(&self, target: &str) {
        let answered = || locked(&self.gate.answered).iter().any(|answered| answered == target).then_some(());
        eventually("an answer of the upstream", answered);
    }
}

/// A relay of bare bytes, and an agent that dials it.
struct ByHand {
    listener: TcpListener,
    agent: Program,
}

fn by_hand(upstream: &Upstream, args: &[&str]) -> ByHand {
    by_hand_with("2..4", upstream, args)
}

/// The same with so many links.
fn by_hand_with(links: &str, upstream: &Upstream, args: &[&str]) -> ByHand {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let via = format!("http://{}", listener.local_addr().unwrap());
    let mut command = agent_command(&[&upstream.address(), "--via", &via, "--links", links, "-v"]);
    let agent = Program::start(command.args(args));
    ByHand { listener, agent }
}

impl ByHand {
    /// The agent's next connection, turned.
    fn link(&self) -> Wire {
        let mut wire = Wire::new(self.listener.accept().unwrap().0);
        assert_eq!(wire.request_head().unwrap().unwrap().0.start, "POST / HTTP/1.1");
        wire.send(SWITCH_LINES);
        wire
    }
}

/// A request that others may follow, and that may follow others.
fn in_line(method: &str, target: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: demo\r\nPtth-Accept: aside\r\n\r\n")
}

/// GETs of these, in a line.
fn gets_in_line(targets: &[&str]) -> String {
    targets.iter().map(|target| in_line("GET", target)).collect()
}

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

/// Reads an answer, which says what it is the answer to.
fn answer_to(link: &mut Wire, target: &str) {
    let answer = link.response("GET");
    assert_eq!((answer.text().as_str(), answer.interim.len()), (target, 0));
}

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

#[test]
fn an_agent_that_goes_sets_nothing_aside() {
    let slow = Slow::start();
    let mut relay = by_hand(&slow.upstream, &[]);
    let mut link = relay.link();
    link.send(gets_in_line(&["/slow/1", "/slow/2"]));
    slow.wait_for_asked("/slow/2");
    relay.agent.terminate();
    relay.agent.log.wait_for("stopping");
    slow.let_go("/slow/2");
    slow.wait_for_answered("/slow/2");
    // On what link could it be asked for?
    assert!(link.silence(Duration::from_millis(50)));
    slow.let_go("/slow/1");
    answer_to(&mut link, "/slow/1");
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
    assert!(other.silence(Duration::from_millis(50)));
    other.send(again("/slow/1", &name));
    slow.let_go("/slow/1");
    let answer = other.response("GET");
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

/// Visitors of the mixed load, and how often each asks.
const VISITORS: usize = 64;
const ASKED: usize = 60;

/// What a visitor of the mixed load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Small,
    Head,
    Large,
    /// Its answer comes when others have theirs.
    Slow,
    /// Of its answer the second half is made when the visitor has the first.
    Streaming,
    Post,
    /// It does not wait for the answer.
    Leaving,
}

impl Kind {
    fn random(random: &mut Random) -> Kind {
        match random.below(100) {
            0 => Kind::Large,
            1 => Kind::Slow,
            2 => Kind::Streaming,
            3..8 => Kind::Post,
            8..10 => Kind::Leaving,
            10..20 => Kind::Head,
            _ => Kind::Small,
        }
    }

    fn target(self, number: usize) -> String {
        format!("/{self:?}/{number}")
    }
}

/// What upstreams and visitors of the mixed load know of each other.
#[derive(Default)]
struct Mixed {
    answered: AtomicUsize,
    /// A visitor has gone home: there may be nobody to wait for.
    is_closing: AtomicBool,
    gate: Gate,
}

impl Mixed {
    fn serve(&self, asked: &mut Asked<'_>) -> After {
        let Some(body) = asked.body() else { return After::Close };
        let target = asked.head.target().to_owned();
        let before = self.answered.fetch_add(1, Ordering::Relaxed);
        let answer = match target.split('/').nth(1) {
            Some("Head") => format!("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nX-Target: {target}\r\n\r\n"),
            Some("Large") => ok(&(target.clone() + &"x".repeat(100_000))),
            Some("Slow") => {
                let others = || self.answered.load(Ordering::Relaxed) > before + 30;
                eventually("others", || (others() || self.is_closing.load(Ordering::Relaxed)).then_some(()));
                ok(&target)
            }
            Some("Streaming") => {
                let _ = asked.wire.try_send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n");
                self.gate.wait(&target);
                format!("{:x}\r\n{target}\r\n0\r\n\r\n", target.len())
            }
            _ => ok(&(target.clone() + &String::from_utf8_lossy(&body))),
        };
        if asked.wire.try_send(answer).is_ok() { After::Keep } else { After::Close }
    }

    fn visit(&self, visitor: &mut Wire, kind: Kind, target: &str) {
        let asked = get("demo", target);
        match kind {
            Kind::Head => {
                let answer = visitor.send(asked.replace("GET", "HEAD")).response("HEAD");
                assert_eq!(answer.head.get("X-Target"), Some(target));
            }
            Kind::Post => {
                let answer = visitor.send(post("demo", target, "an order")).response("POST");
                assert_eq!(answer.text(), format!("{target}an order"));
            }
            Kind::Streaming => {
                assert_eq!(visitor.send(asked).response_head("GET").unwrap().0.status(), 200);
                assert_eq!(visitor.body(5), b"begun");
                self.gate.open(target);
                assert_eq!(visitor.body(target.len()), target.as_bytes());
                visitor.rest(&mut Vec::new()).unwrap();
            }
            Kind::Small | Kind::Large | Kind::Slow => {
                let answer = visitor.send(asked).response("GET");
                assert!(answer.text().starts_with(target), "{target}: {}", answer.text());
            }
            Kind::Leaving => drop(visitor.send(asked)),
        }
    }
}

fn a_mixed_load(agents: usize, flags: &[&str]) {
    let seed = Random::seed();
    eprintln!("PTTH_TEST_SEED={seed}");
    let mut random = Random::seeded(seed);
    let mixed = Arc::new(Mixed::default());
    let upstreams: Vec<Upstream> = (0..agents)
        .map(|_| {
            let mixed = Arc::clone(&mixed);
            Upstream::start(move |asked| mixed.serve(asked))
        })
        .collect();
    let relay = Relay::start(&[&["--timeout", "link=60s"], flags].concat());
    let start = |upstream: &Upstream| Agent::start(&relay, "demo", &upstream.address(), &["-v"]);
    let agents: Vec<Agent> = upstreams.iter().map(start).collect();
    let visitors: Vec<_> = (0..VISITORS)
        .map(|number| {
            let kinds: Vec<Kind> = (0..ASKED).map(|_| Kind::random(&mut random)).collect();
            let (mixed, port) = (Arc::clone(&mixed), relay.port);
            thread::spawn(move || {
                let mut visitor = Wire::connect(port);
                for (at, kind) in kinds.iter().enumerate() {
                    mixed.visit(&mut visitor, *kind, &kind.target(number * ASKED + at));
                    if *kind == Kind::Leaving {
                        visitor = Wire::connect(port);
                    }
                }
                mixed.is_closing.store(true, Ordering::Relaxed);
                kinds
            })
        })
        .collect();
    let kinds: Vec<Kind> = visitors.into_iter().flat_map(|visitor| visitor.join().unwrap()).collect();

    let mut asked: Vec<String> = Vec::new();
    for upstream in &upstreams {
        asked.extend(upstream.requests().iter().map(|head| head.target().to_owned()));
    }
    for (number, kind) in kinds.into_iter().enumerate() {
        let times = asked.iter().filter(|target| **target == kind.target(number)).count();
        assert!(times == 1 || times == 0 && kind == Kind::Leaving, "{}: {times} times", kind.target(number));
    }
    // Or it was not what it is to show.
    assert!(agents.iter().any(|agent| agent.log().count("its answer was set aside") > 0));
    for agent in &agents {
        assert_eq!(agent.log().count("warning"), 0);
    }
}

#[test]
fn each_of_many_has_its_own_answer_and_the_upstream_is_asked_once() {
    a_mixed_load(1, &[]);
}

#[test]
fn each_of_many_has_its_own_answer_from_one_of_two_agents() {
    a_mixed_load(2, &[]);
}

#[test]
fn each_of_many_has_its_own_answer_through_several_workers() {
    a_mixed_load(2, &["--workers", "2"]);
}
