//! Carrying bytes between the two peers of an exchange: the request's body one way, the response the other. Each call moves one
//! event; whoever calls goes on while something moves.

use mio::Token;
use ptth_proto::conn::{Body, Event};
use ptth_proto::error::{Error, Fault};
use ptth_proto::http::framing::{Framing, content_length};
use ptth_proto::time::Instant;
use ptth_proto::wire::head::Head;

use super::BackFault;
use super::exchange::{Exchange, Stage};
use crate::answer::code_of;
use crate::peer::Peer;
use crate::reactor::Core;

/// What came of carrying.
pub(super) enum Flow {
    /// Nothing to carry now.
    Still,
    /// Something was carried; there may be more.
    Moved,
    /// The response is complete.
    Over,
    /// The front failed.
    Front(Error),
    /// The back failed.
    Back(BackFault),
}

/// Whether the bytes of `from` have to wait until `to` takes what it has.
pub(crate) fn hold(from: &mut Peer, to: &mut Peer, most: usize, now: Instant) -> bool {
    let full = to.output.len() >= most;
    if full {
        to.fed = true;
    } else if from.held {
        from.conn.touch(now);
    }
    from.held = full;
    full
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
    if hold(from, to, most, now) {
        return Flow::Still;
    }
    let (used, event) = match from.conn.recv(now, from.input.bytes(), head, config) {
        Ok(step) => step,
        Err(error) => return Flow::Front(error),
    };
    let (sent, moved) = match event {
        Some(Event::Data(data)) => {
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
    if !moved && from.tell_eof() {
        return match from.conn.eof(now, from.input.len()) {
            Ok(_) => Flow::Still,
            Err(error) => Flow::Front(error),
        };
    }
    if moved { Flow::Moved } else { Flow::Still }
}

/// Carries the response from the back to the front.
pub(super) fn home(core: &mut Core, exchange: &mut Exchange, back: Token) -> Flow {
    let now = core.now;
    let most = core.config.limits.buffer;
    let Some((from, to, head, config)) = core.between(back, exchange.front) else {
        return Flow::Back(BackFault::Lost(None));
    };
    if from.is_connecting() || hold(from, to, most, now) {
        return Flow::Still;
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
        if from.broken {
            return Flow::Back(BackFault::Lost(None));
        }
        return if from.tell_eof() { back_ended(from, to, now) } else { Flow::Still };
    };
    exchange.heard = true;
    let flow = match event {
        Event::Informational => inform(to, head),
        Event::Response(framing) => {
            exchange.status = head.status();
            exchange.code = code_of(head);
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
        Event::Request(_) | Event::Offer(_) | Event::Turned => Err(Fault::UnexpectedData.into()),
    };
    from.input.consume(used);
    flow.unwrap_or_else(|error| Flow::Back(BackFault::Protocol(error)))
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
    })?;
    Ok(Flow::Moved)
}
