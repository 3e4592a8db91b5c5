//! Agents whose polls break: no message is lost with the connection that it was written to, and no visitor waits in vain for an answer
//! that can't come.

use serde_json::Value;

use crate::support::Relay;
use crate::support::wire::{Message, Wire, get, post};

/// A poll in either dialect, and the method of it.
const POLLS: [(&str, &str); 2] = [
    ("POST", "POST /demo HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n"),
    ("GET", "GET /7ZSFUKGV/http_listen/demo HTTP/1.1\r\nHost: a\r\n\r\n"),
];

/// Returns when a relay of one worker has understood all that was sent to it before.
fn settled(relay: &Relay) {
    for _ in 0..2 {
        assert_eq!(relay.visitor().send("x\r\n\r\n").response("GET").status(), 400);
    }
}

/// A connection on which a poll is under way.
fn polling(relay: &Relay, poll: &str) -> Wire {
    let mut agent = relay.visitor();
    agent.send(poll);
    settled(relay);
    agent
}

/// Waits for a message on this connection, reads nothing of it, and breaks off.
fn break_behind(mut agent: Wire, relay: &Relay) {
    agent.writer().peek(&mut [0]).unwrap();
    agent.break_on_drop();
    drop(agent);
    settled(relay);
}

/// Whether a poll was answered by a request for this target.
fn brings(answer: &Message, target: &str) -> bool {
    answer.status() == 200 && answer.body.windows(target.len()).any(|part| part == target.as_bytes())
}

fn told(answer: &Message) -> (u16, String) {
    (answer.status(), answer.code())
}

#[test]
fn a_message_that_broke_with_its_poll_is_handed_out_again() {
    let relay = Relay::start(&["--limit", "tries=2"]);
    for (method, poll) in POLLS {
        let agent = polling(&relay, poll);
        let mut visitor = relay.visitor();
        visitor.send(get("demo", "/again"));
        break_behind(agent, &relay);
        let mut agent = polling(&relay, poll);
        let answer = agent.response(method);
        assert!(brings(&answer, "/again"), "{answer:?}");
        // Not for ever: it may be what breaks them.
        agent.break_on_drop();
        drop(agent);
        assert_eq!(told(&visitor.response("GET")), (502, "link-lost".into()));
        let mut agent = polling(&relay, poll);
        let mut visitor = relay.visitor();
        visitor.send(get("demo", "/next"));
        let answer = agent.response(method);
        assert!(brings(&answer, "/next"), "{answer:?}");
    }
}

#[test]
fn the_second_agent_that_is_asked_answers() {
    let relay = Relay::start(&[]);
    let (method, poll) = POLLS[0];
    let agent = polling(&relay, poll);
    let mut other = polling(&relay, poll);
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/again"));
    break_behind(agent, &relay);
    let message: Value = serde_json::from_slice(&other.response(method).body).unwrap();
    assert_eq!(message["request-uri"], "/again");
    let reply =
        format!("{{\"message-id\": {}, \"status\": 200, \"headers\": [], \"body\": \"fine\"}}", message["message-id"]);
    other.send(poll.replace("Length: 0\r\n\r\n", &format!("Length: {}\r\n\r\n{reply}", reply.len())));
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn a_message_that_may_not_be_repeated_is_given_up_with_its_poll() {
    let relay = Relay::start(&[]);
    let (_, poll) = POLLS[0];
    let agent = polling(&relay, poll);
    let _other = polling(&relay, poll);
    let mut visitor = relay.visitor();
    visitor.send(post("demo", "/order", "an order"));
    break_behind(agent, &relay);
    assert_eq!(told(&visitor.response("POST")), (502, "link-lost".into()));
}

#[test]
fn a_poll_whose_end_comes_with_a_request_takes_it_not_along() {
    let relay = Relay::start(&[]);
    for (method, poll) in POLLS {
        let mut visitor = relay.visitor();
        visitor.send("OPTIONS * HTTP/1.1\r\nHost: x\r\nMax-Forwards: 0\r\n\r\n").response("OPTIONS");
        let agent = polling(&relay, poll);
        relay.program.freeze();
        visitor.send(get("demo", "/there"));
        agent.leave();
        relay.program.thaw();
        settled(&relay);
        let answer = polling(&relay, poll).response(method);
        assert!(brings(&answer, "/there"), "{answer:?}");
    }
}
