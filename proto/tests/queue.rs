//! A relay and the agents that poll it, over a fake wire and by a fake clock: what waits for what and until when, and that each
//! request ends once, whatever is late, lost, twice or made up. Every story is told in both dialects.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that fails should say where")]

mod common;

use std::collections::HashMap;
use std::env;
use std::iter;
use std::time::Duration;

use common::random::Random;
use ptth_proto::link::queue::{Due, Id, Outstanding, Queue, Unwanted};
use ptth_proto::time::Instant;
use ptth_proto::wire::comet::{self, Message, Notation, Style};
use ptth_proto::wire::message::{Ask, Malformed, Unsendable, from_base64, to_base64};
use ptth_proto::wire::packed::{self, Form};

// ---- The dialects: how messages and answers are bytes.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Comet(Style),
    Packed(Form),
}

const DIALECTS: [Dialect; 5] = [
    Dialect::Comet(Style { notation: Notation::Json, base64: false }),
    Dialect::Comet(Style { notation: Notation::Json, base64: true }),
    Dialect::Comet(Style { notation: Notation::Python, base64: false }),
    Dialect::Packed(Form::Stock),
    Dialect::Packed(Form::Full),
];

/// Bytes that are no text.
const BINARY: &[u8] = b"\xff\x00";

/// What an agent says to a request, as it is on the wire: the id and the head stand elsewhere than the body in one dialect.
#[derive(Clone, Debug)]
struct Answer {
    id: String,
    head: String,
    body: Vec<u8>,
}

impl Dialect {
    /// How many messages one poll takes along.
    fn batch(self) -> usize {
        if matches!(self, Dialect::Packed(_)) { 3 } else { 1 }
    }

    fn write(self, out: &mut Vec<u8>, id: &str, request: &Request) -> Result<(), Unsendable> {
        let Request { method, target, body } = request;
        let (method, target) = (method.as_bytes(), target.as_bytes());
        let fields = iter::once((&b"Host"[..], &b"a.example"[..]));
        match self {
            Dialect::Comet(style) => comet::write_ask(out, style, id, method, target, fields, body),
            Dialect::Packed(form) => packed::write_ask(out, form, id, method, target, fields, body),
        }
    }

    /// A poll's answer with these messages in it.
    fn bundle(self, count: usize, messages: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        if let Dialect::Packed(_) = self {
            packed::write_array(&mut all, count);
        }
        all.extend_from_slice(messages);
        all
    }

    /// The agent reads what its poll got.
    fn read(self, bytes: &[u8]) -> Vec<Ask> {
        match self {
            Dialect::Comet(_) => match comet::read(bytes).unwrap().0 {
                Message::Nothing => Vec::new(),
                Message::Ask(ask) => vec![ask],
                Message::Reply(reply) => panic!("not a request: {reply:?}"),
            },
            Dialect::Packed(_) if bytes.is_empty() => Vec::new(),
            Dialect::Packed(_) => packed::read_asks(bytes).unwrap(),
        }
    }

    /// The agent answers: with what it was asked, so that the visitor can tell.
    fn answer(self, ask: &Ask) -> Answer {
        let fields = iter::empty();
        let body = [&ask.method, &b" "[..], &ask.target, b" ", &ask.body].concat();
        let mut bytes = Vec::new();
        match self {
            Dialect::Comet(style) => {
                let style = Style { base64: true, ..style };
                comet::write_reply(&mut bytes, style, &ask.id, 200, b"OK", fields, &body).unwrap();
                Answer { id: String::new(), head: String::new(), body: bytes }
            }
            Dialect::Packed(form) => {
                packed::write_head(&mut bytes, form, 200, fields);
                Answer { id: ask.id.clone(), head: to_base64(&bytes), body }
            }
        }
    }

    /// The relay reads that: the id, the status, the body.
    fn read_answer(self, answer: &Answer) -> Result<(String, u16, Vec<u8>), Malformed> {
        match self {
            Dialect::Comet(_) => match comet::read(&answer.body)?.0 {
                Message::Reply(reply) => Ok((reply.id, reply.status, reply.body)),
                other => panic!("not a response: {other:?}"),
            },
            Dialect::Packed(_) => {
                let head = from_base64(answer.head.as_bytes()).ok_or(Malformed::Syntax)?;
                Ok((answer.id.clone(), packed::read_head(&head)?.0, answer.body.clone()))
            }
        }
    }
}

// ---- The relay.

const HOLD: Duration = Duration::from_secs(25);
/// A request waits so long for a poll.
const PATIENCE: Duration = Duration::from_secs(10);
/// And so long for its answer.
const ANSWER: Duration = Duration::from_secs(75);

#[derive(Clone, Debug)]
struct Request {
    method: &'static str,
    target: String,
    body: Vec<u8>,
}

/// How a request has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Answered(String),
    NoPoll,
    NoAnswer,
    Unsendable(Unsendable),
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Ready,
    Out(Id),
    Over,
}

#[derive(Debug)]
struct Visit {
    request: Request,
    place: Place,
    end: Option<End>,
    /// When it is to have been waited long enough where it is.
    due: Instant,
    /// It was taken back once: it may be due sooner than it would be by itself.
    again: bool,
    handed_out: usize,
    taken_back: usize,
}

/// What became of a poll.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Got {
    Held,
    Gone,
    Nothing,
    /// Bytes, and the messages in them.
    Messages(Vec<u8>, Vec<Id>),
}

#[derive(Debug)]
struct Asked {
    agent: u8,
    got: Got,
    due: Instant,
}

/// A relay of one tunnel. What it says to visitors and agents stays in its books.
#[derive(Debug)]
struct Relay {
    dialect: Dialect,
    now: Instant,
    queue: Queue<usize, usize>,
    out: Outstanding<usize, u8>,
    visits: Vec<Visit>,
    polls: Vec<Asked>,
    chance: Chance,
}

/// What nobody can guess.
struct Chance(Random);

impl std::fmt::Debug for Chance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Chance")
    }
}

impl Chance {
    fn secret(&mut self) -> [u8; 10] {
        self.0.bytes(10).try_into().unwrap()
    }
}

impl Relay {
    fn new(dialect: Dialect) -> Relay {
        Relay {
            dialect,
            now: Instant::from_micros(1_000_000),
            queue: Queue::default(),
            out: Outstanding::new(3),
            visits: Vec::new(),
            polls: Vec::new(),
            chance: Chance(Random::new(7)),
        }
    }

    /// A visitor's GET. Gives its number.
    fn get(&mut self, target: &str) -> usize {
        self.visit(Request { method: "GET", target: target.into(), body: Vec::new() })
    }

    fn visit(&mut self, request: Request) -> usize {
        let due = self.now + PATIENCE;
        self.visits.push(Visit {
            request,
            place: Place::Ready,
            end: None,
            due,
            again: false,
            handed_out: 0,
            taken_back: 0,
        });
        let visit = self.visits.len() - 1;
        self.queue.push(self.now, visit, PATIENCE);
        self.serve();
        visit
    }

    /// An agent polls. Gives the poll's number.
    fn poll(&mut self, agent: u8) -> usize {
        self.poll_for(agent, HOLD)
    }

    fn poll_for(&mut self, agent: u8, hold: Duration) -> usize {
        self.polls.push(Asked { agent, got: Got::Held, due: self.now + hold });
        let poll = self.polls.len() - 1;
        self.queue.poll(self.now, poll, hold);
        self.serve();
        poll
    }

    fn serve(&mut self) {
        while let Some((poll, first)) = self.queue.pair() {
            let (mut bytes, mut ids) = (Vec::new(), Vec::new());
            let mut next = Some(first);
            while let Some(visit) = next {
                ids.extend(self.hand_out(visit, self.polls[poll].agent, &mut bytes));
                next = if ids.len() < self.dialect.batch() { self.queue.another() } else { None };
            }
            let asked = &mut self.polls[poll];
            assert_eq!(asked.got, Got::Held);
            if ids.is_empty() {
                self.queue.poll(self.now, poll, asked.due.since(self.now));
            } else {
                asked.got = Got::Messages(self.dialect.bundle(ids.len(), &bytes), ids);
            }
        }
    }

    fn hand_out(&mut self, number: usize, agent: u8, bytes: &mut Vec<u8>) -> Option<Id> {
        let visit = &mut self.visits[number];
        assert_eq!(visit.place, Place::Ready);
        // The messages go out in the order they came in, but for those that go out again.
        let id = self.out.hand_out(self.now, number, agent, ANSWER, self.chance.secret());
        if let Err(unsendable) = self.dialect.write(bytes, id.as_str(), &visit.request) {
            assert_eq!(self.out.take_back(id), Some(number));
            self.end(number, End::Unsendable(unsendable));
            return None;
        }
        visit.place = Place::Out(id);
        visit.due = self.now + ANSWER;
        visit.handed_out += 1;
        assert_eq!(visit.handed_out, visit.taken_back + 1, "handed out twice");
        Some(id)
    }

    fn end(&mut self, number: usize, end: End) {
        let visit = &mut self.visits[number];
        assert_eq!(visit.end, None, "it has ended before");
        visit.end = Some(end);
        visit.place = Place::Over;
    }

    /// The visitor leaves.
    fn leave(&mut self, number: usize) {
        match self.visits[number].place {
            Place::Ready => assert!(self.queue.forget(number)),
            Place::Out(id) => assert_eq!(self.out.take_back(id), Some(number)),
            Place::Over => return,
        }
        assert!(!self.queue.forget(number));
        self.end(number, End::Gone);
    }

    /// The connection of a poll breaks. What was on its way may not have been written.
    fn break_off(&mut self, number: usize, was_written: bool) {
        let poll = &mut self.polls[number];
        match &mut poll.got {
            Got::Held => {
                poll.got = Got::Gone;
                assert!(self.queue.poll_gone(number));
            }
            Got::Messages(_, ids) if !was_written => {
                let ids = std::mem::take(ids);
                poll.got = Got::Gone;
                for id in ids.into_iter().rev() {
                    let Some(visit) = self.out.take_back(id) else { continue };
                    assert_eq!(self.out.find(id), None);
                    let first =
                        self.visits.iter().filter(|visit| visit.place == Place::Ready).map(|visit| visit.due).min();
                    let entry = &mut self.visits[visit];
                    entry.taken_back += 1;
                    entry.again = true;
                    entry.place = Place::Ready;
                    entry.due = first.into_iter().chain([self.now + PATIENCE]).min().unwrap();
                    self.queue.push_again(self.now, visit, PATIENCE);
                }
                self.serve();
            }
            _ => {}
        }
        assert!(!self.queue.poll_gone(number));
    }

    /// An agent's answer comes in.
    fn take(&mut self, agent: u8, answer: &Answer) -> Result<usize, Unwanted> {
        let (id, status, body) = self.dialect.read_answer(answer).unwrap();
        assert_eq!(status, 200);
        let id = Id::parse(id.as_bytes()).ok_or(Unwanted::Unknown)?;
        let found = self.out.find(id);
        let number = self.out.answer(id, &agent)?;
        assert_eq!(found, Some(number));
        assert_eq!(self.visits[number].place, Place::Out(id));
        self.end(number, End::Answered(String::from_utf8_lossy(&body).into_owned()));
        Ok(number)
    }

    /// When something is due.
    fn deadline(&self) -> Option<Instant> {
        self.queue.deadline().into_iter().chain(self.out.deadline()).min()
    }

    /// Time goes on to then, and each thing is done when it is due.
    fn go_on_to(&mut self, then: Instant) {
        while let Some(due) = self.deadline().filter(|due| *due <= then) {
            assert!(due >= self.now, "what was due before was left behind");
            self.now = due;
            let mut something = false;
            while let Some(due) = self.queue.timeout(self.now).or_else(|| self.out.timeout(self.now)) {
                something = true;
                self.is_due(due);
            }
            assert!(something, "nothing was due");
        }
        self.now = then;
        assert_eq!(self.queue.timeout(self.now), None);
        assert_eq!(self.out.timeout::<usize>(self.now), None);
    }

    fn is_due(&mut self, due: Due<usize, usize>) {
        match due {
            Due::Nothing(number) => {
                let poll = &mut self.polls[number];
                assert_eq!((&poll.got, poll.due), (&Got::Held, self.now));
                poll.got = Got::Nothing;
            }
            Due::NoPoll(number) => {
                let visit = &self.visits[number];
                assert_eq!((visit.place, visit.due), (Place::Ready, self.now));
                self.end(number, End::NoPoll);
            }
            Due::NoAnswer(number) => {
                let visit = &self.visits[number];
                assert!(matches!(visit.place, Place::Out(_)) && visit.due == self.now);
                self.end(number, End::NoAnswer);
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        self.go_on_to(self.now + time);
    }

    /// What is in the machines is what the books say.
    fn check(&self) {
        let count = |place: fn(Place) -> bool| self.visits.iter().filter(|visit| place(visit.place)).count();
        let held = self.polls.iter().filter(|poll| poll.got == Got::Held).count();
        let ready = count(|place| place == Place::Ready);
        let out = count(|place| matches!(place, Place::Out(_)));
        assert_eq!((self.queue.polls(), self.queue.messages(), self.out.len()), (held, ready, out));
        assert_eq!(self.out.is_empty(), out == 0);
        assert!(held == 0 || ready == 0, "a poll and a message wait for each other");
        for (number, visit) in self.visits.iter().enumerate() {
            assert_eq!(visit.end.is_some(), visit.place == Place::Over);
            if let Place::Out(id) = visit.place {
                assert_eq!(self.out.find(id), Some(number));
            }
        }
        assert!(self.deadline().is_none_or(|due| due >= self.now));
    }

    // ---- What stories ask.

    /// The requests that a poll got.
    fn got(&self, poll: usize) -> Vec<Ask> {
        match &self.polls[poll].got {
            Got::Messages(bytes, ids) => {
                let asks = self.dialect.read(bytes);
                assert_eq!(asks.len(), ids.len());
                asks
            }
            other => panic!("poll {poll}: {other:?}"),
        }
    }

    /// The only one.
    fn ask(&self, poll: usize) -> Ask {
        let mut asks = self.got(poll);
        assert_eq!(asks.len(), 1);
        asks.remove(0)
    }

    fn target(&self, poll: usize) -> String {
        String::from_utf8(self.ask(poll).target).unwrap()
    }

    fn answer(&mut self, agent: u8, ask: &Ask) -> Result<usize, Unwanted> {
        let answer = self.dialect.answer(ask);
        self.take(agent, &answer)
    }

    #[track_caller]
    fn has_ended(&self, visit: usize, end: &End) {
        assert_eq!(self.visits[visit].end.as_ref(), Some(end), "{:?}", self.dialect);
    }
}

fn answered(text: &str) -> End {
    End::Answered(text.into())
}

const SECOND: Duration = Duration::from_secs(1);

/// Tells a story in each dialect.
fn in_every_dialect(story: impl Fn(&mut Relay)) {
    for dialect in DIALECTS {
        let mut relay = Relay::new(dialect);
        story(&mut relay);
        relay.check();
    }
}

// ---- Stories.

#[test]
fn a_poll_is_held_until_there_is_something_for_it() {
    in_every_dialect(|relay| {
        let poll = relay.poll(0);
        relay.wait(HOLD - SECOND);
        assert_eq!(relay.polls[poll].got, Got::Held);
        let visit = relay.get("/a?b");
        let ask = relay.ask(poll);
        assert_eq!((&ask.method[..], &ask.target[..], &ask.body[..]), (&b"GET"[..], &b"/a?b"[..], &b""[..]));
        let fields = &ask.fields[0];
        assert!(fields.0.eq_ignore_ascii_case(b"host") && fields.1 == b"a.example");
        assert_eq!(relay.answer(0, &ask), Ok(visit));
        relay.has_ended(visit, &answered("GET /a?b "));
        // Nothing is left that could be due.
        assert_eq!(relay.deadline(), None);
    });
}

#[test]
fn a_poll_for_which_there_is_nothing_ends_when_its_time_is_over() {
    in_every_dialect(|relay| {
        let polls = [relay.poll(0), relay.poll(1)];
        relay.wait(HOLD - SECOND);
        let later = relay.poll(0);
        relay.wait(SECOND);
        assert_eq!(polls.map(|poll| relay.polls[poll].got.clone()), [Got::Nothing, Got::Nothing]);
        assert_eq!(relay.polls[later].got, Got::Held);
        // Its connection is gone: nobody is told anything.
        relay.break_off(later, true);
        relay.wait(HOLD);
        assert_eq!(relay.polls[later].got, Got::Gone);
    });
}

#[test]
fn polls_of_less_patience_are_due_first() {
    in_every_dialect(|relay| {
        let long = relay.poll_for(0, HOLD);
        let short = relay.poll_for(0, SECOND);
        let none = relay.poll_for(0, Duration::ZERO);
        let middle = relay.poll_for(0, 2 * SECOND);
        assert_eq!(relay.deadline(), Some(relay.now));
        relay.wait(Duration::ZERO);
        assert_eq!(relay.polls[none].got, Got::Nothing);
        relay.wait(SECOND);
        assert_eq!(relay.polls[short].got, Got::Nothing);
        relay.get("/");
        assert_eq!(relay.target(middle), "/");
        relay.get("/");
        assert_eq!(relay.target(long), "/");
    });
}

#[test]
fn agents_that_poll_alike_take_turns() {
    in_every_dialect(|relay| {
        let mut polls = [relay.poll(0), relay.poll(1), relay.poll(2)];
        for n in 0..9 {
            relay.wait(SECOND / 4);
            let visit = relay.get(&format!("/{n}"));
            let agent = n % 3;
            let ask = relay.ask(polls[agent]);
            assert_eq!(ask.target, format!("/{n}").as_bytes());
            assert_eq!(relay.answer(agent as u8, &ask), Ok(visit));
            polls[agent] = relay.poll(agent as u8);
        }
    });
}

#[test]
fn a_request_for_which_no_poll_comes_ends_without_one() {
    in_every_dialect(|relay| {
        let first = relay.get("/1");
        relay.wait(SECOND);
        let second = relay.get("/2");
        relay.wait(PATIENCE - SECOND);
        relay.has_ended(first, &End::NoPoll);
        assert_eq!(relay.visits[second].end, None);
        let poll = relay.poll(0);
        assert_eq!(relay.target(poll), "/2");
    });
}

#[test]
fn requests_go_out_in_their_order() {
    in_every_dialect(|relay| {
        for n in 0..5 {
            relay.get(&format!("/{n}"));
        }
        let mut targets = Vec::new();
        while targets.len() < 5 {
            let poll = relay.poll(0);
            let asks = relay.got(poll);
            assert_eq!(asks.len(), relay.dialect.batch().min(5 - targets.len()));
            targets.extend(asks.into_iter().map(|ask| String::from_utf8(ask.target).unwrap()));
        }
        assert_eq!(targets, ["/0", "/1", "/2", "/3", "/4"]);
    });
}

#[test]
fn what_did_not_arrive_goes_out_again_first_and_in_its_order() {
    in_every_dialect(|relay| {
        let lost = relay.poll(0);
        let mut polls = vec![lost];
        if relay.dialect.batch() == 1 {
            polls.extend([relay.poll(0), relay.poll(0)]);
            relay.get("/0");
            relay.get("/1");
            relay.get("/2");
        } else {
            // All three in one.
            relay.break_off(lost, true);
            relay.get("/0");
            relay.get("/1");
            relay.get("/2");
            polls = vec![relay.poll(0)];
        }
        relay.get("/3");
        for poll in polls.iter().rev() {
            relay.break_off(*poll, false);
        }
        let mut targets = Vec::new();
        while targets.len() < 4 {
            let poll = relay.poll(1);
            for ask in relay.got(poll) {
                // Those of another agent that are out are its own.
                assert_eq!(relay.answer(0, &ask), Err(Unwanted::Foreign));
                relay.answer(1, &ask).unwrap();
                targets.push(String::from_utf8(ask.target).unwrap());
            }
        }
        assert_eq!(targets, ["/0", "/1", "/2", "/3"]);
        assert!(relay.visits.iter().all(|visit| matches!(visit.end, Some(End::Answered(_)))));
    });
}

#[test]
fn what_goes_out_again_keeps_no_other_waiting() {
    in_every_dialect(|relay| {
        let poll = relay.poll(0);
        let first = relay.get("/first");
        let second = relay.get("/second");
        relay.wait(PATIENCE - SECOND);
        relay.break_off(poll, false);
        // Its own patience begins anew, but ends with that of those behind it.
        relay.wait(SECOND);
        relay.has_ended(first, &End::NoPoll);
        relay.has_ended(second, &End::NoPoll);
        // Alone it has all of it.
        let poll = relay.poll(0);
        let third = relay.get("/third");
        relay.wait(PATIENCE);
        relay.break_off(poll, false);
        relay.wait(PATIENCE - SECOND);
        assert_eq!(relay.visits[third].end, None);
        let poll = relay.poll(0);
        assert_eq!(relay.target(poll), "/third");
    });
}

#[test]
fn what_may_have_arrived_does_not_go_out_again() {
    in_every_dialect(|relay| {
        let poll = relay.poll(0);
        let visit = relay.get("/order");
        relay.break_off(poll, true);
        let next = relay.poll(0);
        assert_eq!(relay.polls[next].got, Got::Held);
        // The agent may still answer on another connection.
        let ask = relay.ask(poll);
        assert_eq!(relay.answer(0, &ask), Ok(visit));
    });
}

#[test]
fn a_message_that_is_never_answered_ends_and_its_answer_is_late() {
    in_every_dialect(|relay| {
        let poll = relay.poll(0);
        let visit = relay.get("/");
        let ask = relay.ask(poll);
        relay.wait(ANSWER - SECOND);
        assert_eq!(relay.visits[visit].end, None);
        relay.wait(SECOND);
        relay.has_ended(visit, &End::NoAnswer);
        assert_eq!(relay.answer(0, &ask), Err(Unwanted::Unknown));
        relay.has_ended(visit, &End::NoAnswer);
    });
}

#[test]
fn an_answer_counts_once() {
    in_every_dialect(|relay| {
        let poll = relay.poll(0);
        let visit = relay.get("/");
        let ask = relay.ask(poll);
        assert_eq!(relay.answer(0, &ask), Ok(visit));
        assert_eq!(relay.answer(0, &ask), Err(Unwanted::Unknown));
        // The next one has another id.
        let poll = relay.poll(0);
        let next = relay.get("/");
        assert_eq!(relay.answer(0, &ask), Err(Unwanted::Unknown));
        let asked = relay.ask(poll);
        assert_ne!(asked.id, ask.id);
        assert_eq!(relay.answer(0, &asked), Ok(next));
    });
}

#[test]
fn an_answer_with_an_id_that_was_made_up_is_nobodys() {
    in_every_dialect(|relay| {
        let poll = relay.poll(0);
        let visit = relay.get("/");
        let ask = relay.ask(poll);
        // Each digit of the right one, changed: who knows the number but not the rest knows nothing.
        for n in 0..ask.id.len() {
            let mut id = ask.id.clone().into_bytes();
            id[n] = if id[n] == b'7' { b'8' } else { b'7' };
            let made_up = Ask { id: String::from_utf8(id).unwrap(), ..ask.clone() };
            assert_eq!(relay.answer(0, &made_up), Err(Unwanted::Unknown), "{n}");
            let id = Id::parse(made_up.id.as_bytes()).unwrap();
            assert_eq!((relay.out.find(id), relay.out.take_back(id)), (None, None), "{n}");
        }
        for id in ["x", "7", &ask.id.to_ascii_lowercase(), &format!("{}0", ask.id), &ask.id[1..]] {
            let made_up = Ask { id: id.to_owned(), ..ask.clone() };
            assert_eq!(relay.answer(0, &made_up), Err(Unwanted::Unknown), "{id}");
        }
        assert_eq!(relay.answer(0, &ask), Ok(visit));
    });
}

#[test]
fn only_the_agent_that_was_asked_may_answer() {
    in_every_dialect(|relay| {
        let polls = [relay.poll(0), relay.poll(1)];
        let visits = [relay.get("/0"), relay.get("/1")];
        let asks = polls.map(|poll| relay.ask(poll));
        assert_eq!(relay.answer(1, &asks[0]), Err(Unwanted::Foreign));
        assert_eq!(relay.answer(0, &asks[1]), Err(Unwanted::Foreign));
        // Neither has lost anything by that, and the order is theirs.
        assert_eq!(relay.answer(1, &asks[1]), Ok(visits[1]));
        assert_eq!(relay.answer(0, &asks[0]), Ok(visits[0]));
        relay.has_ended(visits[0], &answered("GET /0 "));
        relay.has_ended(visits[1], &answered("GET /1 "));
    });
}

#[test]
fn answers_come_in_any_order() {
    in_every_dialect(|relay| {
        let asks: Vec<Ask> = (0..6)
            .flat_map(|n| {
                relay.get(&format!("/{n}"));
                let poll = relay.poll(0);
                relay.got(poll)
            })
            .collect();
        for n in [3, 0, 5, 1, 4, 2] {
            relay.wait(SECOND);
            assert_eq!(relay.answer(0, &asks[n]), Ok(n));
            relay.has_ended(n, &answered(&format!("GET /{n} ")));
        }
        assert!(relay.out.is_empty());
    });
}

#[test]
fn what_nobody_waits_for_any_more_is_neither_handed_out_nor_answered() {
    in_every_dialect(|relay| {
        let visits = [relay.get("/0"), relay.get("/1"), relay.get("/2")];
        relay.leave(visits[1]);
        let mut targets = Vec::new();
        while targets.len() < 2 {
            let poll = relay.poll(0);
            targets.extend(relay.got(poll).into_iter().map(|ask| ask.target));
        }
        assert_eq!(targets, [b"/0", b"/2"]);
        let poll = relay.poll(0);
        let gone = relay.get("/gone");
        let ask = relay.ask(poll);
        relay.leave(gone);
        assert_eq!(relay.answer(0, &ask), Err(Unwanted::Unknown));
        // Nor does it come back when its poll turns out to be lost.
        relay.break_off(poll, false);
        let next = relay.poll(0);
        assert_eq!(relay.polls[next].got, Got::Held);
        relay.has_ended(gone, &End::Gone);
    });
}

#[test]
fn what_the_agent_can_not_read_costs_it_no_poll() {
    in_every_dialect(|relay| {
        let refused = match relay.dialect {
            Dialect::Comet(Style { notation: Notation::Json, base64: false }) => Some(Unsendable::BinaryBody),
            Dialect::Packed(Form::Stock) => Some(Unsendable::Method),
            _ => None,
        };
        let poll = relay.poll(0);
        relay.wait(SECOND);
        let visit = relay.visit(Request { method: "POST", target: "/".into(), body: BINARY.into() });
        if let Some(unsendable) = refused {
            relay.has_ended(visit, &End::Unsendable(unsendable));
            // It is held as long as it would have been.
            assert_eq!(relay.polls[poll].got, Got::Held);
            assert_eq!(relay.deadline(), Some(relay.polls[poll].due));
            let next = relay.get("/next");
            assert_eq!(relay.target(poll), "/next");
            assert_eq!(relay.visits[next].handed_out, 1);
        } else {
            let ask = relay.ask(poll);
            assert_eq!(ask.body, BINARY);
            let answer = relay.dialect.answer(&ask);
            assert!(relay.dialect.read_answer(&answer).unwrap().2.ends_with(BINARY));
        }
    });
}

#[test]
fn ids_name_who_gave_them_out_and_are_never_the_same() {
    let mut random = Random::new(1);
    let mut seen = HashMap::new();
    for giver in [0, 1, 31, 32, 63, 64, 255] {
        let mut out = Outstanding::<u64, ()>::new(giver);
        for message in 0..2000 {
            // Even where chance fails.
            let secret = if message % 2 == 0 { [0; 10] } else { random.bytes(10).try_into().unwrap() };
            let id = out.hand_out(Instant::default(), message, (), ANSWER, secret);
            let text = id.as_str().to_owned();
            assert!(text.len() == 26 && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()), "{text}");
            let read = Id::parse(text.as_bytes()).unwrap();
            assert_eq!((read, read.giver(), format!("{read:?}")), (id, giver, text.clone()));
            assert_eq!(out.find(read), Some(message));
            assert_eq!(seen.insert(text.clone(), giver), None, "{text} was given out twice");
        }
        assert_eq!(out.len(), 2000);
    }
    // All 80 bits of the secret are in it.
    let mut out = Outstanding::<u8, ()>::new(0);
    let ends: Vec<String> = (0..80)
        .map(|bit| {
            let secret = (1u128 << bit).to_be_bytes()[6..].try_into().unwrap();
            out.hand_out(Instant::default(), 0, (), ANSWER, secret).as_str()[10..].to_owned()
        })
        .collect();
    for (bit, end) in ends.iter().enumerate() {
        assert!(!ends[..bit].contains(end), "{bit}");
    }
    for text in ["", "0", "0123456789ABCDEFGHJKMNPQR", "0123456789abcdefghjkmnpqrs", "0123456789ABCDEFGHIJKLMNOP"] {
        assert_eq!(Id::parse(text.as_bytes()), None, "{text}");
    }
    assert!(Id::parse(b"ZZZZZZZZZZZZZZZZZZZZZZZZZZ").is_some());
    assert_eq!(Id::parse(b"ZZZZZZZZZZZZZZZZZZZZZZZZZZ").unwrap().giver(), 255);
}

// ---- Chance.

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

/// What agents have in hand: who, and what it was asked.
type InHand = Vec<(u8, Ask)>;

/// One thing happens.
fn happen(relay: &mut Relay, random: &mut Random, read: &mut usize, in_hand: &mut InHand) {
    match random.below(12) {
        0..3 => {
            let body = if random.once_in(4) { BINARY.to_vec() } else { Vec::new() };
            let method = if random.once_in(4) { "POST" } else { "GET" };
            let target = format!("/{}", relay.visits.len());
            relay.visit(Request { method, target, body });
        }
        3..6 => {
            let hold = [HOLD, HOLD, SECOND, Duration::ZERO][random.below(4)];
            relay.poll_for(random.below(3) as u8, hold);
        }
        6 => {
            // Few things are worth waiting for.
            let longest = if random.once_in(4) { 60_000 } else { 3000 };
            relay.wait(Duration::from_millis(random.below(longest) as u64));
        }
        7 if !relay.visits.is_empty() => relay.leave(random.below(relay.visits.len())),
        8 if *read < relay.polls.len() => {
            let which = *read + random.below(relay.polls.len() - *read);
            relay.break_off(which, random.once_in(2));
        }
        9 if *read < relay.polls.len() => {
            // An agent reads the next answer of a poll.
            let poll = &relay.polls[*read];
            match &poll.got {
                Got::Held => {}
                Got::Messages(bytes, _) => {
                    in_hand.extend(relay.dialect.read(bytes).into_iter().map(|ask| (poll.agent, ask)));
                    *read += 1;
                }
                Got::Gone | Got::Nothing => *read += 1,
            }
        }
        _ if !in_hand.is_empty() => {
            let which = random.below(in_hand.len());
            let (agent, ask) = in_hand[which].clone();
            let number: usize = str::from_utf8(&ask.target[1..]).unwrap().parse().unwrap();
            match random.below(8) {
                // Somebody else, or something else.
                0 => {
                    assert!(relay.answer(agent + 1, &ask).is_err());
                }
                1 => {
                    let id = ask.id.bytes().rev().map(char::from).collect();
                    let _ = relay.answer(agent, &Ask { id, ..ask });
                }
                _ => {
                    let expected = matches!(relay.visits[number].place, Place::Out(id) if id.as_str() == ask.id);
                    let answer = relay.answer(agent, &ask);
                    assert_eq!(answer, if expected { Ok(number) } else { Err(Unwanted::Unknown) });
                    // Most answer once.
                    if !random.once_in(4) {
                        in_hand.swap_remove(which);
                    }
                }
            }
        }
        _ => {}
    }
}

#[test]
fn each_request_ends_once_whatever_happens() {
    let mut ends: HashMap<String, usize> = HashMap::new();
    for seed in seeds(2000) {
        let _seed = Seed(seed);
        let mut random = Random::new(seed);
        let mut relay = Relay::new(DIALECTS[random.below(DIALECTS.len())]);
        let (mut read, mut in_hand) = (0, Vec::new());
        for _ in 0..random.below(300) {
            happen(&mut relay, &mut random, &mut read, &mut in_hand);
            relay.check();
        }
        // Nobody does anything any more: then all is over in time.
        relay.wait(HOLD.max(PATIENCE).max(ANSWER));
        relay.check();
        assert_eq!(relay.deadline(), None);
        assert!(relay.polls.iter().all(|poll| poll.got != Got::Held));
        for visit in &relay.visits {
            let end = visit.end.as_ref().unwrap();
            match end {
                End::Answered(text) => {
                    let body = String::from_utf8_lossy(&visit.request.body);
                    let expected = format!("{} {} {body}", visit.request.method, visit.request.target);
                    assert_eq!(*text, expected);
                    assert_eq!(visit.handed_out, visit.taken_back + 1);
                }
                End::NoAnswer => assert_eq!(visit.handed_out, visit.taken_back + 1),
                End::NoPoll | End::Unsendable(_) => assert_eq!(visit.handed_out, visit.taken_back),
                End::Gone => {}
            }
            let kind = format!("{end:?}").split('(').next().unwrap_or_default().to_owned();
            *ends.entry(kind).or_default() += 1;
            *ends.entry("again".into()).or_default() += usize::from(visit.again);
        }
    }
    // All of it has happened.
    if env::var("PTTH_SEED").is_err() {
        for kind in ["Answered", "NoPoll", "NoAnswer", "Unsendable", "Gone", "again"] {
            assert!(ends.get(kind).is_some_and(|count| *count > 100), "{kind}: {ends:?}");
        }
    }
}
