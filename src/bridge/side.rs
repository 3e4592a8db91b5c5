//! What relay and agent differ in, and the words in which the bridge and its side speak.

use std::borrow::Cow;
use std::io;

use mio::Token;
use ptth_proto::error::Error;
use ptth_proto::http::framing::Framing;
use ptth_proto::limits::Wait;
use ptth_proto::wire::head::{FieldWriter, Head};

use super::exchange::Exchange;
use crate::answer::{Answer, Code};
use crate::log::Visitor;
use crate::peer::Peer;
use crate::reactor::{Core, Door, Loss, Mailbox, Message};

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
    /// The program is to stop at once: others in this process are to hear of it.
    fn stop_at_once(&mut self);
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
