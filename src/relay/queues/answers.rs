//! What agents answer: whole, as a message of COMET that comes with the next poll; or on a connection of its own, in the `ptth` dialect,
//! as a body that goes on as it comes. Said at the far end of the pipe that the request came from.

use mio::Token;
use ptth_proto::conn::{Body, Event};
use ptth_proto::error::Error;
use ptth_proto::http::framing::{Asked, Framing};
use ptth_proto::link::queue::{Id, Unwanted};
use ptth_proto::wire::comet::{self, Message as Comet, Style};
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::Head;
use ptth_proto::wire::message::{Malformed, Pairs, Reply, end_to_end, from_base64};
use ptth_proto::wire::packed::{self, Form, MAGIC_FIELD};

use super::{Carriage, Charge, Coming, Stage, Wish, give_leave, say, to_front, unknown};
use crate::answer::{Answer, Code};
use crate::bridge::{Claim, Order, hold};
use crate::net::name::TunnelName;
use crate::reactor::Core;
use crate::relay::Relay;
use crate::relay::agents::{KeyHash, refusal};

/// A body that can't be looked at as a whole tells by its beginning whether it is a message.
const GLANCE: usize = 4 * 1024;
/// What base64 and escapes may add to a body: six bytes for a control character, and the rest of the message.
const ESCAPED: usize = 6;

impl Relay {
    /// Something is new on a connection on which an answer comes.
    pub(in crate::relay) fn step_coming(&mut self, core: &mut Core, token: Token, orders: &mut Vec<Order>) {
        match self.queues.coming.remove(&token) {
            Some(Coming::Undecided(name, framing, head)) => self.decide(core, token, (name, framing, head), orders),
            Some(Coming::Whole(wish, head, body, charge)) => {
                self.read_answer(core, token, (wish, head, body), charge, orders);
            }
            Some(Coming::Stream(far)) => self.stream_answer(core, token, far, orders),
            // It is settled whose it is, and the order that says so is on its way.
            None => {}
        }
        let kept = match self.queues.coming.get(&token) {
            Some(Coming::Undecided(_, _, head) | Coming::Whole(_, head, ..)) => head.memory(),
            Some(Coming::Stream(_)) | None => 0,
        };
        if let Some(peer) = core.peer(token) {
            peer.head = kept;
        }
    }

    /// Looks whether a POST of JSON to a path that could be a queue is an agent's answer.
    fn decide(
        &mut self,
        core: &mut Core,
        token: Token,
        (name, framing, head): (TunnelName, Framing, Box<Head>),
        orders: &mut Vec<Order>,
    ) {
        let most = core.config.limits.buffer;
        let now = core.now;
        let Some((peer, scratch, config)) = core.hear(token) else { return };
        let is_message = match framing {
            Framing::Length(n) => {
                let whole = usize::try_from(n).ok().filter(|n| *n <= most.max(GLANCE));
                let enough = whole.unwrap_or(GLANCE);
                let input = peer.input.bytes();
                match input.get(..enough) {
                    Some(body) => Some(is_answer(body)),
                    // The rest may never come.
                    None => begins_with_id(input).then_some(true),
                }
            }
            // As far as it is there: a copy of the connection reads ahead.
            _ => {
                let (mut ahead, mut input, mut body) = (peer.conn.clone(), peer.input.bytes(), Vec::new());
                loop {
                    match ahead.recv(now, input, scratch, config) {
                        Ok((used, Some(Event::Data(data)))) => {
                            body.extend_from_slice(data);
                            input = &input[used..];
                        }
                        // A name and its colon tell: as long as neither is there, it may become anything.
                        Ok((_, None)) if matches!(comet::read(&body), Ok(_) | Err(Malformed::Cut)) => {
                            let enough = body.len() >= GLANCE || body.contains(&b':');
                            break enough.then(|| is_answer(&body));
                        }
                        _ => break Some(is_answer(&body)),
                    }
                }
            }
        };
        match is_message {
            None if !peer.eof => {
                self.queues.coming.insert(token, Coming::Undecided(name, framing, head));
                core.touch(token);
            }
            Some(true) => {
                core.head = *head;
                let carriage = Carriage::Comet(Style::default());
                match self.polled(core, token, name, carriage, framing, orders) {
                    Claim::Refuse(answer) => {
                        let head = Box::new(std::mem::take(&mut core.head));
                        orders.push(Order::Respond(token, head, answer));
                    }
                    Claim::Taken | Claim::No => self.let_agent_in(core, token),
                }
            }
            _ => orders.push(Order::Begin(token, framing, head)),
        }
    }

    /// Reads an answer that has to be whole: one of COMET.
    fn read_answer(
        &mut self,
        core: &mut Core,
        token: Token,
        (mut wish, head, mut body): (Wish, Box<Head>, Vec<u8>),
        mut charge: Charge,
        orders: &mut Vec<Order>,
    ) {
        let now = core.now;
        loop {
            let Some((peer, scratch, config)) = core.hear(token) else { return };
            match peer.conn.recv(now, peer.input.bytes(), scratch, config) {
                Ok((used, Some(Event::Data(data)))) => {
                    body.extend_from_slice(data);
                    peer.input.consume(used);
                    if let Err(no_room) = self.charge(core, wish.name, body.len(), &mut charge) {
                        self.discharge(core, charge);
                        return self.too_large(core, token, wish, head, (&body, no_room), orders);
                    }
                }
                Ok((used, Some(Event::End { .. }))) => {
                    peer.input.consume(used);
                    break;
                }
                Ok((used, None)) => {
                    peer.input.consume(used);
                    if peer.eof {
                        self.discharge(core, charge);
                        return core.drop_peer(token);
                    }
                    core.touch(token);
                    self.queues.coming.insert(token, Coming::Whole(wish, head, body, charge));
                    return;
                }
                Ok((used, Some(_))) => peer.input.consume(used),
                Err(error) => {
                    log::warn!("an answer from {} is refused: its sender {error} ({})", peer.remote, error.code());
                    self.discharge(core, charge);
                    match Answer::to_error(error) {
                        Some(answer) => orders.push(Order::Respond(token, head, answer)),
                        None => core.drop_peer(token),
                    }
                    return;
                }
            }
        }
        let message = comet::read(&body);
        match message {
            Ok((Comet::Nothing, _)) => {}
            Ok((Comet::Reply(reply), notation)) => {
                wish.notation = notation;
                let tunnel = self.tunnels.find(wish.name.as_str());
                if let (Some(notation), Some(mail)) = (notation, tunnel.and_then(|tunnel| self.tunnels.mail(tunnel))) {
                    mail.notation = notation;
                }
                let delivered = self.deliver(core, &reply, &wish.who, orders);
                self.discharge(core, charge);
                if let Err(unwanted) = delivered {
                    return orders.push(Order::Respond(token, head, unknown(unwanted)));
                }
            }
            Ok((Comet::Ask(_), _)) => {
                self.discharge(core, charge);
                let text = "This is a request, and a relay is asked by visitors, not by agents.";
                return orders.push(Order::Respond(token, head, Answer::new(Code::BAD_MESSAGE, text)));
            }
            Err(malformed) => {
                self.discharge(core, charge);
                if let Some((near, name)) = self.answered_by(&body, wish.who) {
                    let text = format!(
                        "The answer of the agent `{name}` was not passed on: it {malformed} ({}).",
                        malformed.code()
                    );
                    orders.push(Order::Fault(near, Answer::new(Code::LINK_PROTOCOL, text)));
                }
                let text = format!("The body is no message: its sender {malformed} ({}).", malformed.code());
                return orders.push(Order::Respond(token, head, Answer::new(Code::BAD_MESSAGE, text)));
            }
        }
        if let Some(refusal) = self.hold_poll(core, token, wish, orders) {
            orders.push(Order::Respond(token, head, refusal));
        }
    }

    /// An answer goes on beyond a limit. Its visitor is told, if the beginning says which one.
    fn too_large(
        &mut self,
        core: &mut Core,
        token: Token,
        wish: Wish,
        head: Box<Head>,
        (body, no_room): (&[u8], NoRoom),
        orders: &mut Vec<Order>,
    ) {
        let most = core.config.limits.message;
        if let Some((near, name)) = self.answered_by(body, wish.who) {
            let answer = match no_room {
                NoRoom::Full => no_room_for_answer(name),
                NoRoom::TooLong => answer_too_large(name, most),
            };
            orders.push(Order::Fault(near, answer));
        }
        let text = format!(
            "An answer's body has at most {most} bytes here (--limit message), those of a tunnel's messages together at most \
             {} (--limit queue), and there must be a message that it answers.",
            core.config.limits.queue
        );
        orders.push(Order::Respond(token, head, Answer::new(Code::MESSAGE_TOO_LARGE, text)));
    }

    /// The message that the beginning of a broken answer names, if it is this agent's to answer; it is answered by that.
    fn answered_by(&mut self, body: &[u8], who: Option<KeyHash>) -> Option<(Token, &str)> {
        let id = Id::parse(&comet::first_id(body)?)?;
        let far = self.take_answer(id, &who).ok()?;
        let letter = self.queues.letters.get(&far)?;
        Some((letter.near, self.tunnels.name(letter.tunnel)))
    }

    /// Counts what has come of an answer: beyond a glance, only where there is a message to be answered, and only as long as there
    /// is room among the tunnel's messages.
    fn charge(&mut self, core: &Core, name: TunnelName, length: usize, charge: &mut Charge) -> Result<(), NoRoom> {
        let limits = &core.config.limits;
        if length <= GLANCE {
            return Ok(());
        }
        let (tunnel, before) = match *charge {
            Charge::Bytes(tunnel, bytes) => (tunnel, bytes),
            Charge::None => match self.tunnels.find(name.as_str()) {
                Some(tunnel) => (tunnel, 0),
                None => return Err(NoRoom::TooLong),
            },
        };
        let Some(mail) = self.tunnels.mail(tunnel) else { return Err(NoRoom::TooLong) };
        if *charge == Charge::None {
            if mail.messages == 0 {
                return Err(NoRoom::TooLong);
            }
            mail.messages += 1;
        }
        mail.bytes += length - before;
        self.queues.bytes += length - before;
        *charge = Charge::Bytes(tunnel, length);
        if length > limits.message.saturating_mul(ESCAPED).saturating_add(limits.head) {
            return Err(NoRoom::TooLong);
        }
        if mail.bytes > limits.queue { Err(NoRoom::Full) } else { Ok(()) }
    }

    /// The answer is read, or given up.
    pub(super) fn discharge(&mut self, core: &mut Core, charge: Charge) {
        let Charge::Bytes(tunnel, bytes) = charge else { return };
        self.queues.bytes -= bytes;
        if let Some(mail) = self.tunnels.mail(tunnel) {
            mail.bytes = mail.bytes.saturating_sub(bytes);
            mail.messages = mail.messages.saturating_sub(1);
        }
        self.look_who_is_there(core, tunnel);
    }

    /// Says an answer at the far end of the pipe that its message came from.
    fn deliver(
        &mut self,
        core: &mut Core,
        reply: &Reply,
        who: &Option<KeyHash>,
        orders: &mut Vec<Order>,
    ) -> Result<(), Unwanted> {
        let id = Id::parse(reply.id.as_bytes()).ok_or(Unwanted::Unknown)?;
        let far = self.take_answer(id, who)?;
        let Some(letter) = self.queues.letters.get_mut(&far) else { return Err(Unwanted::Unknown) };
        let (near, tunnel) = (letter.near, letter.tunnel);
        let (now, most) = (core.now, core.config.limits.message);
        letter.bytes += reply.body.len();
        self.queues.bytes += reply.body.len();
        if let Some(mail) = self.tunnels.mail(tunnel) {
            mail.bytes += reply.body.len();
        }
        if reply.body.len() > most {
            orders.push(Order::Fault(near, answer_too_large(self.tunnels.name(tunnel), most)));
            return Ok(());
        }
        let status = (reply.status, &reply.reason[..]);
        let framing = Framing::Length(reply.body.len() as u64);
        let Some(said) = say_response(core, far, status, &reply.fields, framing) else { return Ok(()) };
        let said = said.and_then(|_| {
            let Some(peer) = core.tell(far) else { return Ok(()) };
            if peer.conn.is_speaking() {
                peer.conn.send_data(now, &reply.body, peer.output.vec())?;
                peer.conn.send_end(now, None, peer.output.vec())?;
            }
            Ok(())
        });
        if let Err(error) = said {
            orders.push(Order::Fault(near, bad_answer(error, self.tunnels.name(tunnel))));
        }
        Ok(())
    }

    /// An agent of the `ptth` dialect answers.
    pub(super) fn responded(&mut self, core: &mut Core, token: Token, id: Id, framing: Framing) -> Claim {
        let worker = usize::from(id.giver());
        if worker != self.workers.me() {
            return match self.workers.mailbox(worker) {
                Some(_) => self.pass(core, token, worker, framing, None),
                None => Claim::Refuse(unknown(Unwanted::Unknown)),
            };
        }
        let Some(far) = self.queues.out.find(id) else { return Claim::Refuse(unknown(Unwanted::Unknown)) };
        let Some(letter) = self.queues.letters.get(&far) else {
            return Claim::Refuse(unknown(Unwanted::Unknown));
        };
        let name = self.tunnels.name(letter.tunnel);
        // The key was asked for with the poll only by the original: there, whoever knew an id could answer.
        let who = match self.access.admit(&core.head, name) {
            Ok(who) => who,
            Err(denied) => return Claim::Refuse(refusal(denied, name)),
        };
        let magic = core.head.fields.iter().find(|field| field.name.eq_ignore_ascii_case(MAGIC_FIELD.as_bytes()));
        let Some((status, fields)) =
            magic.and_then(|field| from_base64(field.value)).and_then(|head| packed::read_head(&head).ok())
        else {
            let text = format!(
                "The field {MAGIC_FIELD} carries the answer's status and fields, in MessagePack and then in base64; here it \
                 is missing, or broken."
            );
            return Claim::Refuse(Answer::new(Code::BAD_MESSAGE, text));
        };
        if let Err(unwanted) = self.take_answer(id, &who) {
            return Claim::Refuse(unknown(unwanted));
        }
        if let Some(letter) = self.queues.letters.get_mut(&far) {
            letter.stage = Stage::Answered(Some(token));
        }
        give_leave(core, token);
        let reason = ptth_proto::wire::head::reason(status).as_bytes();
        if let Some(Err(error)) = say_response(core, far, (status, reason), &fields, framing) {
            log::warn!("an answer was not passed on: it {error}");
            // The pipe breaks, and the visitor hears of it.
            core.drop_peer(far);
        }
        if framing != Framing::Empty
            && let Some(peer) = core.peer(token)
            && peer.input.is_empty()
        {
            peer.transport().acknowledge();
        }
        self.take_in(core, token, Coming::Stream(far));
        Claim::Taken
    }

    /// Carries an answer's body from the connection that it comes on to the far end of its pipe.
    fn stream_answer(&mut self, core: &mut Core, token: Token, far: Token, orders: &mut Vec<Order>) {
        let now = core.now;
        let most = core.config.limits.buffer;
        if let Some(letter) = self.queues.letters.get(&far)
            && letter.stage != Stage::Answered(Some(token))
        {
            // An answer without a body was complete with its head, and the pipe may serve another by now.
            take_rest(core, token);
            return self.finish_answer(core, token, true, orders);
        }
        loop {
            let Some((from, to, head, config)) = core.between(token, far) else {
                return self.finish_answer(core, token, false, orders);
            };
            if to.eof {
                return self.finish_answer(core, token, false, orders);
            }
            if !to.conn.is_speaking() {
                // A response to HEAD, a 304: whatever comes here, the visitor's answer has no body. ptth_server announces one
                // then, and never sends it.
                take_rest(core, token);
                return self.finish_answer(core, token, true, orders);
            }
            if hold(from, to, most, now) {
                self.queues.coming.insert(token, Coming::Stream(far));
                return;
            }
            // How long a response may be silent is settled for all kinds of links at the pipe's near end.
            from.held = true;
            let sent = match from.conn.recv(now, from.input.bytes(), head, config) {
                Ok((used, Some(Event::Data(data)))) => {
                    let sent = to.conn.send_data(now, data, to.output.vec());
                    from.input.consume(used);
                    sent
                }
                Ok((used, Some(Event::End { trailers }))) => {
                    from.input.consume(used);
                    let sent = to.conn.send_end(now, trailers.then_some(&head.fields), to.output.vec());
                    if sent.is_ok() {
                        return self.finish_answer(core, token, true, orders);
                    }
                    sent
                }
                Ok((used, event)) => {
                    let more = event.is_some();
                    from.input.consume(used);
                    if from.eof && !more {
                        core.drop_peer(far);
                        return core.drop_peer(token);
                    }
                    if !more {
                        self.queues.coming.insert(token, Coming::Stream(far));
                        return;
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                log::warn!("an answer was not passed on: it {error} ({})", error.code());
                core.drop_peer(far);
                return core.drop_peer(token);
            }
        }
    }

    /// Tells an agent what became of its answer.
    fn finish_answer(&mut self, core: &mut Core, token: Token, arrived: bool, orders: &mut Vec<Order>) {
        // The two words that the original has for it.
        let text: &[u8] = if arrived { b"StreamFinished\n" } else { b"ClientDisconnected\n" };
        say(core, token, Carriage::Packed(Form::Stock), 200, &[text]);
        to_front(core, token, orders);
    }
}

/// Whether this is an agent's answer, or the beginning of one: a message, or what begins with an id as we give them out, however it
/// goes on. It is for nobody's upstream then.
fn is_answer(body: &[u8]) -> bool {
    comet::looks_like_reply(body) || begins_with_id(body)
}

fn begins_with_id(body: &[u8]) -> bool {
    comet::first_id(body).is_some_and(|id| Id::parse(&id).is_some())
}

/// Takes what is there of a body that nobody wants: when it is whole, the connection can be used again.
fn take_rest(core: &mut Core, token: Token) {
    let now = core.now;
    while let Some((peer, head, config)) = core.hear(token)
        && let Ok((used, Some(event))) = peer.conn.recv(now, peer.input.bytes(), head, config)
    {
        let over = matches!(event, Event::End { .. });
        peer.input.consume(used);
        if over {
            return;
        }
    }
}

/// Begins the response at the far end of a pipe; ends it, where it has no body. `None` when nobody is there any more.
fn say_response(
    core: &mut Core,
    far: Token,
    (status, reason): (u16, &[u8]),
    fields: &Pairs,
    framing: Framing,
) -> Option<Result<(), Error>> {
    let now = core.now;
    let peer = core.tell(far)?;
    if !peer.conn.can_respond() {
        return None;
    }
    let bodiless = peer.conn.asked() == Asked::Head || matches!(status, 204 | 304);
    let said_length = fields.iter().find(|(name, _)| Name::of(name) == Name::ContentLength);
    let said_length = said_length.and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok());
    let body = match framing {
        // The length of a body that is not there is what the agent says it is.
        Framing::Length(1..) if bodiless && said_length.is_none() => Body::from(framing),
        _ if bodiless => said_length.map_or(Body::None, Body::Length),
        Framing::Empty => Body::Length(0),
        framing => Body::from(framing),
    };
    let sent = peer.conn.send_response(now, peer.output.vec(), (status, reason), body, |writer| {
        end_to_end(fields).for_each(|(name, value)| writer.field(name, value));
    });
    Some(sent.and_then(|()| if bodiless { peer.conn.send_end(now, None, peer.output.vec()) } else { Ok(()) }))
}

/// Why there is no room for what has come of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoRoom {
    /// No message may be that long, or there is none that it could be the answer to.
    TooLong,
    /// The messages of its tunnel have as many bytes as they may.
    Full,
}

fn no_room_for_answer(name: &str) -> Answer {
    let text = format!(
        "The answer of the agent `{name}` found no room: the messages of this tunnel have as many bytes as they may have \
         (--limit queue); try again later."
    );
    Answer::new(Code::TUNNEL_BUSY, text)
}

fn answer_too_large(name: &str, most: usize) -> Answer {
    let text = format!(
        "The answer of the agent `{name}` has more than {most} bytes, which is all that a message may have here (--limit \
         message)."
    );
    Answer::new(Code::ANSWER_TOO_LARGE, text)
}

fn bad_answer(error: Error, name: &str) -> Answer {
    let text = format!("The answer of the agent `{name}` was not passed on: it {error} ({}).", error.code());
    Answer::new(Code::LINK_PROTOCOL, text)
}
