//! Agents and relays that go and come: who was there before locks nobody out, and everything finds together again.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::Signal;

use crate::support::upstream::{After, Upstream};
use crate::support::wire::{get, ok, post};
use crate::support::{
    Agent, Dialect, Program, Relay, agent_command, dialect, eventually, free_port, locked, relay_command,
};

/// Flags of an agent that is quick to dial again.
const QUICK: [&str; 4] = ["--timeout", "backoff=50ms", "--timeout", "backoff-max=200ms"];

#[test]
fn an_agent_that_was_killed_comes_back_under_its_name() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&[]);
    for _ in 0..3 {
        let mut agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
        assert_eq!(relay.get("demo", "/").text(), "fine");
        agent.program.kill();
    }
    // Nothing of the dead ones is in the way.
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    for _ in 0..10 {
        assert_eq!(relay.get("demo", "/").text(), "fine");
    }
}

#[test]
fn a_request_waits_for_an_agent_to_come() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&["--timeout", "link=60s"]);
    let mut visitors = [relay.visitor(), relay.visitor(), relay.visitor()];
    for visitor in &mut visitors {
        visitor.send(get("demo", "/"));
    }
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    for visitor in &mut visitors {
        assert_eq!(visitor.response("GET").text(), "fine");
    }
}

#[test]
fn without_an_agent_the_answer_is_a_503_that_names_the_tunnel() {
    let relay = Relay::start(&["--timeout", "link=200ms"]);
    let mut visitor = relay.visitor();
    for _ in 0..2 {
        let answer = visitor.get("lonely", "/");
        assert_eq!((answer.status(), answer.code().as_str()), (503, "no-link"));
        assert!(answer.text().contains("`lonely`") && answer.text().contains("--name lonely"), "{}", answer.text());
        assert!(answer.head.has("Retry-After"));
    }
    assert!(relay.log().wait_for(" lonely GET / 503 ").ends_with(" no-link"));
}

#[test]
fn more_requests_than_may_wait_are_told_at_once() {
    let relay = Relay::start(&["--limit", "waiting=2", "--timeout", "link=60s"]);
    let mut waiting = [relay.visitor(), relay.visitor()];
    for visitor in &mut waiting {
        visitor.send(get("demo", "/"));
    }
    // The relay takes them in any order: of four, two are told.
    let mut others = [relay.visitor(), relay.visitor()];
    for visitor in &mut others {
        visitor.send(get("demo", "/"));
    }
    let lines = relay.log().wait_for_count(2, " demo GET / 503 ");
    assert!(lines.iter().all(|line| line.ends_with(" tunnel-busy")), "{lines:?}");
    let upstream = Upstream::saying("fine");
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let answers = waiting.iter_mut().chain(&mut others).map(|visitor| visitor.response("GET").status());
    let served = answers.filter(|status| *status == 200).count();
    assert_eq!(served, 2);
}

#[test]
fn an_agent_gets_in_while_one_of_its_name_is_frozen() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&["--timeout", "link-answer=300ms"]);
    let frozen = Agent::start(&relay, "demo", &upstream.address(), &QUICK);
    assert_eq!(relay.get("demo", "/").text(), "fine");
    frozen.program.freeze();
    let _second = Agent::start(&relay, "demo", &upstream.address(), &[]);
    // Each link of the frozen one can take a request and be found out by it; then there are none left.
    let mut late = 0;
    for _ in 0..20 {
        let answer = relay.get("demo", "/");
        if answer.status() == 504 {
            assert_eq!(answer.code(), "link-timeout");
            late += 1;
        } else {
            assert_eq!(answer.text(), "fine");
        }
    }
    assert!(late <= 3, "{late} requests were lost to the frozen agent");

    // When it wakes up it finds its links gone, and is back.
    frozen.program.thaw();
    let before = frozen.log().count(" demo GET / 200 ");
    eventually("the thawed agent to serve", || {
        assert_eq!(relay.get("demo", "/").text(), "fine");
        (frozen.log().count(" demo GET / 200 ") > before).then_some(())
    });
}

#[test]
fn an_agent_finds_its_relay_again_after_a_restart() {
    let upstream = Upstream::saying("fine");
    let port = free_port();
    let mut relay = Relay::start_on(port, &[]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &QUICK);
    assert_eq!(relay.get("demo", "/").text(), "fine");
    for restart in 1..=3 {
        relay.program.kill();
        agent.log().wait_for_count(restart, "trying again in");
        relay = Relay::start_on(port, &["--timeout", "link=60s"]);
        assert_eq!(relay.get("demo", "/").text(), "fine");
        agent.log().wait_for_count(restart, "again");
    }
    assert_eq!(agent.program.out.so_far().len(), 1, "the URL was printed again");
}

#[test]
fn an_agent_may_be_there_before_its_relay() {
    let upstream = Upstream::saying("fine");
    let port = free_port();
    let via = format!("http://127.0.0.1:{port}");
    let mut command = agent_command(&[&upstream.address(), "--via", &via, "--name", "demo"]);
    let agent = Program::start(command.args(QUICK));
    let line = agent.log.wait_for("trying again in");
    assert!(line.contains(&via) && line.contains("connection refused"), "{line}");
    assert!(agent.out.so_far().is_empty());
    let relay = Relay::start_on(port, &["--timeout", "link=60s"]);
    assert_eq!(relay.get("demo", "/").text(), "fine");
    assert_eq!(agent.out.wait_for("http"), dialect().public_url(port, "demo"));
}

#[test]
fn a_relay_that_hangs_up_at_once_is_not_dialled_in_a_circle() {
    // It accepts, and closes.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let via = format!("http://{}", listener.local_addr().unwrap());
    let args = ["hello", "--via", &via, "--timeout", "backoff=200ms", "--timeout", "backoff-max=400ms"];
    let mut agent = Program::start(&mut agent_command(&args));
    for connection in listener.incoming().take(6) {
        drop(connection);
    }
    // Six attempts, two at once: by then it has rested twice at least.
    let lines = agent.log.wait_for_count(2, "trying again in");
    assert!(lines.iter().all(|line| line.contains("closed") || line.contains("reset")), "{lines:?}");
    agent.terminate();
    assert_eq!(agent.exit_code(), 0);
}

#[test]
fn a_relay_serves_its_tunnels_again_after_it_was_frozen() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    relay.program.freeze();
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/"));
    relay.program.signal(Signal::CONT);
    assert_eq!(visitor.response("GET").text(), "fine");
}

#[test]
fn a_relay_says_when_a_tunnel_is_up_and_when_it_is_down() {
    let upstream = Upstream::saying("fine");
    let relay = Relay::run(&mut relay_command(&["--listen", "127.0.0.1:0"]));
    let mut agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    relay.log().wait_for("tunnel `demo` is up");
    for _ in 0..20 {
        assert_eq!(relay.get("demo", "/").text(), "fine");
    }
    agent.program.kill();
    relay.log().wait_for("tunnel `demo` is down");
    assert_eq!(relay.log().count("tunnel `demo` is up"), 1);
}

/// Requests by their numbers, as the upstream saw them.
type Seen = Arc<Mutex<HashMap<String, usize>>>;

fn counting(seen: &Seen) -> Upstream {
    let seen = Arc::clone(seen);
    Upstream::start(move |asked| {
        if asked.body().is_none() {
            return After::Close;
        }
        *locked(&seen).entry(format!("{} {}", asked.head.method(), asked.head.target())).or_default() += 1;
        let _ = asked.wire.try_send(ok(asked.head.target()));
        After::Keep
    })
}

/// Visitors that ask as fast as they can while `disturb` does its worst: gives how many requests were lost. Of a link that ends,
/// those that can't be sent again are. Of a poll that ends nobody but its agent knows what became of it: whatever that had is lost with it,
/// and known to be when no answer has come.
fn ask_all_the_while(relay: &Relay, seen: &Seen, disturb: impl FnOnce()) -> usize {
    const VISITORS: usize = 16;
    let over = AtomicBool::new(false);
    let lost = AtomicUsize::new(0);
    let asked = AtomicUsize::new(0);
    thread::scope(|scope| {
        let visitors: Vec<_> = (0..VISITORS)
            .map(|visitor| {
                let (over, lost, asked) = (&over, &lost, &asked);
                scope.spawn(move || {
                    for n in 0.. {
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                        asked.fetch_add(1, Ordering::Relaxed);
                        let target = format!("/{visitor}/{n}");
                        let (request, method) = match n % 2 {
                            0 => (get("demo", &target), "GET"),
                            _ => (post("demo", &target, "an order"), "POST"),
                        };
                        let answer = relay.visitor().send(request).response(method);
                        if answer.status() == 200 {
                            assert_eq!(answer.text(), target);
                            continue;
                        }
                        lost.fetch_add(1, Ordering::Relaxed);
                        let told = (answer.status(), answer.code());
                        match dialect() {
                            Dialect::Flip => assert_eq!((told.0, told.1.as_str(), method), (502, "link-lost", "POST")),
                            Dialect::Comet | Dialect::Ptth => {
                                assert_eq!(told, (504, "link-timeout".into()), "{method}")
                            }
                        }
                    }
                })
            })
            .collect();
        disturb();
        over.store(true, Ordering::Relaxed);
        let failed = visitors.into_iter().filter_map(|visitor| visitor.join().err()).count();
        assert_eq!(failed, 0, "of {VISITORS} visitors");
    });
    let seen = locked(seen);
    let twice: Vec<_> = seen.iter().filter(|(what, times)| what.starts_with("POST") && **times > 1).collect();
    assert!(twice.is_empty(), "sent twice: {twice:?}");
    assert!(asked.into_inner() > 100, "hardly anything was asked");
    lost.into_inner()
}

#[test]
fn nothing_but_an_order_under_way_is_lost_when_one_of_two_agents_is_killed() {
    let seen = Seen::default();
    let upstream = counting(&seen);
    // After so long, what went to a poll is taken for lost.
    let flags: &[&str] = if dialect() == Dialect::Flip { &[] } else { &["--timeout", "link-answer=1s"] };
    let relay = Relay::start(flags);
    let _steady = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let lost = ask_all_the_while(&relay, &seen, || {
        for _ in 0..8 {
            let mut agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
            let served = agent.log().so_far().len();
            eventually("the new agent to serve", || (agent.log().so_far().len() > served + 20).then_some(()));
            agent.program.kill();
        }
    });
    // As many as can be under way at once, eight times.
    assert!(lost <= 8 * 16, "{lost} requests were lost");
}

#[test]
fn nothing_but_an_order_under_way_is_lost_when_one_of_two_agents_is_stopped() {
    let seen = Seen::default();
    let upstream = counting(&seen);
    let relay = Relay::start(&["--workers", "2"]);
    let _steady = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let lost = ask_all_the_while(&relay, &seen, || {
        for _ in 0..8 {
            let mut agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
            let served = agent.log().so_far().len();
            eventually("the new agent to serve", || (agent.log().so_far().len() > served + 20).then_some(()));
            agent.program.terminate();
            assert_eq!(agent.program.exit_code(), 0);
        }
    });
    eprintln!("{lost} POSTs met the end of a link");
    // An agent that polls hears of what was sent to it in its last moment.
    let most = if dialect() == Dialect::Flip { 8 * 16 } else { 0 };
    assert!(lost <= most, "{lost} POSTs were lost");
}
