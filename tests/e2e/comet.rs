//! Agents that poll by COMET, in bare bytes: a poll is answered by a message, and the next poll carries its answer.

use std::io::Write;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::support::link::link;
use crate::support::wire::{Message, Wire, chunk, get, ok, post};
use crate::support::{Relay, TempPath, eventually, relay_command};

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

#[test]
fn a_poll_is_answered_by_a_message_and_the_next_one_carries_its_answer() {
    let relay = relay();
    let mut agent = polling(&relay, "demo");
    for n in 0..3 {
        let mut visitor = relay.visitor();
        visitor.send(format!(
            "PUT /thing/{n}?a=b HTTP/1.1\r\nHost: demo.localhost\r\nX-Two: a\r\nx-two: b\r\nContent-Length: 5\r\n\r\nhello"
        ));
        let poll = agent.response("POST");
        assert_eq!(poll.head.get("Content-Type"), Some("application/json"));
        assert_eq!(poll.head.get("Cache-Control"), Some("no-store"));
        assert_eq!(poll.head.get("Ptth-Accept"), Some("base64"));
        assert!(poll.head.has("Date") && !poll.head.has("Connection"), "{}", poll.head.text);
        let message: Value = serde_json::from_slice(&poll.body).unwrap();
        assert_eq!(message["method"], "PUT");
        assert_eq!(message["request-uri"], format!("/thing/{n}?a=b"));
        assert_eq!(message["http-version"], "PTTH/1.0");
        assert_eq!(message["body"], "hello");
        assert_eq!(values(&message, "Host"), ["demo.localhost"]);
        assert_eq!(values(&message, "X-Two"), ["a", "b"]);
        assert_eq!(values(&message, "X-Forwarded-For"), ["127.0.0.1"]);
        let members: Vec<usize> = ["message-id", "method", "request-uri", "http-version", "headers", "body"]
            .iter()
            .map(|member| poll.text().find(&format!("\"{member}\": ")).unwrap())
            .collect();
        assert!(members.is_sorted(), "{}", poll.text());
        let fields = "[[\"X-A\", \"1\"], [\"Set-Cookie\", \"a\"], [\"Set-Cookie\", \"b\"]]";
        agent.send(carry("demo", "", &answer(&id(&message), 201, fields, "made")));
        let answer = visitor.response("PUT");
        assert_eq!((answer.status(), answer.text().as_str()), (201, "made"));
        assert_eq!(answer.head.all("Set-Cookie"), ["a", "b"]);
        assert_eq!(answer.head.get("Content-Length"), Some("4"));
    }
    relay.log().wait_for(" demo PUT /thing/2?a=b 201 5 4 ");
}

#[test]
fn the_exchange_of_2008_works_and_keeps_its_notation() {
    let relay = Relay::start(&["--no-upgrade"]);
    let mut visitor = asking(&relay, "default", "/");
    let mut agent = relay.visitor();
    // No Connection, no Content-Length, and the server can't upgrade.
    agent.send("POST / HTTP/1.1\r\nHost: localhost:9999\r\nAccept-Encoding: identity\r\nUpgrade: PTTH/1.0\r\n\r\n");
    let request = message(&mut agent);
    let python = format!(
        "{{'message-id': '{}', 'http-version': 'PTTH/1.0', 'status': 200, 'reason': 'OK', 'headers': [['Content-type', \
         'text/plain'], ['Date', 'Tue, 13 May 2008 20:14:45 GMT']], 'body': 'rdlrow ,olleH'}}",
        id(&request)
    );
    agent.send(format!(
        "POST / HTTP/1.1\r\nHost: localhost:9999\r\nAccept-Encoding: identity\r\nContent-type: application/json\r\n\
         Content-length: {}\r\n\r\n{python}",
        python.len()
    ));
    let answer = visitor.response("GET");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "rdlrow ,olleH"));
    assert_eq!(answer.head.get("Date"), Some("Tue, 13 May 2008 20:14:45 GMT"));

    // From now on it is written to as it writes.
    visitor.send("GET /it's HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let poll = agent.response("POST");
    assert!(poll.text().starts_with("{'message-id': '"), "{}", poll.text());
    assert!(
        poll.text().contains("', 'method': 'GET', 'request-uri': \"/it's\", 'http-version': 'PTTH/1.0', 'headers': [[")
    );
    assert!(poll.text().ends_with("]], 'body': ''}"), "{}", poll.text());
    // Bytes that are no text are nothing special there.
    let id = poll.text()["{'message-id': '".len()..].split('\'').next().unwrap().to_owned();
    agent.send(carry("", "", &format!("{{'message-id': '{id}', 'status': 200L, 'body': '\\xff\\x00ok'}}")));
    assert_eq!(visitor.response("GET").body, b"\xff\x00ok");
    let mut visitor = relay.visitor();
    visitor.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n\xff\x00\n");
    let poll = agent.response("POST");
    assert!(poll.text().ends_with("'body': '\\xff\\x00\\n'}"), "{}", poll.text());
}

#[test]
fn two_agents_of_one_tunnel_are_each_written_to_in_their_own_notation() {
    let relay = relay();
    let (mut python, mut json) = (polling(&relay, "demo"), relay.visitor());
    let mut visitor = asking(&relay, "demo", "/");
    let request = message(&mut python);
    python.send(carry("demo", "", &format!("{{'message-id': '{}', 'status': 200, 'body': 'fine'}}", id(&request))));
    assert_eq!(visitor.response("GET").text(), "fine");
    // That one polls now. Another asks for the first time, and says that it is one of today.
    json.send(poll("demo", "Ptth-Accept: base64\r\n"));
    settled(&relay);
    let mut visitors = [asking(&relay, "demo", "/1"), asking(&relay, "demo", "/2")];
    let texts = [python.response("POST").text(), json.response("POST").text()];
    assert!(texts[0].starts_with("{'") && texts[1].starts_with("{\""), "{texts:?}");
    let request: Value = serde_json::from_str(&texts[1]).unwrap();
    let which = usize::from(request["request-uri"] == "/2");
    json.send(carry("demo", "", &reply(&id(&request), "json")));
    assert_eq!(visitors[which].response("GET").text(), "json");
    // What it wrote in this very request says how it is to be written to, whatever others do.
    settled(&relay);
    let id = texts[0]["{'message-id': '".len()..].split('\'').next().unwrap().to_owned();
    python.send(carry("demo", "", &format!("{{'message-id': '{id}', 'status': 200, 'body': 'python'}}")));
    assert_eq!(visitors[1 - which].response("GET").text(), "python");
    settled(&relay);
    let _more = [asking(&relay, "demo", "/3"), asking(&relay, "demo", "/4")];
    let texts = [python.response("POST").text(), json.response("POST").text()];
    assert!(texts[0].starts_with("{'") && texts[1].starts_with("{\""), "{texts:?}");
}

#[test]
fn polls_of_http_1_0_and_those_that_close_are_served() {
    let relay = relay();
    let upgrade = "Upgrade: PTTH/1.0\r\n";
    let json = "Content-Type: application/json\r\n";
    for (version, fields, kept) in [
        ("1.0", upgrade.to_owned(), None),
        ("1.0", json.to_owned(), None),
        ("1.0", format!("{json}Content-Length: 0\r\n"), None),
        ("1.0", format!("{upgrade}Connection: keep-alive\r\n"), Some("keep-alive")),
        ("1.1", format!("Host: x\r\n{json}Connection: close\r\n"), None),
        ("1.1", format!("Host: x\r\n{json}"), Some("")),
        // An upgrade for another hop is none for us, and is refused by what it gets.
        ("1.1", format!("Host: x\r\n{upgrade}Connection: keep-alive\r\n"), Some("")),
    ] {
        let mut agent = relay.visitor();
        agent.send(format!("POST /demo HTTP/{version}\r\n{fields}\r\n"));
        let mut visitor = asking(&relay, "demo", "/");
        let answer = agent.response("POST");
        let request: Value = serde_json::from_slice(&answer.body).unwrap();
        let mut next = relay.visitor();
        let agent = match kept {
            None => {
                assert_eq!(answer.head.get("Connection"), Some("close"), "{fields}");
                agent.expect_end();
                &mut next
            }
            Some(said) => {
                assert_eq!(answer.head.get("Connection").unwrap_or_default(), said, "{fields}");
                &mut agent
            }
        };
        let body = reply(&id(&request), "fine");
        agent.send(format!(
            "POST /demo HTTP/{version}\r\n{}Content-Length: {}\r\n\r\n{body}",
            if fields.contains(json) { fields.replace("Content-Length: 0\r\n", "") } else { format!("{fields}{json}") },
            body.len()
        ));
        assert_eq!(visitor.response("GET").text(), "fine", "{version} {fields}");
    }
}

#[test]
fn a_poll_for_which_there_is_nothing_is_answered_by_nothing() {
    let relay = Relay::start(&["--timeout", "poll=100ms"]);
    let mut agent = relay.visitor();
    for body in ["", "{}", " { } "] {
        agent.send(carry("demo", "", body));
        let answer = agent.response("POST");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "{}"));
        assert_eq!(answer.head.get("Content-Type"), Some("application/json"));
        assert_eq!(answer.head.get("Content-Length"), Some("2"));
    }
    relay.log().wait_for("tunnel `demo` is up: an agent polls from 127.0.0.1");
    drop(agent);
    relay.log().wait_for("tunnel `demo` is down");
    assert_eq!((relay.log().count("is up"), relay.log().count("is down")), (1, 1));
}

#[test]
fn a_poll_that_will_not_wait_is_answered_at_once() {
    let relay = Relay::start(&["--timeout", "poll=10m"]);
    let mut agent = relay.visitor();
    for wait in ["Prefer: wait=0\r\n", "Prefer: respond-async, wait=0\r\n"] {
        agent.send(poll("demo", wait));
        assert_eq!(message(&mut agent), json!({}));
        // It takes along what waits.
        let mut visitor = asking(&relay, "demo", "/waits");
        settled(&relay);
        agent.send(poll("demo", wait));
        let request = message(&mut agent);
        assert_eq!(request["request-uri"], "/waits");
        // With the answer goes the same.
        agent.send(carry("demo", wait, &reply(&id(&request), "fine")));
        assert_eq!(message(&mut agent), json!({}));
        assert_eq!(visitor.response("GET").text(), "fine");
    }
}

#[test]
fn a_poll_of_less_patience_does_not_wait_for_those_of_more() {
    let relay = Relay::start(&["--timeout", "poll=10m"]);
    let mut patient = polling(&relay, "demo");
    settled(&relay);
    let mut hasty = relay.visitor();
    hasty.send(poll("demo", "Prefer: wait=1\r\n"));
    assert_eq!(message(&mut hasty), json!({}));
    // The one that waits longer is there still.
    let _visitor = asking(&relay, "demo", "/");
    assert_eq!(message(&mut patient)["request-uri"], "/");
}

#[test]
fn queues_can_be_moved_out_of_the_way() {
    let relay = Relay::start(&["--queue-prefix", "/queues/here/", "--timeout", "link=500ms"]);
    let mut visitor = asking(&relay, "demo", "/");
    // Whatever its type and its body are.
    let mut agent = relay.visitor();
    agent.send("POST /queues/here/demo HTTP/1.1\r\nHost: x\r\n\r\n");
    let request = message(&mut agent);
    let body = reply(&id(&request), "fine");
    agent.send(format!("POST /queues/here/demo HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(visitor.response("GET").text(), "fine");
    let mut other = relay.visitor();
    other.send("POST /queues/here/a.b HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(told(&other.response("POST")), (400, "bad-name".into()));
    other.send("POST /queues/here/demo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\ntext");
    assert_eq!(told(&other.response("POST")), (400, "bad-message".into()));
    // All else is a visitor's, whatever it looks like.
    let mut default = link(&relay, "default");
    for (path, body) in [("/demo", ""), ("/demo", "{}"), ("/queues/hereabouts", "{}"), ("/", "{}")] {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut visitor = relay.visitor();
        visitor.send(request);
        let asked = default.request();
        assert_eq!((asked.head.target(), asked.text().as_str()), (path, body));
        default.send(ok("a visitor's"));
        assert_eq!(visitor.response("POST").text(), "a visitor's");
    }
}

#[test]
fn json_that_is_no_message_is_a_visitors() {
    for args in [&[][..], &["--limit", "buffer=100"], &["--workers", "3"]] {
        let relay = Relay::start(args);
        let mut default = link(&relay, "default");
        let long = format!("{{\"list\": [{}0]}}", "1234567, ".repeat(10_000));
        let medium = format!("{{\"list\": [{}0]}}", "12, ".repeat(100));
        let mut visitor = relay.visitor();
        for body in [
            "{\"a\": 1}",
            "[]",
            "null",
            "7",
            "\"message-id\"",
            "{\"message-id\": \"x\", \"method\": \"GET\", \"request-uri\": \"/\"}",
            "{\"message-id\": \"x\"}",
            "{\"message-id\": \"x\", \"status\": 7}",
            "{\"status\": 200}",
            "{",
            "not JSON at all",
            &medium,
            &long,
        ] {
            let short = &body[..body.len().min(60)];
            let head = "POST /some-path HTTP/1.1\r\nHost: relay.example\r\nContent-Type: application/json\r\n";
            visitor.send(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()));
            let asked = default.request();
            assert_eq!((asked.head.target(), asked.text() == body), ("/some-path", true), "{short}");
            default.send(ok("fine"));
            assert_eq!(visitor.response("POST").text(), "fine", "{short}");
            // In chunks, of which the first tells next to nothing.
            let (first, rest) = body.as_bytes().split_at(1);
            visitor.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n"));
            visitor.send(chunk(first));
            if !rest.is_empty() {
                visitor.send(chunk(rest));
            }
            visitor.send("0\r\n\r\n");
            let asked = default.request();
            assert_eq!((asked.head.target(), asked.text() == body), ("/some-path", true), "{short}");
            default.send(ok("fine"));
            assert_eq!(visitor.response("POST").text(), "fine", "{short}");
        }
        // One that waits for leave to send its body gets it, for only the body tells whose it is.
        visitor.send("POST /x HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
        assert_eq!(visitor.any_response_head("POST").status(), 100);
        visitor.send("[]");
        assert!(default.request_head().unwrap().unwrap().0.has("Expect"));
        assert_eq!(default.body(2), b"[]");
        default.send(ok("fine"));
        assert_eq!(visitor.response("POST").text(), "fine");
    }
}

#[test]
fn json_that_stops_coming_is_a_visitors_too() {
    let relay = Relay::start(&["--timeout", "body=300ms"]);
    let _default = link(&relay, "default");
    let head = "POST /x HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    for part in
        ["Content-Length: 10\r\n\r\n", "Content-Length: 10\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n2\r\n{"]
    {
        let mut visitor = relay.visitor();
        visitor.send(format!("{head}{part}"));
        assert_eq!(told(&visitor.response("POST")), (408, "body-timeout".into()), "{part}");
        visitor.expect_end();
        // One that leaves in the middle.
        relay.visitor().send(format!("{head}{part}"));
    }
    // An agent's that stops is dropped.
    let mut agent = relay.visitor();
    agent.send(&carry("demo", "Ptth-Accept: base64\r\n", &reply("x", "half"))[..170]).expect_end();
    settled(&relay);
    let lines = relay.log().wait_for_count(3, " default POST /x 408 ");
    assert!(lines.iter().all(|line| line.ends_with(" body-timeout")), "{lines:?}");
}

#[test]
fn under_a_tunnels_own_host_nothing_is_a_poll() {
    let relay = relay();
    let mut demo = link(&relay, "demo");
    let mut visitor = relay.visitor();
    for (fields, body) in [
        ("Content-Type: application/json\r\n", ""),
        ("Content-Type: application/json\r\n", "{}"),
        ("Content-Type: application/json\r\nPtth-Accept: base64\r\n", "{\"message-id\": \"x\", \"status\": 200}"),
    ] {
        let length = body.len();
        visitor.send(format!(
            "POST /demo HTTP/1.1\r\nHost: demo.localhost\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
        ));
        let asked = demo.request();
        assert_eq!((asked.head.target(), asked.text().as_str()), ("/demo", body));
        demo.send(ok("fine"));
        assert_eq!(visitor.response("POST").text(), "fine");
    }
}

#[test]
fn an_answer_in_chunks_is_an_answer_however_it_is_cut() {
    let relay = relay();
    let mut agent = polling(&relay, "demo");
    for size in [1, 5, 20, 10_000] {
        for fields in ["", "Ptth-Accept: base64\r\n"] {
            let mut visitor = asking(&relay, "demo", "/");
            let body = reply(&id(&message(&mut agent)), &"long ".repeat(2000));
            agent.send(format!(
                "POST /demo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{fields}Transfer-Encoding: chunked\r\n\r\n"
            ));
            // The first ones one by one, so that the relay sees them so.
            let mut pieces = body.as_bytes().chunks(size);
            for piece in pieces.by_ref().take(30) {
                agent.send(chunk(piece));
                settled(&relay);
            }
            let rest: Vec<u8> = pieces.flat_map(chunk).collect();
            agent.send(rest).send("0\r\n\r\n");
            assert_eq!(visitor.response("GET").body.len(), 10_000, "{size} {fields}");
        }
    }
}

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
fn what_is_no_message_is_a_400_and_the_agent_can_go_on() {
    let relay = relay();
    let mut agent = relay.visitor();
    let mut visitor = asking(&relay, "demo", "/");
    agent.send(poll("demo", ""));
    let right = id(&message(&mut agent));
    for body in [
        "{",
        "not JSON",
        "{\"message-id\": 7}",
        "[]",
        "{\"message-id\": \"x\", \"method\": \"GET\", \"request-uri\": \"/\", \"http-version\": \"PTTH/1.0\", \"headers\": [], \"body\": \"\"}",
        "{\"message-id\": \"x\", \"status\": 100}",
        "{\"message-id\": \"x\", \"status\": 200, \"headers\": [[\"A\", \"b\\u000ac\"]]}",
        "{\"message-id\": \"x\", \"status\": 200, \"body\": \"!\", \"encoding\": \"base64\"}",
        "{} {}",
    ] {
        // Sent by one that says that it is an agent.
        let answer = agent.send(carry("demo", "Ptth-Accept: base64\r\n", body)).response("POST");
        assert_eq!(told(&answer), (400, "bad-message".into()), "{body}");
    }
    agent.send(carry("demo", "", &reply(&right, "fine")));
    assert_eq!(visitor.response("GET").text(), "fine");
    assert!(relay.log().wait_for(" - POST /demo 400 ").ends_with(" bad-message"));
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
fn bodies_that_are_too_large_for_messages_are_refused() {
    let relay = Relay::start(&["--limit", "message=1000", "--timeout", "link=500ms"]);
    let mut agent = polling(&relay, "demo");
    let mut visitor = relay.visitor();
    let answer = visitor.send(post("demo", "/large", &"x".repeat(1001))).response("POST");
    assert_eq!(told(&answer), (413, "message-too-large".into()));
    assert!(answer.text().contains("1000 bytes"), "{}", answer.text());
    let mut visitor = relay.visitor();
    visitor.send("POST /chunked HTTP/1.1\r\nHost: demo.localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..11 {
        visitor.send(chunk(&[b'x'; 100]));
    }
    assert_eq!(told(&visitor.response("POST")), (413, "message-too-large".into()));
    assert!(relay.log().wait_for(" demo POST /large 413 ").ends_with(" message-too-large"));
    // Neither has cost the poll. One byte less goes through, both ways.
    let mut visitor = relay.visitor();
    visitor.send(post("demo", "/", &"x".repeat(1000)));
    let request = message(&mut agent);
    assert_eq!(request["body"], "x".repeat(1000));
    agent.send(carry("demo", "", &reply(&id(&request), &"y".repeat(1000))));
    assert_eq!(visitor.response("POST").text(), "y".repeat(1000));
    // One more does not; the agent is told only if it goes on and on.
    visitor.send(get("demo", "/more"));
    let request = message(&mut agent);
    agent.send(carry("demo", "", &reply(&id(&request), &"y".repeat(1001))));
    let answer = visitor.response("GET");
    assert_eq!(told(&answer), (502, "answer-too-large".into()));
    visitor.send(get("demo", "/on-and-on"));
    let request = message(&mut agent);
    agent.send(carry("demo", "Ptth-Accept: base64\r\n", &reply(&id(&request), &"y".repeat(100_000))));
    assert_eq!(told(&visitor.response("GET")), (502, "answer-too-large".into()));
    assert_eq!(told(&agent.response("POST")), (413, "message-too-large".into()));
    assert!(relay.log().wait_for(" demo GET /on-and-on 502 ").ends_with(" answer-too-large"));
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

#[test]
fn a_body_that_is_no_text_goes_to_those_who_know_base64() {
    let relay = relay();
    let binary = b"POST /binary HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 4\r\n\r\n\xff\xfe\x00a";
    let mut plain = polling(&relay, "demo");
    let answer = relay.visitor().send(binary).response("POST");
    assert_eq!(told(&answer), (502, "binary-body".into()));
    assert!(answer.text().contains("not text"), "{}", answer.text());
    assert!(relay.log().wait_for(" demo POST /binary 502 ").ends_with(" binary-body"));
    // Its poll is still held. Text of any kind goes through, NUL and all.
    let mut visitor = relay.visitor();
    visitor.send(post("demo", "/text", "gr\u{fc}\u{df}e \u{0} \u{1f600} \"\\"));
    let request = message(&mut plain);
    assert_eq!(request["body"], "gr\u{fc}\u{df}e \u{0} \u{1f600} \"\\");
    // An answer may be in base64 whoever sends it: it says so.
    let body = format!(
        "{{\"message-id\": \"{}\", \"status\": 200, \"body\": \"//4AYQ==\", \"encoding\": \"base64\"}}",
        id(&request)
    );
    plain.send(carry("demo", "Prefer: wait=0\r\n", &body));
    assert_eq!(visitor.response("POST").body, b"\xff\xfe\x00a");
    assert_eq!(message(&mut plain), json!({}));

    let mut knowing = relay.visitor();
    knowing.send(poll("demo", "Ptth-Accept: base64\r\n"));
    let mut visitor = relay.visitor();
    visitor.send(binary);
    let request = message(&mut knowing);
    assert_eq!((&request["body"], &request["encoding"]), (&"//4AYQ==".into(), &"base64".into()));
    knowing.send(carry("demo", "Ptth-Accept: base64\r\n", &reply(&id(&request), "fine")));
    assert_eq!(visitor.response("POST").text(), "fine");
    // Text stays text.
    visitor.send(post("demo", "/", "text"));
    let request = message(&mut knowing);
    assert_eq!((&request["body"], request.get("encoding")), (&"text".into(), None));
}

#[test]
fn bytes_in_fields_go_through() {
    let relay = relay();
    let mut agent = polling(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send(b"GET / HTTP/1.1\r\nHost: demo.localhost\r\nX-Latin: caf\xe9\r\n\r\n");
    let request = message(&mut agent);
    assert_eq!(values(&request, "X-Latin"), ["caf\u{e9}"]);
    let fields = "[[\"X-Binary\", \"Y2Fm6Q==\", \"base64\"], [\"X-Text\", \"caf\\u00e9\"]]";
    agent.send(carry("demo", "", &answer(&id(&request), 200, fields, "")));
    let answer = visitor.response("GET");
    assert_eq!(answer.head.get("X-Binary"), Some("caf\u{e9}"));
    assert_eq!(answer.head.get("X-Text"), Some("caf\u{c3}\u{a9}"), "UTF-8 on the wire");
}

/// The published test value of `ptth_server`, and its line.
const KEY: &str = "PlaypenCausalPlatformCommodeImproveCatalyze";
const LINE: &str = "hash = \"A9rPwZyY89Ag4TJjMoyYA2NeGOm99Je6rq1s0rg8PfY=\"\n";
/// The hash of `other`.
const OTHER: &str = "other";

/// A relay that lets the holders of two keys claim `demo`, and one of them `lab` too.
fn knowing_relay() -> Relay {
    let mut command = relay_command(&["hash-key"]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(OTHER.as_bytes()).unwrap();
    let other = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let file = TempPath::new("agents");
    std::fs::write(
        &file.0,
        format!("[[agent]]\nnames = [\"demo\", \"lab\"]\n{LINE}\n[[agent]]\nnames = [\"demo\"]\n{other}"),
    )
    .unwrap();
    Relay::start(&["--agents", file.text()])
}

#[test]
fn polls_and_answers_show_the_credential() {
    let relay = knowing_relay();
    let bearer = |key: &str| format!("Authorization: Bearer {key}\r\n");
    for (name, fields, status, code) in [
        ("demo", String::new(), 401, "no-credential"),
        ("demo", bearer("wrong"), 401, "bad-credential"),
        ("lab", bearer(OTHER), 403, "name-not-allowed"),
    ] {
        for body in ["", "{\"message-id\": \"x\", \"status\": 200}"] {
            let answer = relay.visitor().send(carry(name, &fields, body)).response("POST");
            assert_eq!(told(&answer), (status, code.into()), "{name} {fields} {body}");
        }
    }
    let mut visitor = asking(&relay, "demo", "/");
    let mut agent = relay.visitor();
    agent.send(poll("demo", &bearer(KEY)));
    let request = message(&mut agent);
    let answer = reply(&id(&request), "fine");
    assert_eq!(relay.visitor().send(carry("demo", "", &answer)).response("POST").status(), 401);
    // One that may claim the name too, but was not given this message.
    let foreign = relay.visitor().send(carry("demo", &bearer(OTHER), &answer)).response("POST");
    assert_eq!(told(&foreign), (404, "unknown-message".into()));
    assert!(foreign.text().contains("another credential"), "{}", foreign.text());
    agent.send(carry("demo", &bearer(KEY), &answer));
    assert_eq!(visitor.response("GET").text(), "fine");
    assert_eq!(relay.log().count(KEY), 0);
}

#[test]
fn what_has_no_body_has_none() {
    let relay = relay();
    let mut agent = polling(&relay, "demo");
    // All on one connection: a byte too many or too few would be seen in the next answer.
    let mut visitor = relay.visitor();
    for (method, status, fields, body, length) in [
        ("HEAD", 200, "[[\"Content-Length\", \"1234567\"]]", "", Some("1234567")),
        ("HEAD", 200, "[]", "", None),
        ("HEAD", 200, "[]", "a body", Some("6")),
        ("GET", 204, "[]", "", None),
        ("GET", 204, "[[\"Content-Length\", \"0\"]]", "", None),
        ("GET", 304, "[[\"Content-Length\", \"77\"], [\"ETag\", \"x\"]]", "", Some("77")),
        ("GET", 304, "[]", "", None),
        ("GET", 200, "[[\"Content-Length\", \"9\"]]", "four", Some("4")),
        ("GET", 200, "[[\"Transfer-Encoding\", \"chunked\"]]", "four", Some("4")),
        ("GET", 404, "[]", "", Some("0")),
        (
            "GET",
            200,
            "[[\"Connection\", \"close, X-Hop\"], [\"X-Hop\", \"1\"], [\"Keep-Alive\", \"5\"]]",
            "x",
            Some("1"),
        ),
    ] {
        visitor.send(format!("{method} / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n"));
        let request = message(&mut agent);
        assert_eq!(request["method"], method);
        agent.send(carry("demo", "", &answer(&id(&request), status, fields, body)));
        let answer = visitor.response(method);
        assert_eq!(
            (answer.status(), answer.head.get("Content-Length")),
            (status, length),
            "{method} {status} {fields}"
        );
        let expected = if method == "HEAD" { "" } else { body };
        assert_eq!(answer.text(), expected);
        for hop in ["Connection", "Transfer-Encoding", "Keep-Alive", "X-Hop"] {
            assert!(!answer.head.has(hop), "{}", answer.head.text);
        }
    }
}

#[test]
fn what_is_sent_behind_a_poll_waits_for_its_answer() {
    let relay = relay();
    let mut agent = relay.visitor();
    let mut default = link(&relay, "default");
    // Two polls and a visitor's request in one go.
    agent.send(format!(
        "{}{}GET /behind HTTP/1.1\r\nHost: localhost\r\n\r\n",
        poll("demo", ""),
        poll("demo", "Prefer: wait=0\r\n")
    ));
    let mut visitor = asking(&relay, "demo", "/");
    let request = message(&mut agent);
    assert_eq!(message(&mut agent), json!({}));
    assert_eq!(default.request().head.target(), "/behind");
    default.send(ok("from the link"));
    assert_eq!(agent.response("GET").text(), "from the link");
    agent.send(carry("demo", "", &reply(&id(&request), "fine")));
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn leave_to_send_a_body_is_given_by_the_relay() {
    let relay = relay();
    let mut agent = polling(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send("PUT / HTTP/1.1\r\nHost: demo.localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(visitor.any_response_head("PUT").status(), 100);
    visitor.send("body");
    let request = message(&mut agent);
    // Nobody behind it is asked for it again.
    assert_eq!((&request["body"], values(&request, "Expect").len()), (&"body".into(), 0));
    agent.send(carry("demo", "", &reply(&id(&request), "fine")));
    assert_eq!(visitor.response("PUT").text(), "fine");
    // An agent may ask for it too.
    visitor.send(get("demo", "/"));
    let body = reply(&id(&message(&mut agent)), "fine");
    agent.send(format!(
        "POST /demo HTTP/1.1\r\nHost: x\r\nPtth-Accept: base64\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    ));
    assert_eq!(agent.any_response_head("POST").status(), 100);
    agent.send(body);
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn an_offer_that_is_refused_is_a_poll() {
    for workers in ["1", "3"] {
        let relay = Relay::start(&["--no-upgrade", "--workers", workers]);
        for (offer, path) in [
            (
                "POST /demo HTTP/1.1\r\nHost: x\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\nContent-Length: 0\r\n",
                "/1",
            ),
            ("POST /demo HTTP/1.1\r\nHost: x\r\nUpgrade: PTTH/0.9\r\n", "/2"),
            // Any method, any host.
            ("GET /demo HTTP/1.1\r\nHost: x\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n", "/3"),
            ("POST /demo HTTP/1.1\r\nHost: demo.localhost\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n", "/4"),
        ] {
            let mut agent = relay.visitor();
            agent.send(format!("{offer}\r\n"));
            let mut visitor = asking(&relay, "demo", path);
            let request = message(&mut agent);
            assert_eq!(request["request-uri"], path, "{offer}");
            // An agent may offer again with each answer.
            let body = reply(&id(&request), "fine");
            agent.send(format!(
                "POST /demo HTTP/1.1\r\nHost: x\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\nPrefer: wait=0\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
            assert_eq!(message(&mut agent), json!({}));
            assert_eq!(visitor.response("GET").text(), "fine");
        }
    }
}

#[test]
fn a_poll_and_a_link_of_one_tunnel_share_its_requests() {
    let relay = Relay::start(&["--limit", "links=2"]);
    let mut link = link(&relay, "demo");
    let mut agent = polling(&relay, "demo");
    settled(&relay);
    let mut visitors = [asking(&relay, "demo", "/"), asking(&relay, "demo", "/")];
    link.request();
    let request = message(&mut agent);
    link.send(ok("fine"));
    agent.send(carry("demo", "", &reply(&id(&request), "fine")));
    for visitor in &mut visitors {
        assert_eq!(visitor.response("GET").text(), "fine");
    }
}

#[test]
fn a_poll_gets_in_for_the_link_that_rested_longest() {
    let relay = Relay::start(&["--limit", "links=1"]);
    let mut link = link(&relay, "demo");
    let mut agent = polling(&relay, "demo");
    link.expect_end();
    let mut visitor = asking(&relay, "demo", "/");
    let request = message(&mut agent);
    agent.send(carry("demo", "", &reply(&id(&request), "fine")));
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn the_newest_poll_gets_in_for_the_oldest() {
    let relay = Relay::start(&["--limit", "links=2", "--timeout", "poll=10m"]);
    let mut agents = [polling(&relay, "demo"), polling(&relay, "demo")];
    settled(&relay);
    let mut newest = polling(&relay, "demo");
    assert_eq!(message(&mut agents[0]), json!({}));
    let _visitors = [asking(&relay, "demo", "/"), asking(&relay, "demo", "/")];
    message(&mut agents[1]);
    message(&mut newest);
}

#[test]
fn requests_that_become_nothing_leave_no_tunnel_behind() {
    let relay = Relay::start(&["--limit", "tunnels=3", "--timeout", "link=200ms"]);
    for n in 0..10 {
        for body in ["not JSON", "{\"message-id\": \"x\", \"status\": 200}"] {
            let answer =
                relay.visitor().send(carry(&format!("n{n}"), "Ptth-Accept: base64\r\n", body)).response("POST");
            assert!(matches!(answer.status(), 400 | 404), "{}", answer.text());
        }
        // One that breaks off in its middle.
        let mut half = relay.visitor();
        half.send(&carry(&format!("h{n}"), "Ptth-Accept: base64\r\n", &reply("x", "half"))[..170]);
        drop(half);
    }
    settled(&relay);
    assert_eq!(relay.get("new", "/").code(), "no-link");
}

#[test]
fn an_answer_that_takes_its_time_polls_the_tunnel_that_it_named() {
    // Names that nobody uses are forgotten, and others take their places.
    let relay = Relay::start(&["--timeout", "link=200ms", "--timeout", "poll=10m"]);
    let mut slow = relay.visitor();
    let body = "{                    }";
    let request = carry("mine", "Ptth-Accept: base64\r\n", body);
    slow.send(&request[..request.len() - 10]);
    settled(&relay);
    assert_eq!(relay.get("mine", "/").code(), "no-link");
    let mut yours = link(&relay, "yours");
    settled(&relay);
    slow.send(&request[request.len() - 10..]);
    settled(&relay);
    let mut visitors = [asking(&relay, "yours", "/"), asking(&relay, "yours", "/")];
    for visitor in &mut visitors {
        assert_eq!(yours.request().head.target(), "/");
        yours.send(ok("yours"));
        settled(&relay);
        assert_eq!(visitor.response("GET").text(), "yours");
    }
    let _visitor = asking(&relay, "mine", "/mine");
    assert_eq!(message(&mut slow)["request-uri"], "/mine");
}

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
