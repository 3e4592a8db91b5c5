//! A request takes no memory from the system: whatever it needs is there from the requests before it. Relay and agent run in
//! this process as the binaries run them, each on a thread of its own, and everything in the process is counted: the visitor and
//! the upstream have what they need before the count begins, too.
//!
//! What is allowed is what comes with a connection and not with a request: buffers, places in tables, an entry in the queue of
//! timers. All of it is there after a warm-up.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that fails should say where, and a test is no event loop"
)]

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;

use alloc_tracker::{Allocator, Session};
use clap::Parser;
use ptth::{agent, cli, config, relay};

#[global_allocator]
static ALLOCATOR: Allocator<System> = Allocator::system();

/// Requests that are counted, and those before them: more than there are links, connections to the upstream, and buffers.
const COUNTED: usize = 1000;
const WARM_UP: usize = 300;

/// Where a body fills a buffer because its reader is slower than its writer, a larger one is taken: now and then, and never for
/// each request.
const OF_BODIES: u64 = COUNTED as u64 / 2;

/// Visitors who come at once, and what is allowed for lists and buffers that were never as long as in some moment, and for answers
/// that are set aside because something held the machine up: one for twenty requests, and in peace for hundreds.
const VISITORS: usize = 16;
const OF_CROWDS: u64 = (VISITORS * COUNTED / 20) as u64;

/// Held by the test that runs: all in the process is counted.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_request_allocates_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let upstream = Upstream::start();
    let mut visitor = Tunnel::start(upstream.port, &["--access-log", "/dev/null"]).visitor();
    let mut found = Vec::new();
    for (what, request, allowed) in [
        ("GET, nothing back", get("/"), 0),
        ("GET, 1 KiB back", get("/1k"), 0),
        ("GET, chunks back", get("/chunks"), 0),
        ("GET with much to pass on", browser(), 0),
        ("GET by path", get("/frontend/servers/default/1k?x"), 0),
        ("POST of 1 KiB", post(1 << 10), 0),
        ("GET, 100 KiB back", get("/100k"), OF_BODIES),
        ("POST of 100 KiB", post(100 << 10), OF_BODIES),
    ] {
        let mut ask = |times| {
            for _ in 0..times {
                visitor.ask(&request);
            }
        };
        ask(WARM_UP);
        let count = counted(|| ask(COUNTED));
        if count > allowed {
            found.push((what, count));
        }
    }
    assert!(found.is_empty(), "allocations in {COUNTED} requests: {found:?}");
}

#[test]
fn a_request_among_many_allocates_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let upstream = Upstream::start();
    let tunnel = Tunnel::start(upstream.port, &[]);
    let (warm, over) = (Arc::new(Barrier::new(VISITORS + 1)), Arc::new(Barrier::new(VISITORS + 1)));
    for _ in 0..VISITORS {
        let (mut visitor, warm, over) = (tunnel.visitor(), Arc::clone(&warm), Arc::clone(&over));
        thread::spawn(move || {
            let request = get("/1k");
            (0..WARM_UP).for_each(|_| visitor.ask(&request));
            warm.wait();
            (0..COUNTED).for_each(|_| visitor.ask(&request));
            over.wait();
        });
    }
    warm.wait();
    let count = counted(|| {
        over.wait();
    });
    assert!(count <= OF_CROWDS, "{count} allocations in {VISITORS} times {COUNTED} requests");
}

/// Allocations of the whole process while something runs.
fn counted(run: impl FnOnce()) -> u64 {
    let session = Session::new();
    let operation = session.operation("requests");
    let span = operation.measure_process();
    run();
    drop(span);
    session.to_report().operations().map(|(_, requests)| requests.total_allocations_count()).sum()
}

fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n").into_bytes()
}

fn post(length: usize) -> Vec<u8> {
    let head = format!("POST /0 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), &vec![b'x'; length]].concat()
}

/// A request with what a browser and the proxies in front of it send: of this hop, of another, long.
fn browser() -> Vec<u8> {
    let cookie = "a".repeat(2000);
    format!(
        "GET /1k?{cookie} HTTP/1.1\r\nHost: demo.example\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\n\
         Accept: text/html,application/xhtml+xml\r\nAccept-Encoding: gzip, br\r\nAccept-Language: de\r\nTE: trailers\r\n\
         X-Forwarded-For: 203.0.113.7\r\nForwarded: for=203.0.113.7\r\nVia: 1.1 front\r\nCookie: {cookie}\r\n\r\n"
    )
    .into_bytes()
}

/// A visitor on one connection.
struct Visitor {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Visitor {
    /// Asks, and takes the whole answer.
    fn ask(&mut self, request: &[u8]) {
        self.stream.write_all(request).unwrap();
        assert!(read_whole(&mut self.stream, &mut self.buffer));
    }
}

/// Reads a message with its body. False at the end of the stream.
fn read_whole(stream: &mut TcpStream, buffer: &mut [u8]) -> bool {
    let mut got = 0;
    loop {
        match stream.read(&mut buffer[got..]) {
            Ok(n) if n > 0 => got += n,
            _ => return false,
        }
        let end = buffer[..got].windows(4).position(|end| end == b"\r\n\r\n");
        if let Some(end) = end {
            let (head, body) = buffer[..got].split_at(end + 4);
            let chunked = head.windows(7).any(|coding| coding == b"chunked");
            if if chunked { body.ends_with(b"0\r\n\r\n") } else { body.len() >= length(head) } {
                return true;
            }
        }
    }
}

/// The `Content-Length` of a head, or 0.
fn length(head: &[u8]) -> usize {
    const NAME: &[u8] = b"Content-Length: ";
    let Some(at) = head.windows(NAME.len()).position(|name| name == NAME) else { return 0 };
    let digits = head[at + NAME.len()..].iter().take_while(|b| b.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}

/// A relay and an agent, until the end of the process.
struct Tunnel {
    port: u16,
}

impl Tunnel {
    fn start(upstream: u16, flags: &[&str]) -> Tunnel {
        let settings = config::relay::settings(&cli::Relay::parse_from(
            [&["ptth-relay", "--listen", "127.0.0.1:0"], flags].concat(),
        ));
        let (reactors, at) = relay::start(settings.unwrap(), 1024).unwrap();
        let port = at[0].port();
        thread::spawn(move || relay::run(reactors));
        let (target, via) = (format!("127.0.0.1:{upstream}"), format!("http://127.0.0.1:{port}"));
        let command: [&str; 6] = ["ptth-reverse", &target, "--via", &via, "--name", "default"];
        let settings = config::reverse(&cli::Reverse::parse_from([&command, flags].concat())).unwrap();
        let mut reactor = agent::start(settings, 1024).unwrap();
        thread::spawn(move || reactor.run());
        Tunnel { port }
    }

    /// A connection to the relay. The first request on it waits for the agent.
    fn visitor(&self) -> Visitor {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        Visitor { stream, buffer: vec![0; 1 << 20] }
    }
}

/// A server whose answers are there before they are asked for.
struct Upstream {
    port: u16,
}

impl Upstream {
    fn start() -> Upstream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = |size: usize| {
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: keep-alive\r\nEtag: \"1\"\r\n\r\n");
            [head.as_bytes(), &vec![b'x'; size]].concat()
        };
        let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
        let sizes = [("/1k", answer(1 << 10)), ("/100k", answer(100 << 10)), ("/", answer(0))];
        let answers: Arc<[_]> = [("/chunks", chunks.to_vec())].into_iter().chain(sizes).collect();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let answers = Arc::clone(&answers);
                thread::spawn(move || serve(&mut stream.unwrap(), &answers));
            }
        });
        Upstream { port }
    }
}

fn serve(stream: &mut TcpStream, answers: &[(&str, Vec<u8>)]) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 1 << 20];
    while read_whole(stream, &mut buffer) {
        let target = buffer.split(|b| *b == b' ').nth(1).unwrap();
        let (_, answer) = answers.iter().find(|(path, _)| target.starts_with(path.as_bytes())).unwrap();
        stream.write_all(answer).unwrap();
    }
}
