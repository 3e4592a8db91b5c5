//! Endings: visitors that vanish, programs that are asked to stop, and a system that has no more files to give.

use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::link::link;
use crate::support::upstream::{After, Upstream};
use crate::support::wire::{Wire, chunk, get, ok};
use crate::support::{Agent, Dialect, PATIENCE, Part, Relay, carries, dialect, eventually, lacks, locked};

/// An upstream that sends one more piece of `/stream` for each message, and ends it when the sender is dropped; any other
/// request is answered at once.
fn stepwise() -> (Upstream, Sender<()>) {
    let (step, steps) = mpsc::channel::<()>();
    let steps = Mutex::new(steps);
    let upstream = Upstream::start(move |asked| {
        if asked.head.target() != "/stream" {
            asked.wire.send(ok("fine"));
            return After::Keep;
        }
        asked.wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        asked.wire.send(chunk(b"piece"));
        let steps = locked(&steps);
        while let Ok(()) = steps.recv_timeout(PATIENCE) {
            if asked.wire.try_send(chunk(b"piece")).is_err() {
                return After::Close;
            }
        }
        let _ = asked.wire.try_send("0\r\n\r\n");
        After::Keep
    });
    (upstream, step)
}

/// A visitor whose answer has begun; where it can be seen, the visitor has seen it.
fn in_the_middle(relay: &Relay, upstream: &Upstream) -> Wire {
    let before = upstream.requests().len();
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/stream"));
    if carries(Part::ComingResponse) {
        assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
        assert_eq!(visitor.body(5), b"piece");
    } else {
        eventually("the upstream to be asked", || (upstream.requests().len() > before).then_some(()));
    }
    visitor
}

/// The rest of its answer: ten more pieces, and the end.
fn finish(mut busy: Wire, step: Sender<()>) -> Wire {
    for _ in 0..10 {
        step.send(()).unwrap();
        if carries(Part::ComingResponse) {
            assert_eq!(busy.body(5), b"piece");
        }
    }
    drop(step);
    if carries(Part::ComingResponse) {
        busy.rest(&mut Vec::new()).unwrap();
    } else {
        assert_eq!(busy.response("GET").text(), "piece".repeat(11));
    }
    busy
}

/// An answer that does not end well.
fn expect_cut_off(mut busy: Wire) {
    if carries(Part::ComingResponse) {
        busy.rest(&mut Vec::new()).expect_err("a clean end");
    } else if let Ok(answer) = busy.try_response("GET") {
        assert!(answer.status() >= 500, "{}", answer.text());
    }
}

/// Whether a port takes no connections.
fn is_closed(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err()
}

#[test]
fn visitors_that_left_while_they_waited_leave_nothing_behind() {
    const VISITORS: usize = 300;
    ptth::config::raise_file_limit();
    let relay = Relay::start(&["--timeout", "link=60s", "--limit", "waiting=100"]);
    // What it opens at its start is open when it has answered once.
    assert_eq!(relay.visitor().send("x\r\n\r\n").response("GET").status(), 400);
    let files = relay.program.open_files();
    // Three times as many as may wait at once.
    for _ in 0..3 {
        let mut visitors: Vec<Wire> = (0..VISITORS / 3).map(|_| relay.visitor()).collect();
        for visitor in &mut visitors {
            visitor.send(get("demo", "/gone"));
        }
        let before = relay.log().count(" visitor-gone");
        // Some close, some are torn off.
        for visitor in visitors.iter().step_by(2) {
            socket2::SockRef::from(&visitor.stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(visitors);
        let lines = relay.log().wait_for_count(before + VISITORS / 3, " demo GET /gone 499 ");
        assert!(lines.iter().all(|line| line.ends_with(" visitor-gone")));
    }
    // An agent that comes now hears of none of them.
    let mut link = link(&relay, "demo");
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/here"));
    assert_eq!(link.request().head.target(), "/here");
    link.send(ok("fine"));
    assert_eq!(visitor.response("GET").text(), "fine");
    drop((link, visitor));
    relay.program.wait_for_files(files);
    let peak = relay.program.peak_memory();
    assert!(peak < 20 * 1024 * 1024, "{peak} bytes");
}

#[test]
fn a_visitor_that_leaves_in_the_middle_takes_its_exchange_along() {
    // COMET has no word for an answer that is not wanted any more: that is said when it comes.
    if lacks(Part::ComingResponse) {
        return;
    }
    let (upstream, step) = stepwise();
    let relay = Relay::start(&["--timeout", "half-close=100ms"]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "half-close=100ms"]);
    let mut visitor = relay.visitor();
    assert_eq!(visitor.get("demo", "/").text(), "fine");
    let files = [relay.program.open_files(), agent.program.open_files()];
    for round in 1..=5 {
        drop(in_the_middle(&relay, &upstream));
        relay.log().wait_for_count(round, " visitor-gone");
        agent.log().wait_for_count(round, " demo GET /stream 200 ");
        // The upstream finds that nobody listens.
        eventually("the upstream's connection to be closed", || {
            let _ = step.send(());
            (upstream.open_connections() == 0).then_some(())
        });
    }
    drop(step);
    assert_eq!(visitor.get("demo", "/").text(), "fine");
    // As many as before, give or take the links that come and go.
    let now = [&relay.program, &agent.program].map(|program| program.open_files());
    assert!(now.iter().zip(files).all(|(now, before)| *now <= before + 4), "{now:?}, before {files:?}");
}

#[test]
fn an_agent_hears_that_a_visitor_has_left_before_there_is_an_answer() {
    // Whoever polls hears of it with the answer only.
    if dialect() != Dialect::Flip {
        return;
    }
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let upstream = Upstream::start(move |asked| {
        asked.wire.expect_end();
        locked(&tell).send(()).unwrap();
        After::Close
    });
    let relay = Relay::start(&["--timeout", "half-close=100ms"]);
    // The relay's end is none of a visitor that may be half there.
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "half-close=1h"]);
    let mut visitor = relay.visitor();
    visitor.send(get("demo", "/"));
    eventually("the request to be there", || (!upstream.requests().is_empty()).then_some(()));
    drop(visitor);
    told.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn a_visitor_that_breaks_off_while_nobody_takes_its_request_frees_everything() {
    if lacks(Part::ComingRequest) || lacks(Part::ComingResponse) {
        return;
    }
    // It has begun its answer, and takes no more of the request.
    let upstream = Upstream::start(|asked| {
        asked.wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n");
        thread::park();
        After::Close
    });
    let relay = Relay::start(&[]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send("POST /full HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 1000000000\r\n\r\n");
    assert_eq!(visitor.response_head("POST").unwrap().0.status(), 200);
    visitor.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let bytes = vec![b'x'; 64 * 1024];
    while visitor.try_send(&bytes).is_ok() {}
    visitor.break_on_drop();
    drop(visitor);
    for log in [relay.log(), agent.log()] {
        assert!(log.wait_for(" demo POST /full 200 ").ends_with("visitor-gone"));
    }
}

#[test]
fn a_visitor_that_leaves_in_the_middle_of_its_request_is_not_taken_at_its_word() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let upstream = Upstream::start(move |asked| {
        let mut body = Vec::new();
        let whole = asked.wire.rest(&mut body).is_ok();
        locked(&tell).send((whole, body)).unwrap();
        asked.wire.try_send(ok("fine")).ok();
        After::Close
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let parts = ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"];
    for (round, part) in (1..).zip(parts) {
        let mut visitor = relay.visitor();
        visitor.send(format!("POST / HTTP/1.1\r\nHost: demo.localhost\r\n{part}"));
        if carries(Part::ComingRequest) {
            eventually("the request to be there", || (upstream.requests().len() == round).then_some(()));
        }
        drop(visitor);
        if !carries(Part::ComingRequest) {
            // It does not even hear of it.
            relay.log().wait_for_count(round, " demo POST / ");
            assert!(upstream.requests().is_empty());
            continue;
        }
        let (whole, body) = told.recv_timeout(PATIENCE).unwrap();
        assert!(!whole, "the upstream took `{}` for the whole body", body.escape_ascii());
    }
}

#[test]
fn a_relay_that_is_asked_to_stop_finishes_what_it_has_begun() {
    for signal in [Signal::TERM, Signal::INT] {
        let (upstream, step) = stepwise();
        let mut relay = Relay::start(&[]);
        let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
        let busy = in_the_middle(&relay, &upstream);
        let mut idle = relay.visitor();
        assert_eq!(idle.get("demo", "/").text(), "fine");
        let mut fresh = relay.visitor();

        relay.program.signal(signal);
        relay.log().wait_for("stopping: 1 request ");
        idle.expect_end();
        if dialect() == Dialect::Flip {
            fresh.expect_end();
            eventually("the port to be closed", || is_closed(relay.port).then_some(()));
        } else {
            // An agent's answer may come on a connection that has not said anything yet, or is not there; visitors are told.
            eventually("visitors to be told", || {
                let answer = relay.get("demo", "/");
                (answer.status() == 503).then(|| assert_eq!(answer.code(), "stopping"))
            });
        }
        assert!(relay.program.is_running());

        finish(busy, step).expect_end();
        assert_eq!(relay.program.exit_code(), 0);
    }
}

#[test]
fn an_agent_that_is_asked_to_stop_finishes_what_it_has_begun() {
    let (upstream, step) = stepwise();
    let relay = Relay::start(&["--timeout", "link=300ms"]);
    let mut agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let busy = in_the_middle(&relay, &upstream);
    assert_eq!(relay.get("demo", "/").text(), "fine");

    agent.program.terminate();
    agent.log().wait_for("stopping: 1 request ");
    // Its other links are gone: nobody new comes to it, though one may meet the last moment of a link or of a poll.
    let answer = relay.get("demo", "/");
    if answer.status() != 200 {
        let told = (answer.status(), answer.code());
        assert!(matches!((told.0, told.1.as_str()), (503, "no-link" | "links-busy")), "{told:?}");
    }
    assert!(agent.program.is_running());
    let mut busy = finish(busy, step);
    assert_eq!(agent.program.exit_code(), 0);
    // The visitor's connection is none of the agent's.
    assert_eq!(busy.get("demo", "/").code(), "no-link");
}

#[test]
fn requests_go_to_another_agent_while_one_stops() {
    let (upstream, step) = stepwise();
    let relay = Relay::start(&[]);
    let mut first = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let busy = in_the_middle(&relay, &upstream);
    let second = Upstream::saying("second");
    let _second = Agent::start(&relay, "demo", &second.address(), &[]);
    first.program.terminate();
    // Whatever meets the end of a link is asked elsewhere.
    for _ in 0..50 {
        let answer = relay.get("demo", "/");
        assert!(answer.status() == 200, "{}", answer.text());
    }
    finish(busy, step);
    assert_eq!(first.program.exit_code(), 0);
    assert_eq!(relay.get("demo", "/").text(), "second");
}

#[test]
fn a_second_signal_ends_at_once() {
    for signals in [[Signal::TERM, Signal::TERM], [Signal::INT, Signal::TERM]] {
        let (upstream, _step) = stepwise();
        let mut relay = Relay::start(&[]);
        let mut agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
        let busy = in_the_middle(&relay, &upstream);
        agent.program.signal(signals[0]);
        agent.log().wait_for("stopping");
        agent.program.signal(signals[1]);
        assert_eq!(agent.program.exit_code(), 130);
        if carries(Part::ComingResponse) {
            // Else there is nothing yet that could break: only time tells the relay that no answer will come.
            expect_cut_off(busy);
        }

        let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
        let busy = in_the_middle(&relay, &upstream);
        relay.program.signal(signals[0]);
        relay.log().wait_for("stopping");
        relay.program.signal(signals[1]);
        assert_eq!(relay.program.exit_code(), 130);
        expect_cut_off(busy);
    }
}

#[test]
fn what_does_not_end_in_time_is_cut_off() {
    let (upstream, _step) = stepwise();
    let mut relay = Relay::start(&["--timeout", "drain=300ms"]);
    let mut agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "drain=300ms"]);
    let busy = in_the_middle(&relay, &upstream);
    relay.program.terminate();
    relay.log().wait_for("did not end in time");
    assert_eq!(relay.program.exit_code(), 0);
    expect_cut_off(busy);
    agent.program.terminate();
    assert_eq!(agent.program.exit_code(), 0);
}

#[test]
fn programs_with_nothing_to_do_stop_at_once() {
    let mut relay = Relay::start(&[]);
    let mut agent = Agent::start(&relay, "demo", "hello", &[]);
    let _visitor = relay.visitor();
    relay.program.terminate();
    assert_eq!(relay.program.exit_code(), 0);
    agent.program.terminate();
    assert_eq!(agent.program.exit_code(), 0);
}

#[test]
fn a_relay_can_be_stopped_as_soon_as_it_has_said_that_it_listens() {
    for workers in ["1", "8"].repeat(10) {
        let mut relay = Relay::start(&["--workers", workers]);
        relay.program.terminate();
        assert_eq!(relay.program.exit_code(), 0);
    }
}

#[test]
fn a_request_that_waits_is_told_when_the_relay_stops() {
    let mut relay = Relay::start(&["--timeout", "link=60s"]);
    let mut waiting = relay.visitor();
    waiting.send(get("demo", "/"));
    // An answer to another one says that this one was taken in, for both come on one port in their order.
    let mut half = relay.visitor();
    half.send("half\r\n\r\n");
    assert_eq!(half.response("GET").status(), 400);
    relay.program.terminate();
    let answer = waiting.response("GET");
    assert_eq!((answer.status(), answer.code().as_str()), (503, "stopping"));
    assert_eq!(relay.program.exit_code(), 0);
}

#[test]
fn a_relay_out_of_files_says_so_once_and_goes_on() {
    let upstream = Upstream::saying("fine");
    // Under a limit that its own attempt to raise it can't change.
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "ulimit -n 40; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_ptth-relay"),
        "--listen",
        "127.0.0.1:0",
        "-v",
        "--workers",
        "1",
    ]);
    let relay = Relay::run(&mut command);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut old = relay.visitor();
    assert_eq!(old.get("demo", "/").text(), "fine");

    // Of visitors there are never too many for the files; of agents there may be.
    let mut crowd: Vec<Wire> = (0..15).map(|_| link(&relay, "crowd")).collect();
    crowd.extend((0..20).map(|_| {
        let mut agent = relay.visitor();
        agent.send("POST /crowd HTTP/1.1\r\nHost: x\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n");
        agent
    }));
    relay.log().wait_for("ulimit -n");
    for _ in 0..20 {
        assert_eq!(old.get("demo", "/").text(), "fine");
    }
    // One that knocked and is not let in yet, and its turn when others go.
    let mut patient = relay.visitor();
    patient.send(get("demo", "/patient"));
    crowd.drain(..30);
    assert_eq!(patient.response("GET").text(), "fine");
    assert_eq!(relay.get("demo", "/").text(), "fine");
    assert_eq!(old.get("demo", "/").text(), "fine");
    let said = relay.log().count("ulimit -n");
    assert_eq!(said, 1);
}
