//! Many polls at once: several workers, a relay that stops, and what is left when they are gone.

use serde_json::{Value, json};

use super::{asking, carry, id, message, polling, reply, settled, told};
use crate::support::wire::{Wire, get, post};
use crate::support::{Relay, eventually};

#[test]
fn a_relay_that_stops_lets_polls_go_and_still_takes_answers() {
    for workers in ["1", "3"] {
        let mut relay = Relay::start(&["--workers", workers]);
        let mut idle = polling(&relay, "idle");
        let mut agent = polling(&relay, "demo");
        let mut visitor = asking(&relay, "demo", "/");
        let request = message(&mut agent);
        relay.log().wait_for("tunnel `idle` is up");
        relay.program.terminate();
        relay.log().wait_for("stopping");
        assert_eq!(told(&idle.response("POST")), (503, "stopping".into()));
        // On a connection that is made only now. A worker that closes its door at this moment may not let it in: then it tries
        // another one.
        let told_late = eventually("the answer to be taken", || {
            let mut late = Wire::connect(relay.port);
            late.try_send(carry("demo", "", &reply(&id(&request), "fine"))).ok()?;
            late.try_response("POST").ok()
        });
        assert_eq!(told(&told_late), (503, "stopping".into()));
        assert_eq!(visitor.response("GET").text(), "fine");
        assert_eq!(relay.program.exit_code(), 0);
    }
}

#[test]
fn a_relay_that_holds_polls_and_nothing_else_stops_at_once() {
    let mut relay = Relay::start(&[]);
    let mut agents: Vec<Wire> = (0..20).map(|_| polling(&relay, "demo")).collect();
    settled(&relay);
    relay.program.terminate();
    for agent in &mut agents {
        assert_eq!(told(&agent.response("POST")), (503, "stopping".into()));
        agent.expect_end();
    }
    assert_eq!(relay.program.exit_code(), 0);
}

#[test]
fn all_workers_of_a_relay_know_of_each_others_polls() {
    let relay = Relay::start(&["--workers", "3", "--timeout", "link=60s"]);
    // Visitors that come to any of them before there is an agent.
    let mut visitors: Vec<Wire> = (0..12).map(|n| asking(&relay, "demo", &format!("/{n}"))).collect();
    let mut served = 0;
    while served < visitors.len() {
        let mut agent = polling(&relay, "demo");
        let request = message(&mut agent);
        let which: usize = request["request-uri"].as_str().unwrap()[1..].parse().unwrap();
        // The answer comes to another one, on a connection that goes on.
        let mut other = relay.visitor();
        other.send(carry("demo", "Prefer: wait=0\r\n", &reply(&id(&request), &format!("{which}"))));
        assert_eq!(visitors[which].response("GET").text(), format!("{which}"));
        let mut next = message(&mut other);
        served += 1;
        // It may have brought one along.
        while next != json!({}) {
            let which: usize = next["request-uri"].as_str().unwrap()[1..].parse().unwrap();
            other.send(carry("demo", "Prefer: wait=0\r\n", &reply(&id(&next), &format!("{which}"))));
            assert_eq!(visitors[which].response("GET").text(), format!("{which}"));
            next = message(&mut other);
            served += 1;
        }
    }
    // And the other way round: polls that are held, visitors on every worker, on connections that are used again.
    let mut agent = polling(&relay, "demo");
    for n in 0..40 {
        let visitor = &mut visitors[n % 12];
        visitor.send(get("demo", &format!("/again/{n}")));
        let request = message(&mut agent);
        assert_eq!(request["request-uri"], format!("/again/{n}"));
        agent.send(carry("demo", "", &reply(&id(&request), "again")));
        assert_eq!(visitor.response("GET").text(), "again");
    }
    drop(agent);
    relay.log().wait_for("tunnel `demo` is down");
    assert_eq!((relay.log().count("is up"), relay.log().count("is down")), (1, 1));
}

#[test]
fn many_visitors_and_many_polls_each_find_their_own() {
    const VISITORS: usize = 200;
    for workers in ["1", "3"] {
        let relay = Relay::start(&["--workers", workers, "--timeout", "link=60s"]);
        let port = relay.port;
        let agents: Vec<_> = (0..8)
            .map(|n| {
                std::thread::spawn(move || {
                    let mut wire = Wire::connect(port);
                    let mut body = String::new();
                    for round in 0.. {
                        let fields = if n % 2 == 0 { "Ptth-Accept: base64\r\n" } else { "" };
                        if wire.try_send(carry("demo", fields, &body)).is_err() {
                            return;
                        }
                        let Ok(answer) = wire.try_response("POST") else { return };
                        if answer.status() != 200 {
                            return;
                        }
                        let message: Value = serde_json::from_slice(&answer.body).unwrap();
                        body.clear();
                        if message != json!({}) {
                            let target = message["request-uri"].as_str().unwrap();
                            body = reply(&id(&message), &format!("{target} {}", message["body"].as_str().unwrap()));
                        }
                        if round % 7 == 6 {
                            wire = Wire::connect(port);
                        }
                    }
                })
            })
            .collect();
        let visitors: Vec<_> = (0..VISITORS)
            .map(|n| {
                std::thread::spawn(move || {
                    let mut visitor = Wire::connect(port);
                    for round in 0..3 {
                        let body = format!("{n}-{round} ").repeat(n * 5);
                        let answer = visitor.send(post("demo", &format!("/{n}/{round}"), &body)).response("POST");
                        assert_eq!((answer.status(), answer.text()), (200, format!("/{n}/{round} {body}")));
                    }
                })
            })
            .collect();
        let failed = visitors.into_iter().filter_map(|visitor| visitor.join().err()).count();
        assert_eq!(failed, 0, "of {VISITORS} visitors");
        relay.program.terminate();
        agents.into_iter().for_each(|agent| agent.join().unwrap());
        let mut relay = relay;
        assert_eq!(relay.program.exit_code(), 0);
    }
}

#[test]
fn polls_that_come_and_go_leave_nothing_behind() {
    let relay = Relay::start(&["--timeout", "half-close=100ms"]);
    settled(&relay);
    let files = relay.program.open_files();
    for n in 0..100 {
        let mut agent = polling(&relay, "demo");
        if n % 2 == 0 {
            let visitor = asking(&relay, "demo", "/");
            message(&mut agent);
            drop(visitor);
        }
    }
    relay.log().wait_for_count(50, " demo GET / 499 ");
    relay.program.wait_for_files(files);
    relay.log().wait_for("tunnel `demo` is down");
}
