//! One request and its response on their way, and the table of all of them.

use std::borrow::Cow;

use mio::Token;
use ptth_proto::http::framing::Framing;
use ptth_proto::time::Instant;
use ptth_proto::wire::head::Head;

use crate::answer::Answer;
use crate::net::addr::Remote;
use crate::peer::NO_KEY;
use crate::reactor::slots::Slots;

/// What an exchange may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request and its response, and no more.
    Http,
    /// The request offers to go on with another protocol (`Upgrade`): a tunnel, if the response is a 101.
    Switch,
    /// CONNECT: a tunnel, if the response is a 2xx.
    Connect,
}

/// How far an exchange has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It has no back yet.
    Waiting,
    /// The back is being connected, and is all that is asked for: a CONNECT has come to where it ends.
    Connecting,
    /// The head is on its way out; none of the body was taken from the front.
    Asking,
    /// The bodies flow.
    Streaming,
    /// It has its answer, one of our own, which waits for its turn.
    Answered,
    /// It is the relay's own word, which has been heard: only its turn to be answered is still to come.
    Hint,
    /// The response's body has ended by silence; the front is to hear its end.
    Ending,
    /// No messages any more: bytes both ways.
    Tunnel,
}

/// How the exchange stands to others on its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// It has its connections to itself.
    Own,
    /// A relay's: its request stands with others on one link, and its answer comes in its turn.
    Ahead,
    /// An agent's: it came so. Its answer goes home in its turn, and whole.
    InLine,
    /// An agent's: its answer was set aside until the relay asks for it; it has no front.
    Aside,
}

/// What the request's body is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// Nothing: whoever was before us has seen to it.
    Free,
    /// Limits, and nothing of it has come, or nothing since it was held up by us.
    Due,
    /// Limits, with what comes from this time on, when so many bytes had gone either way.
    Since(Instant, u64),
}

/// One request and its response.
#[derive(Debug)]
pub struct Exchange {
    /// Its number, for logs and pages.
    pub number: u64,
    /// Where it came in.
    pub front: Token,
    /// The front's own number to the program.
    pub key: usize,
    /// Where it goes out.
    pub back: Option<Token>,
    /// What it may become.
    pub kind: Kind,
    /// How far it has come.
    pub stage: Stage,
    /// How it stands to others on its link.
    pub lane: Lane,
    /// By what name an agent has set its answer aside.
    pub aside: Option<Box<[u8]>>,
    /// The head of its response, which is not whole yet and can't be given before it is.
    pub kept: Option<Box<(Head, Framing)>>,
    /// Since when its answer, or some of it, has been there without going home: it is not its turn, or it is not whole.
    pub ready: Option<Instant>,
    /// The request's head.
    pub head: Head,
    /// The request's framing.
    pub framing: Framing,
    /// What its body is held to.
    pub intake: Intake,
    /// Who asks.
    pub visitor: Remote,
    /// When its head was complete.
    pub started: Instant,
    /// Backs that it was tried on.
    pub tries: usize,
    /// Bytes that the present back had been sent before it: more than that, and the request may have arrived.
    pub mark: u64,
    /// The tunnel, or whatever the program notes on where it goes.
    pub tunnel: usize,
    /// Bytes at the front of the target that name the tunnel and are not passed on.
    pub cut: usize,
    /// Addresses of the upstream that were dialled for it.
    pub dialled: usize,
    /// Loops that it was handed on by.
    pub hops: usize,
    /// A byte of an answer has come, so that the request is not sent again.
    pub heard: bool,
    /// What the last back failed of, if any did.
    pub failure: Option<Answer>,
    /// The response's status; 0 before it.
    pub status: u16,
    /// What went wrong, if anything.
    pub code: Option<Cow<'static, str>>,
    /// Bytes of the request's body passed on.
    pub bytes_in: u64,
    /// Bytes of the response's body passed on.
    pub bytes_out: u64,
    /// It is on the list of those with something to carry.
    pub(crate) marked: bool,
}

/// Memory of heads kept for the next exchanges: enough for those of a thousand or two that come together.
const SPARE_HEADS: usize = 2 * 1024 * 1024;
/// Memory that one of them may hold on to.
const SPARE_HEAD: usize = 16 * 1024;

/// All exchanges under way. An id is not used again: what was meant for an exchange that is gone reaches nobody.
#[derive(Debug)]
pub struct Exchanges {
    slots: Slots<Exchange>,
    heads: Vec<Head>,
    /// Memory of those.
    head_bytes: usize,
    numbers: u64,
    /// Between two numbers of this loop lie those of the others.
    step: u64,
}

impl Exchanges {
    /// None, and their numbers are `first` and every `step`th from there.
    pub fn new(first: u64, step: u64) -> Exchanges {
        Exchanges { slots: Slots::default(), heads: Vec::new(), head_bytes: 0, numbers: first, step }
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        let number = self.numbers;
        self.numbers += self.step;
        number
    }

    /// Begins one, to be [inserted](Exchanges::insert); its head is an empty one to be swapped for the real.
    pub fn begin(&mut self, front: Token, visitor: Remote, framing: Framing, started: Instant) -> Exchange {
        let head = self.heads.pop().unwrap_or_default();
        self.head_bytes -= head.memory();
        Exchange {
            number: self.number(),
            front,
            key: NO_KEY,
            back: None,
            kind: Kind::Http,
            stage: Stage::Waiting,
            lane: Lane::Own,
            aside: None,
            kept: None,
            ready: None,
            head,
            framing,
            intake: Intake::Free,
            visitor,
            started,
            tries: 0,
            mark: 0,
            tunnel: NO_KEY,
            cut: 0,
            dialled: 0,
            hops: 0,
            heard: false,
            failure: None,
            status: 0,
            code: None,
            bytes_in: 0,
            bytes_out: 0,
            marked: false,
        }
    }

    /// Takes one in, begun here or elsewhere.
    pub fn insert(&mut self, exchange: Exchange) -> usize {
        self.slots.insert(exchange).0
    }

    /// One that is under way.
    pub fn get_mut(&mut self, id: usize) -> Option<&mut Exchange> {
        self.slots.get_mut(Token(id))
    }

    /// One that has no back yet.
    pub fn waiting_mut(&mut self, id: usize) -> Option<&mut Exchange> {
        self.get_mut(id).filter(|exchange| exchange.stage == Stage::Waiting)
    }

    /// Takes one out.
    pub fn end(&mut self, id: usize) -> Option<Exchange> {
        self.slots.remove(Token(id))
    }

    /// Keeps the memory of one that was taken out.
    pub fn recycle(&mut self, exchange: Exchange) {
        let mut head = exchange.head;
        let bytes = head.memory();
        if bytes <= SPARE_HEAD && self.head_bytes + bytes <= SPARE_HEADS {
            head.clear();
            self.head_bytes += bytes;
            self.heads.push(head);
        }
    }

    /// Those that have no back yet.
    pub fn waiting(&self) -> Vec<usize> {
        self.slots.iter().filter(|(_, exchange)| exchange.stage == Stage::Waiting).map(|(id, _)| id.0).collect()
    }

    /// All, with their fronts and how far each has come.
    pub fn all(&self) -> Vec<(usize, Token, Stage)> {
        self.slots.iter().map(|(id, exchange)| (id.0, exchange.front, exchange.stage)).collect()
    }

    /// Whether an answer is set aside.
    pub fn is_any_aside(&self) -> bool {
        self.slots.iter().any(|(_, exchange)| exchange.lane == Lane::Aside)
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}
