//! What stands in a message, in which notation, and what becomes of it as HTTP.

use serde_json::{Value, json};

use super::{answer, asking, carry, id, message, poll, polling, relay, reply, settled, told, values};
use crate::support::Relay;
use crate::support::wire::{chunk, get, post};

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
