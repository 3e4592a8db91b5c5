//! What makes a program not start or not stay, and how it says so: one sentence on stderr, and an exit code for scripts.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::thread;

use crate::support::wire::Wire;
use crate::support::{Agent, Dialect, Program, Relay, TempPath, agent_command, dialect, free_port, relay_command};

/// Runs a program that ends by itself: its exit code, and what it said on stderr.
fn ended(command: &mut Command) -> (i32, String) {
    let mut program = Program::start(command);
    let code = program.exit_code();
    assert!(program.out.all().is_empty(), "{:?}", program.out.all());
    (code, program.log.all().join("\n"))
}

/// A relay that answers each connection's offer with these bytes.
fn false_relay(answer: &'static str) -> (TcpListener, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let accepting = listener.try_clone().unwrap();
    thread::spawn(move || {
        for stream in accepting.incoming().map_while(Result::ok) {
            let mut wire = Wire::new(stream);
            if let Ok(Some(_)) = wire.request_head() {
                let _ = wire.try_send(answer);
            }
        }
    });
    (listener, url)
}

#[test]
fn once_ends_with_3_when_the_relay_is_not_reached() {
    let via = format!("http://127.0.0.1:{}", free_port());
    let (code, log) = ended(&mut agent_command(&["8080", "--via", &via, "--once"]));
    assert_eq!(code, 3, "{log}");
    assert!(log.contains(&via) && log.contains("connection refused"), "{log}");
}

#[test]
fn once_ends_with_4_when_the_relay_refuses() {
    let polls = dialect() != Dialect::Flip;
    for (answer, said) in [
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", if polls { "404" } else { "404 instead of 101" }),
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "--token-file"),
        ("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "answered 503"),
        (
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>",
            if polls { "sent a message with" } else { "200 instead of 101" },
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            if polls { "unasked-switch" } else { "switched-elsewhere" },
        ),
        ("", "closed the connection instead of an answer"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "bad-start-line"),
    ] {
        let (_listener, url) = false_relay(answer);
        let (code, log) = ended(&mut agent_command(&["8080", "--via", &url, "--once"]));
        assert_eq!(code, 4, "{answer}: {log}");
        assert!(log.contains(said) && log.contains(&url), "{answer}: {log}");
    }
}

#[test]
fn once_ends_with_5_when_the_relay_goes_away() {
    let mut relay = Relay::start(&[]);
    let mut agent = Agent::start(&relay, "demo", "8080", &["--once"]);
    relay.program.kill();
    assert_eq!(agent.program.exit_code(), 5);
}

#[test]
fn once_ends_with_5_when_the_relay_goes_away_after_it_has_served() {
    let mut relay = Relay::start(&[]);
    let mut agent = Agent::start(&relay, "demo", "hello", &["--once"]);
    let mut visitor = relay.visitor();
    for _ in 0..10 {
        assert_eq!(visitor.get("demo", "/").status(), 200);
    }
    relay.program.kill();
    assert_eq!(agent.program.exit_code(), 5);
}

#[test]
fn an_address_in_use_is_said_in_one_sentence() {
    let relay = Relay::start(&[]);
    let (code, log) = ended(&mut relay_command(&["--listen", &format!("127.0.0.1:{}", relay.port)]));
    assert_eq!(code, 1, "{log}");
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains(&relay.port.to_string()) && log.contains("another program listens there"), "{log}");
}

#[test]
fn a_relay_that_others_could_reach_has_to_be_open_by_intent() {
    let (code, log) = ended(&mut relay_command(&["--listen", "0.0.0.0:0"]));
    assert_ne!(code, 0, "{log}");
    assert!(log.contains("--open"), "{log}");
    let open = Program::start(&mut relay_command(&["--listen", "0.0.0.0:0", "--open"]));
    open.log.wait_for("listening on http://0.0.0.0:");
}

#[test]
fn flags_that_do_not_exist_end_with_2() {
    for (code, log) in [
        ended(&mut relay_command(&["--no-such-flag"])),
        ended(&mut agent_command(&["8080", "--no-such-flag"])),
        ended(&mut agent_command(&[])),
        ended(&mut agent_command(&["8080", "--dialect", "smoke-signals"])),
        ended(&mut relay_command(&["-q", "-v"])),
    ] {
        assert_eq!(code, 2, "{log}");
    }
}

#[test]
fn flags_with_values_that_can_not_be_end_with_2() {
    for args in [
        &["8080", "--links", "5..3"][..],
        &["8080", "--via", "gopher://relay.example"],
        &["8080", "--name", "a b"],
        &["8080", "--timeout", "answer=never"],
        &["8080", "--timeout", "no-such=1s"],
        &["99999"],
    ] {
        let (code, log) = ended(&mut agent_command(args));
        assert_eq!(log.lines().count(), 1, "{args:?}: {log}");
        assert_eq!(code, 2, "{args:?}: {log}");
    }
    for args in [&["--listen", "nowhere"][..], &["--domain", "a b"], &["--limit", "head=0"]] {
        let (code, log) = ended(&mut relay_command(args));
        assert_eq!(log.lines().count(), 1, "{args:?}: {log}");
        assert_eq!(code, 2, "{args:?}: {log}");
    }
}

#[test]
fn help_and_version_are_on_stdout() {
    for command in [&mut relay_command(&["--help"]), &mut agent_command(&["--help"])] {
        let mut program = Program::start(command);
        assert_eq!(program.exit_code(), 0);
        let help = program.out.all().join("\n");
        assert!(help.contains("Exit codes: 0 stopped by a signal") && help.contains("link-answer"), "{help}");
    }
    for command in [&mut relay_command(&["--version"]), &mut agent_command(&["--version"])] {
        let mut program = Program::start(command);
        assert_eq!(program.exit_code(), 0);
        assert!(program.out.all()[0].ends_with(env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn the_environment_stands_in_for_flags() {
    let relay = Relay::start(&[]);
    let mut command = Command::new("env");
    let program = env!("CARGO_BIN_EXE_ptth-reverse");
    command.args([&format!("PTTH_VIA={}", relay.url()), "PTTH_NAME=env", program, "hello"]).args(dialect().flags());
    let agent = Agent::run(&mut command);
    assert_eq!(agent.url, dialect().public_url(relay.port, "env"));
    assert_eq!(relay.get("env", "/").status(), 200);
}

#[test]
fn a_credential_goes_to_the_relay_and_into_no_log() {
    use std::os::unix::fs::PermissionsExt;
    let token = TempPath::new("token");
    std::fs::write(&token.0, "s3cret-of-mine\n").unwrap();
    std::fs::set_permissions(&token.0, std::fs::Permissions::from_mode(0o644)).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut agent =
        Program::start(&mut agent_command(&["8080", "--via", &url, "--token-file", token.text(), "--once", "-vv"]));
    let mut wire = Wire::new(listener.accept().unwrap().0);
    let (offer, _) = wire.request_head().unwrap().unwrap();
    let (field, value) = match dialect() {
        Dialect::Flip | Dialect::Comet => ("Authorization", "Bearer s3cret-of-mine"),
        Dialect::Ptth => ("X-ApiKey", "s3cret-of-mine"),
    };
    assert_eq!(offer.get(field), Some(value));
    wire.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(agent.exit_code(), 4);
    let log = agent.log.all().join("\n");
    assert!(!log.contains("s3cret"), "{log}");
    // Others can read the file, and that is said.
    assert!(log.contains("chmod 600"), "{log}");
}
