//! Visitors and upstreams: what they say, and what must hold of what they hear. Each request has a number, and each byte of a
//! body is told by the number and by its place, so that nothing can be taken for anything else.

use std::collections::{BTreeMap, VecDeque};

use ptth_proto::conn::{Body, Conn};
use ptth_proto::error::Fault;
use ptth_proto::http::framing::Framing;
use ptth_proto::http::tunnel;
use ptth_proto::wire::fields::Fields;
use ptth_proto::wire::head::{Head, is_idempotent};

use super::wire::{Heard, Incoming, Kind, Life, Said, Seat, Wire};
use super::{PAGE, World};

/// Requests that a visitor has sent and are not answered.
const PIPELINED: usize = 4;

const METHODS: [&[u8]; 6] = [b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS"];
const STATUSES: [u16; 5] = [200, 204, 304, 404, 500];

/// What a visitor wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// A request and its answer.
    Answer,
    /// To go on with another protocol, or an answer.
    Switch,
    /// Bytes both ways, without HTTP.
    Bytes,
}

/// One request: what its visitor has said, and what became of it.
#[derive(Debug)]
pub(super) struct Story {
    wish: Wish,
    method: &'static [u8],
    body: Body,
    said: u64,
    ended: bool,
    trailers: bool,
    /// In HTTP/1.0.
    old: bool,
    /// Its visitor has said more than a request.
    foul: bool,
    /// The times that an upstream has heard of it.
    arrivals: Vec<Arrival>,
    pub(super) answered: bool,
}

#[derive(Debug, Default)]
struct Arrival {
    heard: u64,
    ended: bool,
    informed: usize,
    /// The upstream was offered another protocol, and may take it.
    offered: bool,
    answer: Option<Answer>,
    /// The upstream has said more than an answer.
    foul: bool,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    /// What is still to come of a body that has a length.
    left: Option<u64>,
    said: u64,
    /// No body of it may go out.
    mute: bool,
    /// The end of the connection is its end.
    until_close: bool,
    ended: bool,
    trailers: bool,
}

/// What a visitor is hearing.
#[derive(Clone, Copy, Debug)]
enum Hearing {
    Head(usize),
    /// The answer to its request's so-manieth arrival, or what follows a switch.
    Answer(usize, u64),
    /// What comes of a service; the first byte tells from which arrival.
    Service,
    /// A page of relay or agent.
    Page(usize),
    /// What an upstream has said beyond its answers; such a thing has no number.
    Anything,
}

#[derive(Debug, Default)]
pub(super) struct Visitor {
    pub(super) wire: Option<usize>,
    /// The requests it waits for, the oldest first.
    pub(super) asked: VecDeque<usize>,
    /// It is in the middle of the last of them.
    speaking: bool,
    hearing: Hearing,
}

impl Default for Hearing {
    fn default() -> Hearing {
        Hearing::Head(0)
    }
}

/// What an upstream is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Serving {
    Nothing,
    /// This request, and which of its arrivals.
    Request(usize, usize),
    /// What no visitor of good manners has said.
    Foul,
}

/// The byte at this place of this body.
fn byte(number: usize, answer: Option<usize>, at: u64) -> u8 {
    let which = number as u64 * 8 + answer.map_or(0, |arrival| 1 + arrival as u64);
    (which * 131 + at * 7 + (at >> 8)) as u8
}

fn piece(number: usize, answer: Option<usize>, from: u64, length: u64) -> Vec<u8> {
    (from..from + length).map(|at| byte(number, answer, at)).collect()
}

fn trailers() -> Fields {
    let mut head = Head::default();
    head.parse_response(b"HTTP/1.1 200 \r\nSum: x\r\n\r\n", &ptth_proto::limits::Limits::default()).unwrap();
    head.fields
}

fn value<'a>(head: &'a Head, name: &[u8]) -> Option<&'a [u8]> {
    head.fields.iter().find(|field| field.name == name).map(|field| field.value)
}

fn replace(out: &mut Vec<u8>, start: usize, from: &[u8], to: &[u8]) {
    let at = out[start..].windows(from.len()).position(|bytes| bytes == from).unwrap();
    out.splice(start + at..start + at + from.len(), to.iter().copied());
}

/// The agent has connected to its upstream as it was asked to.
pub(super) fn connected(stories: &mut [Story], serving: &mut BTreeMap<usize, Serving>, asked: &Head, wire: usize) {
    let number: usize = std::str::from_utf8(value(asked, b"Number").unwrap()).unwrap().parse().unwrap();
    let arrivals = &mut stories[number].arrivals;
    serving.insert(wire, Serving::Request(number, arrivals.len()));
    arrivals.push(Arrival { answer: Some(Answer::bytes(200)), ..Arrival::default() });
}

impl Answer {
    /// None: bytes from here on.
    fn bytes(status: u16) -> Answer {
        Answer { status, left: None, said: 0, mute: false, until_close: false, ended: false, trailers: false }
    }
}

fn body_of(arg: u8) -> Body {
    match arg % 4 {
        0 => Body::None,
        1 => Body::Length(0),
        2 => Body::Length(u64::from(arg) * u64::from(arg) / 16),
        _ => Body::Stream,
    }
}

// ---- Visitors.

impl World {
    pub(super) fn visit(&mut self, who: usize) {
        if self.visitors[who].wire.is_some() {
            return;
        }
        self.visitors[who] = Visitor { wire: Some(self.wires.len()), ..Visitor::default() };
        self.wires.push(Wire::new(Kind::Visit, [Seat::Own, Seat::Front], self.now));
    }

    /// Comes to a service: what it says goes through a tunnel from its first byte.
    pub(super) fn visit_service(&mut self, who: usize) {
        if self.visitors[who].wire.is_some() {
            return;
        }
        let (wire, number) = (self.wires.len(), self.stories.len());
        let (asked, hearing) = (VecDeque::from([number]), Hearing::Service);
        self.visitors[who] = Visitor { wire: Some(wire), asked, speaking: true, hearing };
        self.stories.push(Story::new(Wish::Bytes, b"CONNECT", Body::None));
        self.wires.push(Wire::raw(Kind::Service, [Seat::Own, Seat::Front], self.now));
        self.accept((wire, 1), number);
    }

    /// Its connection, as long as it can say something on it.
    fn line_of(&mut self, who: usize) -> Option<usize> {
        let wire = self.visitors[who].wire?;
        let end = &self.wires[wire].ends[0];
        (end.can_speak() && !self.wires[wire].foul).then_some(wire)
    }

    /// Asks, also behind a request that is not answered yet.
    pub(super) fn ask_as(&mut self, who: usize, arg: u8, more: u8) {
        let Some(wire) = self.line_of(who) else { return };
        let number = self.stories.len();
        let Visitor { asked, speaking, .. } = &mut self.visitors[who];
        let idle = asked.is_empty();
        // Behind an offer to switch nobody goes on before it is answered.
        let waits = *speaking || asked.back().is_some_and(|last| self.stories[*last].wish != Wish::Answer);
        let goes_on = !idle || self.wires[wire].ends[0].conn.is_idle();
        if waits || !goes_on || asked.len() >= PIPELINED {
            return;
        }
        let method = METHODS[usize::from(arg) % METHODS.len()];
        let body = if idle { body_of(more) } else { Body::None };
        let ended = matches!(body, Body::None | Body::Length(0));
        let old = arg >= 0xf0 && body != Body::Stream && idle;
        let wish = if idle && ended && !old && more >= 0xa0 { Wish::Switch } else { Wish::Answer };
        let end = &mut self.wires[wire].ends[0];
        let (mut sink, mut ahead) = (Vec::new(), Conn::client(self.now));
        let start = end.out.len();
        // Behind another request it is written by a connection that knows nothing of it, and asked for once it is its turn.
        let conn = if idle { &mut end.conn } else { &mut ahead };
        let target = format!("/{number}");
        let sent = conn.send_request(self.now, &mut sink, (method, target.as_bytes()), body, |writer| {
            writer.field("Host", "a.example");
            writer.field("Number", &target[1..]);
            if old && arg & 1 == 1 {
                writer.field("Connection", "keep-alive");
            }
            if wish == Wish::Switch {
                writer.field("Connection", "Upgrade");
                writer.field("Upgrade", "h2c, probe");
            }
        });
        sent.unwrap();
        end.out.extend(sink);
        if ended {
            conn.send_end(self.now, None, &mut end.out).unwrap();
        }
        if wish == Wish::Switch {
            conn.offer_switch().unwrap();
        }
        if old {
            replace(&mut end.out, start, b" HTTP/1.1\r\n", b" HTTP/1.0\r\n");
            // It may not be kept.
            self.fair = false;
        }
        *speaking = !ended;
        asked.push_back(number);
        self.stories.push(Story { ended, old, ..Story::new(wish, method, body) });
    }

    pub(super) fn say_as(&mut self, who: usize, length: u64) {
        let Some((wire, number)) = self.speaker(who) else { return };
        let (story, end) = (&mut self.stories[number], &mut self.wires[wire].ends[0]);
        let length = match story.body {
            Body::Length(total) => length.min(total - story.said),
            _ => length,
        };
        let data = piece(number, None, story.said, length);
        end.conn.send_data(self.now, &data, &mut end.out).unwrap();
        story.said += length;
        if story.body == Body::Length(story.said) {
            self.end_as(who, false);
        }
    }

    pub(super) fn end_as(&mut self, who: usize, with: bool) {
        let Some((wire, number)) = self.speaker(who) else { return };
        let (story, end) = (&mut self.stories[number], &mut self.wires[wire].ends[0]);
        if matches!(story.body, Body::Length(total) if story.said < total) {
            return;
        }
        story.trailers = with && story.body == Body::Stream;
        let trailers = trailers();
        end.conn.send_end(self.now, story.trailers.then_some(&trailers), &mut end.out).unwrap();
        story.ended = true;
        self.visitors[who].speaking = false;
    }

    fn speaker(&mut self, who: usize) -> Option<(usize, usize)> {
        let wire = self.line_of(who)?;
        let visitor = &self.visitors[who];
        let number = *visitor.asked.back()?;
        (visitor.speaking && self.wires[wire].ends[0].conn.is_speaking()).then_some((wire, number))
    }

    /// Says the rest.
    pub(super) fn complete_as(&mut self, who: usize) -> bool {
        let Some((_, number)) = self.speaker(who) else { return false };
        match self.stories[number].body {
            Body::Length(total) => self.say_as(who, total),
            _ => self.end_as(who, true),
        }
        true
    }

    /// Says what no client says.
    pub(super) fn foul_as(&mut self, who: usize, junk: &[u8]) {
        let Some(wire) = self.line_of(who).filter(|wire| !self.wires[*wire].ends[0].conn.is_tunnel()) else { return };
        self.fair = false;
        self.wires[wire].foul = true;
        self.wires[wire].ends[0].out.extend_from_slice(junk);
        let visitor = &self.visitors[who];
        if let Some(last) = visitor.asked.back() {
            // It may be behind the request, and be what follows a switch.
            self.stories[*last].foul |= visitor.speaking || self.stories[*last].wish == Wish::Switch;
        }
    }

    /// A visitor takes in all that came.
    pub(super) fn hear_as(&mut self, who: usize) -> bool {
        let Some(wire) = self.visitors[who].wire else { return false };
        let mut happened = false;
        loop {
            let World { wires, config, now, stories, visitors, junk, fair, .. } = self;
            let (foul, end) = (wires[wire].foul, &mut wires[wire].ends[0]);
            if end.incoming == Incoming::Reset || foul && end.incoming != Incoming::Open {
                end.drop_it();
            }
            if end.is_dead() {
                self.visitors[who] = Visitor::default();
                return true;
            }
            if foul || end.conn.closing().is_some() {
                end.input.clear();
                return happened;
            }
            match end.hear(*now, config) {
                Ok(Heard::Nothing) => return happened,
                Ok(Heard::Said(said) | Heard::Ended(Some(said))) => {
                    {
                        visitors[who].hear(&said, &end.head, stories, (*fair, *junk));
                        if matches!(said, Said::Switched) && end.life == Life::Half {
                            // It has closed its side before it knew.
                            visitors[who].speaking = false;
                            end.conn.send_end(*now, None, &mut end.out).unwrap();
                        }
                    }
                }
                Ok(Heard::Some | Heard::Ended(None)) => {}
                Err(error) => assert_eq!(error, Fault::EarlyEnd.into(), "said by our relay"),
            }
            happened = true;
            // The next of those that were asked ahead.
            if let Some(next) = visitors[who].asked.front()
                && end.conn.is_idle()
            {
                let story = &mut stories[*next];
                let mut sink = Vec::new();
                end.conn.send_request(*now, &mut sink, (story.method, b"/"), story.body, |_| {}).unwrap();
                end.conn.send_end(*now, None, &mut sink).unwrap();
            }
        }
    }
}

impl Visitor {
    fn hear(&mut self, said: &Said, head: &Head, stories: &mut [Story], (fair, junk): (bool, bool)) {
        let Some(number) = self.asked.front().copied() else {
            return assert!(matches!(said, Said::Closed), "{said:?} to a visitor that has asked nothing");
        };
        let story = &mut stories[number];
        if let Hearing::Answer(arrival, _) = self.hearing
            && story.arrivals[arrival].foul
        {
            self.hearing = Hearing::Anything;
        }
        match (said, self.hearing) {
            (Said::Informational | Said::Response(_) | Said::Switched, Hearing::Head(_))
                if junk && value(head, b"Page").is_none() && value(head, b"Number").is_none() =>
            {
                self.hearing = Hearing::Anything;
            }
            (Said::Informational, Hearing::Head(before)) => {
                assert!(!story.old && head.status() == 103);
                let arrival = story.arrival_in(number, head);
                assert!(before < story.arrivals[arrival].informed);
                self.hearing = Hearing::Head(before + 1);
            }
            (Said::Response(_), Hearing::Head(_)) => {
                self.hearing = if value(head, b"Page").is_some() {
                    assert!(!fair && head.status() >= 400, "{} although nothing went wrong", head.status());
                    Hearing::Page(0)
                } else {
                    let arrival = story.arrival_in(number, head);
                    let answer = story.arrivals[arrival].answer.as_ref().unwrap();
                    assert_eq!(answer.status, head.status());
                    Hearing::Answer(arrival, 0)
                };
            }
            (Said::Switched, Hearing::Head(_)) => {
                let arrival = story.arrival_in(number, head);
                assert_eq!((story.wish, head.status()), (Wish::Switch, 101));
                assert_eq!(value(head, b"Upgrade"), Some(&b"probe"[..]));
                self.hearing = Hearing::Answer(arrival, 0);
                self.speaking = true;
                story.ended = false;
            }
            (Said::Data(data), Hearing::Service) => {
                let from = |(at, arrival): &(usize, &Arrival)| {
                    data[0] == byte(number, Some(*at), 0)
                        && arrival.answer.as_ref().is_some_and(|answer| answer.said > 0)
                };
                let (arrival, _) = story.arrivals.iter().enumerate().find(from).unwrap();
                self.hearing = Hearing::Answer(arrival, 0);
                self.hear(said, head, stories, (fair, junk));
            }
            (Said::Data(data), Hearing::Answer(arrival, before)) => {
                let answer = story.arrivals[arrival].answer.as_ref().unwrap();
                let heard = before + data.len() as u64;
                assert!(heard <= answer.said && !answer.mute);
                assert_eq!(*data, piece(number, Some(arrival), before, data.len() as u64));
                self.hearing = Hearing::Answer(arrival, heard);
            }
            (Said::Data(data), Hearing::Page(before)) => {
                assert!(PAGE[before..].starts_with(data));
                self.hearing = Hearing::Page(before + data.len());
            }
            (Said::End(trailers), hearing) => {
                let mut in_tunnel = story.wish == Wish::Bytes;
                match hearing {
                    Hearing::Answer(arrival, heard) => {
                        let answer = story.arrivals[arrival].answer.as_ref().unwrap();
                        in_tunnel |= answer.status == 101;
                        assert!(answer.ended, "an answer ended that goes on");
                        assert_eq!((heard, *trailers), (answer.said, answer.trailers && !story.old));
                    }
                    // No agent could be asked, or none would have it.
                    Hearing::Service => {
                        let mut answers = story.arrivals.iter().filter_map(|arrival| arrival.answer.as_ref());
                        assert!(!fair || answers.any(|answer| answer.ended && answer.said == 0));
                    }
                    Hearing::Page(heard) => assert!(heard == PAGE.len() || heard == 0 && story.method == b"HEAD"),
                    Hearing::Anything => {}
                    Hearing::Head(_) => panic!("the end of no answer"),
                }
                story.answered = true;
                // A tunnel is over when both directions are.
                self.hearing = Hearing::Anything;
                if !in_tunnel {
                    self.asked.pop_front();
                    self.hearing = Hearing::default();
                }
            }
            (Said::Informational | Said::Response(_) | Said::Data(_), Hearing::Anything) => {}
            other => panic!("{other:?} to a visitor"),
        }
    }
}

impl Story {
    fn new(wish: Wish, method: &'static [u8], body: Body) -> Story {
        Story {
            wish,
            method,
            body,
            said: 0,
            ended: false,
            trailers: false,
            old: false,
            foul: false,
            arrivals: Vec::new(),
            answered: false,
        }
    }

    /// Which arrival's answer this is; it must be one to this request.
    fn arrival_in(&self, number: usize, head: &Head) -> usize {
        let value = value(head, b"Number").unwrap();
        let arrival = (0..self.arrivals.len()).find(|arrival| value == format!("{number}.{arrival}").as_bytes());
        arrival.unwrap_or_else(|| panic!("the answer to {} came to request {number}", value.escape_ascii()))
    }
}

// ---- Upstreams.

impl World {
    /// An upstream takes in all that came on one of its connections.
    pub(super) fn hear_at(&mut self, wire: usize) -> bool {
        let mut happened = false;
        loop {
            let World { wires, config, now, .. } = self;
            let foul = wires[wire].foul;
            let end = &mut wires[wire].ends[1];
            if end.is_dead() {
                return happened;
            }
            if end.incoming == Incoming::Reset || foul && end.incoming != Incoming::Open {
                end.drop_it();
                return true;
            }
            if foul || end.conn.closing().is_some() {
                end.input.clear();
                return happened;
            }
            match end.hear(*now, config) {
                Ok(Heard::Nothing) => return happened,
                Ok(Heard::Said(said)) => self.heard_at(wire, said),
                Ok(Heard::Some) => {}
                Ok(Heard::Ended(Some(said @ Said::End(_)))) => self.heard_at(wire, said),
                // Nobody waits for an answer who has closed in the middle of a request, or behind it.
                Ok(Heard::Ended(_)) => end.drop_it(),
                Err(error) => {
                    assert_eq!(error, Fault::EarlyEnd.into(), "said by our agent");
                    end.drop_it();
                }
            }
            happened = true;
        }
    }

    fn heard_at(&mut self, wire: usize, said: Said) {
        let World { wires, stories, now, fair, .. } = self;
        let end = &mut wires[wire].ends[1];
        let serving = self.serving.entry(wire).or_insert(Serving::Nothing);
        match (said, *serving) {
            (Said::Request(framing), Serving::Nothing) => {
                let number = value(&end.head, b"Number").and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
                let Some(number) = number else {
                    assert!(!*fair);
                    *serving = Serving::Foul;
                    return;
                };
                let story: &mut Story = &mut stories[number];
                assert_eq!((end.head.method(), end.head.target()), (story.method, format!("/{number}").as_bytes()));
                // To what may become a tunnel, no body and one of no length are the same.
                assert!(Body::from(framing) == story.body || story.wish == Wish::Switch && framing == Framing::Empty);
                assert!(story.arrivals.is_empty() || !*fair && is_idempotent(story.method), "it came twice");
                *serving = Serving::Request(number, story.arrivals.len());
                let offered = tunnel::offered(&end.head, framing).collect::<Vec<_>>();
                assert!(offered.is_empty() || offered == [b"probe"] && story.wish == Wish::Switch);
                assert!(!*fair || story.wish != Wish::Switch || !offered.is_empty());
                story.arrivals.push(Arrival { offered: !offered.is_empty(), ..Arrival::default() });
            }
            (Said::Data(data), Serving::Request(number, arrival)) => {
                let story = &mut stories[number];
                let before = story.arrivals[arrival].heard;
                let heard = before + data.len() as u64;
                if !story.foul {
                    assert!(heard <= story.said);
                    assert_eq!(data, piece(number, None, before, data.len() as u64));
                }
                story.arrivals[arrival].heard = heard;
            }
            (Said::End(trailers), Serving::Request(number, arrival)) => {
                let story = &mut stories[number];
                let answer = story.arrivals[arrival].answer.as_ref();
                let in_tunnel = story.wish == Wish::Bytes || answer.is_some_and(|answer| answer.status == 101);
                // Whose visitor was gone before it knew of its tunnel, that tunnel ends without a byte.
                let never_used = in_tunnel && !*fair && story.arrivals[arrival].heard == 0;
                if !story.foul && !never_used {
                    assert!(story.ended, "a request ended that goes on");
                    assert_eq!((story.arrivals[arrival].heard, trailers), (story.said, story.trailers));
                }
                let arrival = &mut story.arrivals[arrival];
                arrival.ended = true;
                arrival.offered &= end.conn.offer_switch().is_ok();
                self.settle_at(wire);
            }
            (Said::End(_), Serving::Foul) if end.conn.can_respond() => {
                end.conn.send_response(*now, &mut end.out, (200, b""), Body::None, |_| {}).unwrap();
                end.conn.send_end(*now, None, &mut end.out).unwrap();
                *serving = Serving::Nothing;
            }
            (Said::Data(_), Serving::Foul) | (Said::Closed, Serving::Nothing) => {}
            (said, serving) => panic!("{said:?} to an upstream at {serving:?}"),
        }
    }

    /// Both messages may be over.
    fn settle_at(&mut self, wire: usize) {
        let Some(Serving::Request(number, arrival)) = self.serving.get(&wire).copied() else { return };
        let arrival = &self.stories[number].arrivals[arrival];
        if arrival.ended && arrival.answer.as_ref().is_some_and(|answer| answer.ended) {
            self.serving.insert(wire, Serving::Nothing);
        }
    }

    /// The connection, the request and its arrival, if there is one to be answered.
    fn server(&self, wire: usize) -> Option<(usize, usize)> {
        let end = &self.wires[wire].ends[1];
        match self.serving.get(&wire) {
            Some(Serving::Request(number, arrival)) if end.can_speak() && !self.wires[wire].foul => {
                Some((*number, *arrival))
            }
            _ => None,
        }
    }

    pub(super) fn inform_at(&mut self, wire: usize) {
        let Some((number, arrival)) = self.server(wire) else { return };
        let end = &mut self.wires[wire].ends[1];
        if end.conn.can_respond() {
            let value = format!("{number}.{arrival}");
            end.conn.send_informational(&mut end.out, (103, b""), |f| f.field("Number", &value)).unwrap();
            self.stories[number].arrivals[arrival].informed += 1;
        }
    }

    pub(super) fn respond_at(&mut self, wire: usize, arg: u8, more: u8) {
        let Some((number, at)) = self.server(wire) else { return };
        let story = &mut self.stories[number];
        let (arrival, end) = (&mut story.arrivals[at], &mut self.wires[wire].ends[1]);
        if !end.conn.can_respond() {
            return;
        }
        if arrival.offered && arrival.ended && arg & 0x20 == 0 {
            let value = format!("{number}.{at}");
            let sent = end.conn.send_switch(self.now, &mut end.out, |writer| {
                writer.field("Upgrade", "probe");
                writer.field("Number", &value);
            });
            sent.unwrap();
            let offered = false;
            *arrival = Arrival { heard: 0, ended: false, answer: Some(Answer::bytes(101)), offered, ..*arrival };
            return;
        }
        // Behind an answer to half a request nothing else is found.
        self.fair &= arrival.ended;
        let status = STATUSES[usize::from(arg) % STATUSES.len()];
        let mute = story.method == b"HEAD" || matches!(status, 204 | 304);
        let until_close = arg >= 0xe0 && !mute;
        let body = if until_close { Body::Length(u64::MAX) } else { body_of(more) };
        if until_close || arg & 0x10 != 0 {
            end.conn.do_not_keep();
        }
        let start = end.out.len();
        let value = format!("{number}.{at}");
        end.conn.send_response(self.now, &mut end.out, (status, b""), body, |f| f.field("Number", &value)).unwrap();
        if until_close {
            let length = format!("Content-Length: {}\r\n", u64::MAX);
            replace(&mut end.out, start, length.as_bytes(), b"");
            let version: &[u8] = if arg & 1 == 1 { b"HTTP/1.0 " } else { b"HTTP/1.1 " };
            replace(&mut end.out, start, b"HTTP/1.1 ", version);
        }
        let left = match body {
            Body::None => Some(0),
            Body::Length(length) => Some(length),
            Body::Stream => None,
        };
        let left = if mute { Some(0) } else { left };
        let (said, ended, trailers) = (0, false, false);
        arrival.answer = Some(Answer { status, left, said, mute, until_close, ended, trailers });
        if left == Some(0) {
            self.end_at(wire, false);
        }
    }

    pub(super) fn say_at(&mut self, wire: usize, length: u64) {
        let Some((number, at)) = self.server(wire) else { return };
        let end = &mut self.wires[wire].ends[1];
        let Some(answer) = self.stories[number].arrivals[at].answer.as_mut().filter(|answer| !answer.ended) else {
            return;
        };
        let length = length.min(answer.left.unwrap_or(u64::MAX));
        let data = piece(number, Some(at), answer.said, length);
        end.conn.send_data(self.now, &data, &mut end.out).unwrap();
        answer.said += length;
        answer.left = answer.left.map(|left| left - length);
        if answer.left == Some(0) {
            self.end_at(wire, false);
        }
    }

    pub(super) fn end_at(&mut self, wire: usize, with: bool) {
        let Some((number, at)) = self.server(wire) else { return };
        let World { wires, stories, now, .. } = self;
        let end = &mut wires[wire].ends[1];
        let Some(answer) = stories[number].arrivals[at].answer.as_mut().filter(|answer| !answer.ended) else { return };
        if answer.until_close {
            answer.ended = true;
            end.conn.close(*now);
        } else if answer.left.is_none_or(|left| left == 0) {
            answer.trailers = with && answer.left.is_none() && !end.conn.is_tunnel();
            let trailers = trailers();
            end.conn.send_end(*now, answer.trailers.then_some(&trailers), &mut end.out).unwrap();
            answer.ended = true;
        }
        self.settle_at(wire);
    }

    /// Says the rest.
    pub(super) fn complete_at(&mut self, wire: usize) -> bool {
        let Some((number, at)) = self.server(wire) else { return false };
        let arrival = &self.stories[number].arrivals[at];
        match &arrival.answer {
            None if arrival.ended => self.respond_at(wire, 0, 1),
            Some(answer) if !answer.ended => match answer.left {
                Some(left) if !answer.until_close => self.say_at(wire, left),
                _ => self.end_at(wire, true),
            },
            _ => return false,
        }
        true
    }

    /// Closes, whatever it is at.
    pub(super) fn close_at(&mut self, wire: usize) {
        if let Some((number, at)) = self.server(wire)
            && let Some(answer) = &mut self.stories[number].arrivals[at].answer
        {
            // Nobody can tell this from the end that was meant.
            answer.ended |= answer.until_close || self.wires[wire].ends[1].conn.is_tunnel();
        }
        self.wires[wire].ends[1].conn.close(self.now);
    }

    /// Says what no server says.
    pub(super) fn foul_at(&mut self, wire: usize, junk: &[u8]) {
        let end = &self.wires[wire].ends[1];
        if !end.is_alive() || end.conn.is_tunnel() {
            return;
        }
        self.fair = false;
        self.wires[wire].foul = true;
        self.wires[wire].ends[1].out.extend_from_slice(junk);
        self.junk = true;
        if let Some(Serving::Request(number, arrival)) = self.serving.get(&wire) {
            self.stories[*number].arrivals[*arrival].foul = true;
        }
    }
}
