//! What there may be only so much of: each limit lets through what is within it, and what is beyond gets an answer of its own,
//! at nobody else's cost.

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use crate::support::link::link;
use crate::support::upstream::{After, Upstream};
use crate::support::wire::{Message, Wire, chunk, get, ok, post};
use crate::support::{Agent, Relay, eventually, locked};

/// An upstream whose answers to `/wait` wait for a word; the others come at once, and say how long the request's body was.
fn patient() -> (Upstream, Sender<()>) {
    let (say, words) = mpsc::channel();
    let words = Mutex::new(words);
    let upstream = Upstream::start(move |asked| {
        let Some(body) = asked.body() else { return After::Close };
        if asked.head.target() == "/wait" {
            let _ = locked(&words).recv();
        }
        let _ = asked.wire.try_send(ok(&body.len().to_string()));
        After::Keep
    });
    (upstream, say)
}

/// A relay with such an upstream behind the tunnel `demo`. All links are there, and no more come: until one is turned, it is a
/// visitor's connection like any other.
fn start(args: &[&str]) -> (Relay, Agent, Upstream, Sender<()>) {
    let (upstream, say) = patient();
    let relay = Relay::start(&[args, &["-v"]].concat());
    let agent = Agent::start(&relay, "demo", &upstream.address(), &["--links", "8..8"]);
    relay.log().wait_for_count(7, "tunnel `demo`: another link");
    (relay, agent, upstream, say)
}

/// A visitor from this address of this machine.
fn from(relay: &Relay, last: u8) -> Wire {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)).into()).unwrap();
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, relay.port)).into()).unwrap();
    Wire::new(socket.into())
}

/// What an answer of ours is about; those to come back for later say so.
fn told(answer: &Message) -> (u16, String) {
    let again = answer.head.has("Retry-After");
    assert_eq!(again, matches!(answer.status(), 429 | 503), "{}", answer.head.text);
    (answer.status(), answer.code())
}

/// A request that waits at the upstream, with all before it.
fn busy(mut visitor: Wire, upstream: &Upstream) -> Wire {
    let before = upstream.requests().len();
    visitor.send(get("demo", "/wait"));
    eventually("the upstream to be asked", || (upstream.requests().len() > before).then_some(()));
    visitor
}

#[test]
fn a_body_beyond_its_limit_is_a_413() {
    let (relay, _agent, upstream, _) = start(&["--limit", "body=10"]);
    let chunked = |parts: &[&[u8]]| {
        let body: Vec<u8> = parts.iter().copied().flat_map(chunk).collect();
        let head = "POST / HTTP/1.1\r\nHost: demo.localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        [head.as_bytes(), &body, b"0\r\n\r\n"].concat()
    };
    let mut visitor = relay.visitor();
    assert_eq!(visitor.send(post("demo", "/", "0123456789")).response("POST").text(), "10");
    assert_eq!(visitor.send(chunked(&[b"01234", b"56789"])).response("POST").text(), "10");
    let answer = visitor.send(post("demo", "/", "0123456789x")).response("POST");
    assert_eq!(told(&answer), (413, "body-too-large".into()));
    visitor.expect_end();
    // No link is taken for one that says its length: not even one that is not there.
    assert_eq!(told(&relay.visitor().send(post("nobody", "/", "0123456789x")).response("POST")).0, 413);
    assert_eq!(upstream.requests().len(), 2);
    for parts in [&[&b"0123456789x"[..]][..], &[b"01234", b"56789", b"x"]] {
        let mut visitor = relay.visitor();
        assert_eq!(told(&visitor.send(chunked(parts)).response("POST")), (413, "body-too-large".into()));
        visitor.expect_end();
    }
    relay.log().wait_for_count(4, " 413 ");
    assert_eq!(relay.get("demo", "/").text(), "0");
}

#[test]
fn a_body_that_passes_its_limit_behind_an_answer_breaks_that_off() {
    let upstream = Upstream::start(|asked| {
        asked.wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
        asked.body();
        After::Close
    });
    let relay = Relay::start(&["--limit", "body=10"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send("POST / HTTP/1.1\r\nHost: demo.localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
    assert_eq!(visitor.response_head("POST").unwrap().0.status(), 200);
    assert_eq!(visitor.body(4), b"half");
    visitor.send(chunk(b"0123456789"));
    visitor.rest(&mut Vec::new()).expect_err("a clean end");
    assert!(relay.log().wait_for(" demo POST / 200 ").ends_with(" body-too-large"));
}

/// Sends a body a few bytes at a time, for as long as it is taken.
fn drip(visitor: &Wire, pieces: usize) -> thread::JoinHandle<()> {
    let mut writer = visitor.writer();
    thread::spawn(move || {
        for _ in 0..pieces {
            if writer.write_all(b"xx").is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    })
}

#[test]
fn a_body_that_drips_is_a_408() {
    let (relay, _agent, _upstream, _) = start(&["--timeout", "body=1s", "--limit", "body-rate=10000"]);
    let mut visitor = relay.visitor();
    visitor.send("POST / HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 1000000\r\n\r\n");
    let dripping = drip(&visitor, 500_000);
    assert_eq!(told(&visitor.response("POST")), (408, "body-too-slow".into()));
    visitor.expect_end();
    drop(visitor);
    dripping.join().unwrap();
    assert_eq!(relay.get("demo", "/").text(), "0");
}

#[test]
fn a_body_that_brings_its_rate_may_take_its_time() {
    let (relay, _agent, _upstream, _) = start(&["--timeout", "body=500ms", "--limit", "body-rate=1"]);
    let mut visitor = relay.visitor();
    visitor.send("POST / HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 160\r\n\r\n");
    let dripping = drip(&visitor, 80);
    assert_eq!(visitor.response("POST").text(), "160");
    dripping.join().unwrap();
}

#[test]
fn an_upload_that_we_hold_up_is_not_too_slow() {
    // The upstream takes nothing for longer than the rate is averaged over; then the rest of the body drips.
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let upstream = Upstream::start(move |asked| {
        let _ = locked(&gone).recv();
        let length = asked.body().map_or(0, |body| body.len());
        asked.wire.send(ok(&length.to_string()));
        After::Close
    });
    let relay = Relay::start(&["--timeout", "body=1s", "--limit", "body-rate=1000000"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["--limit", "body-rate=1"]);
    let length = 32 << 20;
    let mut visitor = relay.visitor();
    visitor.send(format!("POST / HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: {length}\r\n\r\n"));
    let mut writer = visitor.writer();
    let uploading = thread::spawn(move || writer.write_all(&vec![b'x'; length]));
    // The time that it stands still is at least that of a whole idle connection.
    let mut other = Relay::start(&["--timeout", "idle=2s"]).visitor();
    other.expect_end();
    go.send(()).unwrap();
    assert_eq!(visitor.response("POST").text(), length.to_string());
    uploading.join().unwrap().unwrap();
}

#[test]
fn the_longest_idle_visitor_goes_for_a_new_one() {
    let (relay, _agent, _upstream, _) = start(&["--limit", "connections=3"]);
    let mut visitors: Vec<Wire> = (0..3).map(|_| relay.visitor()).collect();
    // In the order in which they are told of here, they have waited.
    for n in [1, 0, 2] {
        assert_eq!(visitors[n].get("demo", "/").text(), "0");
    }
    for n in [1, 0] {
        assert_eq!(relay.visitor().get("demo", "/").text(), "0");
        visitors[n].expect_end();
        // The place of the one before is free again.
        settled(&relay);
        let mut again = relay.visitor();
        assert_eq!(again.get("demo", "/").text(), "0");
        visitors.push(again);
    }
    assert_eq!(relay.log().count("--limit connections"), 1);
}

/// Returns when a relay of one worker has noticed all that went before: who leaves, too.
fn settled(relay: &Relay) {
    for _ in 0..2 {
        assert_eq!(relay.visitor().send("x\r\n\r\n").response("GET").status(), 400);
    }
}

#[test]
fn a_visitor_too_many_is_a_503_and_an_agent_gets_in() {
    let (relay, _agent, upstream, say) = start(&["--limit", "connections=2"]);
    let mut visitors = [busy(relay.visitor(), &upstream), busy(relay.visitor(), &upstream)];
    for _ in 0..3 {
        let mut surplus = relay.visitor();
        let answer = surplus.send(get("demo", "/")).response("GET");
        assert_eq!(told(&answer), (503, "too-many-connections".into()));
        assert_eq!(answer.head.get("Connection"), Some("close"));
        surplus.expect_end();
    }
    let mut json = relay.visitor();
    json.send("GET / HTTP/1.1\r\nHost: demo.localhost\r\nAccept: application/json\r\n\r\n");
    assert!(json.response("GET").text().starts_with('{'));
    let mut other = link(&relay, "other");
    say.send(()).unwrap();
    say.send(()).unwrap();
    for visitor in &mut visitors {
        assert_eq!(visitor.response("GET").text(), "0");
    }
    // They are idle now, and there is room for those who come.
    let mut visitor = relay.visitor();
    visitor.send(get("other", "/"));
    assert_eq!(other.request().head.target(), "/");
    other.send(ok("through"));
    assert_eq!(visitor.response("GET").text(), "through");
    assert_eq!(relay.log().count("--limit connections"), 1);
}

#[test]
fn one_that_was_too_many_when_it_came_is_served_if_there_is_room_when_it_asks() {
    let (relay, _agent, upstream, say) = start(&["--limit", "connections=1", "--timeout", "linger=20s"]);
    let mut first = busy(relay.visitor(), &upstream);
    let mut second = relay.visitor();
    say.send(()).unwrap();
    assert_eq!(first.response("GET").text(), "0");
    first.shut().expect_end();
    assert_eq!(second.get("demo", "/").text(), "0");
    assert_eq!(second.get("demo", "/").text(), "0");
}

#[test]
fn those_too_many_that_say_nothing_are_let_go_and_more_of_them_are_closed_at_once() {
    let args = ["--limit", "connections=1", "--limit", "surplus=2", "--timeout", "linger=1s", "-v"];
    let mut relay = Relay::start(&args);
    let mut link = link(&relay, "demo");
    let mut first = relay.visitor();
    first.send(get("demo", "/"));
    link.request();
    let mut silent = [relay.visitor(), relay.visitor()];
    relay.visitor().expect_end();
    for surplus in &mut silent {
        surplus.expect_end();
    }
    assert_eq!(told(&relay.get("demo", "/")), (503, "too-many-connections".into()));
    link.send(ok("fine"));
    assert_eq!(first.response("GET").text(), "fine");
    drop(first);
    relay.program.terminate();
    assert_eq!(relay.program.exit_code(), 0);
    let counts = relay.log().wait_for("counts: ");
    for count in [
        " dropped=1 ",
        " requests=2 ",
        " connections-now=0 ",
        " requests-now=0 ",
        " bytes-out=",
        " too-many-connections=1",
    ] {
        assert!(counts.contains(count), "{count}: {counts}");
    }
}

#[test]
fn an_address_too_often_is_a_429_and_others_get_in() {
    let args = ["--limit", "address-connections=2", "--trust-forwarded", "127.0.0.3"];
    let (relay, _agent, _upstream, _) = start(&args);
    let mut visitors = [from(&relay, 2), from(&relay, 2)];
    for visitor in &mut visitors {
        assert_eq!(visitor.get("demo", "/").text(), "0");
    }
    let mut surplus = from(&relay, 2);
    let answer = surplus.send(get("demo", "/")).response("GET");
    assert_eq!(told(&answer), (429, "address-busy".into()));
    surplus.expect_end();
    for last in [4, 3, 3, 3, 3] {
        let mut visitor = from(&relay, last);
        assert_eq!(visitor.get("demo", "/").text(), "0");
        // It stays.
        std::mem::forget(visitor);
    }
    // Who leaves makes room.
    visitors[0].shut().expect_end();
    assert_eq!(from(&relay, 2).get("demo", "/").text(), "0");
    assert!(relay.log().wait_for("--limit address-connections").contains("127.0.0.2"));
}

#[test]
fn links_are_not_among_the_connections_of_an_address() {
    let relay = Relay::start(&["--limit", "address-connections=1", "--limit", "connections=1"]);
    let mut links: Vec<Wire> = (0..5).map(|_| link(&relay, "demo")).collect();
    let mut visitor = relay.visitor();
    for link in &mut links {
        visitor.send(get("demo", "/"));
        assert_eq!(link.request().head.target(), "/");
        link.send(ok("through"));
        assert_eq!(visitor.response("GET").text(), "through");
    }
}

#[test]
fn several_workers_count_together() {
    let (relay, _agent, upstream, say) = start(&["--workers", "4", "--limit", "connections=3"]);
    let mut visitors: Vec<Wire> = (0..3).map(|_| busy(relay.visitor(), &upstream)).collect();
    for _ in 0..8 {
        assert_eq!(told(&relay.get("demo", "/")), (503, "too-many-connections".into()));
    }
    for visitor in &mut visitors {
        say.send(()).unwrap();
        assert_eq!(visitor.response("GET").text(), "0");
    }
    drop(visitors);
    let served = || {
        let answer = relay.get("demo", "/");
        (answer.status() == 200).then_some(())
    };
    eventually("room for another", served);
}

#[test]
fn a_tunnel_with_too_many_requests_is_a_503_and_others_are_not() {
    let (relay, _agent, upstream, say) = start(&["--limit", "tunnel-requests=2"]);
    let other = Upstream::saying("fine");
    let _other = Agent::start(&relay, "other", &other.address(), &[]);
    let mut visitors = [busy(relay.visitor(), &upstream), busy(relay.visitor(), &upstream)];
    let mut third = relay.visitor();
    for _ in 0..2 {
        assert_eq!(told(&third.get("demo", "/")), (503, "tunnel-busy".into()));
    }
    assert_eq!(third.get("other", "/").text(), "fine");
    say.send(()).unwrap();
    say.send(()).unwrap();
    for visitor in &mut visitors {
        assert_eq!(visitor.response("GET").text(), "0");
    }
    assert_eq!(third.get("demo", "/").text(), "0");
    assert_eq!(relay.log().count("--limit tunnel-requests"), 1);
}

#[test]
fn too_many_that_wait_for_links_of_any_tunnel_are_a_503() {
    let relay = Relay::start(&["--limit", "waiting-all=2", "--timeout", "link=60s"]);
    let mut waiting = [relay.visitor(), relay.visitor()];
    for (visitor, name) in waiting.iter_mut().zip(["a", "b"]) {
        visitor.send(get(name, "/"));
        settled(&relay);
    }
    assert_eq!(told(&relay.get("c", "/")), (503, "relay-busy".into()));
    let mut link = link(&relay, "a");
    link.request();
    link.send(ok("through"));
    assert_eq!(waiting[0].response("GET").text(), "through");
    // There is room for one again.
    let mut third = relay.visitor();
    third.send(get("c", "/"));
    settled(&relay);
    assert_eq!(told(&relay.get("d", "/")), (503, "relay-busy".into()));
}

#[test]
fn with_memory_full_nothing_begins_and_what_runs_goes_on() {
    let (relay, _agent, upstream, say) = start(&["--limit", "memory=40000"]);
    let mut running = relay.visitor();
    running.send("POST /wait HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 10\r\n\r\n01234");
    eventually("the upstream to be asked", || (upstream.requests().len() == 1).then_some(()));
    let mut kept = relay.visitor();
    assert_eq!(kept.get("demo", "/").text(), "0");
    // Each of these heads has a buffer of 4 KiB to itself.
    let mut halves = Vec::new();
    let refused = eventually("memory to be full", || {
        let mut half = relay.visitor();
        half.send("GET / HTTP/1.1\r\nHost: demo.localhost\r\n");
        halves.push(half);
        let answer = kept.get("demo", "/");
        (answer.status() != 200).then_some(answer)
    });
    assert_eq!(told(&refused), (503, "relay-busy".into()));
    let mut another = relay.visitor();
    another.send("GET / HTTP/1.1\r\n");
    assert_eq!(told(&another.response("GET")), (503, "relay-busy".into()));
    another.expect_end();
    // More of a head that is not whole costs it its connection.
    let mut first = halves.remove(0);
    first.send("A: b\r\n");
    assert_eq!(told(&first.response("GET")), (503, "relay-busy".into()));
    first.expect_end();
    running.send("56789");
    say.send(()).unwrap();
    assert_eq!(running.response("POST").text(), "10");
    drop(halves);
    eventually("room in memory", || (kept.get("demo", "/").status() == 200).then_some(()));
    assert_eq!(relay.log().count("--limit memory"), 1);
}

#[test]
fn one_too_many_that_might_be_an_agent_has_no_longer_to_show_it() {
    let args = ["--limit", "connections=1", "--limit", "surplus=1", "--timeout", "linger=1s"];
    let relay = Relay::start(&args);
    let mut first = relay.visitor();
    first.send("GET / HTTP/1.1\r\n");
    // A body of JSON is an agent's message, if it turns out to be one.
    let mut perhaps = relay.visitor();
    perhaps.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{");
    perhaps.expect_end();
    // Its place is an agent's again.
    link(&relay, "demo");
}

#[test]
fn heads_of_requests_that_wait_are_memory_too() {
    let relay = Relay::start(&["--limit", "memory=1000000"]);
    let upstream = Upstream::saying("fine");
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut kept = relay.visitor();
    let mut waiting = Vec::new();
    let refused = eventually("memory to be full", || {
        let mut visitor = relay.visitor();
        let cookie = "x".repeat(60_000);
        // No agent is there for the one, and the other may become one's message.
        let start = match waiting.len() % 2 {
            0 => "GET / HTTP/1.1\r\nHost: nobody.localhost",
            _ => "POST /x HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9",
        };
        visitor.send(format!("{start}\r\nCookie: {cookie}\r\n\r\n"));
        waiting.push(visitor);
        let answer = kept.get("demo", "/");
        (answer.status() != 200).then_some(answer)
    });
    assert_eq!(told(&refused), (503, "relay-busy".into()));
    assert!(waiting.len() <= 18, "{} heads in a million bytes", waiting.len());
    drop(waiting);
    eventually("room in memory", || (kept.get("demo", "/").status() == 200).then_some(()));
}

#[test]
fn a_limit_that_is_none_is_listed_as_that() {
    let mut command = crate::support::relay_command(&["--help"]);
    let help = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let line =
        |name: &str| help.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_default().to_owned();
    assert!(line("body ").contains("408"), "{help}");
    assert!(help.contains("bytes of a visitor's request body (413 beyond) [default: none]"), "{help}");
    assert!(line("address-connections ").contains("[default: 4096]"), "{help}");
}

/// What an agent says that may have no more files open.
const STARVED: &str = "no more connections to the upstream";

#[test]
fn requests_for_which_an_agent_has_no_file_wait_for_those_that_have_one() {
    let (relay, agent, upstream, say) = start(&[]);
    agent.program.leave_files(2);
    let mut first = [busy(relay.visitor(), &upstream), busy(relay.visitor(), &upstream)];
    let mut second = [relay.visitor(), relay.visitor(), relay.visitor()];
    for visitor in &mut second {
        visitor.send(get("demo", "/wait"));
    }
    agent.log().wait_for(STARVED);
    for _ in 0..5 {
        say.send(()).unwrap();
    }
    for visitor in first.iter_mut().chain(&mut second) {
        assert_eq!(visitor.response("GET").status(), 200);
    }
    // Their connections served them one after the other.
    assert_eq!((upstream.connections(), upstream.requests().len()), (2, 5));
    assert_eq!(agent.log().count(STARVED), 1);
}

#[test]
fn who_waits_for_a_file_is_tried_again_although_nobody_is_served() {
    let (relay, agent, upstream, say) = start(&[]);
    agent.program.leave_files(1);
    let mut first = busy(relay.visitor(), &upstream);
    let mut second = relay.visitor();
    second.send(get("demo", "/"));
    agent.log().wait_for(STARVED);
    agent.program.leave_files(1);
    assert_eq!(second.response("GET").status(), 200);
    say.send(()).unwrap();
    assert_eq!(first.response("GET").status(), 200);
}

#[test]
fn the_last_file_is_for_a_request_that_is_there_and_not_for_a_link() {
    let upstream = Upstream::answering("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine");
    let relay = Relay::start(&[]);
    let args = ["--links", "1..4", "--timeout", "backoff=10m", "--timeout", "backoff-max=10m"];
    let agent = Agent::start(&relay, "demo", &upstream.address(), &args);
    agent.program.leave_files(1);
    assert_eq!(relay.get("demo", "/").text(), "fine");
    agent.log().wait_for("can't reach the relay");
}

#[test]
fn a_tunnel_has_the_file_of_a_connection_that_has_served() {
    let (relay, agent, upstream, say) = start(&["--tcp", "127.0.0.1:0=demo"]);
    let line = relay.log().wait_for("tcp://127.0.0.1:");
    let port = line.split("tcp://127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap();
    agent.program.leave_files(1);
    let mut first = busy(relay.visitor(), &upstream);
    let mut service = Wire::connect(port);
    service.send(get("demo", "/"));
    agent.log().wait_for(STARVED);
    say.send(()).unwrap();
    assert_eq!(first.response("GET").status(), 200);
    assert_eq!(service.response("GET").status(), 200);
    assert_eq!(upstream.connections(), 2);
    eventually("the end of the first one", || (upstream.open_connections() == 1).then_some(()));
    // Nor does one that rests keep the next tunnel out.
    drop(service);
    eventually("the tunnel's end", || (upstream.open_connections() == 0).then_some(()));
    assert_eq!(relay.get("demo", "/").status(), 200);
    let mut service = Wire::connect(port);
    assert_eq!(service.send(get("demo", "/")).response("GET").status(), 200);
}

#[test]
fn to_wait_for_a_file_has_an_end() {
    let (upstream, say) = patient();
    let relay = Relay::start(&["-v"]);
    let args = ["--links", "8..8", "--timeout", "connect=300ms"];
    let agent = Agent::start(&relay, "demo", &upstream.address(), &args);
    relay.log().wait_for_count(7, "tunnel `demo`: another link");
    // Where none of its own is open, there is nothing to wait for.
    agent.program.leave_files(0);
    let answer = relay.get("demo", "/");
    assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream-unreachable"));
    agent.program.leave_files(1);
    let mut first = busy(relay.visitor(), &upstream);
    let answer = relay.get("demo", "/");
    assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream-connect-timeout"));
    assert!(answer.text().contains("as many files open as it may"), "{}", answer.text());
    say.send(()).unwrap();
    assert_eq!(first.response("GET").status(), 200);
    assert_eq!(relay.get("demo", "/").status(), 200);
}

#[test]
fn trailers_that_no_relay_need_take_are_not_given_among_the_answers_of_others() {
    // As many quick answers as a tunnel has to have given before its requests share a link, and as many that wait for it then.
    const TRUST: usize = 32;
    const CROWD: [&str; 5] = ["/1", "/trailers", "/tight", "/2", "/3"];
    // Too many, and as many as there may be in 8 KiB, if they were not sent with a space each.
    fn trailers(target: &str) -> Option<String> {
        match target {
            "/trailers" => Some((0..200).map(|n| format!("X-{n}: x\r\n")).collect()),
            "/tight" => {
                Some((10..110).map(|n| format!("X-{n}:{:0<1$}\r\n", "", if n < 100 { 74 } else { 73 })).collect())
            }
            _ => None,
        }
    }
    let (say, words) = mpsc::channel::<()>();
    let words = Mutex::new(words);
    let upstream = Upstream::start(move |asked| {
        let target = asked.head.target().to_owned();
        if target == "/wait" {
            let _ = locked(&words).recv();
        }
        if let Some(trailers) = trailers(&target) {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            asked.wire.send(format!("{head}5\r\nbegun\r\n0\r\n{trailers}\r\n"));
        } else {
            asked.wire.send(ok(&target));
        }
        After::Keep
    });
    let relay = Relay::start(&[]);
    let args = ["--links", "1..1", "--limit", "fields=250"];
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &args);
    let mut first = relay.visitor();
    for _ in 0..TRUST {
        assert_eq!(first.get("demo", "/").text(), "/");
    }
    let mut first = busy(first, &upstream);
    let mut crowd = CROWD.map(|target| {
        let mut visitor = relay.visitor();
        visitor.send(get("demo", target));
        settled(&relay);
        visitor
    });
    say.send(()).unwrap();
    assert_eq!(first.response("GET").text(), "/wait");
    for (visitor, target) in crowd.iter_mut().zip(CROWD) {
        let answer = visitor.try_response("GET");
        if trailers(target).is_some() {
            // It has begun, and is seen not to be whole.
            assert_eq!(answer.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        } else {
            assert_eq!(answer.unwrap().text(), target);
        }
    }
    for target in ["/1", "/2", "/3"] {
        assert_eq!(upstream.requests().iter().filter(|head| head.target() == target).count(), 1, "{target}");
    }
}
