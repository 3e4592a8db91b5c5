//! Agents that poll by COMET, in bare bytes: a poll is answered by a message, and the next poll carries its answer.

mod crowds;
mod messages;
mod polls;
mod queues;

use serde_json::Value;

use crate::support::Relay;
use crate::support::wire::{Message, Wire, get};

/// A relay that gives up soon on requests that nobody takes.
fn relay() -> Relay {
    Relay::start(&["--timeout", "link=500ms"])
}

/// A poll of a tunnel's queue with these fields, as bytes.
fn poll(name: &str, fields: &str) -> String {
    carry(name, fields, "")
}

/// A poll that carries an answer.
fn carry(name: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /{name} HTTP/1.1\r\nHost: relay.example\r\nContent-Type: application/json\r\n{fields}\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

/// An answer of status 200 with a text for its body.
fn reply(id: &str, body: &str) -> String {
    answer(id, 200, "[[\"Content-Type\", \"text/plain\"]]", body)
}

fn answer(id: &str, status: u16, fields: &str, body: &str) -> String {
    let body = Value::from(body);
    format!(
        "{{\"message-id\": \"{id}\", \"http-version\": \"PTTH/1.0\", \"status\": {status}, \"reason\": \"\", \
         \"headers\": {fields}, \"body\": {body}}}"
    )
}

/// The message that answers a poll.
fn message(agent: &mut Wire) -> Value {
    let answer = agent.response("POST");
    assert_eq!((answer.status(), answer.head.get("Content-Type")), (200, Some("application/json")), "{answer:?}");
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.text()))
}

/// The id of a message, which must be a request.
fn id(message: &Value) -> String {
    message["message-id"].as_str().unwrap_or_else(|| panic!("no request: {message}")).to_owned()
}

/// The values of a field of a message.
fn values(message: &Value, name: &str) -> Vec<String> {
    let fields = message["headers"].as_array().unwrap_or_else(|| panic!("no fields: {message}"));
    let named = fields.iter().filter(|field| field[0].as_str().unwrap().eq_ignore_ascii_case(name));
    named.map(|field| field[1].as_str().unwrap().to_owned()).collect()
}

/// A connection on which a poll is under way.
fn polling(relay: &Relay, name: &str) -> Wire {
    let mut agent = relay.visitor();
    agent.send(poll(name, ""));
    agent
}

/// Returns when a relay of one worker has understood all that was sent to it before.
fn settled(relay: &Relay) {
    for _ in 0..2 {
        assert_eq!(relay.visitor().send("x\r\n\r\n").response("GET").status(), 400);
    }
}

/// A visitor that has asked and waits.
fn asking(relay: &Relay, name: &str, target: &str) -> Wire {
    let mut visitor = relay.visitor();
    visitor.send(get(name, target));
    visitor
}

/// What a program's answer is about.
fn told(answer: &Message) -> (u16, String) {
    (answer.status(), answer.code())
}
