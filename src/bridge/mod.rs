//! An exchange from a front to a back: a request comes in where we are the server and goes out where we are the client; its
//! response comes home. Both bodies stream at once, held back only by the reader's pace. Written once: the relay's fronts are
//! visitors and its backs are links, the agent's fronts are links and its backs are connections to the upstream. What differs
//! between the two is behind [`Side`].
//!
//! The rules on trying again: a request that reached nobody goes to another back. One whose bytes may have arrived goes again
//! only when its method is idempotent, no byte of an answer came, and none of its body was used up.

mod carry;
pub mod exchange;
pub(crate) mod hops;
pub(crate) mod line;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use mio::Token;
use ptth_proto::conn::{Body, Event};
use ptth_proto::error::{Error, Fault};
use ptth_proto::http::framing::{Asked, Framing};
use ptth_proto::http::tunnel;
use ptth_proto::limits::Wait;
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::{FieldWriter, Head, Version, is_idempotent};

use crate::answer::{Answer, Code, wants_json};
use crate::log::{AccessLog, Line, Visitor};
use crate::net::addr::Remote;
use crate::peer::{NO_KEY, Peer, Seat, Twin};
use crate::reactor::{App, Core, Door, Loss, Mailbox, Message};
pub(crate) use carry::hold;
#[cfg(feature = "relay")]
pub(crate) use carry::too_large;
use carry::{Flow, ask, home};
use exchange::{Exchange, Exchanges, Kind, Lane, Stage};

/// Where a request goes.
#[derive(Debug)]
pub enum Assign {
    /// To this back, which is idle or being connected.
    Back(Token),
    /// To one that the side will name later, by [`Order::Attach`] or [`Order::Assign`].
    Later,
    /// To another loop, which has what it needs; the front goes with it.
    Elsewhere(Mailbox),
    /// Nowhere.
    Refuse(Answer),
}

/// Whose a request is.
#[derive(Debug)]
pub enum Claim {
    /// A visitor's.
    No,
    /// The program's own; its front is the program's until [`Order::Listen`] or [`Order::Begin`].
    Taken,
    /// The program's own, and this is the answer.
    Refuse(Answer),
}

/// What a side asks of the bridge.
#[derive(Debug)]
pub enum Order {
    /// This exchange gets this back.
    Attach(usize, Token),
    /// Ask again where this exchange goes.
    Assign(usize),
    /// This exchange goes to another loop.
    HandOver(usize, Mailbox),
    /// This exchange gets this answer.
    Answer(usize, Answer),
    /// This front is an ordinary one from now on: listen to it.
    Listen(Token),
    /// This front is an ordinary one, and its request, with this head, is a visitor's.
    Begin(Token, Framing, Box<Head>),
    /// This request, with this head, was the program's own and gets this answer.
    Respond(Token, Box<Head>, Answer),
    /// The exchange of the first of these backs, which nobody has heard of, goes to the second.
    Move(Token, Token),
    /// This back is of no more use, and its exchange gets this answer.
    Fault(Token, Answer),
}

/// What went wrong on a back.
#[derive(Debug)]
pub enum BackFault {
    /// It could not be connected.
    Connect(io::Error),
    /// It could not be connected in time.
    ConnectLate,
    /// It broke.
    Lost(Option<io::Error>),
    /// It sent what may not be sent.
    Protocol(Error),
    /// It did not begin its answer in time, or stopped in the middle.
    Late(Wait),
}

/// What a program does with its connections, as far as relay and agent differ.
pub trait Side {
    /// The program's name, for pages and logs.
    const PROGRAM: &'static str;
    /// Whether a back is reset when its exchange is cancelled: at the far end of a link, a clean end could be a half one only, and
    /// the upstream would go on for [`half_close`](ptth_proto::limits::Deadlines::half_close) for nobody.
    const RESETS_BACKS: bool;

    /// A connection was accepted at this door.
    fn accepted(&mut self, core: &mut Core, token: Token, door: Door, orders: &mut Vec<Order>);
    /// Whether a visitor may go on with this protocol.
    fn switches(&self, token: &[u8]) -> bool;
    /// Whether a front may ask for a tunnel by CONNECT; the refusal if not.
    fn connects(&self) -> Result<(), Answer>;
    /// Whether there is no memory for what is not under way yet, and what those are told who bring it.
    fn is_full(&mut self, _: &Core) -> Option<Answer> {
        None
    }
    /// A request has come in on a front: where to?
    fn assign(&mut self, core: &mut Core, id: usize, exchange: &mut Exchange) -> Assign;
    /// Whether there is room for requests that would otherwise wait where they are, behind others on a link.
    fn has_room(&self) -> bool {
        true
    }
    /// The exchange needs no back any more; it was told [`Assign::Later`].
    fn forget(&mut self, id: usize, exchange: &Exchange);
    /// The exchange goes to another loop; it was assigned here before.
    fn handed_over(&mut self, _: &Exchange) {}
    /// The exchange is over.
    fn ended(&mut self, _: &Core, _: &Exchange) {}
    /// We have answered somebody ourselves, or have cut an answer off.
    fn told(&mut self, _: Code) {}
    /// The exchange is done with its back, which is idle and can serve another.
    fn release(&mut self, core: &mut Core, back: Token, orders: &mut Vec<Order>);
    /// A request has come in, its head in `core.head`: an agent looks what its relay says by it.
    fn told_by_relay(&mut self, _: &mut Core) {}
    /// Requests that wait for a link to where this one goes.
    fn waiting(&self, _: &Exchange) -> usize {
        0
    }
    /// What the names of answers begin with that this agent sets aside.
    fn agent(&self) -> u64 {
        0
    }
    /// An agent has set the answer of this exchange aside.
    fn was_set_aside(&mut self, _: &Exchange) {}
    /// Whether a request waits for this back that somebody has worked on already: it is served whatever else ends.
    fn is_wanted(&self, _: &mut Core, _: Token) -> bool {
        false
    }
    /// The exchange, whose answer was set aside, has a front again.
    fn taken_up(&mut self, _: &mut Core, _: &Exchange) {}
    /// The front has answered and is kept for more.
    fn front_kept(&mut self, core: &mut Core, front: Token);
    /// A request has come in on a front, its head in `core.head`: is it an agent's, and so for the program itself?
    fn claim(&mut self, core: &mut Core, token: Token, framing: Framing, orders: &mut Vec<Order>) -> Claim;
    /// Whether answers are still on their way that the bridge knows nothing of any more.
    fn is_owed(&self) -> bool;
    /// Whether this front is to stay open although nothing is being said on it: an answer is to come.
    fn is_kept(&self, front: Token) -> bool;
    /// Whether answers may come on connections that are not there yet.
    fn keeps_its_door_open(&self) -> bool;
    /// An agent offers its connection as a link. Gives the refusal, or takes it.
    fn offer(&mut self, core: &mut Core, token: Token, orders: &mut Vec<Order>) -> Option<Answer>;
    /// Something is new at a peer that is the side's own.
    fn own(&mut self, core: &mut Core, token: Token, orders: &mut Vec<Order>);
    /// A peer of the side's own was lost.
    fn own_lost(&mut self, core: &mut Core, token: Token, loss: Loss, orders: &mut Vec<Order>);
    /// A peer is out of the table.
    fn gone(&mut self, core: &mut Core, token: Token, peer: Peer, orders: &mut Vec<Order>);
    /// The request-target as the back is to see it.
    fn target<'a>(&self, exchange: &'a Exchange) -> Cow<'a, [u8]>;
    /// The request's fields as the back is to see them.
    fn request_fields(&self, exchange: &Exchange, fields: &mut FieldWriter<'_>);
    /// The page for a fault on the back.
    fn fault(&self, exchange: &Exchange, fault: &BackFault) -> Answer;
    /// Who asks, for the access log.
    fn visitor<'a>(&self, exchange: &'a Exchange) -> Visitor<'a>;
    /// What stands for the tunnel in the access log.
    fn tunnel<'a>(&'a self, exchange: &'a Exchange) -> &'a str;
    /// A timer of the side's own.
    fn timer(&mut self, core: &mut Core, key: usize, orders: &mut Vec<Order>);
    /// News.
    fn message(&mut self, core: &mut Core, message: Message, orders: &mut Vec<Order>);
    /// The program is to stop, and does so in two steps: this is the first, from which on whoever is there is served a last time.
    fn stop(&mut self, core: &mut Core, orders: &mut Vec<Order>);
    /// No new work from now on.
    fn drain(&mut self, core: &mut Core, orders: &mut Vec<Order>);
    /// Whether the second step waits a while for the first: our fronts' other ends can't know that we go.
    fn says_farewell(&self) -> bool;
    /// Whether nobody but those on our own fronts can ask us.
    fn is_alone(&self) -> bool;
    /// Whether the request should be the last one on its back, now that the program is to stop.
    fn is_last(&self, exchange: &Exchange) -> bool;
    /// The back of this exchange was silent for too long: others that lead to the same place may be dead, too.
    fn back_silent(&mut self, core: &mut Core, exchange: &Exchange);
    /// A front was silent for too long.
    fn front_silent(&mut self, core: &mut Core, front: Token);
    /// Whether what was said to this back may have left the program: a pipe may lead to where it still waits.
    fn is_out(&self, core: &mut Core, back: Token) -> bool;
    /// Whether the program is over without having been stopped, and with what exit code.
    fn exit(&self) -> Option<u8>;
}

/// Whether the program is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Running {
    Yes,
    /// Whoever is here is served a last time.
    Farewell,
    /// Exchanges finish, nothing begins but what comes on links: the relay has taken that on already.
    Draining,
    /// Time is up.
    Over,
}

/// The timer keys of the end of draining and of what goes before it; sides use others.
const DRAINED: usize = usize::MAX;
const FAREWELL: usize = usize::MAX - 1;

/// The bridge, and the program on either side of it.
#[derive(Debug)]
pub struct Bridge<S> {
    /// The program.
    pub side: S,
    exchanges: Exchanges,
    /// Exchanges with something to carry.
    marked: Vec<usize>,
    orders: Vec<Order>,
    log: AccessLog,
    running: Running,
    /// Something was said on a link with several requests.
    gathering: bool,
    /// Links on which requests were left unread for want of room.
    unheard: VecDeque<Token>,
}

impl<S: Side> Bridge<S> {
    /// A bridge for a program.
    pub fn new(side: S, log: AccessLog) -> Bridge<S> {
        Bridge::numbered(side, log, 1, 1)
    }

    /// One of several that share a log: its exchanges are numbered from `first` in steps of `step`.
    pub fn numbered(side: S, log: AccessLog, first: u64, step: u64) -> Bridge<S> {
        Bridge {
            side,
            exchanges: Exchanges::new(first, step),
            marked: Vec::new(),
            orders: Vec::new(),
            log,
            running: Running::Yes,
            gathering: false,
            unheard: VecDeque::new(),
        }
    }

    /// How many requests are under way.
    pub fn under_way(&self) -> usize {
        self.exchanges.len()
    }

    fn mark(&mut self, id: usize) {
        if let Some(exchange) = self.exchanges.get_mut(id)
            && !exchange.marked
        {
            exchange.marked = true;
            self.marked.push(id);
        }
    }

    /// Listens on a front between exchanges.
    fn listen(&mut self, core: &mut Core, token: Token) {
        loop {
            let now = core.now;
            let Some((peer, head, config)) = core.hear(token) else { return };
            let heard = match peer.conn.recv(now, peer.input.bytes(), head, config) {
                Ok((used, event)) => {
                    let heard = event.map(|event| match event {
                        Event::Request(framing) => Heard::Request(framing),
                        Event::Offer(_) => Heard::Offer,
                        _ => Heard::Other,
                    });
                    peer.input.consume(used);
                    heard
                }
                Err(error) => Some(Heard::Error(error)),
            };
            match heard {
                Some(Heard::Request(framing)) => {
                    self.receive(core, token, framing);
                    return self.listen_behind(core, token);
                }
                Some(Heard::Offer) => return self.offered(core, token),
                Some(Heard::Error(error)) => return self.refuse(core, token, error),
                Some(Heard::Other) => {}
                None => {
                    let partial = !peer.input.is_empty();
                    if peer.tell_eof()
                        && let Err(error) = peer.conn.eof(now, peer.input.len())
                    {
                        self.refuse(core, token, error);
                    } else if partial && let Some(answer) = self.side.is_full(core) {
                        self.respond_alone(core, token, &Head::default(), &answer);
                    }
                    return;
                }
            }
        }
    }

    fn offered(&mut self, core: &mut Core, token: Token) {
        if let Some(answer) = self.side.offer(core, token, &mut self.orders) {
            let head = std::mem::take(&mut core.head);
            self.refuse_agent(core, token, &head, &answer);
            core.head = head;
        }
    }

    /// An agent's request gets no more than this answer.
    fn refuse_agent(&mut self, core: &mut Core, token: Token, head: &Head, answer: &Answer) {
        let Some(peer) = core.peer(token) else { return };
        log::info!("an agent at {} was refused ({}): {}", peer.remote, answer.code.name, answer.text);
        peer.seat = Seat::Front;
        peer.key = NO_KEY;
        answer_early(core, token);
        self.respond_alone(core, token, head, answer);
    }

    /// A request's head is here: a visitor's, or an agent's.
    fn receive(&mut self, core: &mut Core, token: Token, framing: Framing) {
        match self.side.claim(core, token, framing, &mut self.orders) {
            Claim::No => self.begin(core, token, framing),
            Claim::Taken => {}
            Claim::Refuse(answer) => {
                take_bodiless(core, token, framing);
                let head = std::mem::take(&mut core.head);
                self.refuse_agent(core, token, &head, &answer);
                core.head = head;
            }
        }
    }

    /// A request that could not be read: its sender is told why, where it can be.
    fn refuse(&mut self, core: &mut Core, token: Token, error: Error) {
        let now = core.now;
        let Some(peer) = core.peer(token) else { return };
        log::debug!("{}: refused ({}): it {error}", peer.remote, error.code());
        match Answer::to_error(error).filter(|_| peer.conn.can_respond()) {
            Some(answer) => self.respond_alone(core, token, &Head::default(), &answer),
            None => {
                let remote = peer.remote;
                // What it was told before still reaches it.
                peer.conn.close(now);
                core.touch(token);
                let id = self.exchanges.number();
                self.line_alone(core, id, remote, &Head::default(), (0, Some(error.code()), 0));
            }
        }
    }

    /// Answers what is no exchange: a request that could not be read, or was for nobody but us.
    fn respond_alone(&mut self, core: &mut Core, token: Token, head: &Head, answer: &Answer) {
        let Some(remote) = core.peer(token).map(|peer| peer.remote) else { return };
        let id = self.exchanges.number();
        self.side.told(answer.code);
        let length = respond(S::PROGRAM, core, token, head, id, answer);
        self.line_alone(core, id, remote, head, (answer.code.status, Some(answer.code.name), length));
        // What is left of its bytes is of no more use, or the next request.
        core.step_again(token);
    }

    fn line_alone(
        &mut self,
        core: &Core,
        id: u64,
        remote: Remote,
        head: &Head,
        (status, code, length): (u16, Option<&'static str>, u64),
    ) {
        if !self.log.is_on() {
            return;
        }
        self.log.line(&Line {
            time: core.wall_clock(),
            id,
            visitor: Visitor::At(remote),
            tunnel: "-",
            method: head.method(),
            target: head.target(),
            status,
            bytes_in: 0,
            bytes_out: length,
            took: Duration::ZERO,
            code,
        });
    }

    /// A request that may go no further is answered by whom it has reached. A relay asks its agents so whether they are there.
    fn answer_here(&mut self, core: &mut Core, front: Token) {
        let now = core.now;
        let head = std::mem::take(&mut core.head);
        answer_early(core, front);
        // A link on which something is to be asked for yet is kept.
        let is_last = self.running != Running::Yes && !self.owes();
        if let Some(peer) = core.tell(front) {
            peer.seat = Seat::Front;
            if is_last {
                peer.conn.do_not_keep();
            }
            if head.method() == b"TRACE" {
                let text =
                    "A TRACE that may go no further would show what its sender has sent; this program answers none.";
                self.respond_alone(core, front, &head, &Answer::new(Code::TRACE, text));
            } else {
                let out = peer.output.vec();
                let sent = peer.conn.send_response(now, out, (204, b"No Content"), Body::None, |_| {});
                let sent = sent.and_then(|()| peer.conn.send_end(now, None, peer.output.vec()));
                // The relay's own questions come all the time, and are nobody's request.
                let asked = !peer.conn.is_link() || head.fields.has(Name::Via);
                let remote = peer.remote;
                if let Err(error) = sent {
                    log::error!("an answer could not be written: {error}");
                    core.drop_peer(front);
                } else if asked {
                    let id = self.exchanges.number();
                    self.line_alone(core, id, remote, &head, (204, None, 0));
                }
            }
        }
        core.head = head;
        core.step_again(front);
    }

    /// A request's head is here.
    fn begin(&mut self, core: &mut Core, front: Token, framing: Framing) {
        let behind = core.peer(front).is_some_and(|peer| matches!(peer.seat, Seat::Exchange(_)));
        // Through a relay that knows nothing of it, these would be a visitor's words.
        let agreed = core.peer(front).is_some_and(|peer| peer.conn.can_pipeline() && peer.twin == Twin::None);
        if agreed {
            self.side.told_by_relay(core);
        }
        if hops::left(&core.head) == Some(0) {
            return if behind { self.begin_hint(core, front) } else { self.answer_here(core, front) };
        }
        let now = core.now;
        let kind = if behind { Kind::Http } else { self.kind(core, framing) };
        // To what may become a tunnel, no body and one of no length are the same.
        let framing = if kind == Kind::Http { framing } else { Framing::Empty };
        if framing == Framing::Empty && !behind {
            take_bodiless(core, front, framing);
        }
        // Behind others it has no seat to take: like any other, it is asked for anew.
        if agreed && !behind && core.head.fields.has(Name::PtthAside) && self.take_up(core, front) {
            return;
        }
        let Some((peer, head, _)) = core.hear(front) else { return };
        let mut exchange = self.exchanges.begin(front, peer.remote, framing, now);
        std::mem::swap(&mut exchange.head, head);
        exchange.key = peer.key;
        peer.head += exchange.head.memory();
        if peer.conn.is_in_line() {
            exchange.lane = Lane::InLine;
        }
        exchange.kind = match kind {
            // A visitor that ends its connection with this answer has nothing to go on with.
            Kind::Switch if peer.conn.offer_switch().is_err() => Kind::Http,
            kind => kind,
        };
        let by_http = !peer.conn.is_tunnel();
        let id = self.exchanges.insert(exchange);
        if behind {
            peer.line.push(id);
        } else {
            peer.seat = Seat::Exchange(id);
        }
        let is_taken_on = peer.conn.is_link();
        if self.running != Running::Yes && peer.twin == Twin::None && !self.owes() {
            peer.conn.do_not_keep();
        }
        core.touch(front);
        if self.running == Running::Draining && !is_taken_on {
            return self.answer(core, id, stopping());
        }
        if kind == Kind::Connect
            && by_http
            && let Err(refusal) = self.side.connects()
        {
            return self.answer(core, id, refusal);
        }
        self.assign(core, id);
    }

    /// What the request in `core.head` may become.
    fn kind(&self, core: &Core, framing: Framing) -> Kind {
        let head = &core.head;
        if head.method() == b"CONNECT" {
            return Kind::Connect;
        }
        let switches = tunnel::offered(head, framing).any(|token| passes(&self.side, token));
        if switches { Kind::Switch } else { Kind::Http }
    }

    fn assign(&mut self, core: &mut Core, id: usize) {
        let Some(exchange) = self.exchanges.waiting_mut(id) else { return };
        match self.side.assign(core, id, exchange) {
            Assign::Back(back) => self.attach(core, id, back),
            Assign::Later => {}
            Assign::Elsewhere(mailbox) => self.hand_over(core, id, &mailbox),
            Assign::Refuse(answer) => self.answer(core, id, answer),
        }
    }

    /// Sends an exchange that nobody has heard of yet to another loop, its front with it.
    fn hand_over(&mut self, core: &mut Core, id: usize, mailbox: &Mailbox) {
        if self.exchanges.waiting_mut(id).is_none() {
            return;
        }
        let Some(mut exchange) = self.exchanges.end(id) else { return };
        self.side.forget(id, &exchange);
        self.side.handed_over(&exchange);
        let Some(front) = core.detach(exchange.front) else { return };
        exchange.hops += 1;
        exchange.tunnel = NO_KEY;
        mailbox.send(Message::Handed(front, Box::new(exchange)));
    }

    /// Takes over such an exchange.
    fn take_over(&mut self, core: &mut Core, front: Box<Peer>, mut exchange: Exchange) {
        let Ok(token) = core.adopt(front) else {
            exchange.code = Some(Code::INTERNAL.name.into());
            return self.write_line(core, &exchange);
        };
        exchange.front = token;
        exchange.marked = false;
        let id = self.exchanges.insert(exchange);
        if let Some(peer) = core.peer(token) {
            peer.seat = Seat::Exchange(id);
        }
        match self.running {
            Running::Yes => self.assign(core, id),
            Running::Farewell => {
                if let Some(peer) = core.peer(token) {
                    peer.conn.do_not_keep();
                }
                self.assign(core, id);
            }
            Running::Draining | Running::Over => self.answer(core, id, stopping()),
        }
    }

    /// Gives an exchange its back, and the back its request.
    fn attach(&mut self, core: &mut Core, id: usize, back: Token) {
        let now = core.now;
        let Some(exchange) = self.exchanges.waiting_mut(id) else {
            // The one that waited for it is gone: the next one, or a rest.
            return self.let_go(core, back);
        };
        if exchange.lane == Lane::Ahead && core.peer(back).is_some_and(|peer| !peer.conn.is_idle()) {
            return self.attach_behind(core, id, back);
        }
        core.read_on(back);
        let until = now + core.config.deadlines.aside;
        let is_raw = |peer: &Peer| exchange.kind == Kind::Connect && peer.conn.is_tunnel() && peer.is_alive();
        let Some(peer) = core.tell_much(back, exchange.head.size()).filter(|peer| peer.can_be_asked() || is_raw(peer))
        else {
            self.orders.push(Order::Assign(id));
            return;
        };
        peer.wait = (exchange.lane == Lane::Aside).then_some((until, Wait::Aside));
        peer.seat = Seat::Exchange(id);
        exchange.back = Some(back);
        exchange.mark = peer.written;
        exchange.tries += 1;
        if peer.conn.is_tunnel() {
            exchange.stage = Stage::Connecting;
            return self.mark(id);
        }
        let leads = exchange.lane == Lane::Ahead && peer.conn.can_pipeline();
        self.gathering |= leads;
        let waiting = if peer.conn.can_pipeline() { self.side.waiting(exchange) } else { 0 };
        if !leads && self.running != Running::Yes && exchange.kind == Kind::Http && self.side.is_last(exchange) {
            peer.conn.ask_last();
        }
        let target = self.side.target(exchange);
        let body = Body::from(exchange.framing);
        let sent = peer.conn.send_request(now, peer.output.vec(), (exchange.head.method(), &target), body, |fields| {
            self.side.request_fields(exchange, fields);
            if leads {
                fields.field("Ptth-Accept", "aside");
            }
            if waiting > 0 {
                line::say_wanted(fields, waiting);
            }
            if let Some(name) = &exchange.aside {
                fields.field("Ptth-Aside", name);
            }
            if exchange.kind == Kind::Switch {
                let head = &exchange.head;
                let offered = tunnel::offered(head, exchange.framing);
                let passed: Vec<&[u8]> = offered.filter(|token| passes(&self.side, token)).collect();
                fields.field("Connection", "Upgrade");
                fields.field("Upgrade", passed.join(&b", "[..]));
            }
        });
        let sent = match exchange.framing {
            Framing::Empty => {
                exchange.stage = Stage::Streaming;
                let sent = sent.and_then(|()| peer.conn.send_end(now, None, peer.output.vec()));
                match exchange.kind {
                    Kind::Switch => sent.and_then(|()| peer.conn.offer_switch()),
                    Kind::Http if leads => sent.and_then(|()| peer.conn.open_line()),
                    Kind::Http | Kind::Connect => sent,
                }
            }
            _ => {
                exchange.stage = Stage::Asking;
                peer.fed = true;
                sent
            }
        };
        let front = exchange.front;
        // Where its answer is to come in turn, those behind it may be waiting for that already.
        let may_carry = exchange.framing != Framing::Empty || exchange.lane == Lane::InLine;
        // What else it may wait for there concerns others.
        let is_its_own = |peer: &&mut Peer| peer.seat == Seat::Exchange(id) && !is_for_turn(peer);
        if let Some(front) = core.peer(front).filter(is_its_own) {
            front.wait = None;
        }
        // Nothing is there yet of an answer. Its visitor may have gone before there was anybody to ask.
        if may_carry || core.peer(front).is_some_and(|front| front.has_hung_up()) {
            self.mark(id);
        }
        if let Err(error) = sent {
            self.not_written(core, id, error);
        }
    }

    fn not_written(&mut self, core: &mut Core, id: usize, error: Error) {
        log::error!("a request could not be written: {error}");
        self.drop_back(core, id);
        let text = "The request could not be written for the next hop. This is a bug worth a report.";
        self.answer(core, id, Answer::new(Code::INTERNAL, text));
    }

    /// Drops an exchange's back, of which nothing more is wanted. Gives whether it may have had the request, and whether it has
    /// said anything to it.
    fn drop_back(&mut self, core: &mut Core, id: usize) -> (bool, bool) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return (false, false) };
        let (mut reached, mut heard) = (false, exchange.heard);
        if let Some(back) = exchange.back.take() {
            if let Some(peer) = core.peer(back) {
                reached = peer.written > exchange.mark;
                heard |= !peer.input.is_empty();
            }
            self.break_line(core, back);
        }
        (reached, heard)
    }

    /// Carries what there is to carry for one exchange.
    fn pump(&mut self, core: &mut Core, id: usize) {
        let mut carried = false;
        loop {
            let Some(exchange) = self.exchanges.get_mut(id) else { return };
            exchange.marked = false;
            let lane = exchange.lane;
            match lane {
                Lane::Own => {}
                Lane::InLine if !self.has_turn(core, id) => return,
                Lane::Ahead if !self.is_first(core, id) => return self.check_front(core, id, false),
                Lane::InLine | Lane::Ahead => {}
                Lane::Aside => return,
            }
            let Some(exchange) = self.exchanges.get_mut(id) else { return };
            if exchange.stage == Stage::Hint {
                return self.answer_hint(core, id);
            }
            if exchange.stage == Stage::Answered
                && let Some(answer) = exchange.failure.take()
            {
                return self.answer(core, id, answer);
            }
            let Some(back) = exchange.back else { return };
            let (asked, answered) = match exchange.stage {
                Stage::Tunnel => (false, carry::tunnel(core, exchange, back)),
                Stage::Connecting => (false, carry::connect(core, exchange, back)),
                // Of a request without a body nothing is left to carry.
                _ if exchange.framing == Framing::Empty => {
                    (false, home(core, exchange, back, |token| passes(&self.side, token)))
                }
                _ => match ask(core, exchange, back) {
                    Flow::Moved => (true, home(core, exchange, back, |token| passes(&self.side, token))),
                    Flow::Still => (false, home(core, exchange, back, |token| passes(&self.side, token))),
                    failed => (false, failed),
                },
            };
            match answered {
                Flow::Moved => carried = true,
                Flow::Still if asked => carried = true,
                Flow::Still => {
                    if lane == Lane::InLine
                        && let Some(exchange) = self.exchanges.get_mut(id).filter(|exchange| exchange.kept.is_some())
                    {
                        let front = exchange.front;
                        self.watch_turn(core, front);
                    }
                    return self.check_front(core, id, carried);
                }
                Flow::Aside => return self.was_set_aside(core, id),
                Flow::Long if self.set_aside(core, id) => return,
                Flow::Long => self.give_here(id),
                Flow::Over => return self.finish(core, id),
                Flow::Refused => return self.tunnel_refused(core, id),
                Flow::Broken(end) => return self.tunnel_broken(core, id, end, None),
                Flow::Front(error) => return self.front_failed(core, id, error),
                Flow::Back(fault) => return self.back_failed(core, id, fault),
                Flow::Limit(answer) => {
                    // As in `front_failed`: the back must not take a part for the whole.
                    self.drop_back(core, id);
                    return self.answer(core, id, answer);
                }
            }
        }
    }

    /// Whether it is this exchange's answer that comes next on its back.
    fn is_first(&mut self, core: &mut Core, id: usize) -> bool {
        let back = self.exchanges.get_mut(id).and_then(|exchange| exchange.back);
        back.and_then(|back| core.peer(back)).is_some_and(|back| back.seat == Seat::Exchange(id))
    }

    /// Looks whether the visitor is still there, once nothing can be carried. Most that end their side are gone; the few that
    /// only ended theirs are served as long as something comes for them: then a write tells whether they are there.
    fn check_front(&mut self, core: &mut Core, id: usize, carried: bool) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        let patience = core.now + core.config.deadlines.half_close;
        if core.peer(exchange.front).is_some_and(|front| front.conn.is_tunnel()) {
            // Its end is one of two, and travels with the bytes.
            return;
        }
        let Some(front) = core.peer(exchange.front).filter(|front| front.has_hung_up()) else { return };
        let heard_all = front.conn.has_heard_all();
        // The far end of a pipe is not half there: it is gone, and with it whoever would have the answer.
        let is_pipe = front.twin != Twin::None;
        // What is left of its request has nowhere to go, and is not read: it would never be found that it has broken off.
        let (is_gone, is_held) = (front.is_gone(), front.held);
        if exchange.stage == Stage::Waiting
            || is_pipe
            || heard_all && exchange.back.is_some_and(|back| !self.side.is_out(core, back))
            || is_gone && (heard_all || is_held)
        {
            // Nobody has heard of this request, and nobody is to; or nobody would hear the answer.
            return self.cancel(core, id, Code::VISITOR_GONE);
        }
        let Some(front) = core.peer(exchange.front) else { return };
        if !front.conn.has_heard_all() {
            // The rest of the request tells: it is whole, or its end comes early.
        } else if front.wait.is_none() || carried {
            front.wait = Some((patience, Wait::HalfClose));
            core.touch(exchange.front);
        }
    }

    /// Gives an exchange an answer of our own, if none was begun, and ends it.
    fn answer(&mut self, core: &mut Core, id: usize, answer: Answer) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        exchange.code = Some(answer.code.name.into());
        if exchange.lane == Lane::InLine
            && core.peer(exchange.front).is_some_and(|front| front.seat != Seat::Exchange(id))
        {
            exchange.stage = Stage::Answered;
            exchange.failure = Some(answer);
            if exchange.back.is_none() {
                // It may have stood before others that wait for what it needs no more.
                self.side.forget(id, exchange);
            }
            return self.mark(id);
        }
        if exchange.lane == Lane::Ahead
            && let Some(back) = exchange.back.take()
            && !self.leave_line(core, id, back)
        {
            self.break_line(core, back);
        }
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        let can = core.peer(exchange.front).is_some_and(|front| front.conn.can_respond());
        if can {
            self.side.told(answer.code);
            if exchange.kind == Kind::Connect
                && let Some(front) = core.peer(exchange.front)
            {
                // Whoever has asked for a tunnel may go on as if it had one (RFC 9931 §4).
                front.conn.do_not_keep();
            }
            answer_early(core, exchange.front);
            exchange.status = answer.code.status;
            exchange.bytes_out = respond(S::PROGRAM, core, exchange.front, &exchange.head, exchange.number, &answer);
            self.finish(core, id);
        } else {
            if exchange.kind == Kind::Connect {
                // It has no page to read that on.
                let (visitor, code) = (exchange.visitor, answer.code.name);
                let tunnel = self.side.tunnel(exchange);
                log::info!("tunnel `{tunnel}`: a connection from {visitor} was closed ({code}): {}", answer.text);
            }
            self.cancel(core, id, answer.code);
        }
    }

    /// The next hop won't have the tunnel: the front, which speaks no HTTP, is closed, and so is the back, on which someone may go on
    /// as if there were one (RFC 9931 §4).
    fn tunnel_refused(&mut self, core: &mut Core, id: usize) {
        let now = core.now;
        self.drop_back(core, id);
        let Some(exchange) = self.exchanges.end(id) else { return };
        let code = exchange.code.as_deref().unwrap_or("-");
        log::info!(
            "a connection from {} was closed: the tunnel `{}` was refused with {} ({code})",
            exchange.visitor,
            self.side.tunnel(&exchange),
            exchange.status
        );
        self.write_line(core, &exchange);
        self.side.forget(id, &exchange);
        self.side.ended(core, &exchange);
        if let Some(peer) = core.peer(exchange.front) {
            peer.seat = Seat::Front;
            peer.conn.close(now);
            core.touch(exchange.front);
        }
        self.exchanges.recycle(exchange);
    }

    /// One end of a tunnel is gone before its time, or both have been silent for too long: the other is not to take what it has for
    /// the whole, even if that costs it the last bytes, which a slow reader has not taken yet.
    fn tunnel_broken(&mut self, core: &mut Core, id: usize, end: Token, code: Option<Code>) {
        let Some(mut exchange) = self.exchanges.end(id) else { return };
        let code = code.unwrap_or_else(|| match end == exchange.front {
            true => Code::VISITOR_GONE,
            false => self.side.fault(&exchange, &BackFault::Lost(None)).code,
        });
        exchange.code = Some(code.name.into());
        self.write_line(core, &exchange);
        self.side.told(code);
        self.side.ended(core, &exchange);
        let seats = [(Some(exchange.front), Seat::Front), (exchange.back, Seat::Own)];
        for (token, seat) in seats.into_iter().filter_map(|(token, seat)| Some((token?, seat))) {
            let Some(peer) = core.peer(token) else { continue };
            peer.seat = seat;
            peer.transport().break_on_close();
            core.drop_peer(token);
        }
        self.exchanges.recycle(exchange);
    }

    /// Both directions of a tunnel have ended: each connection closes when it has sent what it has.
    fn tunnel_over(&mut self, core: &mut Core, id: usize) {
        let Some(exchange) = self.exchanges.end(id) else { return };
        self.write_line(core, &exchange);
        self.side.ended(core, &exchange);
        let seats = [(Some(exchange.front), Seat::Front), (exchange.back, Seat::Own)];
        for (token, seat) in seats.into_iter().filter_map(|(token, seat)| Some((token?, seat))) {
            if let Some(peer) = core.peer(token) {
                peer.seat = seat;
                peer.wait = None;
                peer.fed = false;
                peer.held = false;
                core.touch(token);
            }
        }
        self.exchanges.recycle(exchange);
    }

    /// Ends an exchange whose response is complete, or whose tunnel is over.
    fn finish(&mut self, core: &mut Core, id: usize) {
        if self.exchanges.get_mut(id).is_some_and(|exchange| exchange.stage == Stage::Tunnel) {
            return self.tunnel_over(core, id);
        }
        let Some(exchange) = self.exchanges.end(id) else { return };
        self.write_line(core, &exchange);
        match exchange.back {
            Some(back) => self.next_on_back(core, back),
            None => self.side.forget(id, &exchange),
        }
        self.side.ended(core, &exchange);
        let front = exchange.front;
        if let Some(peer) = core.peer(front) {
            peer.head = peer.head.saturating_sub(exchange.head.memory());
        }
        self.front_is_done(core, front);
        self.exchanges.recycle(exchange);
    }

    /// A front has the answer that was due: the next one's turn, or the next request.
    fn front_is_done(&mut self, core: &mut Core, front: Token) {
        self.gathering |= core.peer(front).is_some_and(|peer| peer.conn.is_in_line() && peer.conn.is_link());
        let closes = core.peer(front).is_none_or(|peer| peer.conn.closing().is_some());
        if !closes && self.next_on_front(core, front) {
            return;
        }
        self.cancel_line(core, front);
        let Some(peer) = core.peer(front) else { return };
        peer.wait = None;
        peer.fed = false;
        peer.held = false;
        peer.head = 0;
        peer.seat = Seat::Front;
        // Only a pipelined request, or the visitor's end, is there to be looked at already.
        let more = !peer.input.is_empty() || peer.has_hung_up();
        let is_pipe = peer.twin != Twin::None;
        if !closes {
            self.side.front_kept(core, front);
            if self.running == Running::Draining && !more && !is_pipe && !self.owes() {
                leave(core, front);
            }
        }
        if more {
            core.step_again(front);
        } else {
            core.touch(front);
        }
    }

    /// Lets a back go: to the next exchange when nothing about it was odd, else for good.
    fn let_go(&mut self, core: &mut Core, back: Token) {
        let Some(peer) = core.peer(back) else { return };
        peer.fed = false;
        peer.held = false;
        peer.wait = None;
        peer.seat = Seat::Own;
        let is_over = self.running == Running::Draining && peer.twin == Twin::None && !self.side.is_wanted(core, back);
        let Some(peer) = core.peer(back) else { return };
        if peer.can_be_asked() && !peer.is_connecting() && !peer.is_deaf() && !is_over {
            self.side.release(core, back, &mut self.orders);
        } else {
            core.drop_peer(back);
        }
    }

    /// Ends an exchange that can't be completed: the front is closed in the middle, so that nobody takes what it has for the
    /// whole.
    fn cancel(&mut self, core: &mut Core, id: usize, code: Code) {
        let Some(mut exchange) = self.exchanges.end(id) else { return };
        self.side.told(code);
        exchange.code = Some(code.name.into());
        if exchange.status == 0 {
            exchange.status = code.status;
        }
        self.write_line(core, &exchange);
        match exchange.back {
            Some(back) if exchange.lane == Lane::Ahead && self.leave_line(core, id, back) => {}
            Some(back) => {
                if let Some(peer) = core.peer(back)
                    && S::RESETS_BACKS
                {
                    peer.transport().break_on_close();
                }
                self.break_line(core, back);
            }
            None => self.side.forget(id, &exchange),
        }
        self.side.ended(core, &exchange);
        let now = core.now;
        let front = exchange.front;
        self.cancel_line(core, front);
        let gone = matches!(code, Code::VISITOR_GONE | Code::WRITE_TIMEOUT);
        if let Some(peer) = core.peer(front) {
            peer.seat = Seat::Front;
            if is_http10(&exchange.head) {
                // To a visitor of HTTP/1.0 the end of the connection is the end of the body. It may have gone only half.
                peer.transport().break_on_close();
                core.drop_peer(front);
            } else if gone || peer.is_deaf() {
                core.drop_peer(front);
            } else {
                // What there is of the answer arrives, and lacks its end.
                peer.conn.close(now);
                core.touch(front);
            }
        }
        if exchange.lane == Lane::Aside {
            self.owes_less(core);
        }
        self.exchanges.recycle(exchange);
    }

    /// The connection that these came on goes, and they with it: whoever sent them asks somebody else.
    fn cancel_line(&mut self, core: &mut Core, front: Token) {
        let Some(peer) = core.peer(front).filter(|peer| !peer.line.is_empty()) else { return };
        for id in std::mem::take(&mut peer.line) {
            let Some(mut exchange) = self.exchanges.end(id) else { continue };
            if exchange.stage == Stage::Hint {
                continue;
            }
            exchange.code = Some(Code::VISITOR_GONE.name.into());
            exchange.status = Code::VISITOR_GONE.status;
            self.write_line(core, &exchange);
            match exchange.back {
                Some(back) => self.break_line(core, back),
                None => self.side.forget(id, &exchange),
            }
            self.side.ended(core, &exchange);
            self.exchanges.recycle(exchange);
        }
    }

    fn front_failed(&mut self, core: &mut Core, id: usize, error: Error) {
        // What was passed on of the request is not the whole: the back must not take it for that.
        self.drop_back(core, id);
        match Answer::to_error(error) {
            Some(answer) => self.answer(core, id, answer),
            None => self.cancel(core, id, Code::VISITOR_GONE),
        }
    }

    /// The back is of no use. Tries another one if that is safe, else says so.
    fn back_failed(&mut self, core: &mut Core, id: usize, fault: BackFault) {
        let most = core.config.limits.tries;
        let (reached, heard) = self.drop_back(core, id);
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        let waits = exchange.lane == Lane::InLine;
        let unanswered = core.peer(exchange.front).is_some_and(|front| {
            // What is said there before its turn is somebody else's answer.
            waits && front.seat != Seat::Exchange(id) || front.conn.can_respond()
        });
        let answer = self.side.fault(exchange, &fault);
        if let BackFault::Late(Wait::Silence) = fault {
            self.side.back_silent(core, exchange);
        }
        let again = match fault {
            BackFault::Connect(_) | BackFault::ConnectLate => {
                // How many addresses there are is limit enough.
                exchange.tries -= 1;
                true
            }
            // Behind a CONNECT nothing was said yet: to connect twice is to connect.
            BackFault::Lost(_) => {
                let harmless = exchange.kind == Kind::Connect || is_idempotent(exchange.head.method());
                !reached || (!heard && harmless)
            }
            BackFault::Protocol(Error::Peer(Fault::UnexpectedData | Fault::EarlyEnd)) => !reached,
            BackFault::Protocol(_) | BackFault::Late(_) => false,
        };
        let whole = exchange.stage != Stage::Streaming || exchange.framing == Framing::Empty;
        if again && unanswered && whole && exchange.tries < most {
            log::debug!("request {}: trying another way ({})", exchange.number, answer.code.name);
            exchange.stage = Stage::Waiting;
            // What nobody has had is not lost: then the wait for another way is what it fails of.
            let told = reached || matches!(fault, BackFault::Connect(_) | BackFault::ConnectLate);
            exchange.failure = told.then_some(answer);
            return self.assign(core, id);
        }
        log::warn!("request {}: {} ({})", exchange.number, answer.text, answer.code.name);
        self.answer(core, id, answer);
    }

    /// Takes an exchange from a back whose request nobody has had to another one.
    fn change_back(&mut self, core: &mut Core, from: Token, to: Token) {
        if let Some(Seat::Exchange(id)) = core.peer(from).map(|peer| peer.seat)
            && let Some(exchange) = self.exchanges.get_mut(id).filter(|exchange| exchange.framing == Framing::Empty)
        {
            exchange.stage = Stage::Waiting;
            self.drop_back(core, id);
            return self.attach(core, id, to);
        }
        self.let_go(core, to);
    }

    /// The program has found that a back won't do, and says why.
    fn back_faulted(&mut self, core: &mut Core, back: Token, answer: Answer) {
        let Some(Seat::Exchange(id)) = core.peer(back).map(|peer| peer.seat) else { return };
        self.drop_back(core, id);
        if let Some(exchange) = self.exchanges.get_mut(id) {
            log::warn!("request {}: {} ({})", exchange.number, answer.text, answer.code.name);
        }
        self.answer(core, id, answer);
    }

    fn write_line(&mut self, core: &Core, exchange: &Exchange) {
        if !self.log.is_on() {
            return;
        }
        self.log.line(&Line {
            time: core.wall_clock(),
            id: exchange.number,
            visitor: self.side.visitor(exchange),
            tunnel: self.side.tunnel(exchange),
            method: exchange.head.method(),
            target: exchange.head.target(),
            status: exchange.status,
            bytes_in: exchange.bytes_in,
            bytes_out: exchange.bytes_out,
            took: core.now.since(exchange.started),
            code: exchange.code.as_deref(),
        });
    }

    fn follow_orders(&mut self, core: &mut Core) {
        while let Some(order) = self.orders.pop() {
            match order {
                Order::Attach(id, back) => self.attach(core, id, back),
                Order::Assign(id) => self.assign(core, id),
                Order::HandOver(id, mailbox) => self.hand_over(core, id, &mailbox),
                Order::Answer(id, answer) => {
                    if self.exchanges.waiting_mut(id).is_some() {
                        self.answer(core, id, answer);
                    }
                }
                Order::Listen(token) => self.listen(core, token),
                Order::Begin(token, framing, head) => {
                    core.head = *head;
                    self.begin(core, token, framing);
                }
                Order::Respond(token, head, answer) => self.refuse_agent(core, token, &head, &answer),
                Order::Move(from, to) => self.change_back(core, from, to),
                Order::Fault(back, answer) => self.back_faulted(core, back, answer),
            }
        }
    }
}

impl<S: Side> App for Bridge<S> {
    fn accepted(&mut self, core: &mut Core, token: Token, door: Door) {
        self.side.accepted(core, token, door, &mut self.orders);
    }

    fn step(&mut self, core: &mut Core, token: Token) {
        let (now, linger) = (core.now, core.config.deadlines.linger);
        let Some(peer) = core.peer(token) else { return };
        if peer.conn.closing().is_some() {
            // What still comes is thrown away.
            peer.discard(now, linger);
            core.touch(token);
            return;
        }
        match peer.seat {
            Seat::Front => self.listen(core, token),
            Seat::Exchange(id) => {
                self.mark(id);
                self.listen_behind(core, token);
                self.check_waiting(core, id);
            }
            Seat::Nobody => self.pass_over(core, token),
            Seat::Own => self.side.own(core, token, &mut self.orders),
        }
    }

    fn route(&mut self, core: &mut Core) {
        while !self.orders.is_empty() || !self.marked.is_empty() {
            self.follow_orders(core);
            if let Some(id) = self.marked.pop() {
                self.pump(core, id);
            }
        }
        self.hear_more(core);
    }

    fn lost(&mut self, core: &mut Core, token: Token, loss: Loss) {
        let now = core.now;
        let (patience, rest) = (core.config.deadlines.linger, core.config.deadlines.body);
        let Some(peer) = core.peer(token) else { return };
        match peer.seat {
            Seat::Front => self.front_lost(core, token, &loss),
            Seat::Own => {
                self.side.own_lost(core, token, loss, &mut self.orders);
            }
            // What had arrived before is passed over first.
            Seat::Nobody if !matches!(loss, Loss::Late(_)) => {
                peer.break_off();
                core.step_again(token);
            }
            Seat::Nobody => self.break_line(core, token),
            Seat::Exchange(id) => {
                let (is_front, in_tunnel) = self
                    .exchanges
                    .get_mut(id)
                    .map_or((false, false), |exchange| (exchange.front == token, exchange.stage == Stage::Tunnel));
                let connecting = peer.is_connecting();
                match loss {
                    Loss::Late(wait) if in_tunnel => {
                        let silent = matches!(wait, Wait::Tunnel | Wait::TunnelEnd);
                        let code = if silent { Code::TUNNEL_SILENT } else { Code::WRITE_TIMEOUT };
                        self.tunnel_broken(core, id, token, Some(code));
                    }
                    // What it had sent before is understood first.
                    Loss::Deaf(_) if in_tunnel => core.step_again(token),
                    Loss::Io(_) if in_tunnel => {
                        peer.break_off();
                        core.step_again(token);
                    }
                    Loss::Late(Wait::Quiet) if !peer.input.is_empty() => self.mark(id),
                    Loss::Late(wait @ Wait::Quiet) => {
                        // The end of this body is its silence.
                        let ended = peer.conn.timeout(now, wait).is_some();
                        if let (true, Some(exchange)) = (ended, self.exchanges.get_mut(id)) {
                            exchange.stage = Stage::Ending;
                        }
                        self.mark(id);
                    }
                    Loss::Late(Wait::Turn) => self.turn_is_over(core, token),
                    Loss::Late(Wait::Aside) => self.cancel(core, id, Code::VISITOR_GONE),
                    Loss::Late(Wait::Ping) if is_front && !peer.held && peer.conn.has_stalled(now, rest) => {
                        self.front_of_exchange_lost(core, id, Loss::Late(Wait::Body));
                    }
                    Loss::Late(Wait::Ping) if is_front => {
                        // An agent says that it is at work; it may, or nothing would be due.
                        if let Some(peer) = core.tell(token) {
                            let _ = peer.conn.send_sign(now, peer.output.vec());
                        }
                    }
                    loss if is_front => self.front_of_exchange_lost(core, id, loss),
                    Loss::Late(_) if connecting => self.back_failed(core, id, BackFault::ConnectLate),
                    Loss::Io(error) if connecting => self.back_failed(core, id, BackFault::Connect(error)),
                    Loss::Late(wait) => self.back_failed(core, id, BackFault::Late(wait)),
                    // It hears no more of the request, and may have answered: a 413 to those who send too much.
                    Loss::Deaf(_) => {
                        peer.wait = Some((now + patience, Wait::Write));
                        core.step_again(token);
                    }
                    Loss::Io(_) => {
                        // What had arrived before is understood first.
                        peer.break_off();
                        core.step_again(token);
                    }
                }
            }
        }
    }

    fn gone(&mut self, core: &mut Core, token: Token, peer: Peer) {
        if let Seat::Exchange(id) = peer.seat {
            // Dropped from outside its exchange: nobody else does that, but nothing must be left hanging.
            self.cancel(core, id, Code::INTERNAL);
        }
        for id in &peer.line {
            match self.exchanges.get_mut(*id) {
                Some(exchange) if exchange.stage == Stage::Hint => drop(self.exchanges.end(*id)),
                Some(exchange) if exchange.front == token => self.cancel(core, *id, Code::INTERNAL),
                Some(exchange) => {
                    exchange.back = None;
                    exchange.stage = Stage::Waiting;
                    exchange.lane = Lane::Own;
                    self.orders.push(Order::Assign(*id));
                }
                None => {}
            }
        }
        let was_front = peer.seat == Seat::Front;
        self.side.gone(core, token, peer, &mut self.orders);
        if self.running == Running::Farewell && was_front {
            self.look_who_is_here(core);
        }
    }

    fn timer(&mut self, core: &mut Core, key: usize) {
        match key {
            DRAINED => {
                if !self.exchanges.is_empty() {
                    log::warn!("{} requests did not end in time and are cut off", self.exchanges.len());
                }
                // The end of a process looks like a clean end of what it said.
                for (id, front, stage) in self.exchanges.all() {
                    match stage {
                        Stage::Tunnel => self.tunnel_broken(core, id, front, Some(Code::STOPPING)),
                        _ => self.answer(core, id, stopping()),
                    }
                }
                self.running = Running::Over;
            }
            FAREWELL if self.running == Running::Farewell => self.drain(core),
            FAREWELL => {}
            key => self.side.timer(core, key, &mut self.orders),
        }
    }

    fn message(&mut self, core: &mut Core, message: Message) {
        match message {
            Message::Handed(peer, parcel) => match parcel.downcast::<Exchange>() {
                Ok(exchange) => self.take_over(core, peer, *exchange),
                Err(parcel) => self.side.message(core, Message::Handed(peer, parcel), &mut self.orders),
            },
            message => self.side.message(core, message, &mut self.orders),
        }
    }

    fn stop(&mut self, core: &mut Core) {
        if self.running != Running::Yes {
            return;
        }
        self.running = Running::Farewell;
        let drain = core.config.deadlines.drain;
        match self.exchanges.len() {
            0 => log::info!("stopping"),
            1 => log::info!("stopping: 1 request has {} s to end", drain.as_secs()),
            running => log::info!("stopping: {running} requests have {} s to end", drain.as_secs()),
        }
        core.set_timer(drain, DRAINED);
        if !self.side.keeps_its_door_open() {
            // Whoever has knocked believes to be in.
            core.close_listeners(self);
        }
        self.side.stop(core, &mut self.orders);
        let is_busy = |peer: &Peer| matches!(peer.seat, Seat::Exchange(_)) && peer.conn.can_respond();
        let owes = self.owes();
        let goes = |peer: &Peer| is_busy(peer) && !(owes && peer.conn.is_link());
        let busy: Vec<Token> = core.peers().filter(|(_, peer)| goes(peer)).map(|(token, _)| token).collect();
        for token in busy {
            // Where the answer has begun, it did not say that it is the last one: the connection may be used again.
            if let Some(peer) = core.tell(token) {
                peer.conn.do_not_keep();
            }
        }
        if self.side.says_farewell() {
            core.set_timer(core.config.deadlines.farewell, FAREWELL);
            self.look_who_is_here(core);
        } else {
            self.drain(core);
        }
    }

    fn is_gathering(&mut self) -> bool {
        std::mem::take(&mut self.gathering)
    }

    fn is_busy(&self) -> bool {
        !self.marked.is_empty() || !self.orders.is_empty()
    }

    fn rest(&mut self, _: &mut Core) {
        self.log.flush();
    }

    fn exit(&self, core: &Core) -> Option<u8> {
        match self.running {
            Running::Yes => self.side.exit(),
            Running::Farewell => None,
            Running::Over => Some(0),
            Running::Draining => {
                let is_done = |peer: &Peer| peer.output.is_empty() && !peer.is_lingering() && !peer.conn.is_leaving();
                let done =
                    self.exchanges.is_empty() && !self.side.is_owed() && core.peers().all(|(_, peer)| is_done(peer));
                done.then_some(0)
            }
        }
    }
}

impl<S: Side> Bridge<S> {
    /// A waiting exchange has nothing to carry, but its visitor may leave.
    fn check_waiting(&mut self, core: &mut Core, id: usize) {
        if self.exchanges.get_mut(id).is_some_and(|exchange| exchange.stage == Stage::Waiting) {
            self.check_front(core, id, false);
        }
    }

    /// Goes on with the end when there is nobody left to say farewell to.
    fn look_who_is_here(&mut self, core: &mut Core) {
        let is_visitor = |peer: &Peer| {
            peer.seat != Seat::Own
                && peer.twin == Twin::None
                && !peer.conn.is_link()
                && peer.conn.closing().is_none()
                && !peer.is_dead()
        };
        if self.side.is_alone() && !core.peers().any(|(_, peer)| is_visitor(peer)) {
            self.drain(core);
        }
    }

    /// Nothing begins any more.
    fn drain(&mut self, core: &mut Core) {
        self.running = Running::Draining;
        self.side.drain(core, &mut self.orders);
        // While the door is open, one that was told nothing yet may be there to bring an answer.
        let (open, owes) = (self.side.keeps_its_door_open(), self.owes());
        let stays = |token: Token, peer: &Peer| {
            self.side.is_kept(token) || open && peer.written == 0 || owes && peer.conn.is_link()
        };
        let is_idle = |(token, peer): &(Token, &Peer)| peer.seat == Seat::Front && !stays(*token, peer);
        let idle: Vec<Token> = core.peers().filter(is_idle).map(|(token, _)| token).collect();
        for token in idle {
            leave(core, token);
        }
        for id in self.exchanges.waiting() {
            // What was set aside was taken on long ago.
            let Some(exchange) = self.exchanges.get_mut(id).filter(|exchange| exchange.aside.is_none()) else {
                continue;
            };
            if core.peer(exchange.front).is_none_or(|front| !front.conn.is_link()) {
                self.answer(core, id, stopping());
            }
        }
    }

    fn front_lost(&mut self, core: &mut Core, token: Token, loss: &Loss) {
        if let Loss::Late(Wait::Silence) = loss {
            return self.side.front_silent(core, token);
        }
        if let Loss::Late(Wait::Head) = loss {
            let seconds = core.config.deadlines.head.as_secs_f32();
            let text = format!("The request's head was not complete within {seconds} s of its first byte.");
            let answer = Answer::new(Code::HEAD_TIMEOUT, text);
            if core.peer(token).is_some_and(|peer| peer.conn.can_respond()) {
                return self.respond_alone(core, token, &Head::default(), &answer);
            }
        }
        core.drop_peer(token);
    }

    fn front_of_exchange_lost(&mut self, core: &mut Core, id: usize, loss: Loss) {
        match loss {
            Loss::Late(wait @ (Wait::Link | Wait::Connect)) => {
                let Some(exchange) = self.exchanges.get_mut(id) else { return };
                let fault = BackFault::Late(wait);
                let answer = exchange.failure.take().unwrap_or_else(|| self.side.fault(exchange, &fault));
                self.answer(core, id, answer);
            }
            Loss::Late(Wait::Body) => {
                let seconds = core.config.deadlines.body.as_secs_f32();
                let text = format!("The request's body stopped coming: nothing arrived for {seconds} s.");
                self.answer(core, id, Answer::new(Code::BODY_TIMEOUT, text));
            }
            Loss::Late(Wait::Write) => self.cancel(core, id, Code::WRITE_TIMEOUT),
            Loss::Late(_) | Loss::Io(_) | Loss::Deaf(_) => self.cancel(core, id, Code::VISITOR_GONE),
        }
    }
}

/// What was heard on a front between exchanges.
enum Heard {
    Request(Framing),
    Offer,
    Other,
    Error(Error),
}

/// Whether others in its line wait for what this front waits for.
fn is_for_turn(front: &Peer) -> bool {
    matches!(front.wait, Some((_, Wait::Turn)))
}

/// The end of a request without a body takes no bytes: it is there with the head, and is taken before the request is answered.
pub fn take_bodiless(core: &mut Core, token: Token, framing: Framing) {
    let now = core.now;
    if matches!(framing, Framing::Empty | Framing::Length(0))
        && let Some((peer, head, config)) = core.hear(token)
    {
        let _ = peer.conn.recv(now, b"", head, config);
    }
}

/// A request is about to be answered that may not be whole: behind a body that goes on no other is found. A length of 0 is a body
/// that has ended, if nobody has looked yet.
pub(crate) fn answer_early(core: &mut Core, token: Token) {
    let now = core.now;
    if let Some((peer, head, config)) = core.hear(token)
        && !peer.conn.has_heard_all()
        && !matches!(peer.conn.recv(now, b"", head, config), Ok((_, Some(Event::End { .. }))))
    {
        peer.conn.do_not_keep();
    }
}

/// A front is done with what it has, and nothing more is to come on it.
fn leave(core: &mut Core, front: Token) {
    let now = core.now;
    if let Some(peer) = core.tell(front) {
        peer.conn.leave(now, peer.output.vec());
    }
}

/// What those get who come while the program ends.
pub fn stopping() -> Answer {
    Answer::new(Code::STOPPING, "The program is being stopped and takes no new requests.")
}

/// Sends an answer of our own. Gives how much body it has.
pub(crate) fn respond(program: &str, core: &mut Core, front: Token, head: &Head, id: u64, answer: &Answer) -> u64 {
    let (now, date) = (core.now, core.wall_clock());
    let Some(peer) = core.tell(front) else { return 0 };
    let json = wants_json(head);
    let page = answer.page(program, id, json);
    let status = (answer.code.status, ptth_proto::wire::head::reason(answer.code.status).as_bytes());
    let length = page.len() as u64;
    let shown = if peer.conn.asked() == Asked::Head { 0 } else { length };
    let sent = peer
        .conn
        .send_response(now, peer.output.vec(), status, Body::Length(length), |fields| {
            answer.fields(program, json, date, fields);
        })
        .and_then(|()| peer.conn.send_data(now, page.as_bytes(), peer.output.vec()))
        .and_then(|()| peer.conn.send_end(now, None, peer.output.vec()));
    if let Err(error) = sent {
        log::error!("an answer could not be written: {error}");
        core.drop_peer(front);
    }
    shown
}

/// Whether a visitor may go on with this protocol.
fn passes(side: &impl Side, token: &[u8]) -> bool {
    !tunnel::is_never_passed(token) && side.switches(token)
}

/// Writes the fields of a request that go on to the next hop, all but `Host` and those that are not wanted there, and whether
/// trailers are.
pub(crate) fn pass_on(exchange: &Exchange, fields: &mut FieldWriter<'_>, is_wanted: impl Fn(Name) -> bool) {
    let head = &exchange.head;
    for field in head.fields.end_to_end() {
        let passes = match field.known {
            Name::Host => false,
            // RFC 9110 §10.1.1: ignored where it is HTTP/1.0's, and the next hop sees our version and not that one.
            Name::Expect if is_http10(head) => false,
            known => is_wanted(known),
        };
        if passes {
            hops::pass(head, field, fields);
        }
    }
    // Behind a 101 there are none; and of two lines of `Connection` some servers read only the first.
    if exchange.kind == Kind::Http && takes_trailers(head) {
        fields.field("TE", "trailers");
        fields.field("Connection", "TE");
    }
}

/// Whether whoever asks has said that it takes trailers (RFC 9110 §10.1.4). We pass them on, so the next hop is told; of the
/// other codings that `TE` may name, none goes through.
pub(crate) fn takes_trailers(head: &Head) -> bool {
    head.fields.lists(Name::Te, b"trailers") && !is_http10(head)
}

/// Whether a message is of HTTP/1.0.
pub fn is_http10(head: &Head) -> bool {
    head.version() == Version::Http10
}
