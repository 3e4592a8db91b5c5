//! Which fields go through, which belong to one hop, and whose word is taken for where a request came from.

use crate::support::upstream::{After, Upstream};
use crate::support::wire::{Head, Message};
use crate::support::{Agent, Dialect, Relay, dialect};

/// What the upstream sees of a request with these fields, given that its `Host` is the tunnel `demo`.
fn seen(relay_flags: &[&str], agent_flags: &[&str], fields: &str) -> Head {
    let upstream = Upstream::showing();
    let relay = Relay::start(relay_flags);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), agent_flags);
    let answer =
        relay.visitor().send(format!("GET / HTTP/1.1\r\nHost: demo.localhost:9999\r\n{fields}\r\n")).response("GET");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    upstream.last_request()
}

/// What the visitor sees of a response.
fn answered(response: &'static str) -> Message {
    let upstream = Upstream::start(move |asked| {
        asked.body();
        asked.wire.send(response);
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    relay.get("demo", "/")
}

#[test]
fn fields_of_one_hop_do_not_go_on_with_a_request() {
    let head = seen(
        &[],
        &[],
        "Connection: keep-alive, X-Named, Upgrade, HTTP2-Settings\r\nConnection: x-NAMED-too\r\nX-Named: 1\r\n\
         X-Named-Too: 1\r\nX-Named-Not: 1\r\nKeep-Alive: timeout=5\r\nTE: gzip\r\nProxy-Connection: keep-alive\r\n\
         Proxy-Authorization: Basic eDp5\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\nTrailer: X-After\r\n",
    );
    for name in [
        "Connection",
        "X-Named",
        "X-Named-Too",
        "Keep-Alive",
        "TE",
        "Proxy-Connection",
        "Proxy-Authorization",
        "Upgrade",
        "HTTP2-Settings",
        "Transfer-Encoding",
        "Content-Length",
    ] {
        assert!(!head.has(name), "{name} in\n{}", head.text);
    }
    assert!(head.has("X-Named-Not") && head.has("Trailer"), "{}", head.text);
}

#[test]
fn fields_of_one_hop_do_not_go_on_with_a_response() {
    let answer = answered(
        "HTTP/1.1 200 Fine By Me\r\nConnection: keep-alive, X-Named\r\nX-Named: 1\r\nKeep-Alive: timeout=5\r\n\
         Upgrade: h2c\r\nProxy-Authenticate: Basic\r\nProxy-Connection: close\r\nSet-Cookie: a=1\r\nX-Kept: \t yes \r\n\
         Set-Cookie: b=2\r\nServer: upstream\r\nDate: Tue, 13 May 2008 20:14:45 GMT\r\nContent-Length: 2\r\n\r\nok",
    );
    let names: Vec<&str> = answer.head.fields.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["Set-Cookie", "X-Kept", "Set-Cookie", "Server", "Date", "Content-Length"]);
    // The one dialect whose messages have no place for the upstream's words.
    let reason = if dialect() == Dialect::Ptth { "OK" } else { "Fine By Me" };
    assert_eq!(answer.head.start, format!("HTTP/1.1 200 {reason}"));
    assert_eq!(answer.head.all("Set-Cookie"), ["a=1", "b=2"]);
    assert_eq!(answer.head.get("X-Kept"), Some("yes"));
    assert_eq!(answer.text(), "ok");
}

#[test]
fn where_a_request_came_from_is_said_and_nothing_that_it_said_of_that_itself() {
    let head = seen(
        &[],
        &[],
        "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\nX-Real-IP: 6.6.6.6\r\n\
         Forwarded: for=6.6.6.6;proto=https\r\nx-forwarded-FOR: 7.7.7.7\r\nVia: 1.1 evil\r\nX-Forwarded-Port: 1\r\n\
         X-Forwarded-Prefix: /x\r\nX-Other: stays\r\n",
    );
    assert_eq!(head.get("X-Forwarded-For"), Some("127.0.0.1"));
    assert_eq!(head.get("X-Forwarded-Proto"), Some("http"));
    assert_eq!(head.get("X-Forwarded-Host"), Some("demo.localhost:9999"));
    assert_eq!(head.get("Forwarded"), Some("for=127.0.0.1;host=\"demo.localhost:9999\";proto=http"));
    assert_eq!(head.get("Via"), Some("1.1 ptth-relay"));
    assert_eq!(head.get("X-Other"), Some("stays"));
    assert!(!head.text.contains("6.6.6.6") && !head.text.contains("evil"), "{}", head.text);
    assert!(!head.has("X-Forwarded-Port") && !head.has("X-Forwarded-Prefix"), "{}", head.text);
}

#[test]
fn what_a_trusted_proxy_says_is_kept_and_added_to() {
    for trusted in ["127.0.0.1", "127.0.0.0/8"] {
        let head = seen(
            &["--trust-forwarded", trusted],
            &[],
            "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n\
             Forwarded: for=192.0.2.1;proto=https\r\nVia: 2 edge\r\nX-Real-IP: 192.0.2.1\r\n",
        );
        assert_eq!(head.all("X-Forwarded-For").join(", "), "192.0.2.1, 127.0.0.1");
        assert_eq!(head.get("X-Forwarded-Proto"), Some("https"));
        assert_eq!(head.get("X-Forwarded-Host"), Some("shop.example"));
        let forwarded = head.all("Forwarded").join(", ");
        assert!(forwarded.starts_with("for=192.0.2.1;proto=https, for=127.0.0.1;"), "{forwarded}");
        assert_eq!(head.all("Via").join(", "), "2 edge, 1.1 ptth-relay");
        assert_eq!(head.get("X-Real-IP"), Some("192.0.2.1"));
    }
    let head = seen(&["--trust-forwarded", "10.0.0.0/8"], &[], "X-Forwarded-For: 6.6.6.6\r\n");
    assert_eq!(head.get("X-Forwarded-For"), Some("127.0.0.1"));
}

#[test]
fn nothing_that_we_set_can_be_taken_away_by_naming_it_in_connection() {
    for flags in [&[][..], &["--trust-forwarded", "127.0.0.1"]] {
        let head = seen(
            flags,
            &[],
            "Connection: close, Host, X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, Forwarded, Via\r\n",
        );
        assert_eq!(head.get("Host"), Some("demo.localhost:9999"));
        assert_eq!(head.get("X-Forwarded-For"), Some("127.0.0.1"));
        assert_eq!(head.get("X-Forwarded-Proto"), Some("http"));
        for name in ["X-Forwarded-Host", "Forwarded", "Via"] {
            assert!(head.has(name), "{name}");
        }
    }
}

#[test]
fn a_connection_field_that_names_a_trusted_proxys_word_leaves_none_or_ours() {
    // The proxy's X-Forwarded-Proto is of its hop: it goes, and the upstream is not left without one.
    let head = seen(
        &["--trust-forwarded", "127.0.0.1"],
        &[],
        "Connection: X-Forwarded-Proto, X-Forwarded-Host\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n",
    );
    assert_eq!(head.get("X-Forwarded-Proto"), Some("http"));
    assert_eq!(head.get("X-Forwarded-Host"), Some("demo.localhost:9999"));
}

#[test]
fn a_length_named_by_connection_is_still_the_length() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let request =
        "POST / HTTP/1.1\r\nHost: demo.localhost\r\nConnection: Content-Length\r\nContent-Length: 4\r\n\r\nbody";
    let answer = relay.visitor().send(request).response("POST");
    assert!(answer.text().ends_with("\r\n\r\nbody"), "{}", answer.text());
    assert_eq!(upstream.last_request().get("Content-Length"), Some("4"));
}

#[test]
fn the_host_goes_through_or_is_rewritten() {
    assert_eq!(seen(&[], &[], "").get("Host"), Some("demo.localhost:9999"));
    let head = seen(&[], &["--host-header", "localhost:3000"], "X-A: 1\r\n");
    assert_eq!(head.get("Host"), Some("localhost:3000"));
    // Who was really asked for is still told.
    assert_eq!(head.get("X-Forwarded-Host"), Some("demo.localhost:9999"));
    assert_eq!(head.get("X-A"), Some("1"));
}

#[test]
fn an_absolute_target_is_asked_for_in_origin_form_with_its_own_host() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let request = "GET http://demo.localhost:1234/x?y HTTP/1.1\r\nHost: other.localhost\r\n\r\n";
    assert_eq!(relay.visitor().send(request).response("GET").status(), 200);
    let head = upstream.last_request();
    assert_eq!((head.target(), head.get("Host")), ("/x?y", Some("demo.localhost:1234")));
}

#[test]
fn field_values_go_through_byte_by_byte() {
    let upstream = Upstream::showing();
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let request =
        b"GET /a%00b?c=%zz HTTP/1.1\r\nHost: demo.localhost\r\nX-Bytes: \xe4\xf6\xfc\t\"\\~\r\nX-Empty:\r\n\r\n";
    assert_eq!(relay.visitor().send(request).response("GET").status(), 200);
    let head = upstream.last_request();
    assert_eq!(head.target(), "/a%00b?c=%zz");
    assert_eq!(head.get("X-Bytes"), Some("\u{e4}\u{f6}\u{fc}\t\"\\~"));
    assert_eq!(head.get("X-Empty"), Some(""));
}
