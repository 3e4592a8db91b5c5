//! Credentials of agents: how the relay is told of them, and how its operator makes what is told.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::link::SWITCH;
use crate::support::wire::Message;
use crate::support::{Agent, Program, Relay, TempPath, agent_command, relay_command};

/// The published test value of `ptth_server`.
const KEY: &str = "PlaypenCausalPlatformCommodeImproveCatalyze";
const LINE: &str = "hash = \"A9rPwZyY89Ag4TJjMoyYA2NeGOm99Je6rq1s0rg8PfY=\"\n";

/// Runs `ptth-relay hash-key` with this on stdin: its exit code, and what it said on stdout and on stderr.
fn hash_key(input: &[u8]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptth-relay"));
    command.arg("hash-key").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// An agents file with this in it.
fn agents_file(text: &str) -> TempPath {
    let file = TempPath::new("agents");
    std::fs::write(&file.0, text).unwrap();
    file
}

/// Runs a relay that ends by itself: its exit code, and its one line on stderr.
fn refused(args: &[&str]) -> (i32, String) {
    let mut program = Program::start(&mut relay_command(args));
    let code = program.exit_code();
    let log = program.log.all();
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(program.out.all().is_empty(), "{:?}", program.out.all());
    (code, log.join("\n"))
}

#[test]
fn hash_key_prints_the_line_to_paste() {
    for input in [KEY.to_owned(), format!("{KEY}\n"), format!(" {KEY}\r\n\n")] {
        assert_eq!(hash_key(input.as_bytes()), (0, LINE.into(), String::new()), "{input:?}");
    }
}

#[test]
fn hash_key_refuses_what_could_not_be_sent() {
    for input in [&b""[..], b"\n", b" \r\n", b"one\ntwo\n", b"a\0b\n", b"a\x1b[1m\n"] {
        let (code, out, log) = hash_key(input);
        assert_eq!((code, out.as_str(), log.lines().count()), (2, "", 1), "{input:?}: {log}");
        assert!(log.contains("credential"), "{input:?}: {log}");
    }
    let (code, out, log) = hash_key(b"\xff\n");
    assert_eq!((code, out.as_str()), (1, ""), "{log}");
    assert!(log.contains("stdin"), "{log}");
}

#[test]
fn hash_key_takes_no_flags_of_the_relay() {
    for args in [&["--open", "hash-key"][..], &["hash-key", "--open"], &["hash-key", KEY], &["hash"]] {
        let mut program = Program::start(&mut relay_command(args));
        assert_eq!(program.exit_code(), 2, "{args:?}");
        assert!(program.out.all().is_empty(), "{args:?}");
    }
}

#[test]
fn the_line_stands_in_a_file_that_a_relay_takes() {
    let file = agents_file(&format!("[[agent]]\nnames = [\"demo\", \"lab-*\"]\n{LINE}"));
    let _relay = Relay::start(&["--agents", file.text()]);
    let public = Program::start(&mut relay_command(&["--listen", "0.0.0.0:0", "--agents", file.text()]));
    public.log.wait_for("listening on http://0.0.0.0:");
}

#[test]
fn an_agents_file_that_can_not_be_is_said_in_one_line() {
    for (text, said) in [
        ("", "ptth-relay hash-key"),
        ("[[agent]\n", "line 1 is no TOML"),
        ("\n[[agent]]\nnames = [\"a\"]\nhash = \"short\"\n", "line 4 (table 1)"),
    ] {
        let file = agents_file(text);
        let (code, log) = refused(&["--agents", file.text()]);
        assert_eq!(code, 2, "{log}");
        assert!(log.contains(said) && log.contains(file.text()), "{log}");
    }
    let (code, log) = refused(&["--agents", "/no/such/file"]);
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("--agents /no/such/file: can't be read"), "{log}");
}

#[test]
fn agents_and_open_are_one_too_many() {
    let file = agents_file(&format!("[[agent]]\nnames = ['*']\n{LINE}"));
    let (code, log) = refused(&["--agents", file.text(), "--open"]);
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("drop --open") && log.contains("or --agents"), "{log}");
}

#[test]
fn a_relay_that_others_could_reach_is_told_of_both_ways() {
    let (code, log) = refused(&["--listen", "0.0.0.0:0"]);
    assert_eq!(code, 2, "{log}");
    let (agents, open) = (log.find("--agents FILE"), log.find("--open"));
    assert!(agents.is_some() && agents < open, "{log}");
}

/// An agent's offer of a link with these fields in it.
fn offer(name: &str, fields: &str) -> String {
    format!(
        "POST /{name} HTTP/1.1\r\nHost: relay.example\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n{fields}\
         Content-Length: 0\r\n\r\n"
    )
}

/// The relay's answer to an offer that it refuses.
fn refusal(relay: &Relay, name: &str, fields: &str) -> Message {
    relay.visitor().send(offer(name, fields)).response("POST")
}

/// A relay that knows [`KEY`] for two kinds of names, and `other` for one.
fn knowing_relay(args: &[&str]) -> Relay {
    let other = hash_key(b"other").1;
    let file = agents_file(&format!(
        "[[agent]]\nnames = [\"demo\", \"lab-*\"]\n{LINE}\n[[agent]]\nnames = [\"other\"]\n{other}"
    ));
    Relay::start(&[&["--agents", file.text()], args].concat())
}

#[test]
fn a_link_is_taken_from_those_whose_name_it_is_in_each_way_to_show_a_key() {
    let relay = knowing_relay(&[]);
    // `agent:` and the key.
    let basic = "YWdlbnQ6UGxheXBlbkNhdXNhbFBsYXRmb3JtQ29tbW9kZUltcHJvdmVDYXRhbHl6ZQ==";
    for fields in [
        format!("Authorization: Bearer {KEY}\r\n"),
        format!("authorization: bearer {KEY}\r\n"),
        format!("Authorization: Basic {basic}\r\n"),
        format!("X-ApiKey: {KEY}\r\n"),
        format!("X-ApiKey: {KEY}\r\nAuthorization: Bearer {KEY}\r\n"),
    ] {
        for name in ["demo", "Demo", "lab-1"] {
            let mut wire = relay.visitor();
            wire.send(offer(name, &fields));
            assert_eq!(wire.raw(SWITCH.len()), SWITCH, "{name} {fields}");
        }
    }
}

#[test]
fn a_link_is_refused_with_a_code_that_says_why() {
    let relay = knowing_relay(&[]);
    let bearer = |key: &str| format!("Authorization: Bearer {key}\r\n");
    for (name, fields, status, code) in [
        ("demo", String::new(), 401, "no-credential"),
        ("demo", bearer("wrong-key"), 401, "bad-credential"),
        ("demo", format!("{}X-ApiKey: wrong-key\r\n", bearer(KEY)), 401, "bad-credential"),
        ("demo", "Authorization: Basic !\r\n".into(), 401, "bad-credential"),
        ("default", bearer(KEY), 403, "name-not-allowed"),
        ("other", bearer(KEY), 403, "name-not-allowed"),
        ("demo", bearer("other"), 403, "name-not-allowed"),
    ] {
        let answer = refusal(&relay, name, &fields);
        assert_eq!((answer.status(), answer.code().as_str()), (status, code), "{name} {fields}");
        let challenge = (status == 401).then_some("Bearer realm=\"ptth-relay\"");
        assert_eq!(answer.head.get("WWW-Authenticate"), challenge, "{name} {fields}");
        assert!(answer.text().contains(&format!("`{name}`")), "{}", answer.text());
        assert!(!answer.text().contains("wrong-key") && !answer.text().contains(KEY), "{}", answer.text());
    }
    assert_eq!(relay.log().count(KEY) + relay.log().count("wrong-key"), 0);
}

#[test]
fn an_agent_with_its_credential_serves_and_one_without_is_told() {
    for workers in ["1", "2"] {
        let relay = knowing_relay(&["--workers", workers]);
        let token = TempPath::new("token");
        std::fs::write(&token.0, format!("{KEY}\n")).unwrap();
        let _agent = Agent::start(&relay, "demo", "hello", &["--token-file", token.text()]);
        assert_eq!(relay.get("demo", "/").status(), 200);
        for (name, args) in [("demo", &[][..]), ("other", &["--token-file", token.text()])] {
            let mut command = agent_command(&["hello", "--via", &relay.url(), "--name", name, "--once"]);
            let mut refused = Program::start(command.args(args));
            assert_eq!(refused.exit_code(), 4, "{name}");
            assert!(!refused.log.all().join("\n").contains(KEY), "{name}");
        }
        // Those who were refused have disturbed nobody.
        assert_eq!(relay.get("demo", "/").status(), 200);
    }
}

#[test]
fn a_visitors_own_credentials_go_through_untouched() {
    let relay = knowing_relay(&[]);
    let token = TempPath::new("token");
    std::fs::write(&token.0, KEY).unwrap();
    let _agent = Agent::start(&relay, "demo", "hello", &["--token-file", token.text()]);
    let mut visitor = relay.visitor();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: demo.localhost:{}\r\nAuthorization: Bearer mine\r\nX-ApiKey: other\r\n\r\n",
        relay.port
    );
    let answer = visitor.send(request).response("GET");
    assert_eq!(answer.status(), 200);
    assert!(answer.text().contains("Bearer mine"), "{}", answer.text());
}
