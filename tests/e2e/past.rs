//! Long bodies go past the memory of both programs, from socket to socket. Nobody can tell.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::sync::{Mutex, mpsc};
use std::thread;

use crate::support::random::{Random, hash};
use crate::support::upstream::{After, Upstream};
use crate::support::wire::{Wire, get, ok, serve};
use crate::support::{Agent, PATIENCE, Program, Relay, TempPath, eventually, locked};

/// Lengths around those at which something changes: buffers, the shortest body that passes, a pipe.
const LENGTHS: [usize; 11] = [
    0,
    4 * 1024,
    16 * 1024 - 1,
    16 * 1024,
    20 * 1024 + 1,
    64 * 1024,
    100 * 1024,
    200 * 1024 + 7,
    1024 * 1024,
    1024 * 1024 + 4097,
    3_000_001,
];

/// An upstream that gives each body back.
fn echoing() -> Upstream {
    Upstream::start(|asked| {
        let Some(body) = asked.body() else { return After::Close };
        let head = format!("HTTP/1.1 200 OK\r\nX-Hash: {}\r\nContent-Length: {}\r\n\r\n", hash(&body), body.len());
        let _ = asked.wire.try_send([head.as_bytes(), &body].concat());
        After::Keep
    })
}

fn upload(length: usize) -> String {
    format!("PUT /{length} HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: {length}\r\n\r\n")
}

/// Sends bodies of these lengths without waiting for an answer, and looks at all answers.
fn ahead_of_their_answers(mut visitor: Wire, lengths: &[usize], seed: u64) {
    let mut random = Random::seeded(seed);
    let bodies: Vec<Vec<u8>> = lengths.iter().map(|length| random.bytes(*length)).collect();
    let all: Vec<u8> = bodies.iter().flat_map(|body| [upload(body.len()).as_bytes(), body].concat()).collect();
    let mut writer = visitor.writer();
    let writing = thread::spawn(move || writer.write_all(&all).unwrap());
    for body in bodies {
        let answer = visitor.response("PUT");
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert_eq!(answer.head.get("X-Hash"), Some(hash(&body).to_string().as_str()));
        assert!(answer.body == body, "another body than the {} bytes that were sent", body.len());
    }
    writing.join().unwrap();
}

/// How many ends of pipes a program has.
fn pipes(program: &Program) -> usize {
    let folder = format!("/proc/{}/fd", program.id());
    let files = std::fs::read_dir(folder).unwrap().flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
    files.filter(|path| path.to_string_lossy().starts_with("pipe:")).count()
}

#[test]
fn long_bodies_arrive_as_they_were_sent_and_behind_each_comes_the_next_message() {
    let upstream = echoing();
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let visitors: Vec<_> = (0..6)
        .map(|seed| {
            let visitor = relay.visitor();
            thread::spawn(move || {
                let mut random = Random::seeded(seed);
                let lengths: Vec<usize> = (0..20).map(|_| *random.pick(&LENGTHS)).collect();
                ahead_of_their_answers(visitor, &lengths, seed);
            })
        })
        .collect();
    for visitor in visitors {
        visitor.join().unwrap();
    }
}

#[test]
fn they_do_to_a_unix_socket_as_well_and_through_several_workers() {
    let path = TempPath::new("upstream");
    let (listener, behind) = (UnixListener::bind(&path.0).unwrap(), echoing());
    let port = behind.port;
    thread::spawn(move || {
        // What comes at the one socket goes to the other.
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut other = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (mut back, mut from) = (stream.try_clone().unwrap(), other.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut back);
                let _ = back.shutdown(Shutdown::Write);
            });
            thread::spawn(move || {
                let _ = std::io::copy(&mut stream, &mut other);
                let _ = other.shutdown(Shutdown::Write);
            });
        }
    });
    let relay = Relay::start(&["--workers", "3"]);
    let _agent = Agent::start(&relay, "demo", &format!("unix:{}", path.text()), &[]);
    for seed in 0..3 {
        ahead_of_their_answers(relay.visitor(), &LENGTHS, seed);
    }
}

#[test]
fn one_pipe_serves_all_who_come_after_each_other_and_none_serves_those_who_rest() {
    let upstream = echoing();
    let relay = Relay::start(&[]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let programs = [&relay.program, &agent.program];
    let before = programs.map(pipes);
    let mut visitors: Vec<Wire> = (0..10).map(|_| relay.visitor()).collect();
    for visitor in &mut visitors {
        assert_eq!(visitor.get("demo", "/").status(), 200);
    }
    assert_eq!(programs.map(pipes), before, "a pipe for bodies that are short");
    let body = Random::seeded(1).bytes(2_000_000);
    for visitor in &mut visitors {
        let mut writer = visitor.writer();
        let bytes = [upload(body.len()).as_bytes(), &body].concat();
        let writing = thread::spawn(move || writer.write_all(&bytes).unwrap());
        assert!(visitor.response("PUT").body == body);
        writing.join().unwrap();
    }
    // Its two ends. A body and its answer may go through at the same time.
    for (program, before) in programs.into_iter().zip(before) {
        let more = pipes(program) - before;
        assert!(more == 2 || more == 4, "{more} ends of pipes");
    }
}

#[test]
fn each_piece_of_a_long_body_arrives_before_the_next_is_sent() {
    // Large ones and small ones: from one to the other the way changes.
    const PIECES: [usize; 12] = [1, 100_000, 1, 1, 5_000, 300_000, 70_000, 2, 9_000, 40_000, 3, 3];
    const LENGTH: usize = 524_011;
    let (heard, hear) = mpsc::channel();
    let (confirm, confirmed) = mpsc::channel();
    let (heard, confirmed) = (Mutex::new(heard), Mutex::new(confirmed));
    let upstream = Upstream::start(move |asked| {
        for length in PIECES {
            locked(&heard).send(asked.wire.body(length)).unwrap();
        }
        asked.wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
        let mut random = Random::seeded(2);
        for length in PIECES {
            asked.wire.send(random.bytes(length));
            locked(&confirmed).recv_timeout(PATIENCE).unwrap();
        }
        After::Keep
    });
    assert_eq!(PIECES.iter().sum::<usize>(), LENGTH);
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    for _ in 0..3 {
        visitor.send(upload(LENGTH));
        let mut random = Random::seeded(1);
        for length in PIECES {
            let piece = random.bytes(length);
            visitor.send(&piece);
            assert!(hear.recv_timeout(PATIENCE).unwrap() == piece);
        }
        assert_eq!(visitor.response_head("PUT").unwrap().0.status(), 200);
        let mut random = Random::seeded(2);
        for length in PIECES {
            assert!(visitor.body(length) == random.bytes(length));
            confirm.send(()).unwrap();
        }
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_body_that_breaks_off_breaks_off_for_its_reader() {
    const LENGTH: usize = 8_000_000;
    for (sent, reset) in [(LENGTH - 1, false), (LENGTH / 2, false), (100_000, false), (LENGTH / 2, true)] {
        let (ended, end) = mpsc::channel();
        let ended = Mutex::new(ended);
        let (begun, begin) = mpsc::channel();
        let begun = Mutex::new(begun);
        let upstream = Upstream::start(move |asked| {
            if asked.head.method() == "PUT" {
                locked(&begun).send(()).unwrap();
                let mut body = Vec::new();
                let broken = asked.wire.rest(&mut body).is_err();
                locked(&ended).send((body.len(), broken)).unwrap();
                return After::Close;
            }
            asked.wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
            asked.wire.send(Random::seeded(3).bytes(sent));
            if reset {
                asked.wire.break_on_drop();
            }
            After::Close
        });
        let relay = Relay::start(&[]);
        let agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
        let mut visitor = relay.visitor();
        visitor.send(get("demo", "/"));
        assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
        let mut body = Vec::new();
        visitor.rest(&mut body).expect_err("a body that broke off has a clean end");
        assert!(Random::seeded(3).bytes(sent).starts_with(&body));
        assert!(agent.log().wait_for(" GET / 200 ").ends_with(" upstream-lost"));
        assert!(relay.log().wait_for(" GET / 200 ").ends_with(" link-lost"));

        let mut visitor = relay.visitor();
        visitor.send(upload(LENGTH)).send(Random::seeded(3).bytes(sent));
        // A reset takes along whatever has not gone further yet, and that might be all.
        begin.recv_timeout(PATIENCE).unwrap();
        if reset {
            visitor.break_on_drop();
        }
        drop(visitor);
        let (length, broken) = end.recv_timeout(PATIENCE).unwrap();
        assert!(broken && length <= sent, "{length} bytes, broken: {broken}");
        assert!(relay.log().wait_for(" PUT /").ends_with(" visitor-gone"));
    }
}

#[test]
fn a_visitor_that_leaves_a_long_answer_frees_its_upstream() {
    let upstream = Upstream::start(|asked| {
        let _ = asked.wire.try_send("HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n");
        let block = vec![b'x'; 1 << 20];
        while asked.wire.try_send(&block).is_ok() {}
        After::Close
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    for reset in [false, true] {
        let mut visitor = relay.visitor();
        visitor.send(get("demo", "/"));
        assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
        assert_eq!(visitor.body(3_000_000).len(), 3_000_000);
        if reset {
            visitor.break_on_drop();
        }
    }
    relay.log().wait_for_count(2, "visitor-gone");
    eventually("the upstream to be free", || (upstream.open_connections() == 0).then_some(()));
}

#[test]
fn more_than_was_announced_reaches_nobody() {
    const LENGTH: usize = 500_000;
    let upstream = Upstream::start(|asked| {
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").into_bytes();
        answer.extend_from_slice(&Random::seeded(4).bytes(LENGTH));
        answer.extend_from_slice(ok("what nobody has asked for").as_bytes());
        let _ = asked.wire.try_send(answer);
        After::Keep
    });
    let relay = Relay::start(&[]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    for connections in 1..4 {
        assert!(visitor.get("demo", "/").body == Random::seeded(4).bytes(LENGTH));
        // One that has said more than it was asked is not asked again.
        assert_eq!(upstream.connections(), connections);
    }
}

#[test]
fn readers_that_rest_hold_up_neither_each_other_nor_those_who_read() {
    // More than an agent has pipes for; and more bytes than there is room for in the sockets on the way.
    const RESTING: usize = 20;
    const LENGTH: usize = 24_000_000;
    let expected = Random::seeded(5).bytes(LENGTH);
    let answer = [format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes(), &expected].concat();
    let upstream = Upstream::start(move |asked| {
        let _ = asked.wire.try_send(&answer);
        After::Keep
    });
    // Neither is what this is about.
    let relay = Relay::start(&["--timeout", "link=10m", "--timeout", "write=10m"]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &["--links", "2..100"]);
    let mut resting: Vec<Wire> = (0..RESTING).map(|_| relay.visitor()).collect();
    for visitor in &mut resting {
        visitor.send(get("demo", "/"));
        assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
    }
    for _ in 0..3 {
        assert!(relay.get("demo", "/").body == expected);
    }
    for mut visitor in resting {
        let mut body = Vec::new();
        visitor.rest(&mut body).unwrap();
        assert!(body == expected);
    }
    for program in [&relay.program, &agent.program] {
        let peak = program.peak_memory();
        assert!(peak < 40 << 20, "{peak} bytes");
    }
}

#[test]
fn a_tunnel_carries_much_and_little_in_turn_and_each_way_ends_by_itself() {
    const LENGTHS: [usize; 9] = [1, 500_000, 3, 4096, 4097, 65_536, 2_000_000, 10, 30_000];
    // The total of what came is the last word, which comes behind the visitor's end.
    let address = serve(|wire| {
        let mut total = 0;
        while let Some(bytes) = wire.piece() {
            total += bytes.len();
            if wire.try_send(&bytes).is_err() {
                return;
            }
        }
        let _ = wire.try_send(format!("{total:08}"));
        wire.shut();
    });
    let relay = Relay::start(&["--tcp", "127.0.0.1:0=demo"]);
    let line = relay.log().wait_for("tcp://127.0.0.1:");
    let port = line.split("tcp://127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap();
    let _agent = Agent::start(&relay, "demo", &address, &[]);
    let mut client = Wire::connect(port);
    let mut random = Random::seeded(6);
    for length in LENGTHS {
        let bytes = random.bytes(length);
        let (mut writer, sent) = (client.writer(), bytes.clone());
        let writing = thread::spawn(move || writer.write_all(&sent).unwrap());
        assert!(client.raw(length) == bytes, "other bytes than were sent");
        writing.join().unwrap();
    }
    let (mut writer, last) = (client.writer(), random.bytes(5_000_000));
    let sent = last.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    assert!(client.raw(last.len()) == last, "other bytes than were sent");
    writing.join().unwrap();
    let total = LENGTHS.iter().sum::<usize>() + last.len();
    assert_eq!(client.raw(8), format!("{total:08}").as_bytes());
    client.expect_end();
    let line = relay.log().wait_for(" CONNECT demo.localhost:");
    assert!(line.contains(&format!(" 200 {total} {} ", total + 8)) && line.ends_with(" -"), "{line}");
}

#[test]
fn an_urgent_byte_in_a_tunnel_is_lost_and_holds_up_nothing() {
    const LENGTH: usize = 2_000_000;
    // Twice as much as this and no byte more.
    let address = serve(|wire| {
        let mut heard = Vec::new();
        while let Some(bytes) = wire.piece() {
            heard.extend_from_slice(&bytes);
        }
        let _ = wire.try_send(format!("{:020} {}", hash(&heard), heard.len()));
    });
    let relay = Relay::start(&["--tcp", "127.0.0.1:0=demo"]);
    let line = relay.log().wait_for("tcp://127.0.0.1:");
    let port = line.split("tcp://127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap();
    let _agent = Agent::start(&relay, "demo", &address, &[]);
    let mut client = Wire::connect(port);
    let bytes = Random::seeded(8).bytes(2 * LENGTH);
    client.send(&bytes[..LENGTH]);
    socket2::SockRef::from(&client.stream).send_out_of_band(b"!").unwrap();
    client.send(&bytes[LENGTH..]).shut();
    let expected = format!("{:020} {}", hash(&bytes), bytes.len());
    assert_eq!(String::from_utf8(client.raw(expected.len())).unwrap(), expected);
    client.expect_end();
}
