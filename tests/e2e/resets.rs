//! Agents whose polls break: no message is lost with the connection that it was written to, and whoever had read one can answer it.

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
    let relay = Relay::start(&["--limit", "tries=2", "--timeout", "link-answer=2s"]);
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
        assert_eq!(told(&visitor.response("GET")), (504, "link-timeout".into()));
        let mut agent = polling(&relay, poll);
        let mut visitor = relay.visitor();
        visitor.send(get("demo", "/next"));
        let answer = agent.response(method);
        assert!(brings(&answer, "/next"), "{answer:?}");
    }
}

/// The message that answers a poll.
fn message(agent: &mut Wire) -> Value {
    serde_json::from_slice(&agent.response("POST").body).unwrap()
}

/// An answer to a message, as a poll.
fn reply(message: &Value, body: &str) -> String {
    let reply = format!(
        "{{\"message-id\": {}, \"status\": 200, \"headers\": [], \"body\": \"{body}\"}}",
        message["message-id"]
    );
    POLLS[0].1.replace("Length: 0\r\n\r\n", &format!("Length: {}\r\n\r\n{reply}", reply.len()))
}

#[test]
fn the_second_agent_that_is_asked_answers() {
    let relay = Relay::start(&[]);
    let (_, poll) = POLLS[0];
    let agent = polling(&relay, poll);
    let mut other = polling(&relay, poll);
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/again"));
    break_behind(agent, &relay);
    let message = message(&mut other);
    assert_eq!(message["request-uri"], "/again");
    other.send(reply(&message, "fine"));
    assert_eq!(visitor.response("GET").text(), "fine");
}

/// Reads a message, and resets the connection it came on.
fn read_and_reset(mut agent: Wire, relay: &Relay) -> Value {
    let message = message(&mut agent);
    agent.break_on_drop();
    drop(agent);
    settled(relay);
    message
}

#[test]
fn an_agent_that_resets_what_it_has_read_answers_on_another_connection() {
    let relay = Relay::start(&[]);
    let (_, poll) = POLLS[0];
    for request in [get("demo", "/work"), post("demo", "/work", "an order")] {
        let agent = polling(&relay, poll);
        let mut visitor = relay.visitor();
        visitor.send(request);
        let message = read_and_reset(agent, &relay);
        // It waits for a poll, or not: what comes is an answer to it, and it is handed out no more.
        let mut agent = polling(&relay, &reply(&message, "fine"));
        assert_eq!(visitor.response("GET").text(), "fine");
        visitor.send(get("demo", "/next"));
        let next = self::message(&mut agent);
        assert_eq!(next["request-uri"], "/next");
        agent.send(reply(&next, "done"));
        assert_eq!(visitor.response("GET").text(), "done");
        drop((agent, visitor));
        settled(&relay);
    }
}

#[test]
fn the_first_of_two_answers_is_taken() {
    let relay = Relay::start(&[]);
    let (_, poll) = POLLS[0];
    for first_wins in [true, false] {
        let agent = polling(&relay, poll);
        let mut visitor = relay.visitor();
        visitor.send(get("demo", "/work"));
        let earlier = read_and_reset(agent, &relay);
        let mut agent = polling(&relay, poll);
        let later = message(&mut agent);
        assert_ne!(earlier["message-id"], later["message-id"]);
        let (one, other) = if first_wins { (earlier, later) } else { (later, earlier) };
        let mut poll = polling(&relay, &reply(&one, "fine"));
        assert_eq!(visitor.response("GET").text(), "fine");
        let answer = agent.send(reply(&other, "late")).response("POST");
        assert_eq!(told(&answer), (404, "unknown-message".into()));
        visitor.send(get("demo", "/next"));
        let next = message(&mut poll);
        assert_eq!(next["request-uri"], "/next");
        drop((poll, agent, visitor));
        settled(&relay);
    }
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
