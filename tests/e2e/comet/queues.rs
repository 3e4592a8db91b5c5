//! Which request goes to which poll, whose answer comes home, and what a queue holds.

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::{asking, carry, id, message, poll, polling, relay, reply, settled, told};
use crate::support::Relay;
use crate::support::wire::{Wire, get, post};

#[test]
fn answers_come_on_any_connection_and_in_any_order() {
    let relay = relay();
    let mut visitors: Vec<Wire> = (0..6).map(|n| asking(&relay, "demo", &format!("/{n}"))).collect();
    // One agent with several messages in hand, on connections that each do one thing.
    let mut agents: Vec<Wire> = (0..6).map(|_| polling(&relay, "demo")).collect();
    let messages: Vec<Value> = agents.iter_mut().map(message).collect();
    let mut ids: Vec<String> = messages.iter().map(id).collect();
    for n in [3, 0, 5, 1, 4, 2] {
        let target = messages[n]["request-uri"].as_str().unwrap();
        let which: usize = target[1..].parse().unwrap();
        let mut other = relay.visitor();
        other.send(carry("demo", "", &reply(&ids[n], target)));
        assert_eq!(visitors[which].response("GET").text(), target);
    }
    // Nobody can guess one from the others.
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6);
    let ends: Vec<&str> = ids.iter().map(|id| &id[10..]).collect();
    for (n, end) in ends.iter().enumerate() {
        assert_eq!(end.len(), 16);
        for other in &ends[..n] {
            let same = end.bytes().zip(other.bytes()).filter(|(a, b)| a == b).count();
            assert!(same < 12, "{ids:?}");
        }
    }
}

#[test]
fn requests_are_handed_out_in_the_order_they_came_in() {
    let relay = Relay::start(&[]);
    let chunked = |target: &str| {
        format!("PUT {target} HTTP/1.1\r\nHost: demo.localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    };
    for polls in [1, 4] {
        // Those of different kinds may overtake each other: a body takes its time.
        for kind in 0..3 {
            let _visitors: Vec<Wire> = (0..12)
                .map(|n| {
                    let mut visitor = relay.visitor();
                    let target = format!("/{n}");
                    visitor.send(match kind {
                        0 => get("demo", &target),
                        1 => post("demo", &target, "body"),
                        _ => chunked(&target),
                    });
                    settled(&relay);
                    visitor
                })
                .collect();
            let mut agents: Vec<Wire> = (0..polls).map(|_| relay.visitor()).collect();
            for n in 0..12 {
                let agent = &mut agents[n % polls];
                agent.send(poll("demo", ""));
                assert_eq!(message(agent)["request-uri"], format!("/{n}"), "{polls} polls, kind {kind}");
            }
        }
    }
}

#[test]
fn agents_of_one_name_take_turns() {
    let relay = relay();
    let mut agents = [polling(&relay, "demo"), polling(&relay, "demo"), polling(&relay, "demo")];
    settled(&relay);
    for n in 0..9 {
        let mut visitor = asking(&relay, "demo", &format!("/{n}"));
        let agent = &mut agents[n % 3];
        let request = message(agent);
        assert_eq!(request["request-uri"], format!("/{n}"));
        agent.send(carry("demo", "", &reply(&id(&request), "fine")));
        assert_eq!(visitor.response("GET").text(), "fine");
        settled(&relay);
    }
}

#[test]
fn an_answer_that_nobody_waits_for_is_a_404_and_harms_nobody() {
    let relay = Relay::start(&["--timeout", "link-answer=300ms"]);
    let mut agent = polling(&relay, "demo");
    let mut visitor = asking(&relay, "demo", "/late");
    let late = id(&message(&mut agent));
    let answer = visitor.response("GET");
    assert_eq!(told(&answer), (504, "link-timeout".into()));
    assert!(answer.text().contains("link-answer"), "{}", answer.text());
    assert!(relay.log().wait_for(" demo GET /late 504 ").ends_with(" link-timeout"));
    drop(relay);

    let relay = self::relay();
    let mut agent = polling(&relay, "demo");
    visitor = asking(&relay, "demo", "/");
    let right = id(&message(&mut agent));
    let mut wrong = right.clone().into_bytes();
    *wrong.last_mut().unwrap() = if wrong.last() == Some(&b'0') { b'1' } else { b'0' };
    let wrong = String::from_utf8(wrong).unwrap();
    for unknown in [late.as_str(), &wrong, &right.to_ascii_lowercase(), "x", "7", &"0".repeat(26), &"9".repeat(128)] {
        let answer = agent.send(carry("demo", "", &reply(unknown, "not yours"))).response("POST");
        assert_eq!(told(&answer), (404, "unknown-message".into()), "{unknown}");
    }
    agent.send(carry("demo", "Prefer: wait=0\r\n", &reply(&right, "fine")));
    assert_eq!(message(&mut agent), json!({}));
    let answer = agent.send(carry("demo", "", &reply(&right, "twice"))).response("POST");
    assert_eq!(told(&answer), (404, "unknown-message".into()));
    assert_eq!(visitor.response("GET").text(), "fine");
    // All of it on one connection, and the visitor's is as good as it was.
    agent.send(poll("demo", ""));
    visitor.send(get("demo", "/next"));
    let next = message(&mut agent);
    agent.send(carry("demo", "", &reply(&id(&next), "next")));
    assert_eq!(visitor.response("GET").text(), "next");
    assert!(relay.log().wait_for(" - POST /demo 404 ").ends_with(" unknown-message"));
}

#[test]
fn a_request_for_which_no_poll_comes_is_a_503() {
    let relay = relay();
    assert_eq!(told(&relay.get("demo", "/")), (503, "no-link".into()));
    // The agent is there, and busy with another one.
    let mut agent = polling(&relay, "demo");
    let mut first = asking(&relay, "demo", "/first");
    let request = message(&mut agent);
    assert_eq!(told(&relay.get("demo", "/second")), (503, "links-busy".into()));
    agent.send(carry("demo", "", &reply(&id(&request), "fine")));
    assert_eq!(first.response("GET").text(), "fine");
    assert!(relay.log().wait_for(" demo GET /second 503 ").ends_with(" links-busy"));
}

#[test]
fn a_request_whose_visitor_has_gone_is_never_handed_out() {
    let relay = Relay::start(&["--timeout", "half-close=100ms"]);
    for n in 0..3 {
        drop(asking(&relay, "demo", &format!("/gone/{n}")));
        relay.log().wait_for(&format!(" demo GET /gone/{n} 499 "));
    }
    let mut here = asking(&relay, "demo", "/here");
    let mut agent = polling(&relay, "demo");
    let request = message(&mut agent);
    assert_eq!(request["request-uri"], "/here");
    agent.send(carry("demo", "", &reply(&id(&request), "fine")));
    assert_eq!(here.response("GET").text(), "fine");
    settled(&relay);
    // One that was a message already, and whose poll another one took.
    let slow = |target: &str| {
        let mut visitor = relay.visitor();
        visitor.send(format!("POST {target} HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 2\r\n\r\na"));
        settled(&relay);
        visitor
    };
    let (mut first, mut second, mut third) = (slow("/first"), slow("/second"), slow("/third"));
    for visitor in [&mut first, &mut second, &mut third] {
        visitor.send("b");
        settled(&relay);
    }
    assert_eq!(message(&mut agent)["request-uri"], "/first");
    drop(second);
    relay.log().wait_for(" demo POST /second 499 ");
    agent.send(poll("demo", ""));
    assert_eq!(message(&mut agent)["request-uri"], "/third");
}

#[test]
fn an_answer_whose_visitor_has_gone_is_a_404() {
    let relay = Relay::start(&["--timeout", "half-close=100ms"]);
    let mut agent = polling(&relay, "demo");
    let visitor = asking(&relay, "demo", "/gone");
    let gone = id(&message(&mut agent));
    drop(visitor);
    relay.log().wait_for(" demo GET /gone 499 ");
    assert_eq!(
        told(&agent.send(carry("demo", "", &reply(&gone, "x"))).response("POST")),
        (404, "unknown-message".into())
    );
    let mut visitor = asking(&relay, "demo", "/here");
    agent.send(poll("demo", ""));
    let here = message(&mut agent);
    agent.send(carry("demo", "", &reply(&id(&here), "fine")));
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn a_poll_whose_agent_has_gone_takes_no_message_along() {
    let relay = Relay::start(&[]);
    for n in 0..30 {
        let mut gone = polling(&relay, "demo");
        match n % 3 {
            // Its end comes with it, or behind it.
            0 => {
                gone.shut();
            }
            1 => {
                settled(&relay);
                gone.shut();
                settled(&relay);
            }
            _ => {
                settled(&relay);
                gone.leave();
                settled(&relay);
            }
        }
        settled(&relay);
        let mut agent = polling(&relay, "demo");
        let mut visitor = asking(&relay, "demo", &format!("/{n}"));
        let request = message(&mut agent);
        assert_eq!(request["request-uri"], format!("/{n}"));
        agent.send(carry("demo", "Prefer: wait=0\r\n", &reply(&id(&request), "fine")));
        assert_eq!(visitor.response("GET").text(), "fine");
        assert_eq!(message(&mut agent), json!({}));
    }
}

#[test]
fn a_message_that_could_not_be_written_whole_goes_to_the_next_poll() {
    let relay = Relay::start(&["--limit", "message=32000000", "--limit", "queue=64000000"]);
    // An agent that doesn't read, with little room in its kernel.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address: std::net::SocketAddr = ([127, 0, 0, 1], relay.port).into();
    socket.connect(&address.into()).unwrap();
    let mut deaf = Wire::new(socket.into());
    deaf.send(poll("demo", ""));
    settled(&relay);
    let body = "large ".repeat(4_000_000);
    let mut visitor = relay.visitor();
    visitor.send(post("demo", "/large", &body));
    // Some of it has arrived.
    assert!(deaf.raw(10_000).windows(6).any(|part| part == b"large "));
    drop(deaf);
    let mut agent = polling(&relay, "demo");
    let request = message(&mut agent);
    assert_eq!((&request["request-uri"], request["body"].as_str().unwrap().len()), (&"/large".into(), body.len()));
    agent.send(carry("demo", "", &reply(&id(&request), "fine")));
    assert_eq!(visitor.response("POST").text(), "fine");
}

#[test]
fn the_queue_of_a_tunnel_is_bounded_by_bytes() {
    let relay = Relay::start(&["--limit", "queue=10000"]);
    let mut agents = [polling(&relay, "demo"), polling(&relay, "demo")];
    let body = "x".repeat(6000);
    let mut first = relay.visitor();
    first.send(post("demo", "/first", &body));
    let requests = [message(&mut agents[0])];
    // What is out counts too.
    let mut second = relay.visitor();
    let answer = second.send(post("demo", "/second", &body)).response("POST");
    assert_eq!(told(&answer), (503, "tunnel-busy".into()));
    assert!(answer.text().contains("--limit queue"), "{}", answer.text());
    // Other tunnels have a queue of their own.
    let mut other = polling(&relay, "other");
    let mut visitor = relay.visitor();
    visitor.send(post("other", "/", &body));
    message(&mut other);
    // When the first one is answered there is room again.
    agents[0].send(carry("demo", "", &reply(&id(&requests[0]), "fine")));
    assert_eq!(first.response("POST").text(), "fine");
    let mut third = relay.visitor();
    third.send(post("demo", "/third", &body));
    assert_eq!(message(&mut agents[1])["request-uri"], "/third");
    assert!(relay.log().wait_for(" demo POST /second 503 ").ends_with(" tunnel-busy"));
}

#[test]
fn an_answer_that_finds_no_room_in_the_queue_is_not_said_to_be_too_large() {
    let relay = Relay::start(&["--limit", "queue=10000", "--limit", "message=100000"]);
    let mut agent = polling(&relay, "demo");
    let mut visitor = asking(&relay, "demo", "/full");
    let request = message(&mut agent);
    let long = "x".repeat(12_000);
    agent.send(carry("demo", "", &reply(&id(&request), &long)));
    let answer = visitor.response("GET");
    assert_eq!(told(&answer), (503, "tunnel-busy".into()));
    assert!(answer.text().contains("--limit queue"), "{}", answer.text());
    assert_eq!(told(&agent.response("POST")), (413, "message-too-large".into()));
    assert!(relay.log().wait_for(" demo GET /full 503 ").ends_with(" tunnel-busy"));
}

#[test]
fn the_queue_of_a_tunnel_is_bounded_by_number() {
    let relay = Relay::start(&["--limit", "waiting=2"]);
    let mut agent = relay.visitor();
    let mut body = String::new();
    // Before an agent is there, and while it is busy.
    for busy in [false, true] {
        let mut visitors = Vec::new();
        if busy {
            agent.send(poll("demo", ""));
            visitors.push(asking(&relay, "demo", "/out"));
            body = reply(&id(&message(&mut agent)), "fine");
        }
        for target in ["/1", "/2"] {
            visitors.push(asking(&relay, "demo", target));
            settled(&relay);
        }
        assert_eq!(told(&relay.get("demo", "/3")), (503, "tunnel-busy".into()));
        for _ in 0..2 {
            agent.send(carry("demo", "", &body));
            body = reply(&id(&message(&mut agent)), "fine");
        }
        agent.send(carry("demo", "Prefer: wait=0\r\n", &body));
        assert_eq!(message(&mut agent), json!({}));
        body.clear();
        for visitor in &mut visitors {
            assert_eq!(visitor.response("GET").text(), "fine");
        }
    }
}

#[test]
fn messages_that_became_whole_at_once_are_bounded_by_number_too() {
    let relay = Relay::start(&["--limit", "waiting=1"]);
    let mut agent = polling(&relay, "demo");
    settled(&relay);
    // A poll is there for each of them, as long as none is whole.
    let mut visitors: Vec<Wire> = (0..4)
        .map(|n| {
            let mut visitor = relay.visitor();
            visitor.send(format!("POST /{n} HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 2\r\n\r\na"));
            visitor
        })
        .collect();
    settled(&relay);
    for visitor in &mut visitors {
        visitor.send("b");
        settled(&relay);
    }
    let first = message(&mut agent);
    assert_eq!(first["request-uri"], "/0");
    for visitor in &mut visitors[2..] {
        assert_eq!(told(&visitor.response("POST")), (503, "tunnel-busy".into()));
    }
    agent.send(carry("demo", "", &reply(&id(&first), "fine")));
    let second = message(&mut agent);
    assert_eq!((&second["request-uri"], visitors[0].response("POST").text()), (&"/1".into(), "fine".into()));
    agent.send(carry("demo", "", &reply(&id(&second), "fine")));
    assert_eq!(visitors[1].response("POST").text(), "fine");
}
