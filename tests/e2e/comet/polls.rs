//! What is a poll and what a visitor's request, who may poll, and how long a poll waits.

use std::io::Write;

use serde_json::json;

use super::{asking, carry, id, message, poll, polling, relay, reply, settled, told};
use crate::support::link::link;
use crate::support::wire::{chunk, ok};
use crate::support::{Relay, TempPath, relay_command};

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
