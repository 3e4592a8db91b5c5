//! Every input in `fixtures/refuse/` that a visitor or an agent can send is refused by a running relay, for the reason that
//! its file gives; and every answer there that an upstream can give is refused by a running agent. One relay and one agent
//! take it all, and serve at the end as they did at the start.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test that fails should say where, and a test is no event loop"
)]

#[path = "../proto/tests/common/mod.rs"]
mod common;
mod support;

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};

use common::{Item, Naming, Side, Transcript};
use support::upstream::{After, Upstream};
use support::wire::{Wire, ok};
use support::{Agent, Program, Relay, agent_command, locked};

/// An upstream that waits for the whole request, so that it is the relay who speaks first about one that is none.
fn patient() -> Upstream {
    Upstream::start(|asked| {
        if asked.body().is_none() {
            return After::Close;
        }
        let _ = asked.wire.try_send(ok("fine"));
        After::Keep
    })
}

/// What one side says, and whether it closes behind it.
fn said(transcript: &Transcript, by: Side) -> (Vec<u8>, bool) {
    let closes = transcript.items.iter().any(|item| matches!(item, Item::Close(side) if *side == by));
    (transcript.bytes_of(by), closes)
}

/// The answer to what may be refused at any of its bytes: the rest of them may meet a connection that is closed already.
fn answer_to(relay: &Relay, bytes: &[u8], closes: bool) -> Vec<u8> {
    let mut visitor = relay.visitor();
    let mut writer = visitor.writer();
    let (bytes, closing) = (bytes.to_vec(), writer.try_clone().unwrap());
    let sending = std::thread::spawn(move || {
        let _ = writer.write_all(&bytes);
        if closes {
            let _ = closing.shutdown(std::net::Shutdown::Write);
        }
    });
    let answer = visitor.whatever_comes();
    sending.join().unwrap();
    answer
}

fn check(relay: &Relay, transcript: &Transcript) {
    let _naming = Naming(transcript.name.clone());
    let refusal = transcript.refusal.as_ref().unwrap();
    let (bytes, closes) = said(transcript, Side::Dialling);
    let answer = String::from_utf8_lossy(&answer_to(relay, &bytes, closes)).into_owned();
    let Some(status) = refusal.status else {
        assert_eq!(answer, "", "an answer instead of an end");
        return;
    };
    let (head, page) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer but `{answer}`"));
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "not {status}: {head}");
    assert!(head.contains("\r\nConnection: close"), "{head}");
    assert!(head.contains(&format!("details=\"{}\"", refusal.code)), "not {}: {head}", refusal.code);
    // Nothing behind the page: the answer is the only one.
    let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.split("\r\n").next()).unwrap();
    let asked_for_head = bytes.starts_with(b"HEAD ");
    assert_eq!(page.len(), if asked_for_head { 0 } else { length.parse().unwrap() }, "{page}");
    assert!(asked_for_head || page.contains(&format!("({})", refusal.code)), "{page}");
}

#[test]
fn a_relay_refuses_what_every_visitor_file_sends_and_serves_on() {
    let upstream = patient();
    let relay = Relay::start(&[]);
    // The files name hosts of every kind: all of those go to the default tunnel.
    let _agent = Agent::start(&relay, "default", &upstream.address(), &[]);
    let serves = |visitor: &mut Wire| {
        let answer = visitor.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").response("GET");
        assert_eq!(answer.text(), "fine");
    };
    let mut bystander = relay.visitor();
    let mut checked = 0;
    for transcript in common::load("refuse") {
        if transcript.name.starts_with("response-") || transcript.name.starts_with("link-") {
            continue;
        }
        check(&relay, &transcript);
        serves(&mut bystander);
        serves(&mut relay.visitor());
        checked += 1;
    }
    assert!(checked > 50, "{checked} files only");
    // What was refused went no further: nothing but what was there before it.
    assert!(upstream.requests().iter().all(|head| !head.target().contains("smuggled")), "{:?}", upstream.requests());
}

#[test]
fn an_agent_refuses_what_every_upstream_file_answers_and_serves_on() {
    // The answer that is next.
    let next: Arc<Mutex<(Vec<u8>, After)>> = Arc::new(Mutex::new((Vec::new(), After::Keep)));
    let answers = Arc::clone(&next);
    let upstream = Upstream::start(move |asked| {
        asked.body();
        if asked.head.target() == "/fine" {
            let _ = asked.wire.try_send(ok("fine"));
            return After::Keep;
        }
        let (bytes, after) = locked(&answers).clone();
        let _ = asked.wire.try_send(bytes);
        after
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "default", &upstream.address(), &[]);
    let mut checked = 0;
    for transcript in common::load("refuse") {
        let _naming = Naming(transcript.name.clone());
        let (request, _) = said(&transcript, Side::Dialling);
        let (answer, closes) = said(&transcript, Side::Listening);
        let asks = request.starts_with(b"GET ") || request.starts_with(b"HEAD ");
        // Those about offers and links are the relay's; one is about bytes before any request.
        if !transcript.name.starts_with("response-") || transcript.name.starts_with("response-link") || !asks {
            continue;
        }
        *locked(&next) = (answer, if closes { After::Close } else { After::Keep });
        let method = if request.starts_with(b"HEAD ") { "HEAD" } else { "GET" };
        let heads_before =
            transcript.expected_from(Side::Listening).iter().any(|event| event.starts_with(b"response "));
        let whole = transcript.expected_from(Side::Listening).contains(&b"end".to_vec());
        let mut visitor = relay.visitor();
        visitor.send(format!("{method} /wrong HTTP/1.1\r\nHost: a.example\r\n\r\n"));
        let answer = visitor.try_response(method);
        let code = transcript.refusal.as_ref().unwrap().code.as_str();
        match (heads_before, whole, answer) {
            // A whole answer goes through, and what is behind it goes nowhere.
            (true, true, answer) => assert_eq!(answer.unwrap().status(), 200),
            // One that is found out in its body breaks off, if it had begun.
            (true, false, Err(_)) => {}
            (_, _, answer) => {
                let answer = answer.unwrap();
                let expected = if code == "early-end" { "upstream-lost" } else { "upstream-protocol" };
                let field = answer.head.get("Proxy-Status").unwrap();
                assert!(field.contains(&format!("details=\"{expected}\"")), "{}: {field}", answer.status());
                assert!(code == "early-end" || method == "HEAD" || answer.text().contains(code), "{}", answer.text());
            }
        }
        let fine = relay.visitor().send("GET /fine HTTP/1.1\r\nHost: a.example\r\n\r\n").response("GET");
        assert_eq!(fine.text(), "fine");
        checked += 1;
    }
    assert!(checked > 20, "{checked} files only");
}

#[test]
fn an_agent_refuses_what_every_link_file_asks_and_comes_back() {
    let upstream = patient();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let via = format!("http://{}", listener.local_addr().unwrap());
    let args = [&upstream.address(), "--via", &via, "--links", "1..1"];
    let _agent =
        Program::start(agent_command(&args).args(["--timeout", "backoff=1ms", "--timeout", "backoff-max=1ms"]));
    let accept = || {
        let mut link = Wire::new(listener.accept().unwrap().0);
        assert_eq!(link.request_head().unwrap().unwrap().0.method(), "POST");
        link
    };
    let mut checked = 0;
    for transcript in common::load("refuse").iter().filter(|transcript| transcript.name.starts_with("link-")) {
        let _naming = Naming(transcript.name.clone());
        let refusal = transcript.refusal.as_ref().unwrap();
        // The 101 and what comes behind it.
        let mut link = accept();
        link.send(said(transcript, Side::Listening).0);
        match refusal.status {
            Some(status) => {
                let answer = link.response("GET");
                assert_eq!((answer.status(), answer.code()), (status, refusal.code.clone()));
                assert_eq!(answer.head.get("Connection"), Some("close"));
                link.shut().expect_end();
            }
            None => link.expect_end(),
        }
        let mut link = accept();
        link.send("HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n");
        assert_eq!(link.get("default", "/").text(), "fine");
        checked += 1;
    }
    assert!(checked > 1, "{checked} files only");
}
