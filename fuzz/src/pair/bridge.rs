//! What relay and agent do with their connections: `src/bridge` in small. Where that one looks at what a call gives, this one
//! demands that it is well: no call of a machine's driver is ever out of turn, and what our own machines say is never wrong.

use ptth_proto::conn::{Body, Event};
use ptth_proto::error::{Error, Fault};
use ptth_proto::http::framing::{Framing, content_length};
use ptth_proto::http::tunnel;
use ptth_proto::limits::Wait;
use ptth_proto::link::upgrade::Token;
use ptth_proto::time::Instant;
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::{FieldWriter, Head, Version, is_idempotent};

use super::wire::{At, End, Heard, Incoming, Kind, Life, Said, Seat, Wire};
use super::{PAGE, World, people};

/// Connections to the upstream that the agent has at a time.
const UPSTREAMS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    Relay,
    Agent,
}

impl Program {
    /// Whose end of a wire it is; `None` for visitors and upstreams.
    pub(super) fn at(kind: Kind, side: usize) -> Option<Program> {
        match (kind, side) {
            (Kind::Visit | Kind::Service | Kind::Link, 1) => Some(Program::Relay),
            (Kind::Link | Kind::Upstream, 0) => Some(Program::Agent),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Connecting,
    Asking,
    Streaming,
    Tunnel,
}

/// What an exchange may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Becomes {
    Nothing,
    Switch,
    Connect,
}

#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) program: Program,
    front: At,
    back: Option<At>,
    stage: Stage,
    becomes: Becomes,
    head: Head,
    framing: Framing,
    tries: usize,
    mark: usize,
    heard: bool,
    /// Until when it waits for a back, or for an answer although its visitor has said its last.
    until: Option<Instant>,
}

enum Flow {
    Still,
    Moved,
    Over,
    Refused,
    Broken,
    Front(Error),
    Lost,
    Back(Error),
}

/// One end of a tunnel, before its time.
struct Gone;

fn between(wires: &mut [Wire], from: At, to: At) -> (&mut End, &mut End) {
    let [first, second] = wires.get_disjoint_mut([from.0, to.0]).unwrap();
    (&mut first.ends[from.1], &mut second.ends[to.1])
}

impl World {
    /// One turn of a program's loop. True when anything happened.
    pub(super) fn turn(&mut self, program: Program) -> bool {
        let mut happened = false;
        loop {
            let mut moved = false;
            for at in self.ends_of(program) {
                moved |= self.step(at);
            }
            for id in 0..self.exchanges.len() {
                if self.exchanges[id].as_ref().is_some_and(|exchange| exchange.program == program) {
                    moved |= self.assign(id);
                    moved |= self.pump(id);
                }
            }
            happened |= moved;
            if !moved {
                break;
            }
        }
        for (wire, side) in self.ends_of(program) {
            happened |= self.wires[wire].flush(side, self.now);
        }
        happened
    }

    fn ends_of(&self, program: Program) -> Vec<At> {
        let ends = (0..self.wires.len()).flat_map(|wire| [(wire, 0), (wire, 1)]);
        ends.filter(|(wire, side)| {
            let wire = &self.wires[*wire];
            Program::at(wire.kind, *side) == Some(program) && !wire.ends[*side].is_dead()
        })
        .collect()
    }

    /// What a program's connection hears, and is not part of an exchange.
    fn step(&mut self, at: At) -> bool {
        let end = self.end(at);
        if end.is_dead() || end.conn.closing().is_some() {
            end.input.clear();
            return false;
        }
        let (seat, broken) = (end.seat, end.incoming == Incoming::Reset);
        match seat {
            Seat::Exchange(id) if broken && self.exchange(id).stage != Stage::Tunnel => {
                if self.exchange(id).front != at {
                    return false;
                }
                self.cancel(id, true);
            }
            Seat::Exchange(_) => return false,
            _ if broken => self.end(at).drop_it(),
            _ => return self.listen(at, seat),
        }
        true
    }

    fn listen(&mut self, at: At, seat: Seat) -> bool {
        let now = self.now;
        let World { wires, config, .. } = self;
        let end = &mut wires[at.0].ends[at.1];
        match end.hear(now, config) {
            Ok(Heard::Nothing) => return false,
            Ok(Heard::Said(Said::Request(framing))) => {
                let head = &end.head;
                let is_question = head.method() == b"OPTIONS" && head.fields.first(Name::MaxForwards) == Some(b"0");
                match is_question {
                    true => self.say_so(at),
                    false => self.begin(at, framing),
                }
            }
            Ok(Heard::Said(Said::Offer)) => {
                end.seat = Seat::Own;
                end.conn.accept(now, &mut end.out).unwrap();
            }
            Ok(Heard::Said(Said::Turned)) => end.seat = Seat::Front,
            // Of whom nobody asks anything, the last word is the end.
            Ok(Heard::Ended(_) | Heard::Said(Said::Leaving)) if seat == Seat::Own => end.drop_it(),
            Ok(_) => {}
            Err(error) => self.refuse(at, error),
        }
        true
    }

    /// Bytes that could not be read: only those of strangers can't.
    fn fair(&self, at: At, error: Error) {
        let foul = self.wires[at.0].foul && !matches!(error, Error::Local(_));
        assert!(foul || error == Fault::EarlyEnd.into(), "{error:?} on {:?}", self.wires[at.0]);
    }

    fn refuse(&mut self, at: At, error: Error) {
        self.fair(at, error);
        let now = self.now;
        let end = self.end(at);
        match error.status() {
            Some(status) if end.conn.can_respond() => self.respond(at, status),
            _ => end.conn.close(now),
        }
    }

    fn respond(&mut self, at: At, status: u16) {
        let now = self.now;
        let End { conn, out, .. } = self.end(at);
        conn.send_response(now, out, (status, b""), Body::Length(PAGE.len() as u64), |f| f.field("Page", "")).unwrap();
        conn.send_data(now, PAGE, out).unwrap();
        conn.send_end(now, None, out).unwrap();
    }

    /// An answer to what may not be whole: behind a body that goes on no other request is found.
    fn answer_early(&mut self, at: At) {
        let World { wires, config, now, .. } = self;
        let end = &mut wires[at.0].ends[at.1];
        if !end.conn.has_heard_all()
            && !matches!(end.conn.recv(*now, b"", &mut end.head, config), Ok((_, Some(Event::End { .. }))))
        {
            end.conn.do_not_keep();
        }
    }

    /// The relay asks on a link that rests whether anybody is there.
    pub(super) fn ping(&mut self, link: At) {
        let now = self.now;
        let end = self.end(link);
        if end.seat == Seat::Own && end.can_be_asked() && end.conn.is_ours() {
            let sent = end.conn.send_request(now, &mut end.out, (b"OPTIONS", b"*"), Body::None, |writer| {
                writer.field("Host", "");
                writer.field("Max-Forwards", "0");
            });
            sent.unwrap();
            end.conn.send_end(now, None, &mut end.out).unwrap();
        }
    }

    /// The agent is there.
    fn say_so(&mut self, front: At) {
        let World { wires, config, now, .. } = self;
        let end = &mut wires[front.0].ends[front.1];
        let whole = end.conn.recv(*now, b"", &mut end.head, config);
        assert_eq!(whole, Ok((0, Some(Event::End { trailers: false }))));
        end.conn.send_response(*now, &mut end.out, (204, b""), Body::None, |_| {}).unwrap();
        end.conn.send_end(*now, None, &mut end.out).unwrap();
    }

    /// The agent has no more use for a link, or will have none.
    pub(super) fn leave(&mut self, link: At) {
        let now = self.now;
        let end = self.end(link);
        // An answer that has begun did not say that it is the last one.
        let tells = end.seat == Seat::Front || end.conn.can_respond();
        if end.is_alive() && end.conn.is_link() && tells {
            end.conn.leave(now, &mut end.out);
        }
    }

    /// A visitor has come who doesn't speak HTTP: what an agent is to be asked for.
    pub(super) fn accept(&mut self, front: At, number: usize) {
        let text = format!("CONNECT a.example:1 HTTP/1.1\r\nHost: a.example:1\r\nNumber: {number}\r\n\r\n");
        let limits = self.config.limits.clone();
        self.end(front).head.parse_request(text.as_bytes(), &limits).unwrap();
        self.begin(front, Framing::Empty);
    }

    fn begin(&mut self, front: At, framing: Framing) {
        let id = self.exchanges.len();
        let kind = self.wires[front.0].kind;
        let World { wires, config, now, .. } = self;
        let end = &mut wires[front.0].ends[front.1];
        let head = std::mem::take(&mut end.head);
        let mut becomes = match tunnel::offered(&head, framing).any(|token| !tunnel::is_never_passed(token)) {
            _ if head.method() == b"CONNECT" => Becomes::Connect,
            true => Becomes::Switch,
            false => Becomes::Nothing,
        };
        let framing = if becomes == Becomes::Nothing { framing } else { Framing::Empty };
        if framing == Framing::Empty && !end.conn.is_tunnel() {
            let whole = end.conn.recv(*now, b"", &mut end.head, config);
            assert_eq!(whole, Ok((0, Some(Event::End { trailers: false }))));
        }
        // One that ends its connection with this answer has nothing to go on with.
        if becomes == Becomes::Switch && end.conn.offer_switch().is_err() {
            becomes = Becomes::Nothing;
        }
        end.seat = Seat::Exchange(id);
        let until = Some(*now + config.deadlines.link);
        let program = Program::at(kind, front.1).unwrap();
        let (back, stage, tries, mark, heard) = (None, Stage::Waiting, 0, 0, false);
        let exchange = Exchange { program, front, back, stage, becomes, head, framing, tries, mark, heard, until };
        self.exchanges.push(Some(exchange));
    }

    /// Gives an exchange a back, if there is one.
    fn assign(&mut self, id: usize) -> bool {
        let Some(exchange) = self.exchanges[id].as_ref().filter(|exchange| exchange.stage == Stage::Waiting) else {
            return false;
        };
        let front = self.end(exchange.front);
        if front.incoming != Incoming::Open && !front.conn.is_tunnel() {
            self.cancel(id, true);
            return true;
        }
        let exchange = self.exchange(id);
        if exchange.program == Program::Agent && exchange.becomes == Becomes::Connect {
            let wire = self.wires.len();
            self.wires.push(Wire::raw(Kind::Upstream, [Seat::Own, Seat::Own], self.now));
            let exchange = self.exchanges[id].as_ref().unwrap();
            people::connected(&mut self.stories, &mut self.serving, &exchange.head, wire);
            self.attach(id, (wire, 0));
            return true;
        }
        let (kind, side) = match exchange.program {
            Program::Relay => (Kind::Link, 1),
            Program::Agent => (Kind::Upstream, 0),
        };
        let idle = self.wires.iter().position(|wire| {
            let end = &wire.ends[side];
            wire.kind == kind && end.seat == Seat::Own && end.can_be_asked() && (side == 0 || end.conn.is_link())
        });
        let wire = match idle {
            Some(wire) => wire,
            None if kind == Kind::Upstream && self.count(kind) < UPSTREAMS => {
                self.wires.push(Wire::new(kind, [Seat::Own, Seat::Own], self.now));
                self.wires.len() - 1
            }
            None => return false,
        };
        self.attach(id, (wire, side));
        true
    }

    fn attach(&mut self, id: usize, back: At) {
        let now = self.now;
        let World { wires, exchanges, .. } = self;
        let Some(exchange) = &mut exchanges[id] else { return };
        let end = &mut wires[back.0].ends[back.1];
        end.seat = Seat::Exchange(id);
        exchange.until = None;
        exchange.back = Some(back);
        exchange.mark = end.written;
        exchange.tries += 1;
        if end.conn.is_tunnel() {
            exchange.stage = Stage::Connecting;
            return;
        }
        let (head, body) = (&exchange.head, Body::from(exchange.framing));
        let becomes = exchange.becomes;
        let sent = end.conn.send_request(now, &mut end.out, (head.method(), head.target()), body, |writer| {
            writer.field("Host", "upstream.example");
            let rest = head.fields.end_to_end().filter(|field| field.known != Name::Host);
            rest.for_each(|field| writer.copy(field));
            if becomes == Becomes::Switch {
                let passed = tunnel::offered(head, Framing::Empty).filter(|token| !tunnel::is_never_passed(token));
                writer.field("Connection", "Upgrade");
                writer.field("Upgrade", passed.collect::<Vec<_>>().join(&b", "[..]));
            }
        });
        sent.unwrap();
        exchange.stage = Stage::Asking;
        if exchange.framing == Framing::Empty {
            exchange.stage = Stage::Streaming;
            end.conn.send_end(now, None, &mut end.out).unwrap();
            if becomes == Becomes::Switch {
                end.conn.offer_switch().unwrap();
            }
        }
    }

    /// Carries what there is to carry for one exchange.
    fn pump(&mut self, id: usize) -> bool {
        let mut carried = false;
        loop {
            let Some(Exchange { back: Some(back), front, stage, .. }) = self.exchanges[id] else { return carried };
            let (asked, answered) = match stage {
                Stage::Tunnel => (false, self.tunnel(front, back)),
                Stage::Connecting => (false, self.connect(id, front)),
                _ => match self.ask(id, front, back) {
                    Flow::Moved => (true, self.home(id, front, back)),
                    Flow::Still => (false, self.home(id, front, back)),
                    failed => (false, failed),
                },
            };
            match answered {
                Flow::Still if !asked => return self.check_front(id, carried),
                Flow::Moved | Flow::Still => carried = true,
                Flow::Over => self.end_exchange(id),
                Flow::Refused => {
                    self.drop_back(id);
                    self.cancel(id, false);
                }
                Flow::Broken => self.tunnel_broken(id),
                Flow::Front(error) => {
                    self.fair(front, error);
                    self.drop_back(id);
                    match error.status() {
                        Some(status) => self.answer(id, status),
                        None => self.cancel(id, true),
                    }
                }
                Flow::Back(error) => {
                    self.fair(back, error);
                    self.back_failed(id, error == Fault::EarlyEnd.into());
                }
                Flow::Lost => self.back_failed(id, true),
            }
            if self.exchanges[id].is_none() {
                return true;
            }
        }
    }

    fn hold(&mut self, from: At, to: At) -> bool {
        let (now, most) = (self.now, self.config.limits.buffer);
        let (from, to) = between(&mut self.wires, from, to);
        let full = to.out.len() >= most;
        if !full && from.held {
            from.conn.touch(now);
        }
        from.held = full;
        full
    }

    /// Carries some of the request.
    fn ask(&mut self, id: usize, front: At, back: At) -> Flow {
        if self.exchange(id).stage == Stage::Asking {
            if !self.end(back).out.is_empty() {
                return Flow::Still;
            }
            self.exchange(id).stage = Stage::Streaming;
        }
        let (from, to) = between(&mut self.wires, front, back);
        let deaf = to.life != Life::Open || to.incoming == Incoming::Reset;
        if from.conn.has_heard_all() || !to.conn.is_speaking() || deaf || self.hold(front, back) {
            return Flow::Still;
        }
        let World { wires, config, now, .. } = self;
        let (now, (from, to)) = (*now, between(wires, front, back));
        match from.hear(now, config) {
            Ok(Heard::Said(Said::Data(data))) => to.conn.send_data(now, &data, &mut to.out).unwrap(),
            Ok(Heard::Said(Said::End(trailers))) => {
                to.conn.send_end(now, trailers.then_some(&from.head.fields), &mut to.out).unwrap();
            }
            Ok(Heard::Said(other)) => panic!("{other:?} in the middle of a request"),
            Ok(Heard::Some) => {}
            Ok(Heard::Nothing | Heard::Ended(_)) => return Flow::Still,
            Err(error) => return Flow::Front(error),
        }
        Flow::Moved
    }

    /// Carries some of the response.
    fn home(&mut self, id: usize, front: At, back: At) -> Flow {
        if self.hold(back, front) {
            return Flow::Still;
        }
        let World { wires, exchanges, config, now, .. } = self;
        let (now, (from, to)) = (*now, between(wires, back, front));
        let Some(exchange) = &mut exchanges[id] else { return Flow::Still };
        let heard = match from.hear(now, config) {
            Ok(heard) => heard,
            Err(error) => return Flow::Back(error),
        };
        let (head, out) = (&from.head, &mut to.out);
        let copy = |writer: &mut FieldWriter<'_>| head.fields.end_to_end().for_each(|field| writer.copy(field));
        if let Heard::Said(Said::Alive) = heard {
            // No part of an answer.
            return Flow::Moved;
        }
        let switched = matches!(heard, Heard::Said(Said::Switched));
        let (flow, said) = match heard {
            Heard::Said(said) => (Flow::Moved, said),
            // The end of the connection was that of the body.
            Heard::Ended(Some(said @ Said::End(_))) => (Flow::Over, said),
            Heard::Ended(_) => return Flow::Lost,
            Heard::Some => return Flow::Moved,
            Heard::Nothing if from.incoming == Incoming::Reset => return Flow::Lost,
            Heard::Nothing => return Flow::Still,
        };
        match said {
            Said::Informational | Said::Switched if exchange.becomes == Becomes::Connect => {}
            Said::Response(_) if exchange.becomes == Becomes::Connect => return Flow::Refused,
            Said::Switched => {
                if !tunnel::is_answer_to(head, &exchange.head, |token| !tunnel::is_never_passed(token)) {
                    return Flow::Back(Fault::SwitchedElsewhere.into());
                }
                let sent = to.conn.send_switch(now, out, |writer| {
                    head.fields.all(Name::Upgrade).for_each(|token| writer.field("Upgrade", token));
                    copy(writer);
                });
                sent.unwrap();
            }
            Said::Informational => {
                to.conn.send_informational(out, (head.status(), head.reason()), copy).unwrap();
            }
            Said::Response(framing) => {
                let body = match framing {
                    Framing::Empty => match content_length(&head.fields) {
                        Ok(length) => length.map_or(Body::None, Body::Length),
                        Err(error) => return Flow::Back(error),
                    },
                    framing => Body::from(framing),
                };
                to.conn.send_response(now, out, (head.status(), head.reason()), body, copy).unwrap();
            }
            Said::Data(data) => to.conn.send_data(now, &data, out).unwrap(),
            Said::End(trailers) => {
                to.conn.send_end(now, trailers.then_some(&head.fields), out).unwrap();
                return Flow::Over;
            }
            other => panic!("{other:?} in the middle of a response"),
        }
        exchange.heard = true;
        if switched {
            exchange.stage = Stage::Tunnel;
            exchange.until = None;
        }
        flow
    }

    /// The back stands, and that is all that was asked for.
    fn connect(&mut self, id: usize, front: At) -> Flow {
        let now = self.now;
        let exchange = self.exchange(id);
        exchange.stage = Stage::Tunnel;
        exchange.until = None;
        let to = self.end(front);
        to.conn.send_response(now, &mut to.out, (200, b"OK"), Body::None, |_| {}).unwrap();
        Flow::Moved
    }

    /// Carries bytes through a tunnel, both ways.
    fn tunnel(&mut self, front: At, back: At) -> Flow {
        let moved = match (self.stream(front, back), self.stream(back, front)) {
            (Err(Gone), _) | (_, Err(Gone)) => return Flow::Broken,
            (Ok(there), Ok(home)) => there || home,
        };
        // Where neither takes anything, what they still have to say is for nobody.
        let nobody = [front, back].into_iter().all(|at| self.end(at).incoming == Incoming::Reset);
        match self.end(front).conn.closing() {
            _ if moved => Flow::Moved,
            _ if nobody => Flow::Broken,
            Some(_) => Flow::Over,
            None => Flow::Still,
        }
    }

    /// One direction of a tunnel: whether something moved.
    fn stream(&mut self, from: At, to: At) -> Result<bool, Gone> {
        if self.end(from).conn.has_heard_all() {
            let broken = self.end(from).incoming == Incoming::Reset;
            return if broken { Err(Gone) } else { Ok(false) };
        }
        if self.end(to).incoming == Incoming::Reset || self.hold(from, to) {
            return Ok(false);
        }
        let World { wires, config, now, .. } = self;
        let (now, (from, to)) = (*now, between(wires, from, to));
        match from.hear(now, config).unwrap() {
            Heard::Said(Said::Data(data)) => to.conn.send_data(now, &data, &mut to.out).unwrap(),
            Heard::Ended(_) => to.conn.send_end(now, None, &mut to.out).unwrap(),
            Heard::Nothing if from.incoming == Incoming::Reset => return Err(Gone),
            Heard::Nothing => return Ok(false),
            other => panic!("{other:?} in a tunnel"),
        }
        Ok(true)
    }

    /// One end of a tunnel is gone before its time: the other is not to take what it has for the whole.
    fn tunnel_broken(&mut self, id: usize) {
        let Some(exchange) = self.exchanges[id].take() else { return };
        for (at, seat) in [(exchange.front, Seat::Front), (exchange.back.unwrap(), Seat::Own)] {
            self.wires[at.0].reset();
            self.end(at).seat = seat;
            self.end(at).drop_it();
        }
    }

    /// Nothing more can be carried: a visitor that has said its last has some patience left.
    fn check_front(&mut self, id: usize, carried: bool) -> bool {
        let front = self.exchange(id).front;
        let patience = self.now + self.config.deadlines.half_close;
        let end = self.end(front);
        if end.incoming == Incoming::Open || !end.conn.has_heard_all() || end.conn.is_tunnel() {
            return carried;
        }
        let exchange = self.exchange(id);
        if exchange.until.is_none() || carried {
            exchange.until = Some(patience);
        }
        carried
    }

    /// Drops an exchange's back. Gives whether it may have had the request.
    fn drop_back(&mut self, id: usize) -> bool {
        let mark = self.exchange(id).mark;
        let Some(back) = self.exchange(id).back.take() else { return false };
        let end = self.end(back);
        let (reached, heard) = (end.written > mark, !end.input.is_empty());
        end.seat = Seat::Own;
        end.drop_it();
        self.exchange(id).heard |= heard;
        reached
    }

    fn back_failed(&mut self, id: usize, lost: bool) {
        let reached = self.drop_back(id);
        let most = self.config.limits.tries;
        let link = self.now + self.config.deadlines.link;
        let exchange = self.exchange(id);
        let harmless = exchange.becomes == Becomes::Connect || is_idempotent(exchange.head.method());
        let again = lost && (!reached || !exchange.heard && harmless);
        let whole = exchange.stage != Stage::Streaming || exchange.framing == Framing::Empty;
        let again = again && whole && exchange.tries < most;
        let front = exchange.front;
        let unanswered = self.end(front).conn.can_respond() || self.end(front).conn.is_tunnel();
        if again && unanswered {
            let exchange = self.exchange(id);
            exchange.stage = Stage::Waiting;
            exchange.until = Some(link);
            return;
        }
        self.answer(id, 502);
    }

    fn answer(&mut self, id: usize, status: u16) {
        let front = self.exchange(id).front;
        if !self.end(front).conn.can_respond() {
            return self.cancel(id, false);
        }
        if self.exchange(id).becomes == Becomes::Connect {
            self.end(front).conn.do_not_keep();
        }
        self.answer_early(front);
        self.respond(front, status);
        self.end_exchange(id);
    }

    fn end_exchange(&mut self, id: usize) {
        let Some(exchange) = self.exchanges[id].take() else { return };
        if let Some(back) = exchange.back {
            let end = self.end(back);
            end.held = false;
            end.seat = Seat::Own;
            if !end.can_be_asked() && exchange.stage != Stage::Tunnel {
                end.drop_it();
            }
        }
        let front = self.end(exchange.front);
        front.held = false;
        front.seat = Seat::Front;
    }

    /// Ends an exchange that can't be completed, so that nobody takes what there is for the whole.
    fn cancel(&mut self, id: usize, gone: bool) {
        let Some(exchange) = self.exchanges[id].take() else { return };
        if let Some(back) = exchange.back {
            self.end(back).seat = Seat::Own;
            self.end(back).drop_it();
        }
        let now = self.now;
        let front = self.end(exchange.front);
        front.seat = Seat::Front;
        if exchange.head.version() == Version::Http10 {
            self.wires[exchange.front.0].reset();
            self.end(exchange.front).drop_it();
        } else if gone || front.incoming == Incoming::Reset {
            front.drop_it();
        } else {
            front.conn.close(now);
        }
    }

    /// Until when a program lets its end be as it is.
    pub(super) fn deadline(&self, (wire, side): At) -> Option<(Instant, Wait)> {
        let end = &self.wires[wire].ends[side];
        let deadlines = &self.config.deadlines;
        let patience = if end.conn.is_tunnel() { deadlines.tunnel } else { deadlines.write };
        let write = (!end.out.is_empty()).then(|| (end.took + patience, Wait::Write));
        let conn = end.conn.deadline(deadlines).filter(|(_, wait)| match wait {
            Wait::Linger => end.life == Life::Shut,
            // Whose bytes have nowhere to go owes us nothing.
            Wait::Body | Wait::Stream | Wait::Quiet | Wait::Answer | Wait::Tunnel | Wait::TunnelEnd => !end.held,
            _ => true,
        });
        let own = match end.seat {
            Seat::Exchange(id) => {
                self.exchanges[id].as_ref().filter(|it| it.front == (wire, side)).and_then(|it| it.until)
            }
            _ => None,
        };
        [write, conn, own.map(|at| (at, Wait::Link))].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Such a deadline has passed.
    pub(super) fn late(&mut self, at: At, wait: Wait) {
        let now = self.now;
        let end = self.end(at);
        if matches!(wait, Wait::Pause | Wait::Linger) {
            end.conn.timeout(now, wait);
            return;
        }
        let seat = end.seat;
        let front = match seat {
            Seat::Exchange(id) => Some(self.exchange(id).front),
            _ => None,
        };
        let end = self.end(at);
        match seat {
            Seat::Front if wait == Wait::Head && end.conn.can_respond() => self.respond(at, 408),
            Seat::Front | Seat::Own => end.drop_it(),
            Seat::Exchange(id) if self.exchange(id).stage == Stage::Tunnel => self.tunnel_broken(id),
            Seat::Exchange(id) if front == Some(at) => match wait {
                Wait::Ping => {
                    let end = self.end(at);
                    end.conn.send_sign(now, &mut end.out).unwrap();
                }
                Wait::Link if self.exchange(id).stage == Stage::Waiting => self.answer(id, 503),
                Wait::Body => self.answer(id, 408),
                _ => self.cancel(id, true),
            },
            Seat::Exchange(id) => {
                self.drop_back(id);
                self.answer(id, 504);
            }
        }
    }

    /// The agent dials the relay and offers a link.
    pub(super) fn dial(&mut self, ours: bool) {
        let now = self.now;
        let mut wire = Wire::new(Kind::Link, [Seat::Own, Seat::Front], now);
        let agent = &mut wire.ends[0];
        let sent = agent.conn.send_offer(now, &mut agent.out, (b"/", b"relay.example"), Token::PTTH_1_0, |writer| {
            if ours {
                writer.field("Ptth-Accept", "ping");
            }
        });
        sent.unwrap();
        self.wires.push(wire);
    }

    pub(super) fn end(&mut self, (wire, side): At) -> &mut End {
        &mut self.wires[wire].ends[side]
    }

    fn exchange(&mut self, id: usize) -> &mut Exchange {
        self.exchanges[id].as_mut().unwrap()
    }

    /// Wires of a kind that somebody still holds.
    pub(super) fn count(&self, kind: Kind) -> usize {
        self.wires.iter().filter(|wire| wire.kind == kind && !wire.is_over()).count()
    }
}
