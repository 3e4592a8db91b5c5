//! Two connections that speak with each other over a fake wire and by a fake clock: random cuts, random delays, wires that
//! break at a random byte, all of it from one seed that a failure prints. `PTTH_SEED=n` runs that one again.
//!
//! What must hold: what one end understood is what the other one said, up to where a wire broke; and it ends.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that fails should say where")]

mod common;

use std::env;
use std::time::Duration;

use common::random::Random;
use common::{Side, escape, push_event};
use ptth_proto::conn::{Body, Closing, Config, Conn, Event};
use ptth_proto::error::{CloseReason, Error, Fault, Misuse};
use ptth_proto::limits::{Deadlines, NET_PTTH_PAUSE, NET_PTTH_QUIET, Wait};
use ptth_proto::link::upgrade::Token;
use ptth_proto::role::Role;
use ptth_proto::time::Instant;
use ptth_proto::wire::fields::Fields;
use ptth_proto::wire::head::{FieldWriter, Head};

// ---- The fake wire, and who sits at its ends.

/// What one exchange is to be; both ends know the plan.
#[derive(Clone, Debug)]
struct Plan {
    method: &'static str,
    request: Content,
    informational: Vec<u16>,
    status: u16,
    response: Content,
    /// The answer does not wait for the end of the request.
    early: bool,
    /// The answer says that the connection is not kept.
    close: bool,
}

#[derive(Clone, Debug)]
struct Content {
    body: Body,
    pieces: Vec<Vec<u8>>,
    trailers: bool,
}

impl Content {
    fn none() -> Content {
        Content { body: Body::None, pieces: Vec::new(), trailers: false }
    }

    fn length(pieces: &[&[u8]]) -> Content {
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        Content { body: Body::Length(pieces.concat().len() as u64), pieces, trailers: false }
    }

    fn stream(pieces: &[&[u8]], trailers: bool) -> Content {
        Content { body: Body::Stream, pieces: pieces.iter().map(|piece| piece.to_vec()).collect(), trailers }
    }

    fn random(random: &mut Random) -> Content {
        let pieces: Vec<Vec<u8>> = (0..random.below(4))
            .map(|_| {
                let length = if random.once_in(8) { random.below(5000) } else { random.below(40) };
                random.bytes(length)
            })
            .collect();
        match random.below(3) {
            0 => Content::none(),
            1 => Content { body: Body::Length(pieces.concat().len() as u64), pieces, trailers: false },
            _ => Content { body: Body::Stream, pieces, trailers: random.once_in(2) },
        }
    }
}

impl Plan {
    fn get(response: Content) -> Plan {
        Plan {
            method: "GET",
            request: Content::none(),
            informational: Vec::new(),
            status: 200,
            response,
            early: false,
            close: false,
        }
    }

    fn post(request: Content, response: Content) -> Plan {
        Plan { method: "POST", request, ..Plan::get(response) }
    }

    fn random(random: &mut Random) -> Plan {
        Plan {
            method: ["GET", "POST", "PUT", "HEAD", "OPTIONS"][random.below(5)],
            request: Content::random(random),
            informational: if random.once_in(4) { vec![100, 103][..1 + random.below(2)].to_vec() } else { Vec::new() },
            status: [200, 201, 204, 304, 404, 500][random.below(6)],
            response: Content::random(random),
            early: random.once_in(8),
            close: random.once_in(20),
        }
    }

    /// Whether nothing of the answer's body may go out.
    fn is_bodiless(&self) -> bool {
        self.method == "HEAD" || matches!(self.status, 204 | 304)
    }
}

/// Where an end is in its own message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speech {
    Waiting,
    Informational(usize),
    Head,
    Piece(usize),
    End,
}

/// One end of the wire and whoever drives it.
struct Peer {
    conn: Conn,
    head: Head,
    input: Vec<u8>,
    out: Vec<u8>,
    said: Vec<Vec<u8>>,
    heard: Vec<Vec<u8>>,
    speech: Speech,
    /// The exchange that this end is in, or asks for next.
    exchange: usize,
    error: Option<Error>,
    /// The driver has given the connection up by itself.
    dropped: bool,
    eof_arrived: bool,
    eof_told: bool,
    eof_sent: bool,
}

impl Peer {
    fn new(conn: Conn) -> Peer {
        Peer {
            conn,
            head: Head::default(),
            input: Vec::new(),
            out: Vec::new(),
            said: Vec::new(),
            heard: Vec::new(),
            speech: Speech::Waiting,
            exchange: 0,
            error: None,
            dropped: false,
            eof_arrived: false,
            eof_told: false,
            eof_sent: false,
        }
    }

    fn is_over(&self) -> bool {
        self.dropped || self.conn.closing() == Some(Closing::Flush)
    }

    fn says(&mut self, event: impl AsRef<[u8]>) {
        push_event(&mut self.said, event.as_ref());
    }

    /// Reads all that can be read. Gives whether anything happened.
    fn hear(&mut self, now: Instant, config: &Config, plans: &[Plan]) -> bool {
        let mut happened = false;
        while self.error.is_none() && !self.dropped {
            let (used, event) = match self.conn.recv(now, &self.input, &mut self.head, config) {
                Ok((0, None)) => break,
                Ok((used, event)) => (used, event.map(|event| heard(&event, &self.head))),
                Err(error) => {
                    self.fail(now, error);
                    return true;
                }
            };
            happened = true;
            self.input.drain(..used);
            if let Some(event) = event {
                self.react(&event, plans);
            }
        }
        if self.eof_arrived && !self.eof_told && self.error.is_none() && !self.dropped {
            self.eof_told = true;
            happened = true;
            match self.conn.eof(now, self.input.len()) {
                Ok(None) => {}
                Ok(Some(event)) => {
                    let event = heard(&event, &self.head);
                    self.react(&event, plans);
                }
                Err(error) => self.fail(now, error),
            }
        }
        happened
    }

    fn react(&mut self, event: &[u8], plans: &[Plan]) {
        push_event(&mut self.heard, event);
        let plan = plans.get(self.exchange);
        let starts = match plan {
            Some(plan) if event.starts_with(b"request ") => plan.early,
            // Early answers are under way by the end of the request.
            Some(plan) if event.starts_with(b"end") && self.conn.role() == Some(Role::Server) => !plan.early,
            _ => false,
        };
        if starts {
            self.speech = Speech::Informational(0);
        }
    }

    /// A server says why; everyone closes.
    fn fail(&mut self, now: Instant, error: Error) {
        self.error = Some(error);
        assert_eq!(self.conn.recv(now, b"", &mut self.head, &Config::default()), Err(error), "it is repeated");
        match error.status() {
            Some(status) if self.conn.can_respond() => self.refuse(now, status),
            _ => self.dropped = true,
        }
    }

    fn refuse(&mut self, now: Instant, status: u16) {
        self.conn.do_not_keep();
        self.conn.send_response(now, &mut self.out, (status, b""), Body::None, |_| {}).unwrap();
        self.conn.send_end(now, None, &mut self.out).unwrap();
        self.says(format!("response {status}"));
        self.says("end");
        self.speech = Speech::Waiting;
    }

    /// Says the next thing of the plan, if it is this end's turn.
    fn speak(&mut self, now: Instant, plans: &[Plan], trailers: &Fields, asks: bool) -> bool {
        if self.is_over() || self.error.is_some() {
            return false;
        }
        if asks && self.speech == Speech::Waiting && self.conn.is_idle() {
            match plans.get(self.exchange) {
                Some(_) => self.speech = Speech::Head,
                // All is said and answered.
                None => {
                    self.conn.do_not_keep();
                    self.says("closed");
                    return true;
                }
            }
        }
        let Some(plan) = plans.get(self.exchange) else { return false };
        let content = if asks { &plan.request } else { &plan.response };
        let mute = !asks && plan.is_bodiless();
        let (conn, out) = (&mut self.conn, &mut self.out);
        // A message that has a length is whole with its last byte, and one without a body with its head. Its end is said at
        // once then, before the other side can react.
        let whole = |pieces: &[Vec<u8>]| mute || content.body != Body::Stream && pieces.iter().all(Vec::is_empty);
        match self.speech {
            Speech::Waiting => return false,
            Speech::Informational(at) => match plan.informational.get(at) {
                Some(status) => {
                    conn.send_informational(out, (*status, b""), |_| {}).unwrap();
                    self.says(format!("informational {status}"));
                    self.speech = Speech::Informational(at + 1);
                }
                None => self.speech = Speech::Head,
            },
            Speech::Head if asks => {
                let target = format!("/{}", self.exchange);
                let start = (plan.method.as_bytes(), target.as_bytes());
                conn.send_request(now, out, start, content.body, |writer| writer.field("Host", "a.example")).unwrap();
                self.says(format!("request {} {target}", plan.method));
                self.speech = Speech::Piece(0);
                self.finish_if(whole(&content.pieces), mute, content, now);
            }
            Speech::Head => {
                if plan.close {
                    conn.do_not_keep();
                }
                conn.send_response(now, out, (plan.status, b""), content.body, |_| {}).unwrap();
                self.says(format!("response {}", plan.status));
                self.speech = Speech::Piece(0);
                self.finish_if(whole(&content.pieces), mute, content, now);
            }
            Speech::Piece(at) => match content.pieces.get(at) {
                Some(piece) => {
                    conn.send_data(now, piece, out).unwrap();
                    if !piece.is_empty() {
                        self.says([b"data ", &piece[..]].concat());
                    }
                    self.speech = Speech::Piece(at + 1);
                    self.finish_if(whole(&content.pieces[at + 1..]), mute, content, now);
                }
                None => self.speech = Speech::End,
            },
            Speech::End => {
                let trailers = content.trailers.then_some(trailers);
                conn.send_end(now, trailers, out).unwrap();
                let with = content.body == Body::Stream && trailers.is_some();
                self.says(if with { "end +" } else { "end" });
                self.speech = Speech::Waiting;
                self.exchange += 1;
            }
        }
        true
    }

    fn finish_if(&mut self, whole: bool, mute: bool, content: &Content, now: Instant) {
        if whole {
            // What nobody may hear is swallowed.
            for piece in content.pieces.iter().filter(|_| mute) {
                self.conn.send_data(now, piece, &mut self.out).unwrap();
            }
            self.conn.send_end(now, None, &mut self.out).unwrap();
            self.says("end");
            self.speech = Speech::Waiting;
            self.exchange += 1;
        }
    }

    /// Answers a deadline that has passed.
    fn expire(&mut self, now: Instant, wait: Wait) {
        match wait {
            Wait::Pause | Wait::Quiet | Wait::Linger => drop(self.conn.timeout(now, wait)),
            Wait::Head | Wait::Body if self.conn.can_respond() => self.refuse(now, 408),
            _ => self.dropped = true,
        }
    }
}

fn heard(event: &Event<'_>, head: &Head) -> Vec<u8> {
    match event {
        Event::Request(_) => [b"request ", head.method(), b" ", head.target()].concat(),
        Event::Offer(_) => b"offer".to_vec(),
        Event::Informational => format!("informational {}", head.status()).into_bytes(),
        Event::Alive => b"alive".to_vec(),
        Event::Aside => b"aside".to_vec(),
        Event::Leaving => b"leaving".to_vec(),
        Event::Response(_) => format!("response {}", head.status()).into_bytes(),
        Event::Turned => b"turned".to_vec(),
        Event::Switched => format!("switched {}", head.status()).into_bytes(),
        Event::Data(data) => [b"data ", *data].concat(),
        Event::End { trailers: true } => b"end +".to_vec(),
        Event::End { trailers: false } => b"end".to_vec(),
        Event::Closed => b"closed".to_vec(),
    }
}

/// What one direction of the wire does to the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Weather {
    #[default]
    Fair,
    /// Behind so many bytes the reader sees the end.
    Breaks(usize),
    /// Behind so many bytes nothing arrives any more, not even the end.
    Stalls(usize),
}

#[derive(Debug, Default)]
struct Direction {
    flight: Vec<u8>,
    eof: bool,
    delivered: usize,
    weather: Weather,
}

struct Pair {
    /// The dialling side first.
    peers: [Peer; 2],
    /// From the peer of that number to the other.
    wires: [Direction; 2],
    plans: Vec<Plan>,
    now: Instant,
    config: Config,
    trailers: Fields,
    /// Whether the connection is turned first.
    turned: bool,
}

impl Pair {
    fn new(turned: bool, plans: Vec<Plan>) -> Pair {
        let now = Instant::default();
        let mut head = Head::default();
        head.parse_response(b"HTTP/1.1 200 \r\nDigest: x\r\n\r\n", &Config::default().limits).unwrap();
        let mut pair = Pair {
            peers: [Peer::new(Conn::client(now)), Peer::new(Conn::server(now))],
            wires: Default::default(),
            plans,
            now,
            config: Config::default(),
            trailers: head.fields,
            turned,
        };
        if turned {
            let agent = &mut pair.peers[0];
            agent.conn.send_offer(now, &mut agent.out, (b"/demo", b"a.example"), Token::PTTH_1_0, |_| {}).unwrap();
            agent.says("offer");
        }
        pair
    }

    fn asks(&self, peer: usize) -> bool {
        (peer == 1) == self.turned
    }

    /// Lets one end read, answer, and close.
    fn tick(&mut self, which: usize) -> bool {
        let asks = self.asks(which);
        let peer = &mut self.peers[which];
        let mut happened = peer.hear(self.now, &self.config, &self.plans);
        if self.turned && which == 1 && peer.said.is_empty() {
            // The relay takes the offer as soon as it is there.
            if peer.heard.last().is_some_and(|event| event == b"offer") && !peer.is_over() {
                peer.conn.accept(self.now, &mut peer.out).unwrap();
                peer.says("turned");
                happened = true;
            }
        } else if !(self.turned && which == 0 && peer.heard.is_empty()) {
            happened |= peer.speak(self.now, &self.plans, &self.trailers, asks);
        }
        happened
    }

    /// Puts what an end has written on the wire.
    fn flush(&mut self, which: usize) -> bool {
        let (peer, wire) = (&mut self.peers[which], &mut self.wires[which]);
        let mut happened = !peer.out.is_empty();
        wire.flight.append(&mut peer.out);
        if (peer.dropped || peer.conn.closing().is_some()) && !peer.eof_sent {
            peer.eof_sent = true;
            wire.eof = true;
            happened = true;
        }
        happened
    }

    /// Lets up to `most` bytes of one direction arrive.
    fn deliver(&mut self, from: usize, most: usize) -> bool {
        let (wire, reader) = (&mut self.wires[from], &mut self.peers[1 - from]);
        let end = match wire.weather {
            Weather::Fair => usize::MAX,
            Weather::Breaks(at) | Weather::Stalls(at) => at,
        };
        let count = most.min(wire.flight.len()).min(end - wire.delivered);
        reader.input.extend(wire.flight.drain(..count));
        wire.delivered += count;
        let broken = matches!(wire.weather, Weather::Breaks(at) if wire.delivered == at);
        let stalled = matches!(wire.weather, Weather::Stalls(at) if wire.delivered == at);
        let eof = broken || (wire.eof && wire.flight.is_empty() && !stalled);
        if eof && !reader.eof_arrived {
            reader.eof_arrived = true;
            return true;
        }
        count > 0
    }

    /// Everything once, in order. Gives whether anything happened.
    fn sweep(&mut self) -> bool {
        let mut happened = false;
        for which in [0, 1] {
            happened |= self.tick(which);
            happened |= self.flush(which);
            happened |= self.deliver(which, usize::MAX);
        }
        happened
    }

    /// Nothing more happens by itself: the clock goes to the next deadline. False when there is none.
    fn sleep(&mut self) -> bool {
        let deadlines = &self.config.deadlines;
        let live = self.peers.iter_mut().filter(|peer| !peer.is_over());
        let next = live.filter_map(|peer| peer.conn.deadline(deadlines).map(|(at, wait)| (at, wait, peer)));
        let Some((at, wait, peer)) = next.min_by_key(|(at, ..)| *at) else { return false };
        self.now = self.now.max(at);
        peer.expire(self.now, wait);
        true
    }

    /// Without chance: as fast as it goes.
    fn run(&mut self) {
        for _ in 0..100_000 {
            if !self.sweep() && !self.sleep() {
                return;
            }
        }
        panic!("it never ends: {}", self.show());
    }

    /// By chance.
    fn run_at_random(&mut self, random: &mut Random) {
        for _ in 0..200_000 {
            self.now = self.now + Duration::from_micros(random.below(2000) as u64);
            let which = random.below(2);
            let happened = match random.below(3) {
                0 => self.tick(which),
                1 => self.flush(which),
                _ => {
                    let most = if random.once_in(3) { 1 + random.below(3000) } else { 1 + random.below(20) };
                    self.deliver(which, most)
                }
            };
            if !happened && !self.sweep() && !self.sleep() {
                return;
            }
        }
        panic!("it never ends: {}", self.show());
    }

    fn show(&self) -> String {
        let list = |events: &[Vec<u8>]| {
            let short = |event: &Vec<u8>| escape(&event[..event.len().min(40)]);
            events.iter().map(short).collect::<Vec<_>>().join(" | ")
        };
        let one = |peer: &Peer| {
            let (said, heard) = (list(&peer.said), list(&peer.heard));
            format!("{:?}\nsaid {said}\nheard {heard}\nerror {:?}\n", peer.conn, peer.error)
        };
        format!("\nagent or visitor: {}\nrelay: {}", one(&self.peers[0]), one(&self.peers[1]))
    }

    /// What one end heard is what the other said, up to where the wire broke.
    fn check(&self) {
        for reader in [0, 1] {
            let (heard, said) = (&self.peers[reader].heard, &self.peers[1 - reader].said);
            assert!(is_start_of(heard, said), "heard something else than was said: {}", self.show());
            let fair = self.wires.iter().all(|wire| wire.weather == Weather::Fair);
            if fair {
                assert_eq!(self.peers[reader].error, None, "{}", self.show());
            } else if let Some(error) = self.peers[reader].error {
                assert_eq!(error, Error::Peer(Fault::EarlyEnd), "{}", self.show());
            }
        }
    }

    /// Nothing waits that could go on.
    fn check_end(&self) {
        for peer in &self.peers {
            // Only a link may wait without end, for TCP keep-alive watches it.
            let waits = peer.conn.is_link() && peer.conn.is_idle();
            assert!(peer.is_over() || waits, "an end hangs: {}", self.show());
        }
    }

    fn finish(mut self) -> Pair {
        self.run();
        self.check();
        self.check_end();
        self
    }
}

fn is_start_of(heard: &[Vec<u8>], said: &[Vec<u8>]) -> bool {
    let Some((last, before)) = heard.split_last() else { return true };
    // The end of bytes is heard also where a wire broke, or where closing says nothing more.
    let (last, before) = match (last.as_slice(), before.split_last()) {
        (b"closed", None) => return true,
        (b"closed", Some((last, before))) => (last, before),
        _ => (last, before),
    };
    let Some(whole) = said.get(before.len()) else { return false };
    let begun = last.starts_with(b"data ") && whole.starts_with(last);
    said.starts_with(before) && (whole == last || begun)
}

// ---- Stories.

fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let one = env::var("PTTH_SEED").ok().map(|seed| seed.parse().expect("PTTH_SEED is a number"));
    one.map_or(0..count, |seed| seed..seed + 1)
}

/// Prints the seed of a failed run.
struct Seed(u64);

impl Drop for Seed {
    #[allow(clippy::print_stderr, reason = "only when a test fails, and there it belongs")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("PTTH_SEED={} runs this again", self.0);
        }
    }
}

fn random_pair(random: &mut Random) -> Pair {
    let plans = (0..1 + random.below(6)).map(|_| Plan::random(random)).collect();
    Pair::new(random.once_in(2), plans)
}

#[test]
fn random_exchanges_in_fair_weather() {
    for seed in seeds(4000) {
        let _seed = Seed(seed);
        let mut random = Random::new(seed);
        let mut pair = random_pair(&mut random);
        pair.run_at_random(&mut random);
        pair.check();
        pair.check_end();
        // Unless someone ended the connection earlier, all of the plan was done.
        let cut_short = pair.plans.iter().any(|plan| plan.close || plan.early);
        let done = if pair.turned { 0 } else { 1 };
        assert!(cut_short || pair.peers[done].exchange == pair.plans.len(), "{}", pair.show());
    }
}

#[test]
fn random_exchanges_over_wires_that_break() {
    for seed in seeds(8000) {
        let _seed = Seed(seed);
        let mut random = Random::new(!seed);
        let mut pair = random_pair(&mut random);
        let at = random.below(400);
        let weather = if random.once_in(3) { Weather::Stalls(at) } else { Weather::Breaks(at) };
        pair.wires[random.below(2)].weather = weather;
        pair.run_at_random(&mut random);
        pair.check();
        pair.check_end();
    }
}

#[test]
fn every_byte_of_one_exchange_can_be_the_last() {
    let plan = Plan::post(Content::stream(&[b"abc", b"de"], true), Content::length(&[b"hello"]));
    for turned in [false, true] {
        for wire in [0, 1] {
            for weather in [Weather::Breaks, Weather::Stalls] {
                for at in 0..200 {
                    let mut pair = Pair::new(turned, vec![plan.clone(), Plan::get(Content::none())]);
                    pair.wires[wire].weather = weather(at);
                    pair.finish();
                }
            }
        }
    }
}

#[test]
fn bodies_of_each_framing_both_ways() {
    let contents = || {
        [
            Content::none(),
            Content::length(&[]),
            Content::length(&[b"hello"]),
            Content::length(&[b"he", b"", b"llo"]),
            Content::stream(&[], false),
            Content::stream(&[b"he", b"", b"llo"], false),
            Content::stream(&[b"hello"], true),
        ]
    };
    for turned in [false, true] {
        let mut plans = Vec::new();
        for request in contents() {
            plans.extend(contents().map(|response| Plan::post(request.clone(), response)));
        }
        let pair = Pair::new(turned, plans).finish();
        let server = usize::from(!turned);
        assert_eq!(pair.peers[server].exchange, 49);
        assert_eq!(pair.peers[server].heard.last().unwrap(), b"closed");
    }
}

#[test]
fn answers_without_a_body() {
    let mut plans = Vec::new();
    for (method, status) in [("HEAD", 200), ("GET", 204), ("GET", 304), ("HEAD", 404), ("GET", 200)] {
        for response in [Content::none(), Content::length(&[b"12345"]), Content::stream(&[b"1"], true)] {
            plans.push(Plan { method, status, ..Plan::get(response) });
        }
    }
    for turned in [false, true] {
        let pair = Pair::new(turned, plans.clone()).finish();
        assert_eq!(pair.peers[usize::from(!turned)].exchange, plans.len());
    }
}

#[test]
fn an_answer_before_the_request_is_whole_ends_the_connection() {
    let mut plan = Plan::post(Content::length(&[b"a", b"b", b"c", b"d", b"e", b"f"]), Content::length(&[b"no"]));
    (plan.early, plan.status) = (true, 413);
    for turned in [false, true] {
        let pair = Pair::new(turned, vec![plan.clone(), Plan::get(Content::none())]).finish();
        let (asks, answers) = (&pair.peers[usize::from(turned)], &pair.peers[usize::from(!turned)]);
        assert!(asks.heard.contains(&b"response 413".to_vec()), "{}", pair.show());
        assert_eq!(asks.conn.close_reason(), Some(CloseReason::AnsweredEarly));
        assert_eq!(answers.conn.close_reason(), Some(CloseReason::AnsweredEarly));
        assert!(!answers.heard.contains(&b"request GET /1".to_vec()));
    }
}

#[test]
fn a_connection_that_is_not_kept_closes_behind_the_answer() {
    for turned in [false, true] {
        let plans = vec![Plan { close: true, ..Plan::get(Content::length(&[b"bye"])) }, Plan::get(Content::none())];
        let pair = Pair::new(turned, plans).finish();
        for peer in &pair.peers {
            assert_eq!(peer.conn.close_reason(), Some(CloseReason::NotKept), "{}", pair.show());
        }
        assert_eq!(pair.now, Instant::default(), "nobody waited for anything");
    }
}

#[test]
fn a_refused_offer_leaves_an_ordinary_connection() {
    let mut pair = Pair::new(true, Vec::new());
    let now = pair.now;
    pair.flush(0);
    pair.deliver(0, usize::MAX);
    assert!(pair.peers[1].hear(now, &pair.config, &[]));
    assert_eq!(pair.peers[1].heard, [b"offer"]);
    let relay = &mut pair.peers[1];
    relay.conn.send_response(now, &mut relay.out, (401, b"Unauthorized"), Body::Length(2), |_| {}).unwrap();
    relay.conn.send_data(now, b"no", &mut relay.out).unwrap();
    relay.conn.send_end(now, None, &mut relay.out).unwrap();
    pair.flush(1);
    pair.deliver(1, usize::MAX);
    assert!(pair.peers[0].hear(now, &pair.config, &[]));
    assert_eq!(pair.peers[0].heard, [&b"response 401"[..], b"data no", b"end"]);
    // Both go on as visitor and server.
    (pair.turned, pair.plans) = (false, vec![Plan::get(Content::length(&[b"hello"]))]);
    for peer in &mut pair.peers {
        peer.said.clear();
        peer.heard.clear();
        assert!(peer.conn.is_idle() && !peer.conn.is_link());
    }
    let pair = pair.finish();
    assert_eq!(pair.peers[0].heard, [&b"response 200"[..], b"data hello", b"end"]);
}

#[test]
fn an_offer_that_comes_into_an_answer_ends_with_it() {
    let mut server = Timed::new(Side::Listening);
    server.conn.send_response(server.now, &mut server.out, (408, b""), Body::Length(2), |_| {}).unwrap();
    server.hear(b"POST / HTTP/1.1\r\nUpgrade: PTTH/1.0\r\n\r\n");
    assert_eq!(server.conn.accept(server.now, &mut server.out), Err(Error::Local(Misuse::OutOfTurn)));
    server.conn.send_data(server.now, b"no", &mut server.out).unwrap();
    server.say_end();
    assert_eq!(server.conn.closing(), Some(Closing::Flush));
}

#[test]
fn a_refusal_that_has_begun_is_not_taken_back() {
    let mut relay = Timed::new(Side::Listening);
    relay.hear(b"POST / HTTP/1.1\r\nUpgrade: PTTH/1.0\r\n\r\n");
    relay.conn.send_response(relay.now, &mut relay.out, (503, b""), Body::Stream, |_| {}).unwrap();
    let before = relay.out.len();
    assert_eq!(relay.conn.accept(relay.now, &mut relay.out), Err(Error::Local(Misuse::OutOfTurn)));
    assert_eq!(relay.out.len(), before);
    relay.say_end();
    assert!(relay.conn.is_idle() && !relay.conn.is_link());
}

#[test]
fn many_exchanges_on_one_link() {
    let plans = vec![Plan::get(Content::length(&[b"hello"])); 5000];
    let pair = Pair::new(true, plans).finish();
    assert_eq!(pair.peers[0].exchange, 5000);
    assert!(pair.wires[0].delivered > 5000 * 20);
}

// ---- Time.

/// The end of a connection that only listens to what a test says.
struct Timed {
    conn: Conn,
    head: Head,
    config: Config,
    out: Vec<u8>,
    now: Instant,
}

impl Timed {
    fn new(side: Side) -> Timed {
        let now = Instant::from_micros(1_000_000);
        let conn = match side {
            Side::Dialling => Conn::client(now),
            Side::Listening => Conn::server(now),
        };
        Timed { conn, head: Head::default(), config: Config::default(), out: Vec::new(), now }
    }

    /// A relay's end of a link with this agent.
    fn link(agent: &str) -> Timed {
        let mut relay = Timed::new(Side::Listening);
        relay.hear(format!("POST / HTTP/1.1\r\nUpgrade: PTTH/1.0\r\n{agent}\r\n").as_bytes());
        relay.conn.accept(relay.now, &mut relay.out).unwrap();
        relay
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Hears all of it. Gives how many bytes were of no use yet.
    fn hear(&mut self, mut input: &[u8]) -> usize {
        loop {
            let (used, event) = self.conn.recv(self.now, input, &mut self.head, &self.config).unwrap();
            input = &input[used..];
            if used == 0 && event.is_none() {
                return input.len();
            }
        }
    }

    fn ask(&mut self, body: Body) {
        self.conn.send_request(self.now, &mut self.out, (b"POST", b"/"), body, |_| {}).unwrap();
    }

    fn say_end(&mut self) {
        self.conn.send_end(self.now, None, &mut self.out).unwrap();
    }

    fn answer(&mut self) {
        self.conn.send_response(self.now, &mut self.out, (200, b"OK"), Body::None, |_| {}).unwrap();
        self.say_end();
    }

    /// How long it may still sleep, and why.
    fn patience(&self) -> Option<(Duration, Wait)> {
        let (at, wait) = self.conn.deadline(&self.config.deadlines)?;
        assert!(at >= self.now, "{wait:?} should have been noticed");
        Some((at.since(self.now), wait))
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_head_that_comes_byte_by_byte_has_one_deadline() {
    let mut server = Timed::new(Side::Listening);
    let head = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let deadlines = Deadlines::default();
    server.pass(30 * SECOND);
    for length in 1..9 {
        assert_eq!(server.hear(&head[..length]), length);
        assert_eq!(server.patience(), Some((deadlines.head - (length as u32 - 1) * SECOND, Wait::Head)));
        server.pass(SECOND);
    }
    // An answer is due now, by the driver's own patience with whoever makes it.
    assert_eq!(server.hear(head), 0);
    assert_eq!(server.patience(), None);
}

#[test]
fn a_visitor_may_be_idle_between_requests() {
    let mut server = Timed::new(Side::Listening);
    let idle = Deadlines::default().idle;
    assert_eq!(server.patience(), Some((idle, Wait::Idle)));
    // Empty lines are no request.
    server.pass(SECOND);
    assert_eq!(server.hear(b"\r\n"), 0);
    assert_eq!(server.patience(), Some((idle - SECOND, Wait::Idle)));
    // An hour of keep-alive.
    for _ in 0..61 {
        server.pass(59 * SECOND - SECOND);
        assert_eq!(server.patience().map(|(_, wait)| wait), Some(Wait::Idle));
        assert_eq!(server.hear(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"), 0);
        assert_eq!(server.patience(), None);
        server.pass(SECOND);
        server.answer();
        assert_eq!(server.patience(), Some((idle, Wait::Idle)));
    }
}

#[test]
fn a_body_may_pause_but_not_stop() {
    let mut server = Timed::new(Side::Listening);
    let body = Deadlines::default().body;
    server.hear(b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(server.patience(), Some((body, Wait::Body)));
    server.pass(50 * SECOND);
    server.hear(b"1\r\na");
    assert_eq!(server.patience(), Some((body, Wait::Body)));
    // A chunk's size is no progress, however often it comes.
    server.pass(10 * SECOND);
    assert_eq!(server.hear(b"\r\n"), 0);
    assert_eq!(server.patience(), Some((body - 10 * SECOND, Wait::Body)));
    // The driver itself has held the peer back.
    server.pass(40 * SECOND);
    server.conn.touch(server.now);
    assert_eq!(server.patience(), Some((body, Wait::Body)));
    server.hear(b"0\r\n\r\n");
    assert_eq!(server.patience(), None);
}

#[test]
fn an_offer_waits_for_its_answer() {
    let mut agent = Timed::new(Side::Dialling);
    assert_eq!(agent.patience(), None);
    agent.conn.send_offer(agent.now, &mut agent.out, (b"/", b"a.example"), Token::PTTH_1_0, |_| {}).unwrap();
    let upgrade = Deadlines::default().upgrade;
    assert_eq!(agent.patience(), Some((upgrade, Wait::Upgrade)));
    agent.pass(70 * SECOND);
    assert_eq!(agent.patience(), Some((upgrade - 70 * SECOND, Wait::Upgrade)));
    agent.hear(b"HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n");
    // Turned, it may be idle for ever.
    assert_eq!(agent.patience(), None);
    assert!(agent.conn.is_link());
    agent.pass(3600 * SECOND);
    agent.hear(b"GET / HT");
    assert_eq!(agent.patience().map(|(_, wait)| wait), Some(Wait::Head));
}

#[test]
fn an_answer_is_due_from_the_end_of_the_request() {
    let deadlines = Deadlines::default();
    let links = [(Timed::new(Side::Dialling), deadlines.answer), (Timed::link(""), deadlines.link_answer)];
    for (mut client, answer) in links {
        assert_eq!(client.patience(), None);
        client.ask(Body::Length(2));
        assert_eq!(client.patience(), None, "as long as we still ask, no answer is due");
        client.pass(1000 * SECOND);
        client.conn.send_data(client.now, b"ab", &mut client.out).unwrap();
        client.say_end();
        assert_eq!(client.patience(), Some((answer, Wait::Answer)));
        client.pass(SECOND);
        // Half a head is no answer; a whole 100 shows that someone is there.
        client.hear(b"HTTP/1.1 100 ");
        assert_eq!(client.patience(), Some((answer - SECOND, Wait::Answer)));
        client.hear(b"HTTP/1.1 100 \r\n\r\n");
        assert_eq!(client.patience(), Some((answer, Wait::Answer)));
        client.hear(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
        assert_eq!(client.patience(), Some((deadlines.stream, Wait::Stream)));
        client.pass(3000 * SECOND);
        client.hear(b"a");
        assert_eq!(client.patience(), Some((deadlines.stream, Wait::Stream)));
        client.hear(b"b");
        assert_eq!(client.patience(), None);
        assert!(client.conn.is_idle());
    }
}

#[test]
fn net_ptth_gets_its_pause_and_its_quiet() {
    let mut relay = Timed::link("User-Agent: Ruby\r\n");
    assert_eq!(relay.patience(), Some((NET_PTTH_PAUSE, Wait::Pause)));
    assert!(relay.conn.is_link() && !relay.conn.is_idle());
    let early = relay.conn.send_request(relay.now, &mut relay.out, (b"GET", b"/"), Body::None, |_| {});
    assert!(early.is_err());
    relay.pass(NET_PTTH_PAUSE);
    assert_eq!(relay.conn.timeout(relay.now, Wait::Pause), None);
    assert!(relay.conn.is_idle());
    for _ in 0..3 {
        relay.ask(Body::None);
        relay.say_end();
        relay.hear(b"HTTP/1.1 200 OK\n\r\nhello");
        assert_eq!(relay.patience(), Some((NET_PTTH_QUIET, Wait::Quiet)));
        relay.pass(NET_PTTH_QUIET / 2);
        relay.hear(b"more");
        assert_eq!(relay.patience(), Some((NET_PTTH_QUIET, Wait::Quiet)));
        relay.pass(NET_PTTH_QUIET);
        assert_eq!(relay.conn.timeout(relay.now, Wait::Quiet), Some(Event::End { trailers: false }));
        assert!(relay.conn.is_idle());
        assert_eq!(relay.patience(), None);
    }
}

#[test]
fn what_was_refused_lingers_and_then_goes() {
    let mut server = Timed::new(Side::Listening);
    let error = server.conn.recv(server.now, b"no HTTP\r\n\r\n", &mut server.head, &server.config).unwrap_err();
    assert_eq!(server.patience(), None, "the driver answers at once");
    server.conn.send_response(server.now, &mut server.out, (400, b""), Body::None, |_| {}).unwrap();
    server.say_end();
    let linger = Deadlines::default().linger;
    assert_eq!(server.conn.closing(), Some(Closing::Linger));
    assert_eq!(server.patience(), Some((linger, Wait::Linger)));
    // What still comes does not lengthen it.
    server.pass(SECOND);
    assert_eq!(server.hear(b"and so on"), 0);
    assert_eq!(server.patience(), Some((linger - SECOND, Wait::Linger)));
    server.pass(SECOND);
    assert_eq!(server.conn.timeout(server.now, Wait::Linger), None);
    assert_eq!(server.conn.closing(), Some(Closing::Flush));
    assert_eq!(server.conn.close_reason(), Some(CloseReason::Failed(error)));
    assert_eq!(server.patience(), None);
}

#[test]
fn a_link_may_be_idle_for_an_hour() {
    let mut relay = Timed::link("Connection: Upgrade\r\n");
    for _ in 0..60 {
        relay.pass(60 * SECOND);
        assert_eq!(relay.patience(), None);
        relay.ask(Body::None);
        relay.say_end();
        relay.hear(b"HTTP/1.1 204 \r\n\r\n");
        assert!(relay.conn.is_idle());
    }
}

/// A client that has asked for a tunnel, and the server that heard it: by CONNECT, or by an upgrade.
fn asked_for_a_tunnel(connect: bool) -> (Conn, Conn, Vec<u8>) {
    let (now, config, mut head, mut out) = (Instant::default(), Config::default(), Head::default(), Vec::new());
    let (mut client, mut server) = (Conn::client(now), Conn::server(now));
    let start: (&[u8], &[u8]) = if connect { (b"CONNECT", b"a:1") } else { (b"GET", b"/") };
    let fields = |fields: &mut FieldWriter<'_>| {
        fields.field("Host", "a:1");
        if !connect {
            fields.field("Connection", "Upgrade");
            fields.field("Upgrade", "websocket");
        }
    };
    client.send_request(now, &mut out, start, Body::None, fields).unwrap();
    // Not before it is whole.
    assert!(client.offer_switch().is_err());
    client.send_end(now, None, &mut out).unwrap();
    assert_eq!(client.offer_switch().is_ok(), !connect);
    let (used, event) = server.recv(now, &out, &mut head, &config).unwrap();
    assert!(matches!(event, Some(Event::Request(_))));
    assert!(server.offer_switch().is_err());
    assert_eq!(server.recv(now, &out[used..], &mut head, &config), Ok((0, Some(Event::End { trailers: false }))));
    assert_eq!(server.offer_switch().is_ok(), !connect);
    out.clear();
    (client, server, out)
}

#[test]
fn a_tunnel_ends_in_each_direction_by_itself() {
    let (now, config, mut head) = (Instant::default(), Config::default(), Head::default());
    for connect in [true, false] {
        let (mut client, mut server, mut out) = asked_for_a_tunnel(connect);
        // Until the answer, neither reads nor says anything that could be one or the other.
        assert!(!server.wants_read() || connect);
        assert!(client.send_data(now, b"x", &mut out).is_err() && out.is_empty());
        match connect {
            true => server.send_response(now, &mut out, (200, b"OK"), Body::None, |_| {}).unwrap(),
            false => server.send_switch(now, &mut out, |fields| fields.field("Upgrade", "websocket")).unwrap(),
        }
        assert!(server.is_tunnel());
        server.send_data(now, b"data", &mut out).unwrap();
        let (used, event) = client.recv(now, &out, &mut head, &config).unwrap();
        assert_eq!((event, head.status()), (Some(Event::Switched), if connect { 200 } else { 101 }));
        assert_eq!(client.recv(now, &out[used..], &mut head, &config), Ok((4, Some(Event::Data(b"data")))));
        assert_eq!(client.deadline(&config.deadlines), Some((now + config.deadlines.tunnel, Wait::Tunnel)));
        // The client's direction ends first.
        client.send_end(now, None, &mut out).unwrap();
        assert!(client.is_half_closed() && client.wants_read() && !client.is_speaking());
        assert!(client.send_data(now, b"x", &mut out).is_err() && client.send_end(now, None, &mut out).is_err());
        assert_eq!(client.deadline(&config.deadlines), Some((now + config.deadlines.tunnel_end, Wait::TunnelEnd)));
        assert_eq!(server.eof(now, 0), Ok(Some(Event::End { trailers: false })));
        assert!(!server.wants_read() && server.is_speaking() && server.closing().is_none());
        server.send_end(now, None, &mut out).unwrap();
        assert_eq!(server.close_reason(), Some(CloseReason::TunnelOver));
        assert_eq!(client.eof(now, 0), Ok(Some(Event::End { trailers: false })));
        assert_eq!(client.close_reason(), Some(CloseReason::TunnelOver));
    }
}

#[test]
fn nobody_opens_a_tunnel_unasked() {
    let (now, config, mut head) = (Instant::default(), Config::default(), Head::default());
    // A 101 to a request that has offered nothing, and one to a CONNECT.
    for (method, target) in [(&b"GET"[..], &b"/"[..]), (b"CONNECT", b"a:1")] {
        let (mut client, mut out) = (Conn::client(now), Vec::new());
        client.send_request(now, &mut out, (method, target), Body::None, |_| {}).unwrap();
        client.send_end(now, None, &mut out).unwrap();
        let answer = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(client.recv(now, answer, &mut head, &config), Err(Fault::UnaskedSwitch.into()));
    }
    // A 2xx to a CONNECT that is not whole.
    let (mut client, mut out) = (Conn::client(now), Vec::new());
    client.send_request(now, &mut out, (b"CONNECT", b"a:1"), Body::Length(1), |_| {}).unwrap();
    assert_eq!(client.recv(now, b"HTTP/1.1 200 OK\r\n\r\n", &mut head, &config), Err(Fault::UnaskedSwitch.into()));
    // A server that was offered nothing.
    let (mut server, mut out) = (Conn::server(now), Vec::new());
    assert!(server.send_switch(now, &mut out, |_| {}).is_err() && out.is_empty());
    // A client, of its own offer.
    let (mut client, _, mut out) = asked_for_a_tunnel(false);
    assert!(client.send_switch(now, &mut out, |_| {}).is_err() && out.is_empty());
    // A refusal is an ordinary answer, and a second one is none.
    let (mut client, mut server, mut out) = asked_for_a_tunnel(false);
    server.send_response(now, &mut out, (200, b"OK"), Body::None, |_| {}).unwrap();
    server.send_end(now, None, &mut out).unwrap();
    assert!(server.is_idle() && server.send_switch(now, &mut out, |_| {}).is_err());
    let (used, event) = client.recv(now, &out, &mut head, &config).unwrap();
    assert!(matches!(event, Some(Event::Response(_))));
    assert_eq!(client.recv(now, &out[used..], &mut head, &config), Ok((0, Some(Event::End { trailers: false }))));
    assert!(client.is_idle() && !client.is_tunnel());
}
