//! What the programs write: the access log, whose columns scripts rely on, and the events of `--json`.

use std::fs;

use crate::support::upstream::Upstream;
use crate::support::wire::{get, post};
use crate::support::{Agent, Program, Relay, TempPath, agent_command, dialect, eventually, free_port};

/// A line of the access log in its columns: time, number, visitor, tunnel, method, target, status, bytes in, bytes out,
/// milliseconds, code.
fn columns(line: &str) -> [&str; 11] {
    let columns: Vec<&str> = line.split(' ').collect();
    let columns: [&str; 11] = columns.try_into().unwrap_or_else(|_| panic!("not eleven columns: `{line}`"));
    let time = columns[0];
    assert_eq!((time.len(), &time[10..11], &time[23..]), (24, "T", "Z"), "{line}");
    let (whole, part) = columns[9].split_once('.').unwrap_or_else(|| panic!("no milliseconds: {line}"));
    assert!(whole.parse::<u32>().is_ok() && part.len() == 3 && part.parse::<u32>().is_ok(), "{line}");
    columns
}

#[test]
fn the_access_log_has_eleven_columns() {
    let upstream = Upstream::saying("fine");
    let (relay_log, agent_log) = (TempPath::new("relay.log"), TempPath::new("agent.log"));
    // What is there stays.
    fs::write(&relay_log.0, "a line from before\n").unwrap();
    let relay = Relay::start(&["--access-log", relay_log.text(), "--timeout", "link=100ms"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["--access-log", agent_log.text()]);
    let mut visitor = relay.visitor();
    visitor.get("demo", "/first?q=1");
    visitor.send(post("demo", "/second", "twelve bytes")).response("POST");
    visitor.get("nobody", "/third");
    visitor.send("HEAD /fourth HTTP/1.1\r\nHost: demo.localhost\r\n\r\n").response("HEAD");
    visitor.send("nonsense\r\n\r\n").response("GET");

    let read = |path: &TempPath, lines: usize| {
        eventually("the log to be written", || {
            let text = fs::read_to_string(&path.0).unwrap();
            (text.lines().count() >= lines).then_some(text)
        })
    };
    let text = read(&relay_log, 6);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines.len()), ("a line from before", 6), "{text}");
    let port = visitor.stream.local_addr().unwrap().port();
    let rows: Vec<[&str; 11]> = lines[1..].iter().map(|line| columns(line)).collect();
    let mut last = 0;
    for row in &rows {
        let number: u64 = row[1].parse().unwrap();
        assert!(number > last, "{text}");
        last = number;
        assert!(
            row[2].starts_with("127.0.0.1") && (row[2].len() == 9 || row[2].ends_with(&format!(":{port}"))),
            "{row:?}"
        );
    }
    let rest = |row: &[&str; 11]| [&row[3..9], &row[10..]].concat().join(" ");
    assert_eq!(rest(&rows[0]), "demo GET /first?q=1 200 0 4 -");
    assert_eq!(rest(&rows[1]), "demo POST /second 200 12 4 -");
    assert!(rest(&rows[2]).starts_with("nobody GET /third 503 0 ") && rest(&rows[2]).ends_with(" no-link"), "{text}");
    assert_eq!(rest(&rows[3]), "demo HEAD /fourth 200 0 0 -");
    assert!(rest(&rows[4]).starts_with("- - - 400 0 "), "{text}");

    let text = read(&agent_log, 3);
    let rows: Vec<[&str; 11]> = text.lines().map(columns).collect();
    assert_eq!(rest(&rows[0]), "demo GET /first?q=1 200 0 4 -");
    assert_eq!(rest(&rows[1]), "demo POST /second 200 12 4 -");
    // Who asks is what the relay says.
    assert!(rows.iter().all(|row| row[2].starts_with("127.0.0.1")), "{text}");
}

#[test]
fn nobody_can_add_a_line_or_a_column_to_the_log() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&["--trust-forwarded", "127.0.0.1"]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    // A proxy that is believed, with the list that proxies make of it, or with what its own visitor made up.
    for (n, from) in ["192.0.2.1, 10.0.0.7", "1.2.3.4 demo GET /forged 200", ""].iter().enumerate() {
        let request = format!("GET /{n} HTTP/1.1\r\nHost: demo.localhost\r\nX-Forwarded-For: {from}\r\n\r\n");
        relay.visitor().send(request).response("GET");
        for log in [relay.log(), agent.log()] {
            columns(&log.wait_for(&format!(" demo GET /{n} 200 ")));
        }
    }
    // Bytes beyond ASCII in a target are refused or written in one column.
    let _ = relay.visitor().send(b"GET /\xe4\xc2\x85 HTTP/1.1\r\nHost: demo.localhost\r\n\r\n").try_response("GET");
    relay.get("demo", "/end");
    relay.log().wait_for(" GET /end ");
    for line in relay.log().so_far().iter().filter(|line| line.contains("127.0.0.1") && line.starts_with("20")) {
        columns(line);
    }
}

#[test]
fn json_is_one_event_a_line() {
    let upstream = Upstream::saying("fine");
    let port = free_port();
    let via = format!("http://127.0.0.1:{port}");
    let mut agent = Program::start(&mut agent_command(&[
        &upstream.address(),
        "--via",
        &via,
        "--name",
        "demo",
        "--json",
        "--timeout",
        "backoff=50ms",
    ]));
    let event = |name: &str, nth: usize| -> serde_json::Value {
        let lines = agent.out.wait_for_count(nth, &format!("\"event\":\"{name}\""));
        serde_json::from_str(&lines[nth - 1]).unwrap()
    };
    let retry = event("retry", 1);
    assert!(retry["reason"].as_str().unwrap().contains(&via), "{retry}");
    assert!(retry["in_ms"].as_u64().is_some(), "{retry}");

    let mut relay = Relay::start_on(port, &[]);
    let up = event("up", 1);
    assert_eq!(up["url"], dialect().public_url(port, "demo"));
    assert_eq!((&up["name"], &up["upstream"]), (&"demo".into(), &upstream.address().into()));
    assert_eq!(relay.visitor().send(get("demo", "/")).response("GET").text(), "fine");

    relay.program.kill();
    event("down", 1);
    let _relay = Relay::start_on(port, &[]);
    event("up", 2);
    agent.terminate();
    event("stopping", 1);
    assert_eq!(agent.exit_code(), 0);
    for line in agent.out.all() {
        let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(event["event"].is_string(), "{line}");
    }
}

#[test]
fn quiet_programs_say_nothing_when_all_is_well() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&[]);
    let mut agent =
        Agent::run(&mut agent_command(&[&upstream.address(), "--via", &relay.url(), "--name", "demo", "-q"]));
    assert_eq!(relay.get("demo", "/").text(), "fine");
    agent.program.terminate();
    assert_eq!(agent.program.exit_code(), 0);
    assert!(agent.program.log.all().is_empty(), "{:?}", agent.program.log.all());
}

#[test]
fn very_talkative_programs_still_work() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&["-v"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["-v"]);
    for _ in 0..10 {
        assert_eq!(relay.get("demo", "/").text(), "fine");
    }
}
