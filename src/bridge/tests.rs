//! The bridge with a side that does nothing, for what no visitor and no agent can bring about at will.

use std::borrow::Cow;

use mio::Token;
use ptth_proto::conn::{Config, Conn};
use ptth_proto::http::framing::Framing;
use ptth_proto::wire::head::FieldWriter;

use super::exchange::{Exchange, Lane};
use super::{Assign, BackFault, Bridge, Claim, Order, Side, stopping};
use crate::answer::{Answer, Code};
use crate::log::{AccessLog, Visitor};
use crate::net::addr::Remote;
use crate::peer::{Peer, Seat};
use crate::reactor::{Core, Door, Loss, Message, Reactor};

/// A side that does nothing but note what it is to forget.
#[derive(Debug, Default)]
struct Notes {
    forgotten: Vec<usize>,
}

impl Side for Notes {
    const PROGRAM: &'static str = "test";
    const RESETS_BACKS: bool = false;

    fn forget(&mut self, id: usize, _: &Exchange) {
        self.forgotten.push(id);
    }

    fn accepted(&mut self, _: &mut Core, _: Token, _: Door, _: &mut Vec<Order>) {}
    fn switches(&self, _: &[u8]) -> bool {
        false
    }
    fn connects(&self) -> Result<(), Answer> {
        Ok(())
    }
    fn assign(&mut self, _: &mut Core, _: usize, _: &mut Exchange) -> Assign {
        Assign::Later
    }
    fn release(&mut self, _: &mut Core, _: Token, _: &mut Vec<Order>) {}
    fn front_kept(&mut self, _: &mut Core, _: Token) {}
    fn claim(&mut self, _: &mut Core, _: Token, _: Framing, _: &mut Vec<Order>) -> Claim {
        Claim::No
    }
    fn is_owed(&self) -> bool {
        false
    }
    fn is_kept(&self, _: Token) -> bool {
        false
    }
    fn keeps_its_door_open(&self) -> bool {
        false
    }
    fn offer(&mut self, _: &mut Core, _: Token, _: &mut Vec<Order>) -> Option<Answer> {
        None
    }
    fn own(&mut self, _: &mut Core, _: Token, _: &mut Vec<Order>) {}
    fn own_lost(&mut self, _: &mut Core, _: Token, _: Loss, _: &mut Vec<Order>) {}
    fn gone(&mut self, _: &mut Core, _: Token, _: Peer, _: &mut Vec<Order>) {}
    fn target<'a>(&self, exchange: &'a Exchange) -> Cow<'a, [u8]> {
        exchange.head.target().into()
    }
    fn request_fields(&self, _: &Exchange, _: &mut FieldWriter<'_>) {}
    fn fault(&self, _: &Exchange, _: &BackFault) -> Answer {
        Answer::new(Code::INTERNAL, "")
    }
    fn visitor<'a>(&self, exchange: &'a Exchange) -> Visitor<'a> {
        Visitor::At(exchange.visitor)
    }
    fn tunnel<'a>(&'a self, _: &'a Exchange) -> &'a str {
        ""
    }
    fn timer(&mut self, _: &mut Core, _: usize, _: &mut Vec<Order>) {}
    fn message(&mut self, _: &mut Core, _: Message, _: &mut Vec<Order>) {}
    fn stop(&mut self, _: &mut Core, _: &mut Vec<Order>) {}
    fn stop_at_once(&mut self) {}
    fn drain(&mut self, _: &mut Core, _: &mut Vec<Order>) {}
    fn says_farewell(&self) -> bool {
        false
    }
    fn is_alone(&self) -> bool {
        true
    }
    fn is_last(&self, _: &Exchange) -> bool {
        false
    }
    fn back_silent(&mut self, _: &mut Core, _: &Exchange) {}
    fn front_silent(&mut self, _: &mut Core, _: Token) {}
    fn is_out(&self, _: &mut Core, _: Token) -> bool {
        true
    }
    fn exit(&self) -> Option<u8> {
        None
    }
}

#[test]
fn a_request_whose_answer_waits_for_its_turn_is_not_to_have_a_back() {
    let mut reactor = Reactor::new(Bridge::new(Notes::default(), AccessLog::none()), Config::default()).unwrap();
    let (core, bridge) = (&mut reactor.core, &mut reactor.app);
    let (_, front) = core.pipe(Conn::client(core.now), Conn::server(core.now));
    let [first, second] = [(); 2].map(|()| {
        let mut exchange = bridge.exchanges.begin(front, Remote::Unix, Framing::Empty, core.now);
        exchange.lane = Lane::InLine;
        bridge.exchanges.insert(exchange)
    });
    let peer = core.peer(front).unwrap();
    peer.seat = Seat::Exchange(first);
    peer.line.push(second);
    // Others may wait behind it for what it was to have, however long the first one takes.
    bridge.answer(core, second, stopping());
    assert_eq!(bridge.side.forgotten, [second]);
    assert!(core.peer(front).unwrap().output.is_empty());
}
