//! Who shares a link with others, in which order, and what earns a tunnel that.

use super::{
    CROWD, ONE, TRUST, answers, asked_again, barrier, crowd, each_has_its_own, gets, is_one_of_several, line, named,
    next, one_of_several, quick_answers, standing, trusted, visitors,
};
use crate::support::Relay;
use crate::support::link::{PONG, aside, link, link_lines};
use crate::support::wire::{Wire, get, ok, post};

/// How many quick answers a slow one costs.
const COSTS: usize = 20;

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

/// Each of those who wait is asked for alone.
fn each_is_asked_alone(link: &mut Wire, visitors: &mut [Wire]) {
    for visitor in visitors {
        assert!(!is_one_of_several(&next(link).head));
        link.send(ok("fine"));
        assert_eq!(visitor.response("GET").text(), "fine");
    }
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
        assert!(link.has_nothing());
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
