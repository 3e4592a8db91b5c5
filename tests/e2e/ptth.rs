//! Agents of the `ptth` dialect, in bare bytes: they poll for requests in MessagePack, and POST each response with its head in
//! one field.

use std::io::Write;
use std::thread;

use ptth_proto::wire::message::{Ask, from_base64, to_base64};
use ptth_proto::wire::packed::{self, Form};

use crate::support::link::link;
use crate::support::random::{Hash, Random};
use crate::support::wire::{Framing, Message, Wire, chunk, get, ok, post};
use crate::support::{Relay, TempPath, eventually, relay_command};

/// A response's head of status 200 without a field, as `ptth_server` writes it.
const OK: &str = "koEAwIA=";
/// One of 204, one of 304, each with fields, and one of 404: as they were recorded.
const NO_CONTENT: &str = "koEBwIOtYWNjZXB0LXJhbmdlc5VieXRlc6RldGFn3ABANzMwMmI0MzNkZWM1Y2U0OGQ5ZGE0NGYxZWFhZjk2YjNlNTZmMmIwZWI3OTYxZTE1ODQ0YWVlNzk3NzIzMGQ0MK1jYWNoZS1jb250cm9s3AASbm8tY2FjaGUsbWF4LWFnZT0w";
const NOT_MODIFIED: &str = "koEDwIOtYWNjZXB0LXJhbmdlc5VieXRlc61jYWNoZS1jb250cm9s3AASbm8tY2FjaGUsbWF4LWFnZT0wpGV0YWfcAEA3MzAyYjQzM2RlYzVjZTQ4ZDlkYTQ0ZjFlYWFmOTZiM2U1NmYyYjBlYjc5NjFlMTU4NDRhZWU3OTc3MjMwZDQw";
const NOT_FOUND: &str = "koEHwIGuY29udGVudC1sZW5ndGiSNDg=";

/// A poll, as bytes.
fn listen(name: &str, fields: &str) -> String {
    format!("GET /7ZSFUKGV/http_listen/{name} HTTP/1.1\r\naccept: */*\r\n{fields}host: relay.example\r\n\r\n")
}

/// The head of a response to the request of this id; `framing` says how its body is told.
fn respond(id: &str, magic: &str, framing: &str) -> String {
    format!(
        "POST /7ZSFUKGV/http_response/{id} HTTP/1.1\r\nx-ptth-2ljyxwc4: {magic}\r\n{framing}accept: */*\r\n\
         host: relay.example\r\n\r\n"
    )
}

/// A whole response with a text.
fn text(id: &str, body: &str) -> String {
    respond(id, OK, &format!("content-length: {}\r\n", body.len())) + body
}

/// A response's head in the field's own notation.
fn magic(form: Form, status: u16, fields: &[(&str, &[u8])]) -> String {
    let mut head = Vec::new();
    let lost =
        packed::write_head(&mut head, form, status, fields.iter().map(|(name, value)| (name.as_bytes(), *value)));
    assert_eq!(lost, 0);
    to_base64(&head)
}

/// A connection on which a poll is under way.
fn listening(relay: &Relay, name: &str) -> Wire {
    let mut agent = relay.visitor();
    agent.send(listen(name, ""));
    agent
}

/// The requests that answer a poll.
fn asks(agent: &mut Wire) -> Vec<Ask> {
    let answer = agent.response("GET");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    packed::read_asks(&answer.body).unwrap()
}

/// The only one.
fn ask(agent: &mut Wire) -> Ask {
    let mut asks = asks(agent);
    assert_eq!(asks.len(), 1);
    asks.remove(0)
}

/// The values of a field of a request.
fn values(ask: &Ask, name: &str) -> Vec<String> {
    let named = ask.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()));
    named.map(|(_, value)| value.escape_ascii().to_string()).collect()
}

/// What an agent is told of its response.
fn finished(agent: &mut Wire) {
    let answer = agent.response("POST");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "StreamFinished\n"));
}

/// Returns when a relay of one worker has understood all that was sent to it before.
fn settled(relay: &Relay) {
    for _ in 0..2 {
        assert_eq!(relay.visitor().send("x\r\n\r\n").response("GET").status(), 400);
    }
}

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
fn a_poll_is_answered_in_the_bytes_of_the_original() {
    let relay = Relay::start(&["--trust-forwarded", "192.0.2.1"]);
    let mut agent = listening(&relay, "demo");
    for (method, index) in [("GET", 0), ("HEAD", 1)] {
        let mut visitor = relay.visitor();
        visitor.send(
            [
                format!("{method} /files/sub/cafe.txt?q HTTP/1.1\r\nHost: demo.localhost\r\n").as_bytes(),
                b"User-Agent: curl/7.88.1\r\nx-latin: caf\xe9\r\nAccept: */*\r\n\r\n",
            ]
            .concat(),
        );
        let answer = agent.response("GET");
        assert_eq!((answer.status(), answer.framing), (200, Framing::Length(answer.body.len() as u64)));
        assert!(!answer.head.has("Content-Type"), "{}", answer.head.text);
        assert_eq!(answer.head.get("Ptth-Accept"), Some("full"));
        // One request: its id, and of that method, target and fields.
        let body = &answer.body[..];
        assert_eq!(&body[..3], b"\x91\x92\xba");
        let id = std::str::from_utf8(&body[3..29]).unwrap();
        assert!(id.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()), "{id}");
        assert_eq!(
            body[29..].escape_ascii().to_string()[..80],
            [
                &b"\x93\x81"[..],
                &[index],
                b"\xc0\xb3/files/sub/cafe.txt",
                // Whoever is behind the visitor's name, and the fields that a proxy adds: the original has none of those.
                b"\x89\xa4host\x9edemo.localhost\xaauser-agent\x9bcurl/7.88.1",
            ]
            .concat()
            .escape_ascii()
            .to_string()[..80]
        );
        let contains = |part: &[u8]| body.windows(part.len()).any(|window| window == part);
        assert!(contains(b"\xa4host\x9edemo.localhost"), "{}", body.escape_ascii());
        assert!(contains(b"\xaauser-agent\x9bcurl/7.88.1"), "{}", body.escape_ascii());
        assert!(contains(b"\xa7x-latin\x94caf\xcc\xe9"), "{}", body.escape_ascii());
        assert!(contains(b"\xa6accept\x93*/*"), "{}", body.escape_ascii());
        let head = respond(id, OK, "content-length: 0\r\n");
        agent.send(head);
        finished(&mut agent);
        assert_eq!(visitor.response(method).status(), 200);
        agent.send(listen("demo", ""));
    }
}

#[test]
fn a_response_goes_home_with_its_status_and_fields() {
    let relay = Relay::start(&[]);
    let mut agent = relay.visitor();
    let mut visitor = relay.visitor();
    for (head, status, field, framing, body, length) in [
        (OK, 200, ("x-none", None), "content-length: 6\r\n", "caf\u{e9}\n", Some("6")),
        (OK, 200, ("x-none", None), "transfer-encoding: chunked\r\n", "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", None),
        (OK, 200, ("x-none", None), "", "", Some("0")),
        (NOT_FOUND, 404, ("x-none", None), "content-length: 5\r\n", "where", Some("5")),
        (NO_CONTENT, 204, ("cache-control", Some("no-cache,max-age=0")), "", "", None),
        (NOT_MODIFIED, 304, ("accept-ranges", Some("bytes")), "", "", None),
        // The newer form of the serialiser writes names for the numbers.
        ("kqhOb3RGb3VuZIA=", 404, ("x-none", None), "content-length: 1\r\n", "x", Some("1")),
    ] {
        agent.send(listen("demo", ""));
        visitor.send(get("demo", "/"));
        let ask = ask(&mut agent);
        agent.send(respond(&ask.id, head, framing) + body);
        finished(&mut agent);
        let answer = visitor.response("GET");
        assert_eq!((answer.status(), answer.head.get(field.0)), (status, field.1), "{}", answer.head.text);
        assert_eq!(answer.head.get("Content-Length"), length, "{}", answer.head.text);
        let expected = if framing.contains("chunked") { "hello!" } else { body };
        assert_eq!(answer.text(), expected);
        assert_eq!(answer.framing == Framing::Chunked, framing.contains("chunked"));
    }
    relay.log().wait_for("tunnel `demo` is up: an agent polls from 127.0.0.1");
}

#[test]
fn a_body_goes_on_piece_by_piece() {
    for workers in ["1", "3"] {
        let relay = Relay::start(&["--workers", workers]);
        for framing in ["content-length: 12\r\n", "transfer-encoding: chunked\r\n"] {
            let chunked = framing.contains("chunked");
            let piece = |text: &str| if chunked { chunk(text.as_bytes()) } else { text.as_bytes().to_vec() };
            let mut agent = listening(&relay, "demo");
            let mut visitor = asking(&relay, "demo", "/");
            let ask = ask(&mut agent);
            // On another connection than the poll's, as the original does.
            let mut other = relay.visitor();
            other.send(respond(&ask.id, OK, framing));
            assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
            for text in ["one,", "two,", "last"] {
                other.send(piece(text));
                // It is here before the next one is sent.
                assert_eq!(visitor.body(4), text.as_bytes());
            }
            if chunked {
                other.send("0\r\n\r\n");
            }
            finished(&mut other);
            visitor.rest(&mut Vec::new()).unwrap();
            // Both connections can be used again.
            agent.send(listen("demo", ""));
            visitor.send(get("demo", "/"));
            let ask = self::ask(&mut agent);
            other.send(text(&ask.id, "again"));
            finished(&mut other);
            assert_eq!(visitor.response("GET").text(), "again");
        }
    }
}

#[test]
fn a_response_without_a_body_does_not_wait_for_the_one_that_was_announced() {
    let relay = Relay::start(&[]);
    let length = magic(Form::Stock, 200, &[("content-length", b"1234")]);
    let unchanged = magic(Form::Stock, 304, &[("content-length", b"1234"), ("etag", b"x")]);
    let mut visitor = relay.visitor();
    for (method, magic, status, said) in [
        ("HEAD", &length, 200, Some("1234")),
        ("HEAD", &OK.to_owned(), 200, None),
        ("HEAD", &NO_CONTENT.to_owned(), 204, None),
        ("GET", &unchanged, 304, Some("1234")),
        ("GET", &NOT_MODIFIED.to_owned(), 304, None),
        ("GET", &NO_CONTENT.to_owned(), 204, None),
    ] {
        for framing in ["content-length: 1234\r\n", "transfer-encoding: chunked\r\n"] {
            let mut agent = listening(&relay, "demo");
            visitor.send(format!("{method} / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n"));
            let ask = ask(&mut agent);
            assert_eq!(ask.method, method.as_bytes());
            agent.send(respond(&ask.id, magic, framing));
            let answer = visitor.response(method);
            assert_eq!(answer.status(), status, "{method} {framing}");
            if let Some(said) = said {
                assert_eq!(answer.head.get("Content-Length"), Some(said), "{method} {framing}");
            }
            finished(&mut agent);
            // What may still come there belongs to nothing.
            agent.expect_end();
        }
    }
}

#[test]
fn a_response_whose_visitor_has_gone_is_let_go() {
    let relay = Relay::start(&["--timeout", "half-close=100ms"]);
    for framing in ["content-length: 1000000000\r\n", "transfer-encoding: chunked\r\n"] {
        let mut agent = listening(&relay, "demo");
        let mut visitor = asking(&relay, "demo", "/gone");
        let ask = ask(&mut agent);
        agent.send(respond(&ask.id, OK, framing));
        agent.send(chunk(b"some"));
        assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
        visitor.body(4);
        drop(visitor);
        let answer = agent.response("POST");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "ClientDisconnected\n"));
    }
    relay.log().wait_for_count(2, " demo GET /gone 200 ");
    assert!(relay.log().so_far().iter().any(|line| line.contains(" /gone ") && line.ends_with(" visitor-gone")));
    // One that has gone before its answer came.
    let mut agent = listening(&relay, "demo");
    let visitor = asking(&relay, "demo", "/early");
    let ask = ask(&mut agent);
    drop(visitor);
    relay.log().wait_for(" demo GET /early 499 ");
    assert_eq!(told(&agent.send(text(&ask.id, "late")).response("POST")), (404, "unknown-message".into()));
}

#[test]
fn a_request_whose_visitor_has_gone_is_never_handed_out() {
    let relay = Relay::start(&["--timeout", "half-close=100ms"]);
    for n in 0..3 {
        drop(asking(&relay, "demo", &format!("/gone/{n}")));
        relay.log().wait_for(&format!(" demo GET /gone/{n} 499 "));
    }
    let _here = asking(&relay, "demo", "/here");
    assert_eq!(ask(&mut listening(&relay, "demo")).target, b"/here");
}

#[test]
fn a_response_that_breaks_off_breaks_off_for_the_visitor() {
    let relay = Relay::start(&["--timeout", "stream=300ms"]);
    for framing in ["content-length: 10\r\n", "transfer-encoding: chunked\r\n"] {
        for ending in ["close", "silence", "nonsense"] {
            let mut agent = listening(&relay, "demo");
            let mut visitor = asking(&relay, "demo", "/");
            let ask = ask(&mut agent);
            agent.send(respond(&ask.id, OK, framing));
            agent.send(if framing.contains("chunked") { chunk(b"half") } else { b"half".to_vec() });
            assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
            assert_eq!(visitor.body(4), b"half");
            match ending {
                // A deadline ends it: that of responses, though it is a request that stops here.
                "silence" => assert_eq!(agent.response("POST").text(), "ClientDisconnected\n"),
                "nonsense" if framing.contains("chunked") => {
                    agent.send("zz\r\n").expect_end();
                }
                _ => drop(agent),
            }
            visitor.rest(&mut Vec::new()).expect_err(&format!("a clean end: {framing} {ending}"));
        }
    }
    relay.log().wait_for_count(6, " demo GET / 200 ");
}

#[test]
fn a_response_that_nobody_waits_for_is_a_404_and_harms_nobody() {
    let relay = Relay::start(&["--timeout", "link-answer=300ms"]);
    let mut agent = listening(&relay, "demo");
    let mut visitor = asking(&relay, "demo", "/");
    let late = ask(&mut agent).id;
    assert_eq!(told(&visitor.response("GET")), (504, "link-timeout".into()));
    for id in [late.as_str(), "x", "", "01M8023MVVJJJQZJYDCE19TDTH", &late.to_ascii_lowercase(), &"Z".repeat(26), "a/b"]
    {
        let mut other = relay.visitor();
        let answer = other.send(text(id, "late")).response("POST");
        assert_eq!(told(&answer), (404, "unknown-message".into()), "{id}");
    }
    drop(relay);

    let relay = Relay::start(&[]);
    let mut agent = listening(&relay, "demo");
    let mut visitor = asking(&relay, "demo", "/");
    let once = ask(&mut agent).id;
    let (mut first, mut second) = (relay.visitor(), relay.visitor());
    first.send(respond(&once, OK, "content-length: 4\r\n"));
    assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
    // While the first is under way.
    assert_eq!(told(&second.send(text(&once, "twice")).response("POST")), (404, "unknown-message".into()));
    first.send("once");
    finished(&mut first);
    assert_eq!(visitor.body(4), b"once");
    assert!(
        relay.log().wait_for(&format!(" - POST /7ZSFUKGV/http_response/{once} 404 ")).ends_with(" unknown-message")
    );
}

#[test]
fn a_response_without_a_head_that_can_be_read_is_refused_and_may_come_again() {
    let relay = Relay::start(&[]);
    let mut agent = listening(&relay, "demo");
    let mut visitor = asking(&relay, "demo", "/");
    let id = ask(&mut agent).id;
    for magic in ["", "koEAwIA", "!", "a29", "gA==", "koEMwIA=", "koEAwIGheJIK"] {
        let mut other = relay.visitor();
        let answer = other.send(respond(&id, magic, "content-length: 1\r\n") + "x").response("POST");
        assert_eq!(told(&answer), (400, "bad-message".into()), "{magic}");
    }
    let missing = text(&id, "x").replace(&format!("x-ptth-2ljyxwc4: {OK}\r\n"), "");
    assert_eq!(told(&relay.visitor().send(missing).response("POST")), (400, "bad-message".into()));
    let mut other = relay.visitor();
    other.send(text(&id, "fine"));
    finished(&mut other);
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn what_the_dialect_has_no_word_for_is_a_501() {
    let relay = Relay::start(&[]);
    let mut agent = listening(&relay, "demo");
    for request in [
        post("demo", "/", "body"),
        post("demo", "/", ""),
        "PUT / HTTP/1.1\r\nHost: demo.localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n".into(),
        "DELETE / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n".into(),
        "OPTIONS * HTTP/1.1\r\nHost: demo.localhost\r\n\r\n".into(),
        "GET /body HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 4\r\n\r\nbody".into(),
    ] {
        let mut visitor = relay.visitor();
        let answer = visitor.send(&request).response("POST");
        assert_eq!(told(&answer), (501, "dialect-limit".into()), "{request}");
        assert!(answer.text().contains("`demo`"), "{}", answer.text());
    }
    assert!(relay.log().wait_for(" demo DELETE / 501 ").ends_with(" dialect-limit"));
    // The poll is held all the while.
    let mut visitor = asking(&relay, "demo", "/");
    let id = ask(&mut agent).id;
    agent.send(text(&id, "fine"));
    finished(&mut agent);
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn what_it_has_no_word_for_makes_no_poll_last_longer() {
    let relay = Relay::start(&["--timeout", "poll=500ms", "--timeout", "link=100ms"]);
    let mut agent = listening(&relay, "demo");
    settled(&relay);
    let port = relay.port;
    let (over, is_over) = std::sync::mpsc::channel::<()>();
    let others = thread::spawn(move || {
        while is_over.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            let answer = Wire::connect(port).send(post("demo", "/", "")).response("POST");
            assert!(matches!(answer.status(), 501 | 503), "{}", answer.text());
        }
    });
    assert_eq!(agent.response("GET").status(), 204);
    drop(over);
    drop(agent);
    others.join().unwrap();
}

#[test]
fn fields_that_are_repeated_become_one() {
    let relay = Relay::start(&[]);
    let mut agent = listening(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send(
        "GET / HTTP/1.1\r\nHost: demo.localhost\r\nX-List: a\r\nx-list: b\r\nCookie: c=1\r\nX-LIST: \r\nCookie: d=2\r\n\r\n",
    );
    let ask = ask(&mut agent);
    assert_eq!(values(&ask, "x-list"), ["a, b"]);
    assert_eq!(values(&ask, "cookie"), ["c=1; d=2"]);
    let names: Vec<&[u8]> = ask.fields.iter().map(|(name, _)| &name[..]).collect();
    assert!(names.iter().all(|name| !name.iter().any(u8::is_ascii_uppercase)), "{names:?}");
    let latin = magic(Form::Stock, 200, &[("x-latin", b"caf\xe9"), ("connection", b"x-hop"), ("x-hop", b"1")]);
    agent.send(respond(&ask.id, &latin, "content-length: 0\r\n"));
    finished(&mut agent);
    let answer = visitor.response("GET");
    assert_eq!(answer.head.get("x-latin"), Some("caf\u{e9}"));
    assert!(!answer.head.has("connection") && !answer.head.has("x-hop"), "{}", answer.head.text);
}

#[test]
fn query_strings_are_passed_to_those_who_take_them() {
    for (args, target) in [(&[][..], "/x"), (&["--ptth-query"], "/x?a=b?c")] {
        let relay = Relay::start(args);
        for _ in 0..2 {
            let _visitor = asking(&relay, "demo", "/x?a=b?c");
            assert_eq!(ask(&mut listening(&relay, "demo")).target, target.as_bytes());
        }
        // Agents of ours always get them.
        let _visitor = asking(&relay, "full", "/x?a=b?c");
        let mut agent = relay.visitor();
        agent.send(listen("full", "Ptth-Accept: full\r\n"));
        assert_eq!(ask(&mut agent).target, b"/x?a=b?c");
        // Said once, and only where it is so.
        relay.log().wait_for("tunnel `full` is up");
        assert_eq!(relay.log().count("--ptth-query"), usize::from(args.is_empty()));
    }
}

#[test]
fn a_tunnel_is_found_by_the_path_of_the_original() {
    let relay = Relay::start(&[]);
    let mut agent = listening(&relay, "demo");
    for (path, target) in [("/frontend/servers/demo/files/", "/files/"), ("/frontend/servers/demo", "/")] {
        let mut visitor = relay.visitor();
        visitor.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let ask = ask(&mut agent);
        assert_eq!(ask.target, target.as_bytes());
        agent.send(text(&ask.id, "fine"));
        finished(&mut agent);
        assert_eq!(visitor.response("GET").text(), "fine");
        agent.send(listen("demo", ""));
    }
}

#[test]
fn a_poll_for_which_there_is_nothing_is_a_204() {
    let relay = Relay::start(&["--timeout", "poll=100ms"]);
    let mut agent = relay.visitor();
    for _ in 0..3 {
        let answer = agent.send(listen("demo", "")).response("GET");
        assert_eq!((answer.status(), answer.body.len()), (204, 0));
    }
    for (request, status, code) in [
        (listen("a.b", ""), 400, "bad-name"),
        (listen("", ""), 400, "bad-name"),
        (listen("demo", "content-length: 2\r\n") + "{}", 400, "bad-message"),
    ] {
        let mut agent = relay.visitor();
        assert_eq!(told(&agent.send(request).response("GET")), (status, code.into()));
    }
    // With `Prefer: wait=0` at once, whatever the relay's own patience is.
    let relay = Relay::start(&["--timeout", "poll=10m"]);
    assert_eq!(relay.visitor().send(listen("demo", "Prefer: wait=0\r\n")).response("GET").status(), 204);
}

#[test]
fn several_that_wait_go_out_in_one_answer() {
    let relay = Relay::start(&[]);
    // They are messages already when their poll comes, and wait for it since another took theirs.
    let mut first = listening(&relay, "demo");
    settled(&relay);
    let mut visitors: Vec<Wire> = (0..20)
        .map(|n| {
            let mut visitor = relay.visitor();
            visitor.send(format!("GET /{n} HTTP/1.1\r\nHost: demo.localhost\r\nTransfer-Encoding: chunked\r\n\r\n"));
            visitor
        })
        .collect();
    settled(&relay);
    for visitor in &mut visitors {
        visitor.send("0\r\n\r\n");
        settled(&relay);
    }
    let mut all = asks(&mut first);
    assert_eq!(all.len(), 1);
    let mut agent = relay.visitor();
    for count in [16, 3] {
        agent.send(listen("demo", ""));
        let more = asks(&mut agent);
        assert_eq!(more.len(), count);
        all.extend(more);
    }
    // They are answered in any order, each by itself.
    for n in [7, 19, 0, 3, 12] {
        assert_eq!(all[n].target, format!("/{n}").as_bytes());
        agent.send(text(&all[n].id, &n.to_string()));
        finished(&mut agent);
        assert_eq!(visitors[n].response("GET").text(), n.to_string());
    }
}

#[test]
fn two_agents_under_one_name_share() {
    let relay = Relay::start(&[]);
    let mut agents = [listening(&relay, "demo"), listening(&relay, "demo")];
    settled(&relay);
    let mut visitor = relay.visitor();
    for n in 0..6 {
        visitor.send(get("demo", &format!("/{n}")));
        let agent = &mut agents[n % 2];
        let ask = ask(agent);
        assert_eq!(ask.target, format!("/{n}").as_bytes());
        agent.send(text(&ask.id, "fine"));
        finished(agent);
        assert_eq!(visitor.response("GET").text(), "fine");
        agent.send(listen("demo", ""));
        settled(&relay);
    }
}

#[test]
fn a_message_whose_poll_broke_goes_to_the_next_one() {
    let relay = Relay::start(&[]);
    for n in 0..20 {
        let gone = listening(&relay, "demo");
        settled(&relay);
        gone.leave();
        settled(&relay);
        let _visitor = asking(&relay, "demo", &format!("/{n}"));
        assert_eq!(ask(&mut listening(&relay, "demo")).target, format!("/{n}").as_bytes());
    }
}

#[test]
fn agents_of_ours_have_no_such_limits() {
    let relay = Relay::start(&[]);
    let mut agent = relay.visitor();
    agent.send(listen("demo", "Ptth-Accept: full\r\n"));
    let mut visitor = relay.visitor();
    visitor.send(
        b"PATCH /x?y HTTP/1.1\r\nHost: demo.localhost\r\nX-A: 1\r\nx-a: \xe9\r\nContent-Length: 4\r\n\r\n\xff\x00\r\n",
    );
    let ask = ask(&mut agent);
    assert_eq!((&ask.method[..], &ask.target[..], &ask.body[..]), (&b"PATCH"[..], &b"/x?y"[..], &b"\xff\x00\r\n"[..]));
    assert_eq!(values(&ask, "X-A"), ["1", "\\xe9"]);
    let head = magic(Form::Full, 418, &[("Set-Cookie", b"a"), ("Set-Cookie", b"b"), ("X-Latin", b"\xe9")]);
    agent.send(respond(&ask.id, &head, "transfer-encoding: chunked\r\n"));
    agent.send(chunk(b"tea")).send("0\r\nX-Trailer: 1\r\n\r\n");
    finished(&mut agent);
    let answer = visitor.response("PATCH");
    assert_eq!((answer.status(), answer.text().as_str()), (418, "tea"));
    assert_eq!(answer.head.all("Set-Cookie"), ["a", "b"]);
    assert_eq!(answer.head.get("X-Latin"), Some("\u{e9}"));
    // Bodies of requests are whole, and have a limit.
    let relay = Relay::start(&["--limit", "message=10"]);
    agent = relay.visitor();
    agent.send(listen("demo", "Ptth-Accept: full\r\n"));
    let answer = relay.visitor().send(post("demo", "/", "eleven long")).response("POST");
    assert_eq!(told(&answer), (413, "message-too-large".into()));
}

const KEY: &str = "PlaypenCausalPlatformCommodeImproveCatalyze";
const LINE: &str = "hash = \"A9rPwZyY89Ag4TJjMoyYA2NeGOm99Je6rq1s0rg8PfY=\"\n";

#[test]
fn the_key_is_asked_for_on_polls_and_on_responses() {
    let mut command = relay_command(&["hash-key"]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"other").unwrap();
    let other = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let file = TempPath::new("agents");
    let entries = format!(
        "[[agent]]\nnames = ['demo', 'lab']\n{LINE}[[agent]]\nnames = ['demo']\nhash{}",
        &other.trim_end()[4..]
    );
    std::fs::write(&file.0, entries).unwrap();
    let relay = Relay::start(&["--agents", file.text()]);
    let key = |key: &str| format!("X-ApiKey: {key}\r\n");
    for (name, fields, status, code) in [
        ("demo", String::new(), 401, "no-credential"),
        ("demo", key("wrong"), 401, "bad-credential"),
        ("lab", key("other"), 403, "name-not-allowed"),
    ] {
        let answer = relay.visitor().send(listen(name, &fields)).response("GET");
        assert_eq!(told(&answer), (status, code.into()), "{name} {fields}");
    }
    let mut visitor = asking(&relay, "demo", "/");
    let mut agent = relay.visitor();
    agent.send(listen("demo", &key(KEY)));
    let id = ask(&mut agent).id;
    let keyed = |fields: &str| respond(&id, OK, &format!("{fields}content-length: 4\r\n")) + "fine";
    for (fields, status, code) in [
        (String::new(), 401, "no-credential"),
        (key("wrong"), 401, "bad-credential"),
        // It may claim the name, and was not given this request.
        (key("other"), 404, "unknown-message"),
    ] {
        let answer = relay.visitor().send(keyed(&fields)).response("POST");
        assert_eq!(told(&answer), (status, code.into()), "{fields}");
    }
    agent.send(keyed(&key(KEY)));
    finished(&mut agent);
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn a_visitor_who_does_not_read_holds_the_response_back() {
    const LENGTH: usize = 20_000_000;
    let relay = Relay::start(&[]);
    let mut agent = listening(&relay, "demo");
    let mut visitor = asking(&relay, "demo", "/large");
    let ask = ask(&mut agent);
    let before = relay.program.peak_memory();
    let mut out = agent.writer();
    let sender = thread::spawn(move || {
        out.write_all(respond(&ask.id, OK, &format!("content-length: {LENGTH}\r\n")).as_bytes()).unwrap();
        let (mut random, mut sent) = (Random::seeded(7), Hash::default());
        for _ in 0..LENGTH / 100_000 {
            let block = random.bytes(100_000);
            sent.add(&block);
            out.write_all(&block).unwrap();
        }
        sent.value()
    });
    assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
    // Others are served meanwhile.
    for _ in 0..50 {
        let mut agent = listening(&relay, "demo");
        let mut visitor = asking(&relay, "demo", "/small");
        let id = self::ask(&mut agent).id;
        agent.send(text(&id, "small"));
        finished(&mut agent);
        assert_eq!(visitor.response("GET").text(), "small");
    }
    let (mut heard, mut length) = (Hash::default(), 0);
    while visitor
        .body_piece(usize::MAX, |piece| {
            heard.add(piece);
            length += piece.len();
        })
        .unwrap()
    {}
    assert_eq!((length, heard.value()), (LENGTH, sender.join().unwrap()));
    finished(&mut agent);
    let peak = relay.program.peak_memory();
    assert!(peak < before + 2_000_000, "{before} bytes before, {peak} at most");
}

#[test]
fn a_response_may_ask_for_leave_to_send_its_body() {
    let relay = Relay::start(&[]);
    let mut agent = listening(&relay, "demo");
    let mut visitor = asking(&relay, "demo", "/");
    let ask = ask(&mut agent);
    agent.send(respond(&ask.id, OK, "Expect: 100-continue\r\nContent-Length: 4\r\n"));
    assert_eq!(agent.any_response_head("POST").status(), 100);
    agent.send("fine");
    finished(&mut agent);
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn what_is_sent_under_a_tunnels_own_host_is_the_tunnels() {
    let relay = Relay::start(&[]);
    let mut demo = link(&relay, "demo");
    let mut visitor = relay.visitor();
    for request in [
        "GET /7ZSFUKGV/http_listen/demo HTTP/1.1\r\nHost: demo.localhost\r\n\r\n",
        "POST /7ZSFUKGV/http_response/01M8023MVVJJJQZJYDCE19TDTH HTTP/1.1\r\nHost: demo.localhost\r\n\r\n",
    ] {
        visitor.send(request);
        assert!(demo.request().head.target().starts_with("/7ZSFUKGV/"));
        demo.send(ok("the tunnel's"));
        assert_eq!(visitor.response("GET").text(), "the tunnel's");
    }
}

#[test]
fn a_relay_that_stops_lets_polls_go_and_still_takes_responses() {
    for workers in ["1", "3"] {
        let mut relay = Relay::start(&["--workers", workers]);
        let mut idle = listening(&relay, "idle");
        let mut agent = listening(&relay, "demo");
        let mut visitors = [asking(&relay, "demo", "/begun"), relay.visitor()];
        let begun = ask(&mut agent).id;
        let mut out = relay.visitor();
        out.send(respond(&begun, OK, "content-length: 8\r\n")).send("half");
        assert_eq!(visitors[0].response_head("GET").unwrap().0.status(), 200);
        assert_eq!(visitors[0].body(4), b"half");
        visitors[1].send(get("demo", "/not-begun"));
        agent.send(listen("demo", ""));
        let not_begun = ask(&mut agent).id;
        relay.log().wait_for("tunnel `idle` is up");
        relay.program.terminate();
        relay.log().wait_for("stopping");
        assert_eq!(told(&idle.response("GET")), (503, "stopping".into()));
        out.send("done");
        finished(&mut out);
        assert_eq!(visitors[0].body(4), b"done");
        // On a connection that is made only now. A worker that closes its door at this moment may not let it in: then it tries
        // another one.
        let told_late = eventually("the response to be taken", || {
            let mut late = Wire::connect(relay.port);
            late.try_send(text(&not_begun, "fine")).ok()?;
            late.try_response("POST").ok()
        });
        assert_eq!(told_late.text(), "StreamFinished\n");
        assert_eq!(visitors[1].response("GET").text(), "fine");
        assert_eq!(relay.program.exit_code(), 0);
    }
}

#[test]
fn many_visitors_and_two_agents_each_find_their_own() {
    const VISITORS: usize = 100;
    for workers in ["1", "3"] {
        let relay = Relay::start(&["--workers", workers, "--timeout", "link=60s"]);
        let port = relay.port;
        let agents: Vec<_> = (0..4)
            .map(|n| {
                thread::spawn(move || {
                    let fields = if n % 2 == 0 { "" } else { "Ptth-Accept: full\r\n" };
                    let (mut poll, mut out) = (Wire::connect(port), Wire::connect(port));
                    loop {
                        if poll.try_send(listen("demo", fields)).is_err() {
                            return;
                        }
                        let Ok(answer) = poll.try_response("GET") else { return };
                        if answer.status() != 200 {
                            return;
                        }
                        for ask in packed::read_asks(&answer.body).unwrap() {
                            let target = String::from_utf8(ask.target).unwrap();
                            let length: usize = target[1..].split('-').next().unwrap().parse().unwrap();
                            let body = format!("{target} ").repeat(length * 50);
                            out.send(respond(&ask.id, OK, "transfer-encoding: chunked\r\n"));
                            for piece in body.as_bytes().chunks(7919) {
                                out.send(chunk(piece));
                            }
                            out.send("0\r\n\r\n");
                            finished(&mut out);
                        }
                    }
                })
            })
            .collect();
        let visitors: Vec<_> = (0..VISITORS)
            .map(|n| {
                thread::spawn(move || {
                    let mut visitor = Wire::connect(port);
                    for round in 0..3 {
                        let target = format!("/{n}-{round}");
                        let answer = visitor.get("demo", &target);
                        assert_eq!(answer.status(), 200, "{}", answer.text());
                        assert!(answer.text() == format!("{target} ").repeat(n * 50), "{target}: another body");
                    }
                })
            })
            .collect();
        let failed = visitors.into_iter().filter_map(|visitor| visitor.join().err()).count();
        assert_eq!(failed, 0, "of {VISITORS} visitors");
        let mut relay = relay;
        relay.program.terminate();
        agents.into_iter().for_each(|agent| agent.join().unwrap());
        assert_eq!(relay.program.exit_code(), 0);
    }
}

#[test]
fn the_recorded_heads_are_what_they_say() {
    for (head, status) in [(OK, 200), (NO_CONTENT, 204), (NOT_MODIFIED, 304), (NOT_FOUND, 404)] {
        assert_eq!(packed::read_head(&from_base64(head.as_bytes()).unwrap()).unwrap().0, status);
    }
}
