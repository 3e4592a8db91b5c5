//! Carrying bytes between the two peers of an exchange: the request's body one way, the response the other; in a tunnel, whatever
//! comes. Each call moves one event; whoever calls goes on while something moves.

use mio::Token;
use ptth_proto::conn::{Body, Config, Event};
use ptth_proto::error::{Error, Fault};
use ptth_proto::http::framing::{Framing, content_length};
use ptth_proto::http::tunnel::is_answer_to;
use ptth_proto::limits::{WHOLE_FIELDS, WHOLE_HEAD, WHOLE_TRAILERS};
use ptth_proto::time::Instant;
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::Head;

use super::BackFault;
use super::exchange::{Exchange, Intake, Kind, Lane, Stage};
use crate::answer::{Answer, Code, code_of};
use crate::peer::Peer;
use crate::reactor::Core;

/// What one answer's bytes are taken to be, where those of others stand behind them in the same buffer.
const ONE_OF_SEVERAL: usize = 2 * 1024;

/// What came of carrying.
pub(super) enum Flow {
    /// Nothing to carry now.
    Still,
    /// Something was carried; there may be more.
    Moved,
    /// The response is complete.
    Over,
    /// There is to be no tunnel.
    Refused,
    /// The agent has set the answer aside.
    Aside,
    /// The answer is not whole, and others would have to wait for it.
    Long,
    /// One end of the tunnel is gone before its time.
    Broken(Token),
    /// The front failed.
    Front(Error),
    /// The back failed.
    Back(BackFault),
    /// The request's body breaks a limit.
    Limit(Answer),
}

/// Whether the bytes of `from` have to wait until `to` takes what it has.
pub(crate) fn hold(from: &mut Peer, to: &mut Peer, most: usize, now: Instant) -> bool {
    // The end of a body has to wait for nobody.
    let full = to.output.len() >= most && from.conn.left_to_recv() != Some(0);
    if full {
        to.fed = true;
    } else if from.held {
        from.conn.touch(now);
    }
    from.held = full;
    full
}

/// Whether so many more bytes of a request's body may come. A rate is asked for only when there was time enough for one, and never
/// of a moment in which we were the ones who waited; what comes of the answer counts as well: the link is not held for nothing.
fn admit(exchange: &mut Exchange, now: Instant, length: u64, config: &Config) -> Result<(), Answer> {
    let most = config.limits.body as u64;
    let carried = exchange.bytes_in + exchange.bytes_out;
    let since = match exchange.intake {
        Intake::Free => return Ok(()),
        _ if exchange.bytes_in + length > most => return Err(too_large(most)),
        Intake::Due => {
            exchange.intake = Intake::Since(now, carried);
            return Ok(());
        }
        Intake::Since(since, _) if now.since(since) < config.deadlines.body => return Ok(()),
        Intake::Since(since, before) => {
            let brought = u128::from(carried - before) + u128::from(length);
            let took = now.since(since);
            let rate = config.limits.body_rate;
            if brought * 1000 < rate as u128 * took.as_millis() {
                let text = format!(
                    "The request's body came too slowly: {brought} bytes in {:.1} s, where {rate} a second are asked for.",
                    took.as_secs_f32()
                );
                return Err(Answer::new(Code::BODY_TOO_SLOW, text));
            }
            now
        }
    };
    exchange.intake = Intake::Since(since, carried);
    Ok(())
}

/// Bytes of a request's body that may come before somebody has to look at it again.
fn admitted(exchange: &Exchange, config: &Config) -> u64 {
    match exchange.intake {
        Intake::Free => u64::MAX,
        Intake::Due | Intake::Since(..) => (config.limits.body as u64).saturating_sub(exchange.bytes_in),
    }
}

/// Lets bytes of a body, or of a tunnel, go from one peer to the other past our memory. Gives how many went.
fn pass(core: &mut Core, from: Token, to: Token, most: u64) -> u64 {
    let now = core.now;
    let Some((from, to, pool)) = core.past(from, to) else { return 0 };
    from.pass(to, most, now, pool) as u64
}

/// What a request gets whose body is larger than it may be.
pub(crate) fn too_large(most: u64) -> Answer {
    Answer::new(Code::BODY_TOO_LARGE, format!("This relay takes request bodies of at most {most} bytes."))
}

/// Carries the request's body from the front to the back.
pub(super) fn ask(core: &mut Core, exchange: &mut Exchange, back: Token) -> Flow {
    if exchange.stage == Stage::Asking {
        // Not a byte of the body is used up before the head is out: until then the request can go another way.
        match core.peer(back) {
            Some(peer) if peer.output.is_empty() && !peer.is_connecting() => exchange.stage = Stage::Streaming,
            Some(peer) => {
                peer.fed = true;
                return Flow::Still;
            }
            None => return Flow::Back(BackFault::Lost(None)),
        }
    }
    let now = core.now;
    let most = core.config.limits.buffer;
    let Some((from, to, head, config)) = core.between(exchange.front, back) else {
        return Flow::Back(BackFault::Lost(None));
    };
    if from.conn.has_heard_all() || !to.conn.is_speaking() || to.is_deaf() {
        return Flow::Still;
    }
    let was_held = from.held;
    if hold(from, to, most, now) {
        return Flow::Still;
    }
    if was_held && exchange.intake != Intake::Free {
        exchange.intake = Intake::Due;
    }
    let (used, event) = match from.conn.recv(now, from.input.bytes(), head, config) {
        Ok(step) => step,
        Err(error) => return Flow::Front(error),
    };
    let (sent, moved) = match event {
        Some(Event::Data(data)) => {
            if let Err(answer) = admit(exchange, now, data.len() as u64, config) {
                from.input.consume(used);
                from.conn.do_not_keep();
                return Flow::Limit(answer);
            }
            exchange.bytes_in += data.len() as u64;
            (to.conn.send_data(now, data, to.output.vec()), true)
        }
        Some(Event::End { trailers }) => {
            (to.conn.send_end(now, trailers.then_some(&head.fields), to.output.vec()), true)
        }
        _ => (Ok(()), false),
    };
    from.input.consume(used);
    if let Err(error) = sent {
        return Flow::Back(BackFault::Protocol(error));
    }
    if moved { Flow::Moved } else { ask_past(core, exchange, back) }
}

/// The same, where it is to be read no more of: it goes past us, or has ended.
fn ask_past(core: &mut Core, exchange: &mut Exchange, back: Token) -> Flow {
    let now = core.now;
    let passed = pass(core, exchange.front, back, admitted(exchange, &core.config));
    let Some((from, _, config)) = core.hear(exchange.front) else { return Flow::Still };
    if passed > 0 {
        if let Err(answer) = admit(exchange, now, passed, config) {
            from.conn.do_not_keep();
            return Flow::Limit(answer);
        }
        exchange.bytes_in += passed;
        return Flow::Moved;
    }
    if from.tell_eof() {
        return match from.conn.eof(now, from.input.len()) {
            Ok(_) => Flow::Still,
            Err(error) => Flow::Front(error),
        };
    }
    Flow::Still
}

/// Carries the response from the back to the front. `passes` says which protocols were passed on, of those that the visitor offered.
pub(super) fn home(core: &mut Core, exchange: &mut Exchange, back: Token, passes: impl Fn(&[u8]) -> bool) -> Flow {
    let now = core.now;
    let most = core.config.limits.buffer;
    let its = if exchange.lane == Lane::Ahead { ONE_OF_SEVERAL } else { usize::MAX };
    let Some((from, to, head, config)) = core.between_whom(back, exchange.front, its) else {
        return Flow::Back(BackFault::Lost(None));
    };
    // What comes on a link with others is small, and not held back for one visitor's pace; unless it is larger than agreed.
    let agreed = config.limits.of_link().head + config.limits.whole;
    let most = if exchange.lane == Lane::Ahead { most.max(agreed) } else { most };
    if from.is_connecting() || hold(from, to, most, now) {
        return Flow::Still;
    }
    if let Some(kept) = exchange.kept.take() {
        let (head, framing) = &*kept;
        let there = there(from, *framing, from.input.bytes(), config);
        if exchange.lane != Lane::InLine || there == There::Whole {
            let begun = begin_response(to, head, *framing, now);
            return begun.unwrap_or_else(|error| Flow::Back(BackFault::Protocol(error)));
        }
        if from.broken || from.eof && *framing != Framing::UntilClose {
            return Flow::Back(BackFault::Lost(None));
        }
        exchange.kept = Some(kept);
        return if there == There::Short { Flow::Still } else { Flow::Long };
    }
    if exchange.stage == Stage::Ending {
        return match to.conn.send_end(now, None, to.output.vec()) {
            Ok(()) => Flow::Over,
            Err(error) => Flow::Front(error),
        };
    }
    let (used, event) = match from.conn.recv(now, from.input.bytes(), head, config) {
        Ok(step) => step,
        Err(error) => return Flow::Back(BackFault::Protocol(error)),
    };
    let Some(event) = event else {
        from.input.consume(used);
        return home_past(core, exchange, back);
    };
    if event == Event::Alive {
        // No part of an answer: should the link break, the request may still go another way.
        from.input.consume(used);
        return Flow::Moved;
    }
    exchange.heard = event != Event::Aside;
    let flow = match event {
        Event::Aside => {
            exchange.aside = head.fields.first(Name::PtthAside).map(Box::from);
            Ok(Flow::Aside)
        }
        Event::Informational if exchange.kind == Kind::Connect => Ok(Flow::Moved),
        // Its visitor is better off without it than others without their answers, should the relay refuse it.
        Event::Informational if exchange.lane == Lane::InLine && !is_modest(head, config) => Ok(Flow::Moved),
        Event::Informational => inform(to, head),
        Event::Switched => {
            from.becomes_tunnel(config);
            switch(to, head, exchange, config, now, passes)
        }
        Event::Response(_) if exchange.kind == Kind::Connect => {
            exchange.status = head.status();
            exchange.code = code_of(head);
            Ok(Flow::Refused)
        }
        Event::Response(framing) => {
            exchange.status = head.status();
            exchange.code = code_of(head);
            let rest = from.input.len() - used;
            if exchange.lane == Lane::InLine {
                let there = match is_modest(head, config) {
                    true => there(from, framing, &from.input.bytes()[used..], config),
                    false => There::Long,
                };
                if there != There::Whole {
                    exchange.kept = Some(Box::new((head.clone(), framing)));
                    exchange.ready.get_or_insert(now);
                    from.input.consume(used);
                    return if there == There::Short { Flow::Still } else { Flow::Long };
                }
            }
            if from.conn.is_speaking() {
                // It need not take the rest of what it has answered already, nor its system acknowledge that.
                from.transport().keep_alive(config.deadlines.keepalive);
            }
            if !to.conn.has_heard_all() && (is_waiting(exchange) || is_whole(framing, rest) || !from.conn.is_kept()) {
                // Behind a request that is answered and never whole no other can be found: its sender is told (RFC 9112 §9.6).
                to.conn.do_not_keep();
            }
            begin_response(to, head, framing, now)
        }
        Event::Data(data) => {
            exchange.bytes_out += data.len() as u64;
            to.conn.send_data(now, data, to.output.vec()).map(|()| Flow::Moved)
        }
        Event::End { trailers } => {
            to.conn.send_end(now, trailers.then_some(&head.fields), to.output.vec()).map(|()| Flow::Over)
        }
        Event::Closed => Ok(Flow::Back(BackFault::Lost(None))),
        Event::Request(_) | Event::Offer(_) | Event::Turned | Event::Alive | Event::Leaving => {
            Err(Fault::UnexpectedData.into())
        }
    };
    from.input.consume(used);
    flow.unwrap_or_else(|error| Flow::Back(BackFault::Protocol(error)))
}

/// The same, where there is nothing to be read: it goes past us, or has ended.
fn home_past(core: &mut Core, exchange: &mut Exchange, back: Token) -> Flow {
    let now = core.now;
    // Where others come behind it, it is short, and waits for no visitor who may be slow to take it.
    let most = if exchange.lane == Lane::Own { u64::MAX } else { 0 };
    let passed = pass(core, back, exchange.front, most);
    if passed > 0 {
        exchange.bytes_out += passed;
        return Flow::Moved;
    }
    let Some((from, to, ..)) = core.between(back, exchange.front) else {
        return Flow::Back(BackFault::Lost(None));
    };
    if from.broken {
        return Flow::Back(BackFault::Lost(None));
    }
    if from.tell_eof() { back_ended(from, to, now) } else { Flow::Still }
}

/// The back's bytes have ended: that completes a response, or breaks it.
fn back_ended(from: &mut Peer, to: &mut Peer, now: Instant) -> Flow {
    match from.conn.eof(now, from.input.len()) {
        Ok(Some(Event::End { .. })) => match to.conn.send_end(now, None, to.output.vec()) {
            Ok(()) => Flow::Over,
            Err(error) => Flow::Front(error),
        },
        Ok(_) => Flow::Back(BackFault::Lost(None)),
        Err(Error::Peer(Fault::EarlyEnd)) => Flow::Back(BackFault::Lost(None)),
        Err(error) => Flow::Back(BackFault::Protocol(error)),
    }
}

/// The next hop has gone over to bytes: so do we. A front that never spoke HTTP is told nothing.
fn switch(
    to: &mut Peer,
    head: &Head,
    exchange: &mut Exchange,
    config: &Config,
    now: Instant,
    passes: impl Fn(&[u8]) -> bool,
) -> Result<Flow, Error> {
    if exchange.kind != Kind::Connect {
        if !is_answer_to(head, &exchange.head, passes) {
            return Err(Fault::SwitchedElsewhere.into());
        }
        to.conn.send_switch(now, to.output.vec(), |fields| {
            for token in head.fields.all(Name::Upgrade) {
                fields.field("Upgrade", token);
            }
            head.fields.end_to_end().for_each(|field| fields.copy(field));
        })?;
    }
    to.becomes_tunnel(config);
    exchange.status = head.status();
    exchange.stage = Stage::Tunnel;
    Ok(Flow::Moved)
}

/// The back that a CONNECT asked for is being made, or stands: then the front hears so, and both are a tunnel.
pub(super) fn connect(core: &mut Core, exchange: &mut Exchange, back: Token) -> Flow {
    let now = core.now;
    let Some((from, to, _, config)) = core.between(back, exchange.front) else {
        return Flow::Back(BackFault::Lost(None));
    };
    if from.is_connecting() {
        return Flow::Still;
    }
    from.becomes_tunnel(config);
    to.becomes_tunnel(config);
    exchange.status = 200;
    exchange.stage = Stage::Tunnel;
    match to.conn.send_response(now, to.output.vec(), (200, b"OK"), Body::None, |_| {}) {
        Ok(()) => Flow::Moved,
        Err(error) => Flow::Front(error),
    }
}

/// Carries bytes through a tunnel, both ways. Each direction ends by itself; when both have, it is over.
pub(super) fn tunnel(core: &mut Core, exchange: &mut Exchange, back: Token) -> Flow {
    let front = exchange.front;
    let there = stream(core, front, back, &mut exchange.bytes_in);
    let home = stream(core, back, front, &mut exchange.bytes_out);
    match (there, home) {
        (Err(gone), _) | (_, Err(gone)) => return Flow::Broken(gone),
        (Ok(false), Ok(false)) => {}
        _ => return Flow::Moved,
    }
    // One that takes nothing more and has given what it had, or has no one who takes it: nothing is left to wait for. Each of two
    // that are full would wait for the other.
    let is_over = |peer: &mut Peer| {
        let is_deaf = peer.is_deaf() || peer.is_gone();
        is_deaf && (peer.held || peer.conn.has_heard_all())
    };
    if let Some(end) = [front, back].into_iter().find(|end| core.peer(*end).is_some_and(is_over)) {
        return Flow::Broken(end);
    }
    // Where neither takes anything, what they still have to say is for nobody.
    if [front, back].into_iter().all(|end| core.peer(end).is_none_or(|peer| peer.is_deaf())) {
        return Flow::Broken(front);
    }
    let over = core.peer(front).is_none_or(|front| front.conn.closing().is_some());
    if over { Flow::Over } else { Flow::Still }
}

/// One direction of a tunnel: whether something moved, or which end is gone.
fn stream(core: &mut Core, from: Token, to: Token, bytes: &mut u64) -> Result<bool, Token> {
    let now = core.now;
    let most = core.config.limits.buffer;
    let (source, sink) = (from, to);
    let Some((from, to, head, config)) = core.between(from, to) else { return Err(from) };
    if from.conn.has_heard_all() || to.is_deaf() || hold(from, to, most, now) {
        return Ok(false);
    }
    let used = match from.conn.recv(now, from.input.bytes(), head, config) {
        Ok((used, Some(Event::Data(data)))) => {
            *bytes += data.len() as u64;
            to.conn.send_data(now, data, to.output.vec()).map_err(|_| sink)?;
            used
        }
        Ok((used, _)) => used,
        Err(_) => return Err(source),
    };
    from.input.consume(used);
    if used > 0 {
        return Ok(true);
    }
    let passed = pass(core, source, sink, u64::MAX);
    if passed > 0 {
        *bytes += passed;
        return Ok(true);
    }
    let Some((from, to, ..)) = core.between(source, sink) else { return Err(source) };
    if from.broken {
        return Err(source);
    }
    if from.tell_eof() {
        from.conn.eof(now, 0).map_err(|_| source)?;
        to.conn.send_end(now, None, to.output.vec()).map_err(|_| sink)?;
        return Ok(true);
    }
    Ok(false)
}

/// Whether the sender of a request holds its body back until it is asked for it: now that it is answered, it won't send it.
fn is_waiting(exchange: &Exchange) -> bool {
    exchange.bytes_in == 0 && exchange.head.fields.lists(Name::Expect, b"100-continue")
}

/// Whether the response's body has come with its head, so that the request won't be whole before it.
fn is_whole(framing: Framing, rest: usize) -> bool {
    match framing {
        Framing::Empty => true,
        Framing::Length(length) => length <= rest as u64,
        Framing::Chunked | Framing::UntilClose => false,
    }
}

/// Whether a response's head is one that any relay takes, so that it can stand with others on a link.
fn is_modest(head: &Head, config: &Config) -> bool {
    head.size() <= config.limits.whole.min(WHOLE_HEAD) && head.fields.len() <= WHOLE_FIELDS
}

/// What is there of a response that is to stand with others on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    /// All of it.
    Whole,
    /// It may be whole in a moment: many a server writes head and body apart.
    Short,
    /// It has more than any relay takes, or what can't be sent.
    Long,
}

fn there(from: &Peer, framing: Framing, rest: &[u8], config: &Config) -> There {
    let most = config.limits.whole;
    match framing {
        Framing::Empty => There::Whole,
        Framing::Length(length) if length > most as u64 => There::Long,
        Framing::Length(length) if length <= rest.len() as u64 => There::Whole,
        Framing::Length(_) => There::Short,
        Framing::Chunked | Framing::UntilClose if rest.len() > most => There::Long,
        Framing::Chunked => {
            let (mut probe, mut rest, mut head) = (from.conn.clone(), rest, Head::default());
            loop {
                match probe.recv(Instant::default(), rest, &mut head, config) {
                    Ok((used, Some(Event::End { .. }))) => {
                        // Each field is sent with a space that it may have come without.
                        let fits = used + head.fields.len() <= WHOLE_TRAILERS && head.fields.len() <= WHOLE_FIELDS;
                        return if fits { There::Whole } else { There::Long };
                    }
                    Ok((used, Some(Event::Data(_)))) => rest = &rest[used..],
                    Ok(_) => return There::Short,
                    Err(_) => return There::Long,
                }
            }
        }
        Framing::UntilClose if from.eof => There::Whole,
        Framing::UntilClose => There::Short,
    }
}

fn inform(to: &mut Peer, head: &Head) -> Result<Flow, Error> {
    to.conn.send_informational(to.output.vec(), (head.status(), head.reason()), |fields| {
        head.fields.end_to_end().for_each(|field| fields.copy(field));
    })?;
    Ok(Flow::Moved)
}

fn begin_response(to: &mut Peer, head: &Head, framing: Framing, now: Instant) -> Result<Flow, Error> {
    // A response to HEAD and a 304 say the length of the body that they don't have.
    let body = match framing {
        Framing::Empty => content_length(&head.fields)?.map_or(Body::None, Body::Length),
        framing => Body::from(framing),
    };
    to.conn.send_response(now, to.output.vec(), (head.status(), head.reason()), body, |fields| {
        head.fields.end_to_end().for_each(|field| fields.copy(field));
        if head.status() == 426 {
            // It has to say which protocol it wants (RFC 9110 §15.5.22).
            for token in head.fields.all(Name::Upgrade) {
                fields.field("Connection", "Upgrade");
                fields.field("Upgrade", token);
            }
        }
    })?;
    Ok(Flow::Moved)
}
