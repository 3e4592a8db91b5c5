//! Who may say what next. Two laws: everything that changes the phase of an exchange is in this file, and nothing in this
//! file knows which of the two sides we are.
//!
//! ```text
//!            client                                     server
//!   Idle ──Request──▶ Body ─┐ Data              Idle ──(Request)──▶ Answering ─┐ Informational
//!                     │ ◀───┘                                       │  ◀───────┘
//!                    End                                  Response  │  Switch ──▶ Switched
//!                     ▼                                             ▼
//!     MightSwitch ◀─ Done ─▶ MustClose           Body ◀─┐ Data ─────┘
//!     (offered)      (kept)  (not kept)           │ ────┘
//!                                                End ──▶ Done ─▶ MustClose
//! ```
//!
//! `proto/tests/table.rs` prints the whole table and compares it with `fixtures/states.txt`. What the table can't show: a
//! new exchange starts when both sides are `Done` ([`Exchange::start_next`]).

use crate::error::{Error, Misuse};
use crate::role::Role;

/// What one side of an exchange is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nothing said yet.
    Idle,
    /// A server that has heard a request and not answered it.
    Answering,
    /// In the message's body.
    Body,
    /// The message is complete; another exchange may follow.
    Done,
    /// The message is complete; none may follow.
    MustClose,
    /// Has closed its side.
    Closed,
    /// A client that has offered another protocol and waits whether it is taken.
    MightSwitch,
    /// Speaks another protocol now.
    Switched,
    /// Broke the rules. The other side may still say so.
    Broken,
}

/// What a side can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Move {
    /// A request's head.
    Request,
    /// A 1xx response other than 101.
    Informational,
    /// A 101.
    Switch,
    /// A final response's head.
    Response,
    /// A piece of a body.
    Data,
    /// The end of a message.
    End,
    /// The end of the side's bytes.
    Close,
}

/// All phases, in the order of a message's life.
pub const PHASES: [Phase; 9] = [
    Phase::Idle,
    Phase::Answering,
    Phase::Body,
    Phase::Done,
    Phase::MustClose,
    Phase::Closed,
    Phase::MightSwitch,
    Phase::Switched,
    Phase::Broken,
];

/// All moves.
pub const MOVES: [Move; 7] =
    [Move::Request, Move::Informational, Move::Switch, Move::Response, Move::Data, Move::End, Move::Close];

/// The table: what becomes of `role`'s phase when it makes a move; `None` when it may not.
pub const fn next(role: Role, phase: Phase, movement: Move) -> Option<Phase> {
    use Move::{Close, Data, End, Informational, Request, Response, Switch};
    use Phase::{Answering, Body, Closed, Done, Idle, MustClose};
    use Role::{Client, Server};
    match (role, phase, movement) {
        (Client, Idle, Request) => Some(Body),
        (Server, Answering, Informational) => Some(Answering),
        (Server, Answering, Switch) => Some(Phase::Switched),
        // A server may answer before it was asked: a 408, or a 400 to what was no request.
        (Server, Idle | Answering, Response) => Some(Body),
        (_, Body, Data) => Some(Body),
        (_, Body, End) => Some(Done),
        (_, Idle | Done | MustClose | Closed, Close) => Some(Closed),
        _ => None,
    }
}

/// The moves that follow by themselves from both phases: applied until nothing changes.
pub const fn forced(client: Phase, server: Phase, keep: bool, offered: bool) -> (Phase, Phase) {
    use Phase::{Answering, Body, Broken, Closed, Done, Idle, MightSwitch, MustClose, Switched};
    match (client, server) {
        (Done, Idle | Answering) if offered => (MightSwitch, server),
        (MightSwitch, Switched) => (Switched, Switched),
        // The offer was refused by an ordinary answer.
        (MightSwitch, Body | Done | MustClose) => (Done, server),
        (Done, _) if !keep => (MustClose, server),
        (_, Done) if !keep => (client, MustClose),
        (Closed, Done | Idle) | (Broken, Done) => (client, MustClose),
        (Done | Idle, Closed) | (Done, Broken) => (MustClose, server),
        _ => (client, server),
    }
}

/// The two sides of one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    client: Phase,
    server: Phase,
    keep: bool,
    offered: bool,
}

impl Default for Exchange {
    fn default() -> Self {
        Exchange { client: Phase::Idle, server: Phase::Idle, keep: true, offered: false }
    }
}

impl Exchange {
    /// The phase of one side.
    pub const fn phase(&self, role: Role) -> Phase {
        match role {
            Role::Client => self.client,
            Role::Server => self.server,
        }
    }

    /// Makes a move for one side.
    ///
    /// # Errors
    /// When the table does not have it; nothing has changed then.
    pub fn make(&mut self, role: Role, movement: Move) -> Result<(), Error> {
        if movement == Move::Switch && self.client != Phase::MightSwitch {
            return Err(Misuse::OutOfTurn.into());
        }
        let Some(phase) = next(role, self.phase(role), movement) else {
            return Err(Misuse::OutOfTurn.into());
        };
        match role {
            Role::Client => self.client = phase,
            Role::Server => self.server = phase,
        }
        if movement == Move::Request && self.server == Phase::Idle {
            self.server = Phase::Answering;
        }
        self.settle();
        Ok(())
    }

    /// One side broke the rules.
    pub fn break_off(&mut self, role: Role) {
        match role {
            Role::Client => self.client = Phase::Broken,
            Role::Server => self.server = Phase::Broken,
        }
        self.keep = false;
        self.settle();
    }

    /// The request offers to switch protocols: said together with [`Move::Request`], or once the request is complete.
    pub fn offer(&mut self) {
        self.offered = true;
        if self.client == Phase::MustClose {
            // That no other exchange follows says nothing against another protocol; a refusal ends it all the same.
            self.client = Phase::Done;
        }
        self.settle();
    }

    /// No exchange follows this one.
    pub fn do_not_keep(&mut self) {
        self.keep = false;
        self.settle();
    }

    /// Whether another exchange may follow.
    pub const fn is_kept(&self) -> bool {
        self.keep
    }

    /// Starts the next exchange when both sides are done with this one. False when they are not.
    pub fn start_next(&mut self) -> bool {
        let done = self.client == Phase::Done && self.server == Phase::Done;
        if done {
            *self = Exchange::default();
        }
        done
    }

    fn settle(&mut self) {
        loop {
            let (client, server) = forced(self.client, self.server, self.keep, self.offered);
            if (client, server) == (self.client, self.server) {
                return;
            }
            (self.client, self.server) = (client, server);
            // An offer is answered once.
            self.offered &= client == Phase::MightSwitch;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Role::{Client, Server};

    fn after(moves: &[(Role, Move)], keep: bool, offered: bool) -> Exchange {
        let mut exchange = Exchange::default();
        if offered {
            exchange.offer();
        }
        for (role, movement) in moves {
            exchange.make(*role, *movement).unwrap();
        }
        if !keep {
            exchange.do_not_keep();
        }
        exchange
    }

    const REQUEST: [(Role, Move); 2] = [(Client, Move::Request), (Client, Move::End)];

    #[test]
    fn an_exchange_and_the_next() {
        let mut exchange = after(&REQUEST, true, false);
        assert_eq!((exchange.client, exchange.server), (Phase::Done, Phase::Answering));
        assert!(!exchange.start_next());
        for movement in [Move::Informational, Move::Response, Move::Data, Move::End] {
            exchange.make(Server, movement).unwrap();
        }
        assert!(exchange.start_next());
        assert_eq!(exchange, Exchange::default());
    }

    #[test]
    fn an_offer_taken_and_an_offer_refused() {
        let mut exchange = after(&REQUEST, true, true);
        assert_eq!(exchange.client, Phase::MightSwitch);
        let mut refused = exchange;
        exchange.make(Server, Move::Switch).unwrap();
        assert_eq!((exchange.client, exchange.server), (Phase::Switched, Phase::Switched));
        refused.make(Server, Move::Response).unwrap();
        refused.make(Server, Move::End).unwrap();
        assert!(refused.start_next());
    }

    #[test]
    fn nobody_switches_unasked() {
        assert!(after(&REQUEST, true, false).make(Server, Move::Switch).is_err());
        let mut in_body = Exchange::default();
        in_body.offer();
        in_body.make(Client, Move::Request).unwrap();
        assert!(in_body.make(Server, Move::Switch).is_err());
    }

    #[test]
    fn what_is_not_kept_must_close() {
        let mut exchange = after(&REQUEST, false, false);
        exchange.make(Server, Move::Response).unwrap();
        exchange.make(Server, Move::End).unwrap();
        assert_eq!((exchange.client, exchange.server), (Phase::MustClose, Phase::MustClose));
        assert!(!exchange.start_next());
    }

    #[test]
    fn a_server_may_still_answer_a_client_that_broke_the_rules() {
        let mut exchange = Exchange::default();
        exchange.break_off(Client);
        assert_eq!(exchange.server, Phase::Idle);
        let mut exchange = Exchange::default();
        exchange.make(Client, Move::Request).unwrap();
        exchange.break_off(Client);
        exchange.make(Server, Move::Response).unwrap();
        exchange.make(Server, Move::End).unwrap();
        assert_eq!(exchange.server, Phase::MustClose);
    }
}
