//! Plays a transcript through connections, as if it had been recorded by either end.
//!
//! [`rehearse`] runs both ends at once: each reads the bytes of the other side, and what it understood is what the other end
//! has to say there. That gives a script for each end alone: bytes that it is fed, moves that it makes. [`play`] runs one
//! script, the bytes cut up in any way.

#![allow(dead_code, reason = "no test uses all of it")]

use std::time::Duration;

use ptth_proto::conn::{Body, Config, Conn, Event};
use ptth_proto::error::Error;
use ptth_proto::http::framing::{Framing, content_length};
use ptth_proto::http::tunnel::offered;
use ptth_proto::limits::Wait;
use ptth_proto::link::upgrade::Token;
use ptth_proto::role::Role;
use ptth_proto::time::Instant;
use ptth_proto::wire::fields::{Fields, Name};
use ptth_proto::wire::head::{FieldWriter, Head, Version};

use crate::common::{Item, Side, Transcript, escape, push_event};

/// What an end says, taken from what the other one understood.
#[derive(Clone, Debug)]
pub(crate) enum Move {
    Offer {
        head: Box<Head>,
        token: Token,
    },
    Accept,
    Switch {
        head: Box<Head>,
    },
    Request {
        head: Box<Head>,
        body: Body,
    },
    /// A request behind others.
    Behind {
        head: Box<Head>,
    },
    Aside {
        head: Box<Head>,
    },
    Informational {
        head: Box<Head>,
    },
    Alive,
    Leave,
    Response {
        head: Box<Head>,
        body: Body,
    },
    Data(Vec<u8>),
    End(Option<Box<Fields>>),
    Close,
}

/// One line of the script of one end.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Bytes come in.
    Feed(Vec<u8>),
    /// They end.
    Eof,
    /// It says something, which it must be allowed to, or must not.
    Do(Move, bool),
    /// What it has said so far is sent and forgotten.
    Sent,
    /// Since then it has said exactly this.
    Ours(Vec<u8>),
    /// It waits as long as it must before the first request.
    Pause,
    /// The other side falls silent, and that ends a body.
    Quiet,
    /// It may not say anything any more.
    Late,
}

/// How the bytes come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Nowhere,
    Everywhere,
    At(usize),
}

/// One end, and all that it has heard.
pub(crate) struct End {
    pub(crate) conn: Conn,
    pub(crate) head: Head,
    pub(crate) input: Vec<u8>,
    pub(crate) out: Vec<u8>,
    pub(crate) now: Instant,
    pub(crate) config: Config,
    /// The events, in the words of the fixtures.
    pub(crate) heard: Vec<Vec<u8>>,
    /// The fields of each head, which the fixtures do not repeat.
    pub(crate) fields: Vec<String>,
    pub(crate) error: Option<Error>,
    /// The request under way offers to switch protocols.
    offers: bool,
    /// Others may follow the request that is being said.
    leads: bool,
}

impl End {
    pub(crate) fn new(side: Side) -> End {
        let now = Instant::default();
        let conn = match side {
            Side::Dialling => Conn::client(now),
            Side::Listening => Conn::server(now),
        };
        End {
            conn,
            head: Head::default(),
            input: Vec::new(),
            out: Vec::new(),
            now,
            config: Config::default(),
            heard: Vec::new(),
            fields: Vec::new(),
            error: None,
            offers: false,
            leads: false,
        }
    }

    /// Reads one event, and gives the move that it was to the other end.
    pub(crate) fn hear(&mut self) -> Option<Move> {
        loop {
            self.now = self.now + Duration::from_micros(1);
            let step = self.conn.recv(self.now, &self.input, &mut self.head, &self.config);
            let (used, said) = match step {
                Ok((used, Some(event))) => {
                    let said = describe(&event, &self.head, self.conn.asked());
                    match event {
                        Event::Request(framing) => self.offers = offered(&self.head, framing).next().is_some(),
                        Event::End { .. } => self.offer(),
                        _ => {}
                    }
                    (used, Some(said))
                }
                Ok((used, None)) => (used, None),
                Err(error) => {
                    self.error = Some(error);
                    return None;
                }
            };
            self.input.drain(..used);
            match said {
                Some(said) => return Some(self.note(said)),
                None if used == 0 => return self.hear_behind(),
                None => {}
            }
        }
    }

    /// Reads a request that stands behind those under way.
    fn hear_behind(&mut self) -> Option<Move> {
        match self.conn.recv_ahead(&self.input, &mut self.head, &self.config) {
            Ok((_, false)) => None,
            Ok((used, true)) => {
                self.input.drain(..used);
                let line = [b"behind ", self.head.method(), b" ", self.head.target()].concat();
                let said = Move::Behind { head: Box::new(self.head.clone()) };
                Some(self.note((line, Some(list(&self.head.fields)), said)))
            }
            Err(error) => {
                self.error = Some(error);
                None
            }
        }
    }

    /// The bytes have ended.
    pub(crate) fn hear_eof(&mut self) -> Option<Move> {
        match self.conn.eof(self.now, self.input.len()) {
            Ok(Some(event)) => {
                let said = describe(&event, &self.head, self.conn.asked());
                Some(self.note(said))
            }
            Ok(None) => None,
            Err(error) => {
                self.error = Some(error);
                None
            }
        }
    }

    /// A deadline passes that ends something by itself.
    pub(crate) fn pass(&mut self, expected: Wait) -> Option<Move> {
        let deadline = self.conn.deadline(&self.config.deadlines);
        let Some((at, wait)) = deadline else { panic!("no deadline, expected {expected:?}") };
        assert_eq!(wait, expected);
        self.now = at;
        let event = self.conn.timeout(at, wait)?;
        let said = describe(&event, &self.head, self.conn.asked());
        Some(self.note(said))
    }

    /// The request is whole, and what it offers can be taken.
    fn offer(&mut self) {
        if std::mem::take(&mut self.offers) {
            // One that is not kept offers nothing.
            let _ = self.conn.offer_switch();
        }
    }

    fn note(&mut self, (event, fields, said): (Vec<u8>, Option<String>, Move)) -> Move {
        push_event(&mut self.heard, &event);
        self.fields.extend(fields);
        said
    }

    /// Says something. When it may not, nothing is sent.
    pub(crate) fn say(&mut self, said: &Move) -> Result<(), Error> {
        self.now = self.now + Duration::from_micros(1);
        let (now, before) = (self.now, self.out.len());
        let (conn, out) = (&mut self.conn, &mut self.out);
        let done = match said {
            Move::Offer { head, token } => {
                let host = head.fields.first(Name::Host).unwrap_or_default();
                let more = |writer: &mut FieldWriter<'_>| {
                    head.fields.end_to_end().filter(|f| f.known != Name::Host).for_each(|f| writer.copy(f));
                    copy_ours(head, writer);
                };
                conn.send_offer(now, out, (head.target(), host), *token, more)
            }
            Move::Accept => conn.accept(now, out),
            Move::Switch { head } => conn.send_switch(now, out, |writer| {
                head.fields.all(Name::Upgrade).for_each(|token| writer.field("Upgrade", token));
                copy(head, writer);
            }),
            Move::Request { head, body } => {
                let start = (head.method(), head.target());
                let framing = if *body == Body::None { Framing::Empty } else { Framing::Chunked };
                self.offers = offered(head, framing).next().is_some();
                self.leads = is_one_of_several(head);
                let done = conn.send_request(now, out, start, *body, |writer| {
                    copy(head, writer);
                    copy_ours(head, writer);
                    if self.offers {
                        writer.field("Connection", "Upgrade");
                        head.fields.all(Name::Upgrade).for_each(|token| writer.field("Upgrade", token));
                    }
                });
                if done.is_ok() && !is_kept(head) {
                    conn.do_not_keep();
                }
                done
            }
            Move::Behind { head } if is_one_of_several(head) => {
                conn.send_ahead(out, (head.method(), head.target()), |writer| {
                    copy(head, writer);
                    copy_ours(head, writer);
                })
            }
            Move::Behind { head } => conn.send_hint(out, |writer| copy_ours(head, writer)),
            Move::Aside { head } => conn.send_aside(now, out, head.fields.first(Name::PtthAside).unwrap_or_default()),
            Move::Informational { head } => {
                conn.send_informational(out, (head.status(), head.reason()), |writer| copy(head, writer))
            }
            Move::Alive => conn.send_sign(now, out),
            Move::Leave => {
                conn.leave(now, out);
                Ok(())
            }
            Move::Response { head, body } => {
                if !is_kept(head) {
                    conn.do_not_keep();
                }
                conn.send_response(now, out, (head.status(), head.reason()), *body, |writer| copy(head, writer))
            }
            Move::Data(data) => conn.send_data(now, data, out),
            Move::End(trailers) => {
                let done = conn.send_end(now, trailers.as_deref(), out);
                if conn.role() == Some(Role::Client) && std::mem::take(&mut self.offers) {
                    let _ = conn.offer_switch();
                }
                if conn.role() == Some(Role::Client) && std::mem::take(&mut self.leads) {
                    let _ = conn.open_line();
                }
                done
            }
            Move::Close => {
                if conn.closing().is_none() {
                    conn.do_not_keep();
                }
                Ok(())
            }
        };
        if done.is_err() {
            assert_eq!(out.len(), before, "a refused call has written something");
        }
        done
    }

    fn is_mute(&mut self) {
        let (now, out) = (self.now, &mut self.out);
        let before = out.len();
        assert!(self.conn.send_request(now, out, (b"GET", b"/"), Body::None, |_| {}).is_err());
        assert!(self.conn.send_response(now, out, (200, b"OK"), Body::None, |_| {}).is_err());
        assert_eq!(out.len(), before);
    }
}

fn copy(head: &Head, writer: &mut FieldWriter<'_>) {
    head.fields.end_to_end().for_each(|field| writer.copy(field));
}

/// Fields of our own, which speak of this hop as the offer itself does.
fn copy_ours(head: &Head, writer: &mut FieldWriter<'_>) {
    let ours = |name| matches!(name, Name::PtthAccept | Name::PtthAside);
    head.fields.iter().filter(|field| ours(field.known)).for_each(|field| writer.copy(field));
}

fn is_one_of_several(head: &Head) -> bool {
    head.fields.lists(Name::PtthAccept, b"aside")
}

fn is_kept(head: &Head) -> bool {
    match head.version() {
        Version::Http11 => !head.fields.lists(Name::Connection, b"close"),
        Version::Http10 => head.fields.lists(Name::Connection, b"keep-alive"),
    }
}

/// An event in the words of the fixtures, the fields of its head, and the move that it was.
fn describe(
    event: &Event<'_>,
    head: &Head,
    asked: ptth_proto::http::framing::Asked,
) -> (Vec<u8>, Option<String>, Move) {
    let whole = || Box::new(head.clone());
    let fields = Some(list(&head.fields));
    match event {
        Event::Request(framing) => {
            let line = [b"request ", head.method(), b" ", head.target(), b" ", words(*framing).as_bytes()].concat();
            (line, fields, Move::Request { head: whole(), body: Body::from(*framing) })
        }
        Event::Offer(token) => {
            let line = [b"offer ", token.as_bytes(), b" ", head.method(), b" ", head.target()].concat();
            (line, fields, Move::Offer { head: whole(), token: *token })
        }
        Event::Informational => {
            (format!("informational {}", head.status()).into_bytes(), fields, Move::Informational { head: whole() })
        }
        Event::Alive => (b"alive".to_vec(), fields, Move::Alive),
        Event::Aside => (b"aside".to_vec(), fields, Move::Aside { head: whole() }),
        Event::Leaving => (b"leaving".to_vec(), fields, Move::Leave),
        Event::Response(framing) => {
            // A response to HEAD says how long the body would have been.
            let body = match framing {
                Framing::Empty if asked != ptth_proto::http::framing::Asked::Connect => {
                    content_length(&head.fields).ok().flatten().map_or(Body::None, Body::Length)
                }
                framing => Body::from(*framing),
            };
            let line = format!("response {} {}", head.status(), words(*framing)).into_bytes();
            (line, fields, Move::Response { head: whole(), body })
        }
        Event::Turned => (b"turned".to_vec(), fields, Move::Accept),
        Event::Switched => {
            let line = format!("switched {}", head.status()).into_bytes();
            let said = match head.status() {
                101 => Move::Switch { head: whole() },
                _ => Move::Response { head: whole(), body: Body::None },
            };
            (line, fields, said)
        }
        Event::Data(data) => {
            assert!(!data.is_empty(), "an empty piece of body");
            ([b"data ", *data].concat(), None, Move::Data(data.to_vec()))
        }
        Event::End { trailers: false } => (b"end".to_vec(), None, Move::End(None)),
        Event::End { trailers: true } => {
            let text = list(&head.fields);
            (format!("end {text}").into_bytes(), None, Move::End(Some(Box::new(head.fields.clone()))))
        }
        Event::Closed => (b"closed".to_vec(), None, Move::Close),
    }
}

fn list(fields: &Fields) -> String {
    let all: Vec<_> = fields.iter().map(|f| format!("{}: {}", escape(f.name), escape(f.value))).collect();
    all.join(", ")
}

fn words(framing: Framing) -> String {
    match framing {
        Framing::Empty => "empty".to_owned(),
        Framing::Length(n) => format!("length {n}"),
        Framing::Chunked => "chunked".to_owned(),
        Framing::UntilClose => "until-close".to_owned(),
    }
}

/// Both ends at once, and the script that comes out for each.
pub(crate) struct Rehearsal {
    pub(crate) dialling: End,
    pub(crate) listening: End,
    scripts: [Vec<Step>; 2],
    /// Whether the bytes at hand are of a message that we never send.
    theirs: bool,
}

impl Rehearsal {
    pub(crate) fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Dialling => &mut self.dialling,
            Side::Listening => &mut self.listening,
        }
    }

    fn script(&mut self, side: Side) -> &mut Vec<Step> {
        &mut self.scripts[side as usize]
    }

    /// The script of one end; bytes that it is fed without a move between them may come at once.
    pub(crate) fn script_of(&self, side: Side) -> Vec<Step> {
        let mut script: Vec<Step> = Vec::new();
        for step in &self.scripts[side as usize] {
            match (script.last_mut(), step) {
                (Some(Step::Feed(before)), Step::Feed(bytes)) => before.extend_from_slice(bytes),
                _ => script.push(step.clone()),
            }
        }
        script
    }

    fn perform(&mut self, side: Side, said: Move) {
        let allowed = !self.theirs;
        let done = self.end(side).say(&said);
        assert_eq!(done.is_ok(), allowed, "{said:?}: {done:?}");
        self.script(side).push(Step::Do(said, allowed));
    }

    /// Lets one end hear all that it can; the other end says each thing as soon as it is understood.
    fn pump(&mut self, reader: Side) {
        while let Some(said) = self.end(reader).hear() {
            self.perform(reader.other(), said);
            self.pump(reader.other());
        }
    }
}

/// Plays a transcript with both ends at once.
pub(crate) fn rehearse(transcript: &Transcript) -> Rehearsal {
    let mut both = Rehearsal {
        dialling: End::new(Side::Dialling),
        listening: End::new(Side::Listening),
        scripts: [Vec::new(), Vec::new()],
        theirs: false,
    };
    let mut sent: &[u8] = b"";
    for (at, item) in transcript.items.iter().enumerate() {
        match item {
            Item::Bytes(side, bytes) => {
                let marks = transcript.items[at + 1..].iter().take_while(|item| !matches!(item, Item::Bytes(..)));
                both.theirs = marks.into_iter().any(|item| matches!(item, Item::Theirs(_)));
                sent = bytes;
                both.end(*side).out.clear();
                both.script(*side).push(Step::Sent);
                both.script(side.other()).push(Step::Feed(bytes.clone()));
                both.end(side.other()).input.extend_from_slice(bytes);
                both.pump(side.other());
            }
            Item::Close(side) => {
                both.script(side.other()).push(Step::Eof);
                let said = both.end(side.other()).hear_eof();
                // What ends so is said by closing, or the side that closes has nothing to say.
                if let Some(said @ Move::End(_)) = said {
                    both.perform(*side, said);
                }
                both.perform(*side, Move::Close);
                both.pump(side.other());
            }
            Item::Quiet(side) => {
                both.script(side.other()).push(Step::Quiet);
                if let Some(said) = both.end(side.other()).pass(Wait::Quiet) {
                    both.perform(*side, said);
                }
            }
            Item::Pause(side) => {
                both.script(*side).push(Step::Pause);
                both.end(*side).pass(Wait::Pause);
            }
            Item::Ours(side) => both.script(*side).push(Step::Ours(sent.to_vec())),
            Item::Late(side) => both.script(*side).push(Step::Late),
            Item::Theirs(_) | Item::Expect(..) => {}
        }
    }
    both
}

/// How many bytes a script feeds.
pub(crate) fn length_of(script: &[Step]) -> usize {
    script.iter().map(|step| if let Step::Feed(bytes) = step { bytes.len() } else { 0 }).sum()
}

/// Plays the script of one end alone. Stops at the first error.
pub(crate) fn play(side: Side, script: &[Step], cut: Cut) -> End {
    let mut end = End::new(side);
    let mut fed = 0;
    for step in script {
        match step {
            Step::Feed(bytes) => {
                for piece in pieces(bytes, fed, cut) {
                    end.input.extend_from_slice(piece);
                    while end.hear().is_some() {}
                }
                fed += bytes.len();
            }
            Step::Eof => drop(end.hear_eof()),
            Step::Do(said, allowed) => {
                let done = end.say(said);
                assert_eq!(done.is_ok(), *allowed, "{said:?}: {done:?}");
                while end.hear().is_some() {}
            }
            Step::Sent => end.out.clear(),
            Step::Ours(bytes) => assert_eq!(escape(&end.out), escape(bytes), "our own bytes"),
            Step::Pause => {
                end.is_mute();
                assert!(!end.conn.is_idle());
                end.pass(Wait::Pause);
                assert!(end.conn.is_idle());
            }
            Step::Quiet => drop(end.pass(Wait::Quiet)),
            Step::Late => end.is_mute(),
        }
        if end.error.is_some() {
            break;
        }
    }
    end
}

/// The pieces in which bytes that begin at `start` of the whole come in.
fn pieces(bytes: &[u8], start: usize, cut: Cut) -> Vec<&[u8]> {
    match cut {
        Cut::Everywhere => bytes.chunks(1).collect(),
        Cut::At(at) if start < at && at < start + bytes.len() => {
            let (before, after) = bytes.split_at(at - start);
            vec![before, after]
        }
        _ => vec![bytes],
    }
}

/// The role that a side has once the connection is turned, or never was.
pub(crate) fn role_of(side: Side, turned: bool) -> Role {
    let role = if side == Side::Dialling { Role::Client } else { Role::Server };
    if turned { !role } else { role }
}
