//! Links by hand: agents that break off, answer nonsense, or are of another make; and when a request may be tried again.

use crate::support::link::{SWITCH, link};
use crate::support::wire::{Wire, get, ok, post};
use crate::support::{Relay, eventually};

/// A relay that gives up on requests without a link soon.
fn relay() -> Relay {
    Relay::start(&["--timeout", "link=500ms"])
}

#[test]
fn a_get_that_a_link_took_along_goes_to_another_one() {
    let relay = relay();
    // The one that has rested longest is asked first.
    let mut first = link(&relay, "demo");
    let mut second = link(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/once"));
    assert_eq!(first.request().head.target(), "/once");
    drop(first);
    assert_eq!(second.request().head.target(), "/once");
    second.send(ok("fine"));
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn a_request_is_tried_four_times_at_most() {
    let relay = relay();
    let mut links: Vec<Wire> = (0..6).map(|_| link(&relay, "demo")).collect();
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/"));
    for link in links.drain(..4) {
        let mut link = link;
        assert_eq!(link.request().head.target(), "/");
    }
    let answer = visitor.response("GET");
    assert_eq!((answer.status(), answer.code().as_str()), (502, "link-lost"));
    // The other two are there for other requests.
    visitor.send(get("demo", "/next"));
    assert_eq!(links[0].request().head.target(), "/next");
    links[0].send(ok("fine"));
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn a_request_that_is_not_idempotent_is_never_sent_twice() {
    for request in [
        post("demo", "/order", "one book"),
        post("demo", "/order", ""),
        "POST /order HTTP/1.1\r\nHost: demo.localhost\r\n\r\n".to_owned(),
        "PATCH /order HTTP/1.1\r\nHost: demo.localhost\r\n\r\n".to_owned(),
        "POST /order HTTP/1.1\r\nHost: demo.localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
            .to_owned(),
        // Of its body something was taken.
        "PUT /order HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 1\r\n\r\na".to_owned(),
    ] {
        let relay = relay();
        let mut first = link(&relay, "demo");
        let mut second = link(&relay, "demo");
        let mut visitor = relay.visitor();
        visitor.send(&request);
        assert_eq!(first.request().head.target(), "/order");
        drop(first);
        let answer = visitor.response("POST");
        assert_eq!((answer.status(), answer.code().as_str()), (502, "link-lost"), "{request}");
        // The other link has heard nothing of it.
        let mut next = relay.visitor();
        next.send(get("demo", "/next"));
        assert_eq!(second.request().head.target(), "/next", "{request}");
    }
}

#[test]
fn a_delete_without_a_body_goes_to_another_link() {
    let relay = relay();
    let mut first = link(&relay, "demo");
    let mut second = link(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send("DELETE /thing HTTP/1.1\r\nHost: demo.localhost\r\n\r\n");
    assert_eq!(first.request().head.method(), "DELETE");
    drop(first);
    assert_eq!(second.request().head.method(), "DELETE");
    second.send("HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(visitor.response("DELETE").status(), 204);
}

#[test]
fn a_link_that_is_gone_before_it_was_asked_costs_no_request() {
    let relay = relay();
    for _ in 0..20 {
        drop(link(&relay, "demo"));
    }
    let mut last = link(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send(post("demo", "/order", "one book"));
    let request = last.request();
    assert_eq!((request.head.target(), request.text().as_str()), ("/order", "one book"));
    last.send(ok("fine"));
    assert_eq!(visitor.response("POST").text(), "fine");
}

#[test]
fn a_request_is_not_tried_again_once_any_of_an_answer_has_come() {
    for part in [
        "HTTP/1.1 200 OK\r\nContent-Le",
        "H",
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
    ] {
        let relay = relay();
        let mut first = link(&relay, "demo");
        let mut second = link(&relay, "demo");
        let mut visitor = relay.visitor();
        visitor.send(get("demo", "/once"));
        assert_eq!(first.request().head.target(), "/once");
        first.send(part);
        drop(first);
        match visitor.try_response("GET") {
            Ok(answer) => assert_eq!((answer.status(), answer.code().as_str()), (502, "link-lost"), "{part}"),
            Err(_) => assert!(part.starts_with("HTTP/1.1 200"), "{part}: no answer"),
        }
        let mut next = relay.visitor();
        next.send(get("demo", "/next"));
        assert_eq!(second.request().head.target(), "/next", "{part}");
    }
}

#[test]
fn an_answer_that_is_none_is_a_502_and_the_end_of_the_link() {
    for (bytes, why) in [
        ("garbage, not HTTP\r\n\r\n", "bad-start-line"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "length-and-coding"),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", "unasked-switch"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", "two-lengths"),
        ("HTTP/1.1 200 OK\nContent-Length: 2\n\nab", "bare-lf"),
        ("HTTP/1.1 200 OK\r\nX: a\x01b\r\n\r\n", "bad-field"),
    ] {
        let relay = relay();
        let mut first = link(&relay, "demo");
        let mut second = link(&relay, "demo");
        let mut visitor = relay.visitor();
        visitor.send(get("demo", "/"));
        first.request();
        first.send(bytes);
        let answer = visitor.response("GET");
        assert_eq!((answer.status(), answer.code().as_str()), (502, "link-protocol"), "{bytes}");
        assert!(answer.text().contains(&format!("({why})")), "{bytes}: {}", answer.text());
        first.expect_end();
        // Not tried elsewhere: the agent had understood something.
        visitor.send(get("demo", "/next"));
        assert_eq!(second.request().head.target(), "/next");
        second.send(ok("fine"));
        assert_eq!(visitor.response("GET").text(), "fine");
    }
}

#[test]
fn an_answer_with_a_body_that_is_none_breaks_off() {
    for body in ["zz\r\n", "2\r\nabX", "-1\r\n", "ffffffffffffffffff\r\n"] {
        let relay = relay();
        let mut first = link(&relay, "demo");
        let mut visitor = relay.visitor();
        visitor.send(get("demo", "/"));
        first.request();
        first.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
        visitor.try_response("GET").expect_err("a clean end");
        first.expect_end();
        assert!(relay.log().wait_for(" demo GET / 200 ").ends_with(" link-protocol"));
    }
}

#[test]
fn a_link_that_sends_more_than_its_answer_is_closed() {
    let planted = ok("planted");
    for behind in [planted.as_str(), "\r\n", "x"] {
        let relay = relay();
        let mut first = link(&relay, "demo");
        let mut visitor = relay.visitor();
        visitor.send(get("demo", "/"));
        first.request();
        first.send(ok("fine") + behind);
        assert_eq!(visitor.response("GET").text(), "fine");
        first.expect_end();
        let answer = visitor.get("demo", "/");
        assert_eq!((answer.status(), answer.code().as_str()), (503, "no-link"), "{}", answer.text());
    }
}

#[test]
fn a_link_that_speaks_unasked_is_closed() {
    for bytes in ["HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nplanted", "x", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "<3"]
    {
        let relay = relay();
        let mut link = link(&relay, "demo");
        link.send(bytes);
        link.expect_end();
        assert_eq!(relay.get("demo", "/").code(), "no-link");
    }
}

#[test]
fn a_link_that_says_close_is_used_once() {
    let relay = relay();
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ] {
        let mut link = link(&relay, "demo");
        let mut visitor = relay.visitor();
        visitor.send(get("demo", "/"));
        link.request();
        link.send(answer);
        assert_eq!(visitor.response("GET").text(), "ok");
        link.expect_end();
    }
    // One whose body ends with the connection.
    let mut link = link(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/"));
    link.request();
    link.send("HTTP/1.1 200 OK\r\n\r\nuntil close");
    drop(link);
    assert_eq!(visitor.response("GET").text(), "until close");
}

#[test]
fn a_link_serves_one_request_after_another() {
    let relay = relay();
    let mut link = link(&relay, "demo");
    let mut visitors: Vec<Wire> = (0..10).map(|_| relay.visitor()).collect();
    for visitor in &mut visitors {
        visitor.send(get("demo", "/"));
    }
    for _ in 0..10 {
        link.request();
        link.send(ok("fine"));
    }
    for visitor in &mut visitors {
        assert_eq!(visitor.response("GET").text(), "fine");
    }
}

#[test]
fn links_of_one_name_take_turns() {
    let relay = relay();
    let mut links = [link(&relay, "demo"), link(&relay, "demo"), link(&relay, "demo")];
    let mut visitor = relay.visitor();
    for n in 0..9 {
        visitor.send(get("demo", &format!("/{n}")));
        let link = &mut links[n % 3];
        assert_eq!(link.request().head.target(), format!("/{n}"));
        link.send(ok("fine"));
        assert_eq!(visitor.response("GET").text(), "fine");
    }
}

#[test]
fn an_agent_as_the_second_life_wiki_had_it_in_2008_is_served() {
    let relay = relay();
    // No Connection, no Content-Length.
    let mut agent = relay.visitor();
    agent.send("POST / HTTP/1.1\r\nHost: localhost:9999\r\nAccept-Encoding: identity\r\nUpgrade: PTTH/1.0\r\n\r\n");
    assert_eq!(SWITCH.len(), 57);
    let switch = agent.raw(57);
    assert_eq!(switch.escape_ascii().to_string(), SWITCH.escape_ascii().to_string());

    let mut visitor = relay.visitor();
    visitor.send(
        "GET / HTTP/1.1\r\nHost: 127.0.0.1:65331\r\nAccept-Encoding: identity\r\naccept: text/plain;q=1,*/*;q=0\r\n\r\n",
    );
    let request = agent.request();
    assert_eq!(request.head.start, "GET / HTTP/1.1");
    assert_eq!(request.head.get("Host"), Some("127.0.0.1:65331"));
    assert_eq!(request.head.get("Accept"), Some("text/plain;q=1,*/*;q=0"));
    agent.send(
        "HTTP/1.1 200 OK\r\nContent-type: text/plain\r\nDate: Tue, 13 May 2008 20:14:45 GMT\r\nContent-Length: 15\r\n\r\n\
         rdlrow ,olleH\r\n",
    );
    let answer = visitor.response("GET");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "rdlrow ,olleH\r\n"));
    assert_eq!(answer.head.get("Content-Type"), Some("text/plain"));
    assert_eq!(answer.head.get("Date"), Some("Tue, 13 May 2008 20:14:45 GMT"));
}

#[test]
fn an_offer_is_answered_in_the_words_of_the_offer() {
    let relay = relay();
    for (offer, answered) in [
        ("Upgrade: PTTH/0.9\r\n", "PTTH/0.9"),
        ("Upgrade: ptth/1.0\r\nConnection: upgrade\r\n", "ptth/1.0"),
        ("Upgrade: websocket, PTTH/1.0\r\nConnection: keep-alive, Upgrade\r\n", "PTTH/1.0"),
    ] {
        let mut agent = relay.visitor();
        agent.send(format!("POST /demo HTTP/1.1\r\nHost: relay.example\r\n{offer}Content-Length: 0\r\n\r\n"));
        let expected = format!("HTTP/1.1 101 \r\nUpgrade: {answered}\r\nConnection: Upgrade\r\n\r\n");
        assert_eq!(agent.raw(expected.len()), expected.as_bytes(), "{offer}");
        let mut visitor = relay.visitor();
        visitor.send(get("demo", "/"));
        agent.request();
        agent.send(ok("fine"));
        assert_eq!(visitor.response("GET").text(), "fine");
    }
}

/// Returns when a relay of one worker has understood all that was sent to it before.
fn settled(relay: &Relay) {
    for _ in 0..2 {
        assert_eq!(relay.visitor().send("x\r\n\r\n").response("GET").status(), 400);
    }
}

#[test]
fn what_is_left_behind_by_a_read_that_its_buffer_ended_is_nobodys_answer() {
    // The sizes of the reads of a relay: a small buffer, and a large one behind a small one.
    for size in [4096, 4096 + 65536] {
        let relay = relay();
        let mut agent = link(&relay, "demo");
        let mut first = relay.visitor();
        first.send(get("demo", "/first"));
        assert_eq!(agent.request().head.target(), "/first");
        // It waits for this link.
        let mut second = relay.visitor();
        second.send(get("demo", "/second"));
        settled(&relay);
        let body = "x".repeat(2 * size - ok(&"x".repeat(size)).len());
        assert_eq!(ok(&body).len(), size);
        agent.send(ok(&body) + &ok("planted"));
        assert_eq!(first.response("GET").text(), body);
        agent.expect_end();
        assert_eq!(second.response("GET").code(), "no-link");
    }
}

#[test]
fn what_is_left_behind_by_a_read_that_ended_with_an_offer_is_nobodys_answer() {
    let relay = relay();
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/"));
    settled(&relay);
    let offer = |filler: &str| {
        format!("POST /demo HTTP/1.1\r\nHost: x\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\nX: {filler}\r\n\r\n")
    };
    let filler = "x".repeat(4096 - offer("").len());
    let mut agent = relay.visitor();
    agent.send(offer(&filler) + &ok("planted"));
    agent.whatever_comes();
    assert_eq!(visitor.response("GET").code(), "no-link");
}

#[test]
fn who_announces_a_body_where_none_can_be_is_not_asked_again() {
    let relay = relay();
    for (method, answer) in [
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("HEAD", "HTTP/1.1 103 Early Hints\r\nContent-Length: 7\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"),
    ] {
        let mut agent = link(&relay, "demo");
        let mut visitor = relay.visitor();
        visitor.send(format!("{method} / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n"));
        agent.request();
        agent.send(answer);
        let heard = visitor.response(method);
        assert!(answer.contains(&format!(" {} ", heard.status())), "{answer}");
        agent.expect_end();
    }
}

#[test]
fn what_comes_right_behind_an_offer_closes_the_connection() {
    let relay = relay();
    let offer = "POST /demo HTTP/1.1\r\nHost: relay.example\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n";
    for behind in ["GET /smuggled HTTP/1.1\r\nHost: relay.example\r\n\r\n", "\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
        let mut agent = relay.visitor();
        agent.send(format!("{offer}{behind}"));
        agent.expect_end();
    }
    assert_eq!(relay.get("demo", "/").code(), "no-link");
}

#[test]
fn a_name_that_is_none_is_refused_and_an_ordinary_post_is_no_offer() {
    let relay = relay();
    let mut agent = relay.visitor();
    for path in ["/a.b", "/a%20b", &format!("/{}", "n".repeat(64))] {
        agent.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n"));
        let answer = agent.response("POST");
        assert_eq!((answer.status(), answer.code().as_str()), (400, "bad-name"), "{path}");
    }
    // The connection goes on, and may offer again.
    agent.send("POST /demo HTTP/1.1\r\nHost: x\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n");
    assert_eq!(agent.raw(57), SWITCH);

    let mut visitor = relay.visitor();
    visitor.send("POST / HTTP/1.1\r\nHost: demo.localhost\r\nUpgrade: PTTH/1.0\r\nConnection: close\r\n\r\n");
    assert_eq!(agent.request().head.method(), "POST");
}

#[test]
fn the_newest_link_gets_in_for_the_one_that_rested_longest() {
    let relay = Relay::start(&["--limit", "links=2", "--timeout", "link=500ms"]);
    let mut oldest = link(&relay, "demo");
    let _older = link(&relay, "demo");
    let _newest = link(&relay, "demo");
    oldest.expect_end();
    relay.log().wait_for("its oldest idle one is closed");
}

#[test]
fn a_link_is_not_mixed_up_with_what_its_place_was_before() {
    // Places of connections that are gone are used again at once: none of their business is.
    let relay = relay();
    for round in 0..50 {
        let mut gone = relay.visitor();
        gone.send("GET / HT");
        drop(gone);
        let mut link = link(&relay, "demo");
        let mut visitor = relay.visitor();
        visitor.send(get("demo", &format!("/{round}")));
        assert_eq!(link.request().head.target(), format!("/{round}"));
        link.send(ok("fine"));
        assert_eq!(visitor.response("GET").text(), "fine");
    }
    let files = relay.program.open_files();
    assert!(files < 30, "{files} files are still open");
    eventually("the tunnel to be down", || (relay.log().count("is down") > 0).then_some(()));
}
