//! Many at once, and much at once.

use std::io::Write;
use std::sync::{Arc, Barrier};
use std::thread;

use crate::support::random::{Hash, Random, hash};
use crate::support::upstream::{After, Asked, Upstream};
use crate::support::wire::{Framing, Wire, chunk};
use crate::support::{Agent, Part, Relay, carries, lacks};

const VISITORS: usize = 1000;

/// A request that knows what its answer has to be.
#[derive(Clone, Debug)]
struct Plan {
    number: usize,
    method: &'static str,
    body: Vec<u8>,
    chunked: bool,
    /// The answer's body: the bytes of a seed, so many of them.
    seed: u64,
    length: usize,
    answer_chunked: bool,
}

impl Plan {
    fn random(number: usize, random: &mut Random) -> Plan {
        let size = |random: &mut Random| match random.below(4) {
            0 => 0,
            1 => random.below(1000),
            2 => random.below(20_000),
            _ => random.below(200 * 1024),
        };
        let method = *random.pick(&["GET", "POST", "PUT", "DELETE", "HEAD"]);
        let length = if matches!(method, "GET" | "HEAD") { 0 } else { size(random) };
        Plan {
            number,
            method,
            body: random.bytes(length),
            chunked: random.below(2) == 0,
            seed: random.next(),
            length: size(random),
            answer_chunked: random.below(2) == 0,
        }
    }

    fn request(&self) -> Vec<u8> {
        let Plan { number, method, body, seed, length, .. } = self;
        let way = if self.answer_chunked { "chunked" } else { "length" };
        let mut bytes = format!(
            "{method} /{number} HTTP/1.1\r\nHost: demo.localhost\r\nX-Answer: {seed} {length} {way}\r\nX-Hash: {}\r\n",
            hash(body)
        )
        .into_bytes();
        if self.body.is_empty() && !self.chunked {
            bytes.extend_from_slice(b"\r\n");
        } else {
            bytes.extend_from_slice(framed(body, self.chunked, 7919).as_slice());
        }
        bytes
    }

    fn check(&self, visitor: &mut Wire) {
        let answer = visitor.send(self.request()).response(self.method);
        assert_eq!(answer.status(), 200, "{} {}: {}", self.method, self.number, answer.text());
        assert_eq!(answer.head.get("X-Target"), Some(format!("/{}", self.number).as_str()));
        assert_eq!(answer.head.get("X-Heard"), Some(hash(&self.body).to_string().as_str()));
        let expected = if self.method == "HEAD" { Vec::new() } else { Random::seeded(self.seed).bytes(self.length) };
        assert!(answer.body == expected, "{} {}: another body", self.method, self.number);
    }
}

/// The framing fields of a message, the end of its head, and its body.
fn framed(body: &[u8], chunked: bool, chunk_length: usize) -> Vec<u8> {
    if chunked {
        let chunks: Vec<u8> = body.chunks(chunk_length).flat_map(chunk).collect();
        [b"Transfer-Encoding: chunked\r\n\r\n", &chunks[..], b"0\r\n\r\n"].concat()
    } else {
        [format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
    }
}

fn answer_as_asked(asked: &mut Asked<'_>) -> After {
    let Some(body) = asked.body() else { return After::Close };
    let head = &asked.head;
    let mut words = head.get("X-Answer").unwrap().split(' ');
    let (seed, length) = (words.next().unwrap().parse().unwrap(), words.next().unwrap().parse().unwrap());
    let heard = hash(&body);
    assert_eq!(head.get("X-Hash"), Some(heard.to_string().as_str()), "{}", head.text);
    let mut answer = format!("HTTP/1.1 200 OK\r\nX-Target: {}\r\nX-Heard: {heard}\r\n", head.target()).into_bytes();
    let body = framed(&Random::seeded(seed).bytes(length), words.next() == Some("chunked"), 30_011);
    let end = body.windows(4).position(|part| part == b"\r\n\r\n").unwrap() + 4;
    answer.extend_from_slice(if head.method() == "HEAD" { &body[..end] } else { &body });
    let _ = asked.wire.try_send(answer);
    After::Keep
}

#[test]
fn a_thousand_visitors_at_once_each_get_the_answer_to_their_own_request() {
    a_thousand_visitors(&[]);
}

#[test]
fn a_thousand_visitors_of_several_workers_each_get_the_answer_to_their_own_request() {
    a_thousand_visitors(&["--workers", "3"]);
}

#[test]
fn a_thousand_visitors_through_tiny_buffers_each_get_the_answer_to_their_own_request() {
    a_thousand_visitors(&["--limit", "buffer=100", "--limit", "head=1000"]);
}

fn a_thousand_visitors(flags: &[&str]) {
    ptth::config::raise_file_limit();
    let seed = Random::seed();
    eprintln!("PTTH_TEST_SEED={seed}");
    let mut random = Random::seeded(seed);
    let upstreams = [Upstream::start(answer_as_asked), Upstream::start(answer_as_asked)];
    // All of it may have to wait as messages.
    let relay = Relay::start(&[&["--timeout", "link=60s", "--limit", "queue=1000000000"], flags].concat());
    let limits: &[&str] = if flags.contains(&"--limit") { flags } else { &[] };
    let agents = upstreams.each_ref().map(|upstream| Agent::start(&relay, "demo", &upstream.address(), limits));

    let start = Arc::new(Barrier::new(VISITORS));
    let visitors: Vec<_> = (0..VISITORS)
        .map(|number| {
            let plans = [Plan::random(number, &mut random), Plan::random(number + VISITORS, &mut random)];
            let (start, mut visitor) = (Arc::clone(&start), relay.visitor());
            let visit = move || {
                start.wait();
                // The second one on the same connection finds it as it should be.
                plans.iter().for_each(|plan| plan.check(&mut visitor));
            };
            thread::Builder::new().stack_size(256 * 1024).spawn(visit).unwrap()
        })
        .collect();
    let failed = visitors.into_iter().filter_map(|visitor| visitor.join().err()).count();
    assert_eq!(failed, 0, "of {VISITORS} visitors");

    let shares = upstreams.each_ref().map(|upstream| upstream.requests().len());
    assert_eq!(shares[0] + shares[1], 2 * VISITORS);
    assert!(shares.iter().all(|share| *share > VISITORS / 5), "not shared: {shares:?}");
    for agent in &agents {
        assert_eq!(agent.log().count("warning"), 0);
    }
}

/// How large a body may be that goes in this direction: a quarter of a gigabyte is as much as we have time for.
fn large(direction: Part) -> u64 {
    if carries(direction) { 256 << 20 } else { 1 << 20 }
}

/// What a program may have in memory at most.
const MEMORY: u64 = 20 * 1024 * 1024;

#[test]
fn large_bodies_go_both_ways_at_once_in_little_memory() {
    // The upstream sends back each piece as it comes.
    let upstream = Upstream::start(|asked| {
        let mut out = asked.wire.writer();
        let mut sent = out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while let Ok(true) = asked.wire.body_piece(usize::MAX, |piece| {
            let head = format!("{:x}\r\n", piece.len());
            sent = out
                .write_all(head.as_bytes())
                .and_then(|()| out.write_all(piece))
                .and_then(|()| out.write_all(b"\r\n"));
        }) {
            if sent.is_err() {
                return After::Close;
            }
        }
        let _ = out.write_all(b"0\r\n\r\n");
        After::Keep
    });
    let relay = Relay::start(&[]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &[]);

    let large = large(Part::ComingRequest);
    let mut visitor = relay.visitor();
    let mut out = visitor.writer();
    let writer = thread::spawn(move || {
        let block = Random::seeded(7).bytes(1 << 20);
        let mut sent = Hash::default();
        let head = format!("POST / HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: {large}\r\n\r\n");
        out.write_all(head.as_bytes()).unwrap();
        for _ in 0..large / block.len() as u64 {
            out.write_all(&block).unwrap();
            sent.add(&block);
        }
        sent.value()
    });
    let (head, ..) = visitor.response_head("POST").unwrap();
    assert_eq!(head.status(), 200);
    let (mut heard, mut length) = (Hash::default(), 0);
    while visitor
        .body_piece(usize::MAX, |piece| {
            heard.add(piece);
            length += piece.len() as u64;
        })
        .unwrap()
    {}
    assert_eq!(length, large);
    assert_eq!(heard.value(), writer.join().unwrap());
    for program in [&relay.program, &agent.program] {
        let peak = program.peak_memory();
        assert!(peak < MEMORY, "{peak} bytes");
    }
}

#[test]
fn a_large_answer_comes_in_little_memory() {
    let large = large(Part::ComingResponse);
    let upstream = Upstream::start(move |asked| {
        let block = Random::seeded(7).bytes(1 << 20);
        let mut sent = asked.wire.try_send(format!("HTTP/1.1 200 OK\r\nContent-Length: {large}\r\n\r\n"));
        for _ in 0..large / block.len() as u64 {
            sent = sent.and_then(|()| asked.wire.try_send(&block));
        }
        After::Keep
    });
    let relay = Relay::start(&[]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut visitor = relay.visitor();
    visitor.send("GET / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n");
    assert_eq!(visitor.response_head("GET").unwrap().1, Framing::Length(large));
    let (mut heard, mut length) = (Hash::default(), 0);
    while visitor
        .body_piece(usize::MAX, |piece| {
            heard.add(piece);
            length += piece.len() as u64;
        })
        .unwrap()
    {}
    let (mut expected, block) = (Hash::default(), Random::seeded(7).bytes(1 << 20));
    (0..large / block.len() as u64).for_each(|_| expected.add(&block));
    assert_eq!((length, heard.value()), (large, expected.value()));
    for program in [&relay.program, &agent.program] {
        let peak = program.peak_memory();
        assert!(peak < MEMORY, "{peak} bytes");
    }
}

#[test]
fn a_visitor_who_does_not_read_costs_little_memory_and_nobody_else_anything() {
    if lacks(Part::ComingResponse) {
        return;
    }
    // Without end.
    let upstream = Upstream::start(|asked| {
        if asked.head.target() == "/small" {
            let _ = asked.wire.try_send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsmall");
            return After::Keep;
        }
        let block = vec![b'x'; 1 << 16];
        let _ = asked.wire.try_send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while asked.wire.try_send(chunk(&block)).is_ok() {}
        After::Close
    });
    let relay = Relay::start(&[]);
    let agent = Agent::start(&relay, "demo", &upstream.address(), &[]);
    let mut lazy: Vec<Wire> = (0..20).map(|_| relay.visitor()).collect();
    for visitor in &mut lazy {
        visitor.send("GET /endless HTTP/1.1\r\nHost: demo.localhost\r\n\r\n");
        // The answer has begun, and is not read on.
        assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
    }
    for _ in 0..100 {
        assert_eq!(relay.get("demo", "/small").text(), "small");
    }
    for program in [&relay.program, &agent.program] {
        let peak = program.peak_memory();
        assert!(peak < MEMORY, "{peak} bytes");
    }
    drop(lazy);
    relay.log().wait_for_count(20, "visitor-gone");
}

#[test]
fn links_grow_with_the_load_and_go_when_it_is_over() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::start(move |asked| {
        if asked.head.target() == "/slow" {
            // Until the sender is dropped.
            let _ = crate::support::locked(&wait).recv();
        }
        let _ = asked.wire.try_send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine");
        After::Keep
    });
    // What is polled for goes when its poll ends.
    let relay = Relay::start(&["--timeout", "poll=300ms"]);
    let _agent = Agent::start(&relay, "demo", &upstream.address(), &["--timeout", "spare=200ms"]);
    assert_eq!(relay.get("demo", "/").text(), "fine");
    let files = relay.program.open_files();
    let mut visitors: Vec<Wire> = (0..40).map(|_| relay.visitor()).collect();
    for visitor in &mut visitors {
        visitor.send("GET /slow HTTP/1.1\r\nHost: demo.localhost\r\n\r\n");
    }
    // All at once, on as many links.
    crate::support::eventually("forty requests", || (upstream.requests().len() == 41).then_some(()));
    drop(go);
    for visitor in &mut visitors {
        assert_eq!(visitor.response("GET").text(), "fine");
    }
    drop(visitors);
    // Two links as before, whatever may be asked meanwhile.
    for _ in 0..50 {
        assert_eq!(relay.get("demo", "/").text(), "fine");
    }
    relay.program.wait_for_files(files + 2);
    assert_eq!(relay.get("demo", "/").text(), "fine");
}

#[test]
fn thousands_that_come_and_go_leave_no_memory_behind() {
    let relay = Relay::start(&["--timeout", "link=60s"]);
    let come_and_go = |visitors: usize| {
        for n in 0..visitors {
            let mut visitor = relay.visitor();
            visitor.send(format!("GET /{} HTTP/1.1\r\nHost: t{n}.localhost\r\n\r\n", "x".repeat(1000)));
        }
        let all = relay.log().so_far().iter().filter(|line| line.contains(" GET /")).count();
        relay.log().wait_for_count(all.max(visitors), " 499 ");
    };
    come_and_go(2000);
    let before = relay.program.peak_memory();
    come_and_go(2000);
    come_and_go(2000);
    let after = relay.program.peak_memory();
    assert!(after < before + 1024 * 1024, "{before} bytes before, {after} after");
}
