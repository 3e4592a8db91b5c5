//! Where agents poll: visitors and agents that mean no good, and ends that meet in a bad moment.

use std::io::Write;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::mpsc::{self, Sender};

use ptth_proto::wire::message::{Ask, to_base64};
use ptth_proto::wire::packed::{self, Form};
use serde_json::{Value, json};

use crate::support::link::link;
use crate::support::upstream::{After, Upstream};
use crate::support::wire::{Message, Wire, chunk, get, ok, post};
use crate::support::{Agent, PATIENCE, Relay, TempPath, eventually, locked, relay_command};

/// A poll of COMET with these fields, and what it carries.
fn carry(name: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /{name} HTTP/1.1\r\nHost: relay.example\r\nContent-Type: application/json\r\n{fields}\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

/// An answer of COMET, of status 200.
fn reply(id: &str, body: &str) -> String {
    format!("{{\"message-id\": \"{id}\", \"status\": 200, \"headers\": [], \"body\": {}}}", json!(body))
}

/// The head of an answer of COMET of this length, by an agent that says that it is one.
fn answer_of(name: &str, length: usize) -> String {
    format!("POST /{name} HTTP/1.1\r\nHost: relay.example\r\nPtth-Accept: base64\r\nContent-Length: {length}\r\n\r\n")
}

/// A connection on which a poll of COMET is under way.
fn polling(relay: &Relay, name: &str) -> Wire {
    let mut agent = relay.visitor();
    agent.send(carry(name, "", ""));
    agent
}

/// The message that answers a poll of COMET.
fn message(agent: &mut Wire) -> Value {
    let answer = agent.response("POST");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.text()))
}

/// The id of a message, which must be a request.
fn id(message: &Value) -> String {
    message["message-id"].as_str().unwrap_or_else(|| panic!("no request: {message}")).to_owned()
}

/// A poll of the `ptth` dialect.
fn listen(name: &str, fields: &str) -> String {
    format!("GET /7ZSFUKGV/http_listen/{name} HTTP/1.1\r\nHost: relay.example\r\n{fields}\r\n")
}

/// The request that answers it.
fn ask(agent: &mut Wire) -> Ask {
    let answer = agent.response("GET");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    packed::read_asks(&answer.body).unwrap().remove(0)
}

/// The head of a response of the `ptth` dialect, of status 200.
fn respond(id: &str, framing: &str) -> String {
    let mut head = Vec::new();
    packed::write_head(&mut head, Form::Full, 200, std::iter::empty());
    let magic = to_base64(&head);
    format!(
        "POST /7ZSFUKGV/http_response/{id} HTTP/1.1\r\nHost: relay.example\r\nX-PTTH-2LJYXWC4: {magic}\r\n{framing}\r\n"
    )
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

/// A visitor whose request has a body, of which all but the last byte has come.
fn uploading(relay: &Relay, name: &str, target: &str) -> Wire {
    let mut visitor = relay.visitor();
    visitor.send(format!("POST {target} HTTP/1.1\r\nHost: {name}.localhost\r\nContent-Length: 2\r\n\r\n1"));
    settled(relay);
    visitor
}

/// What a program's answer is about.
fn told(answer: &Message) -> (u16, String) {
    (answer.status(), answer.code())
}

/// An upstream whose answers begin as their path says and never end, but for those to `/`, and what gives each of the others a
/// word to go on.
fn endless() -> (Upstream, Sender<&'static str>) {
    let (say, words) = mpsc::channel::<&'static str>();
    let words = Mutex::new(words);
    let upstream = Upstream::start(move |asked| {
        let begin = match asked.head.target() {
            "/" => {
                asked.wire.send(ok("fine"));
                return After::Keep;
            }
            "/events" => "HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\n\r\ndata: 1\n\n",
            "/half" => "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf",
            "/chunks" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "/said" => {
                if let Ok(word) = locked(&words).recv_timeout(PATIENCE) {
                    let _ = asked.wire.try_send(word);
                }
                return After::Keep;
            }
            _ => "",
        };
        asked.wire.send(begin);
        // Until the agent closes.
        asked.wire.whatever_comes();
        After::Close
    });
    (upstream, say)
}

/// An agent of ours that polls by COMET, on few connections.
fn comet_agent(relay: &Relay, upstream: &Upstream, args: &[&str]) -> Agent {
    let args = [&["--dialect", "comet", "--links", "1..4", "--timeout", "half-close=100ms"], args].concat();
    Agent::start(relay, "demo", &upstream.address(), &args)
}

#[test]
fn event_streams_take_no_connection_of_an_agent_that_sends_whole_answers() {
    let (upstream, _say) = endless();
    let relay = Relay::start(&[]);
    let agent = comet_agent(&relay, &upstream, &[]);
    let mut visitor = relay.visitor();
    for _ in 0..3 {
        // More than it has connections.
        let mut visitors: Vec<Wire> = (0..6).map(|_| asking(&relay, "demo", "/events")).collect();
        for visitor in &mut visitors {
            let answer = visitor.response("GET");
            assert_eq!(told(&answer), (502, "answer-too-large".into()));
            assert!(answer.head.get("Proxy-Status").unwrap().starts_with("ptth-reverse"), "{}", answer.head.text);
        }
        assert_eq!(visitor.get("demo", "/").text(), "fine");
    }
    eventually("the streams to be closed", || (upstream.open_connections() <= 1).then_some(()));
    agent.log().wait_for("stream of events");
}

#[test]
fn answers_that_are_never_whole_free_their_connections_whoever_has_left() {
    let (upstream, _say) = endless();
    let relay = Relay::start(&["--timeout", "half-close=100ms"]);
    let agent = comet_agent(&relay, &upstream, &["--timeout", "link-answer=500ms"]);
    let mut visitor = relay.visitor();
    for path in ["/silent", "/half", "/chunks"] {
        let before = upstream.requests().len();
        let mut visitors: Vec<Wire> = (0..4).map(|_| asking(&relay, "demo", path)).collect();
        eventually("all to be asked", || (upstream.requests().len() == before + 4).then_some(()));
        // Two leave, and two are told.
        drop(visitors.split_off(2));
        relay.log().wait_for_count(2, &format!(" demo GET {path} 499 "));
        for visitor in &mut visitors {
            assert_eq!(told(&visitor.response("GET")), (504, "upstream-timeout".into()), "{path}");
        }
        assert_eq!(visitor.get("demo", "/").text(), "fine");
        eventually("the answers to be let go", || (upstream.open_connections() <= 1).then_some(()));
    }
    assert_eq!(agent.log().count("--timeout link-answer"), 12);
}

#[test]
fn an_answer_that_comes_too_late_for_its_visitor_costs_the_agent_nothing() {
    let large: &'static str = ok(&"x".repeat(900_000)).leak();
    let (upstream, say) = endless();
    let relay = Relay::start(&["--timeout", "half-close=100ms"]);
    let agent = comet_agent(&relay, &upstream, &[]);
    let mut visitor = relay.visitor();
    for round in 1..=4 {
        let gone = asking(&relay, "demo", "/said");
        eventually("the upstream to be asked", || (upstream.requests().len() == 2 * round - 1).then_some(()));
        drop(gone);
        relay.log().wait_for_count(round, " demo GET /said 499 ");
        say.send(large).unwrap();
        assert_eq!(visitor.get("demo", "/").text(), "fine");
    }
    agent.log().wait_for_count(4, "did not want an answer");
    assert_eq!((relay.log().count("is up"), relay.log().count("is down")), (1, 0));
    assert_eq!((agent.log().count("lost"), agent.log().count("trying again")), (0, 0));
}

#[test]
fn answers_to_nothing_are_refused_before_they_are_whole() {
    const LENGTH: usize = 6 * 1024 * 1024;
    let relay = Relay::start(&[]);
    let before = relay.program.peak_memory();
    let mut hostile: Vec<Wire> = (0..60).map(|_| relay.visitor()).collect();
    // To no tunnel, to one that has an agent, and to one that has a link.
    let (_agent, _link) = (polling(&relay, "demo"), link(&relay, "flipped"));
    for (n, wire) in hostile.iter_mut().enumerate() {
        let name = ["nobody", "demo", "flipped"][n % 3];
        wire.send(answer_of(name, LENGTH)).send(vec![b' '; 1024 * 1024]);
    }
    settled(&relay);
    let expect_little = || {
        let peak = relay.program.peak_memory();
        assert!(peak < before + 10 * 1024 * 1024, "{before} bytes before, {peak} at most");
    };
    expect_little();
    for wire in &mut hostile {
        assert_eq!(told(&wire.response("POST")), (413, "message-too-large".into()));
    }
    expect_little();
}

#[test]
fn answers_that_are_not_whole_count_for_the_queue_of_their_tunnel() {
    // So much is read in one go.
    const PART: usize = 8000;
    let relay = Relay::start(&["--limit", "queue=20000", "--timeout", "link-answer=10m"]);
    let mut agent = polling(&relay, "demo");
    let mut visitor = asking(&relay, "demo", "/");
    let request = message(&mut agent);
    for round in 0..3 {
        let mut hostile: Vec<Wire> = (0..10)
            .map(|_| {
                let mut wire = relay.visitor();
                wire.send(answer_of("demo", 2 * PART)).send(vec![b' '; PART]);
                settled(&relay);
                wire
            })
            .collect();
        // There is room for two of them; and that of two that go is free for others.
        for wire in &mut hostile[2..] {
            assert_eq!(told(&wire.response("POST")), (413, "message-too-large".into()), "{round}");
        }
        for wire in &mut hostile {
            wire.shut();
        }
        settled(&relay);
    }
    // Nor does any of it count in the end.
    let body = "x".repeat(15_000);
    agent.send(carry("demo", "", &reply(&id(&request), &body)));
    assert!(visitor.response("GET").text() == body, "another body");
    let mut visitor = relay.visitor();
    visitor.send(post("demo", "/", &body));
    assert!(message(&mut agent)["body"] == body, "another body");
    drop((agent, visitor));
    relay.log().wait_for("tunnel `demo` is down");
}

#[test]
fn an_agent_whose_relay_stops_answers_in_full_what_it_has_begun() {
    const CREATED: &str =
        "HTTP/1.1 201 Created\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nX-Case: Kept\r\nContent-Length: 4\r\n\r\nmade";
    for (dialect, workers) in [("ptth-relay", "1"), ("ptth-relay", "3"), ("comet", "1"), ("comet", "3")] {
        let (upstream, say) = endless();
        let mut relay = Relay::start(&["--workers", workers, "--timeout", "drain=10m"]);
        let args = ["--dialect", dialect, "--links", "2..8", "--timeout", "backoff=10ms", "-v"];
        let agent = Agent::start(&relay, "demo", &upstream.address(), &args);
        let visitors: Vec<Wire> = (0..4).map(|_| asking(&relay, "demo", "/said")).collect();
        eventually("all to be asked", || (upstream.requests().len() == 4).then_some(()));
        relay.program.terminate();
        // It knows by now, and has heard nothing of how this relay may be answered.
        agent.log().wait_for("answered 503");
        for _ in &visitors {
            say.send(CREATED).unwrap();
        }
        for mut visitor in visitors {
            let answer = visitor.response("GET");
            assert_eq!((answer.status(), answer.text().as_str()), (201, "made"), "{dialect}, {workers} workers");
            assert_eq!(answer.head.all("Set-Cookie"), ["a=1", "b=2"]);
            assert!(answer.head.text.contains("X-Case: Kept"), "{}", answer.head.text);
        }
        assert_eq!(relay.program.exit_code(), 0);
    }
}

#[test]
fn a_relay_that_stops_waits_for_nothing_that_no_agent_has_had() {
    for poll in [carry("demo", "", ""), listen("demo", "Ptth-Accept: full\r\n")] {
        let mut relay =
            Relay::start(&["--timeout", "drain=10m", "--timeout", "link=10m", "--timeout", "half-close=100ms"]);
        let mut agent = relay.visitor();
        agent.send(&poll);
        settled(&relay);
        // Three that are still coming, of which two become messages: the first one takes the poll along, the second one waits.
        let mut visitors = ["/out", "/waits", "/comes"].map(|target| uploading(&relay, "demo", target));
        visitors[0].send("2");
        assert_eq!(agent.response("POST").status(), 200);
        visitors[1].send("2");
        settled(&relay);
        let [out, waits, comes] = visitors;
        // One whose answer nobody will give would be waited for.
        drop(out);
        relay.log().wait_for(" demo POST /out 499 ");
        relay.program.terminate();
        for mut visitor in [waits, comes] {
            assert_eq!(told(&visitor.response("POST")), (503, "stopping".into()));
            visitor.expect_end();
        }
        assert_eq!(relay.program.exit_code(), 0);
    }
}

#[test]
fn a_relay_that_stops_lets_an_upload_go_for_which_a_poll_is_held() {
    for poll in [carry("demo", "", ""), listen("demo", "Ptth-Accept: full\r\n")] {
        let mut relay = Relay::start(&["--timeout", "drain=10m", "--timeout", "poll=10m"]);
        let mut agent = relay.visitor();
        agent.send(&poll);
        settled(&relay);
        let mut visitor = uploading(&relay, "demo", "/");
        relay.program.terminate();
        assert_eq!(told(&visitor.response("POST")), (503, "stopping".into()));
        assert_eq!(told(&agent.response("POST")), (503, "stopping".into()));
        agent.expect_end();
        drop(visitor);
        assert_eq!(relay.program.exit_code(), 0);
    }
}

#[test]
fn requests_that_were_refused_count_no_more_and_go_to_nobody() {
    let mut relay = Relay::start(&["--limit", "message=1000", "--limit", "queue=3000", "--timeout", "drain=10m"]);
    let mut agents = [polling(&relay, "demo"), polling(&relay, "demo")];
    settled(&relay);
    let (fits, large) = ("x".repeat(1000), "x".repeat(1001));
    let head = "POST /chunks HTTP/1.1\r\nHost: demo.localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = [head.as_bytes(), &chunk(large.as_bytes()), b"0\r\n\r\n"].concat();
    for _ in 0..20 {
        for request in [post("demo", "/large", &large).as_bytes(), &chunks] {
            let answer = relay.visitor().send(request).response("POST");
            assert_eq!(told(&answer), (413, "message-too-large".into()));
        }
    }
    let mut visitor = relay.visitor();
    for round in 0..5 {
        visitor.send(post("demo", "/first", &fits));
        let first = message(&mut agents[0]);
        assert_eq!(first["request-uri"], "/first");
        // The last of these has no room while others are still coming.
        let mut others: Vec<Wire> = (0..3)
            .map(|n| {
                let mut other = relay.visitor();
                let request = post("demo", &format!("/other/{n}"), &fits);
                other.send(&request[..request.len() - 1]);
                settled(&relay);
                other
            })
            .collect();
        let busy = others.pop().unwrap().response("POST");
        assert_eq!(told(&busy), (503, "tunnel-busy".into()), "{round}");
        for other in &mut others {
            other.shut();
            other.whatever_comes();
        }
        agents[0].send(carry("demo", "", &reply(&id(&first), "fine")));
        assert_eq!(visitor.response("POST").text(), "fine");
        // Who has waited longer is next.
        agents.swap(0, 1);
    }
    relay.program.terminate();
    for agent in &mut agents {
        assert_eq!(told(&agent.response("POST")), (503, "stopping".into()));
    }
    assert_eq!(relay.program.exit_code(), 0);
}

#[test]
fn uploads_that_stall_leave_room_for_requests_without_a_body() {
    // With some of their bodies, and with nothing but a head.
    for part in ["x".repeat(500), String::new()] {
        let relay = Relay::start(&["--limit", "queue=20000"]);
        let mut agent = polling(&relay, "demo");
        settled(&relay);
        let cookie = "c".repeat(1000);
        let stalled: Vec<Wire> = (0..60)
            .map(|_| {
                let mut visitor = relay.visitor();
                visitor.send(format!(
                    "POST / HTTP/1.1\r\nHost: demo.localhost\r\nCookie: {cookie}\r\nContent-Length: 1000\r\n\r\n{part}"
                ));
                settled(&relay);
                visitor
            })
            .collect();
        relay.log().wait_for(" demo POST / 503 ");
        for request in ["GET / HTTP/1.1\r\n", "DELETE / HTTP/1.1\r\n", "POST / HTTP/1.1\r\nContent-Length: 0\r\n"] {
            let mut visitor = relay.visitor();
            visitor.send(format!("{request}Host: demo.localhost\r\nCookie: {cookie}{cookie}\r\n\r\n"));
            settled(&relay);
            let asked = message(&mut agent);
            agent.send(carry("demo", "", &reply(&id(&asked), "fine")));
            let answer = visitor.response("GET");
            assert_eq!((answer.status(), answer.text().as_str()), (200, "fine"), "{request}, {} of a body", part.len());
        }
        drop(stalled);
    }
}

#[test]
fn an_answer_that_asks_for_leave_to_send_its_body_gets_it() {
    let relay = Relay::start(&[]);
    let mut agent = polling(&relay, "demo");
    let long = "a long answer\n".repeat(10_000);
    for body in ["fine", &long] {
        for fields in ["Content-Type: application/json\r\n", "Ptth-Accept: base64\r\n"] {
            for chunked in [false, true] {
                let mut visitor = asking(&relay, "demo", "/");
                let reply = reply(&id(&message(&mut agent)), body);
                let framing = match chunked {
                    true => "Transfer-Encoding: chunked\r\n".to_owned(),
                    false => format!("Content-Length: {}\r\n", reply.len()),
                };
                agent.send(format!("POST /demo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n{fields}{framing}\r\n"));
                assert_eq!(agent.any_response_head("POST").status(), 100, "{fields}{framing}");
                if chunked {
                    agent.send(chunk(reply.as_bytes())).send("0\r\n\r\n");
                } else {
                    agent.send(reply);
                }
                assert!(visitor.response("GET").text() == body, "another body, {fields}{framing}");
            }
        }
    }
}

/// What agents may send that is no answer, where `ID` stands for an id.
fn broken() -> [String; 9] {
    let long = "x".repeat(100_000);
    [
        "{\"message-id\": \"ID\"}".into(),
        "{\"message-id\": \"ID\", \"status\": 99, \"headers\": [], \"body\": \"secret\"}".into(),
        "{\"message-id\": \"ID\", \"status\": 200, \"headers\": [[\"a b\", \"c\"]], \"body\": \"secret\"}".into(),
        "{\"message-id\": \"ID\", \"status\": 200, \"headers\": 7, \"body\": \"secret\"}".into(),
        "{\"message-id\": \"ID\", secret".into(),
        " {\"message-id\":\"ID\",\"status\":200,\"body\":\"secret\"} and more".into(),
        "{'message-id': 'ID', 'status': 'fine', 'body': 'secret'}".into(),
        format!("{{\"message-id\": \"ID\", \"status\": 200, \"body\": \"{long}\", \"status\": 99}}"),
        format!("{{\"message-id\": \"ID\", \"status\": 99, \"body\": \"{long}\"}}"),
    ]
}

#[test]
fn a_broken_answer_is_for_no_visitors_upstream() {
    let relay = Relay::start(&[]);
    let mut default = link(&relay, "default");
    for broken in broken() {
        for size in [0, 8, 50_000] {
            let mut agent = polling(&relay, "demo");
            let mut visitor = asking(&relay, "demo", "/");
            let body = broken.replace("ID", &id(&message(&mut agent)));
            if size == 0 {
                agent.send(carry("demo", "", &body));
            } else {
                agent.send(
                    "POST /demo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                     Transfer-Encoding: chunked\r\n\r\n",
                );
                // The first chunk by itself.
                let mut pieces = body.as_bytes().chunks(size);
                agent.send(chunk(pieces.next().unwrap()));
                settled(&relay);
                agent.send(pieces.flat_map(chunk).collect::<Vec<u8>>()).send("0\r\n\r\n");
            }
            let answer = agent.response("POST");
            assert_eq!(told(&answer), (400, "bad-message".into()), "{size} {broken:.60}");
            assert_eq!(told(&visitor.response("GET")), (502, "link-protocol".into()), "{size} {broken:.60}");
        }
    }
    // The upstream of `default` has heard of nobody but its own visitor.
    let mut visitor = asking(&relay, "default", "/mine");
    assert_eq!(default.request().head.target(), "/mine");
    default.send(ok("fine"));
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn an_answer_that_breaks_off_is_for_no_visitors_upstream() {
    let relay = Relay::start(&["--timeout", "body=200ms"]);
    let mut default = link(&relay, "default");
    for framing in ["Content-Length: 1000\r\n", "Content-Length: 1000000\r\n", "Transfer-Encoding: chunked\r\n"] {
        for leaves in [true, false] {
            let mut agent = polling(&relay, "demo");
            let _visitor = asking(&relay, "demo", "/");
            let part =
                format!("{{\"message-id\": \"{}\", \"status\": 200, \"body\": \"secret", id(&message(&mut agent)));
            agent.send(format!("POST /demo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{framing}\r\n"));
            agent.send(if framing.contains("chunked") { chunk(part.as_bytes()) } else { part.into_bytes() });
            if leaves {
                agent.shut();
            }
            agent.whatever_comes();
        }
    }
    let mut visitor = asking(&relay, "default", "/mine");
    assert_eq!(default.request().head.target(), "/mine");
    default.send(ok("fine"));
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn the_visitor_of_a_broken_answer_is_told_at_once() {
    let relay = Relay::start(&["--timeout", "link-answer=10m"]);
    let mut agent = polling(&relay, "demo");
    for broken in broken() {
        let mut visitor = asking(&relay, "demo", "/");
        let body = broken.replace("ID", &id(&message(&mut agent)));
        agent.send(carry("demo", "Ptth-Accept: base64\r\n", &body));
        assert_eq!(told(&agent.response("POST")), (400, "bad-message".into()), "{broken:.60}");
        let answer = visitor.response("GET");
        assert_eq!(told(&answer), (502, "link-protocol".into()), "{broken:.60}");
        assert!(!answer.text().contains("secret"), "{}", answer.text());
        agent.send(carry("demo", "", ""));
    }
}

/// The published test value of `ptth_server`, and its line.
const KEY: &str = "PlaypenCausalPlatformCommodeImproveCatalyze";
const LINE: &str = "hash = \"A9rPwZyY89Ag4TJjMoyYA2NeGOm99Je6rq1s0rg8PfY=\"\n";

#[test]
fn a_broken_answer_of_another_agent_does_no_harm() {
    let mut command = relay_command(&["hash-key"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"other").unwrap();
    let other = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let file = TempPath::new("agents");
    let entries = format!("[[agent]]\nnames = ['demo']\n{LINE}[[agent]]\nnames = ['demo', 'lab']\n{other}");
    std::fs::write(&file.0, entries).unwrap();
    let relay = Relay::start(&["--agents", file.text()]);
    let mine = format!("Authorization: Bearer {KEY}\r\n");
    let others = "Authorization: Bearer other\r\n";
    let mut agent = relay.visitor();
    for broken in broken() {
        agent.send(carry("demo", &mine, ""));
        let mut visitor = asking(&relay, "demo", "/");
        let id = id(&message(&mut agent));
        for name in ["demo", "lab"] {
            let answer = relay.visitor().send(carry(name, others, &broken.replace("ID", &id))).response("POST");
            let may = broken.len() < 4096 || name == "demo";
            let expected = if may { (400, "bad-message") } else { (413, "message-too-large") };
            assert_eq!(told(&answer), (expected.0, expected.1.into()), "{name} {broken:.60}");
        }
        agent.send(carry("demo", &format!("{mine}Prefer: wait=0\r\n"), &reply(&id, "fine")));
        assert_eq!(visitor.response("GET").text(), "fine");
        assert_eq!(message(&mut agent), json!({}));
    }
}

#[test]
fn a_response_may_be_silent_for_longer_than_a_request() {
    let relay = Relay::start(&["--timeout", "body=200ms"]);
    for framing in ["Content-Length: 15\r\n", "Transfer-Encoding: chunked\r\n"] {
        let chunked = framing.contains("chunked");
        let mut agent = relay.visitor();
        agent.send(listen("demo", ""));
        let mut visitor = asking(&relay, "demo", "/");
        let ask = ask(&mut agent);
        agent.send(respond(&ask.id, framing));
        for n in 0..3 {
            agent.send(if chunked { chunk(b"event") } else { b"event".to_vec() });
            if n == 0 {
                assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
            }
            assert_eq!(visitor.body(5), b"event", "{framing}");
            // A request that began to be silent later is given up by now.
            let mut late = relay.visitor();
            late.send("POST / HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 9\r\n\r\nhalf");
            assert_eq!(told(&late.response("POST")), (408, "body-timeout".into()));
        }
        if chunked {
            agent.send("0\r\n\r\n");
        }
        visitor.rest(&mut Vec::new()).unwrap();
        assert_eq!(agent.response("POST").text(), "StreamFinished\n");
    }
}

#[test]
fn a_response_may_not_be_silent_for_ever() {
    let relay = Relay::start(&["--timeout", "body=10m", "--timeout", "stream=200ms"]);
    for framing in ["Content-Length: 15\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut agent = relay.visitor();
        agent.send(listen("demo", ""));
        let mut visitor = asking(&relay, "demo", "/");
        let ask = ask(&mut agent);
        agent.send(respond(&ask.id, framing));
        agent.send(if framing.contains("chunked") { chunk(b"event") } else { b"event".to_vec() });
        assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
        assert_eq!(visitor.body(5), b"event");
        visitor.rest(&mut Vec::new()).expect_err("a clean end");
        assert_eq!(agent.response("POST").text(), "ClientDisconnected\n");
    }
}

#[test]
fn a_message_whose_visitor_closes_while_it_waits_for_a_poll_is_not_handed_out() {
    let relay = Relay::start(&["--timeout", "half-close=10m", "--timeout", "link=10m"]);
    for tears in [false, true] {
        let mut agent = polling(&relay, "demo");
        settled(&relay);
        let mut visitors = ["/taken", "/gone", "/here"].map(|target| uploading(&relay, "demo", target));
        for visitor in &mut visitors {
            visitor.send("2");
            settled(&relay);
        }
        assert_eq!(message(&mut agent)["request-uri"], "/taken");
        let [taken, gone, _here] = visitors;
        if tears {
            socket2::SockRef::from(&gone.stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }
        drop(gone);
        relay.log().wait_for_count(1 + usize::from(tears), " demo POST /gone 499 ");
        for expected in [json!("/here"), Value::Null] {
            agent.send(carry("demo", "Prefer: wait=0\r\n", ""));
            assert_eq!(message(&mut agent)["request-uri"], expected);
        }
        // One that an agent has is another matter: its visitor may have closed but its own side.
        assert_eq!(relay.log().count(" demo POST /taken "), 0);
        drop(taken);
    }
}

/// So many requests of visitors that come at the same moment to a tunnel that holds one poll: one takes it, and the others wait.
fn at_once(relay: &Relay, requests: &[String]) -> Vec<Wire> {
    let mut visitors: Vec<Wire> = requests.iter().map(|_| relay.visitor()).collect();
    settled(relay);
    relay.program.freeze();
    for (visitor, request) in visitors.iter_mut().zip(requests) {
        visitor.send(request);
    }
    relay.program.thaw();
    settled(relay);
    visitors
}

#[test]
fn a_message_that_waits_for_a_poll_goes_to_a_link_that_is_free() {
    let relay = Relay::start(&["--timeout", "link=10m"]);
    let mut agent = polling(&relay, "demo");
    let requests: Vec<String> = (0..4).map(|n| get("demo", &format!("/{n}"))).collect();
    let mut visitors = at_once(&relay, &requests);
    let asked = message(&mut agent);
    let mut left: Vec<usize> = (0..4).collect();
    let mut take = |target: &str| {
        let which: usize = target[1..].parse().unwrap();
        left.retain(|n| *n != which);
        (which, left.len())
    };
    let (first, _) = take(asked["request-uri"].as_str().unwrap());
    // A link that comes now gets one of the others, and two more as it becomes free.
    let mut link = link(&relay, "demo");
    loop {
        let (which, left) = take(link.request().head.target());
        link.send(ok("by the link"));
        assert_eq!(visitors[which].response("GET").text(), "by the link");
        if left == 0 {
            break;
        }
    }
    // They are messages no more.
    agent.send(carry("demo", "Prefer: wait=0\r\n", &reply(&id(&asked), "by a poll")));
    assert_eq!(message(&mut agent), json!({}));
    assert_eq!(visitors[first].response("GET").text(), "by a poll");
    // And the link is as free as before.
    visitors[0].send(get("demo", "/again"));
    assert_eq!(link.request().head.target(), "/again");
    link.send(ok("fine"));
    assert_eq!(visitors[0].response("GET").text(), "fine");
}

#[test]
fn a_message_with_a_body_is_not_sent_twice() {
    let relay = Relay::start(&["--timeout", "link=10m"]);
    let mut agent = polling(&relay, "demo");
    let requests: Vec<String> = (0..2).map(|n| post("demo", &format!("/{n}"), "a body")).collect();
    let mut visitors = at_once(&relay, &requests);
    let mut link = link(&relay, "demo");
    settled(&relay);
    // The link is there for others, and the message waits for its poll.
    let mut other = asking(&relay, "demo", "/other");
    assert_eq!(link.request().head.target(), "/other");
    link.send(ok("by the link"));
    assert_eq!(other.response("GET").text(), "by the link");
    let mut asked = message(&mut agent);
    let mut targets = Vec::new();
    for _ in 0..2 {
        assert_eq!(asked["body"], "a body");
        targets.push(asked["request-uri"].as_str().unwrap().to_owned());
        agent.send(carry("demo", "Prefer: wait=0\r\n", &reply(&id(&asked), "by a poll")));
        asked = message(&mut agent);
    }
    assert_eq!(asked, json!({}));
    targets.sort();
    assert_eq!(targets, ["/0", "/1"]);
    for visitor in &mut visitors {
        assert_eq!(visitor.response("POST").text(), "by a poll");
    }
    other.send(get("demo", "/again"));
    assert_eq!(link.request().head.target(), "/again");
}

#[test]
fn behind_an_early_answer_the_connection_goes_on_or_says_that_it_does_not() {
    let relay = Relay::start(&[
        "--limit",
        "message=10",
        "--limit",
        "waiting=1",
        "--timeout",
        "link=10m",
        "--timeout",
        "half-close=100ms",
    ]);
    let mut stock = relay.visitor();
    stock.send(listen("stock", ""));
    let _agent = polling(&relay, "demo");
    let _waiting = asking(&relay, "nobody", "/");
    settled(&relay);
    let large = "x".repeat(5000);
    let chunked = |method: &str, name: &str, body: &str| {
        let chunk = String::from_utf8(chunk(body.as_bytes())).unwrap();
        format!("{method} / HTTP/1.1\r\nHost: {name}.localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n")
    };
    let response = "POST /7ZSFUKGV/http_response/01M8023MVVJJJQZJYDCE19TDTH HTTP/1.1\r\nHost: x\r\n";
    let with_body = "GET /7ZSFUKGV/http_listen/stock HTTP/1.1\r\nHost: x\r\n";
    for (request, status) in [
        (post("stock", "/", ""), 501),
        (post("stock", "/", "a body"), 501),
        (post("stock", "/", &large), 413),
        (chunked("POST", "stock", "a body"), 501),
        (chunked("GET", "stock", "a body"), 501),
        ("DELETE / HTTP/1.1\r\nHost: stock.localhost\r\n\r\n".into(), 501),
        (post("demo", "/", &large), 413),
        (post("demo", "/", "eleven long"), 413),
        (chunked("POST", "demo", &large), 413),
        (post("nobody", "/", ""), 503),
        (post("nobody", "/", "a body"), 503),
        (post("nobody", "/", &large), 503),
        (chunked("POST", "nobody", &large), 503),
        (get("nobody", "/"), 503),
        (carry("a.b", "Ptth-Accept: base64\r\n", "{}"), 400),
        (carry("demo", "Ptth-Accept: base64\r\n", "{"), 400),
        (carry("demo", "Ptth-Accept: base64\r\n", &large), 413),
        (carry("demo", "", &reply("01M8023MVVJJJQZJYDCE19TDTH", "x")), 404),
        (format!("{response}Content-Length: 0\r\n\r\n"), 404),
        (format!("{response}Content-Length: 5000\r\n\r\n{large}"), 404),
        (format!("{response}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 404),
        (format!("{with_body}Content-Length: 5000\r\n\r\n{large}"), 400),
    ] {
        let method = request.split(' ').next().unwrap();
        let mut wire = relay.visitor();
        let answer = wire.send(&request).response(method);
        assert_eq!(answer.status(), status, "{request:.200}\n{}", answer.text());
        if answer.head.get("Connection") == Some("close") {
            wire.expect_end();
        } else {
            let next = wire.send(get("nobody", "/next")).response("GET");
            assert_eq!((next.status(), next.code().as_str()), (503, "tunnel-busy"), "{request:.200}");
        }
    }
    // An agent that announces a body which nobody reads, and one whose visitor has left.
    for method in ["HEAD", "GET"] {
        let mut agent = relay.visitor();
        agent.send(listen("early", ""));
        let mut visitor = relay.visitor();
        visitor.send(format!("{method} / HTTP/1.1\r\nHost: early.localhost\r\n\r\n"));
        let asked = ask(&mut agent);
        agent.send(respond(&asked.id, "Content-Length: 10\r\n"));
        assert_eq!(visitor.response_head(method).unwrap().0.status(), 200);
        drop(visitor);
        let answer = agent.response("POST");
        assert_eq!((answer.status(), answer.head.get("Connection")), (200, Some("close")), "{}", answer.text());
        agent.expect_end();
    }
}
