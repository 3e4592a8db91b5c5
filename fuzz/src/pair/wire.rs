//! Connections between the machines: two ends each, and what is on its way from one to the other.

use ptth_proto::conn::{Closing, Config, Conn, Event};
use ptth_proto::error::Error;
use ptth_proto::http::framing::Framing;
use ptth_proto::time::Instant;
use ptth_proto::wire::head::Head;

/// A wire and a side of it; the side that dialled is 0.
pub(super) type At = (usize, usize);

/// Bytes that a wire takes in one direction before its reader has had some.
const ROOM: usize = 400;
/// Bytes that an end has not understood yet; more than a head has.
const MOST_INPUT: usize = 1200;

/// Who dialled whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A visitor the relay.
    Visit,
    /// The agent the relay.
    Link,
    /// The agent its upstream.
    Upstream,
    /// A visitor who doesn't speak HTTP the relay.
    Service,
}

/// Who acts on what an end hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seat {
    Front,
    Exchange(usize),
    Own,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Open,
    /// It has said its last, and listens.
    Half,
    /// It has said its last; what the other one still says is thrown away.
    Shut,
    Dead,
    /// The same, with something that was still to be said.
    Broken,
}

/// What an end knows of the other one's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Open,
    Ended,
    /// The wire broke.
    Reset,
    /// The connection was told of the end.
    Told,
}

/// What an end has heard: an event that borrows nothing.
#[derive(Debug)]
pub(super) enum Said {
    Request(Framing),
    Offer,
    Informational,
    Alive,
    Leaving,
    Response(Framing),
    Turned,
    Switched,
    Data(Vec<u8>),
    End(bool),
    Closed,
}

impl From<Event<'_>> for Said {
    fn from(event: Event<'_>) -> Said {
        match event {
            Event::Request(framing) => Said::Request(framing),
            Event::Offer(_) => Said::Offer,
            Event::Informational => Said::Informational,
            Event::Alive => Said::Alive,
            Event::Leaving => Said::Leaving,
            // None of these ends has several requests on a link.
            Event::Aside => unreachable!("an answer was set aside"),
            Event::Response(framing) => Said::Response(framing),
            Event::Turned => Said::Turned,
            Event::Switched => Said::Switched,
            Event::Data(data) => Said::Data(data.to_vec()),
            Event::End { trailers } => Said::End(trailers),
            Event::Closed => Said::Closed,
        }
    }
}

/// What came of listening once.
#[derive(Debug)]
pub(super) enum Heard {
    Nothing,
    /// Bytes that say nothing yet.
    Some,
    Said(Said),
    /// The end of all bytes, and what that says.
    Ended(Option<Said>),
}

#[derive(Debug)]
pub(super) struct End {
    pub(super) conn: Conn,
    pub(super) head: Head,
    pub(super) input: Vec<u8>,
    pub(super) out: Vec<u8>,
    pub(super) written: usize,
    pub(super) seat: Seat,
    pub(super) life: Life,
    pub(super) incoming: Incoming,
    /// Its bytes wait for room elsewhere.
    pub(super) held: bool,
    /// The last time that the wire took some of its bytes, or there were none.
    pub(super) took: Instant,
}

impl End {
    pub(super) fn new(conn: Conn, seat: Seat, now: Instant) -> End {
        End {
            conn,
            head: Head::default(),
            input: Vec::new(),
            out: Vec::new(),
            written: 0,
            seat,
            life: Life::Open,
            incoming: Incoming::Open,
            held: false,
            took: now,
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        matches!(self.life, Life::Dead | Life::Broken)
    }

    pub(super) fn can_speak(&self) -> bool {
        self.life == Life::Open && self.conn.closing().is_none() && self.incoming != Incoming::Reset
    }

    pub(super) fn is_alive(&self) -> bool {
        self.can_speak() && self.incoming == Incoming::Open
    }

    pub(super) fn can_be_asked(&self) -> bool {
        self.is_alive() && self.conn.is_idle() && self.input.is_empty()
    }

    /// Listens once.
    pub(super) fn hear(&mut self, now: Instant, config: &Config) -> Result<Heard, Error> {
        let (used, event) = self.conn.recv(now, &self.input, &mut self.head, config)?;
        let said = event.map(Said::from);
        self.input.drain(..used);
        match said {
            Some(said) => Ok(Heard::Said(said)),
            None if used > 0 => Ok(Heard::Some),
            None if self.incoming == Incoming::Ended => {
                self.incoming = Incoming::Told;
                self.conn.eof(now, self.input.len()).map(|event| Heard::Ended(event.map(Said::from)))
            }
            None => Ok(Heard::Nothing),
        }
    }

    pub(super) fn drop_it(&mut self) {
        if !self.is_dead() {
            self.life = if self.out.is_empty() { Life::Dead } else { Life::Broken };
        }
        self.out.clear();
        self.input.clear();
    }
}

#[derive(Debug)]
pub(super) struct Wire {
    pub(super) kind: Kind,
    pub(super) ends: [End; 2],
    /// From the end of that number to the other.
    flights: [Vec<u8>; 2],
    /// Somebody has said on it what no machine says.
    pub(super) foul: bool,
}

impl Wire {
    pub(super) fn new(kind: Kind, seats: [Seat; 2], now: Instant) -> Wire {
        let ends = [End::new(Conn::client(now), seats[0], now), End::new(Conn::server(now), seats[1], now)];
        Wire { kind, ends, flights: Default::default(), foul: false }
    }

    /// One of bytes without HTTP.
    pub(super) fn raw(kind: Kind, seats: [Seat; 2], now: Instant) -> Wire {
        let mut wire = Wire::new(kind, seats, now);
        wire.ends.iter_mut().for_each(|end| end.conn = Conn::tunnel(now));
        wire
    }

    pub(super) fn is_over(&self) -> bool {
        self.ends.iter().all(|end| end.is_dead())
    }

    /// Puts what an end has to say on the wire, as far as there is room, and closes an end that has nothing more to say.
    pub(super) fn flush(&mut self, side: usize, now: Instant) -> bool {
        let (end, flight) = (&mut self.ends[side], &mut self.flights[side]);
        if end.incoming == Incoming::Reset || end.life != Life::Open {
            end.out.clear();
        }
        let count = end.out.len().min(ROOM.saturating_sub(flight.len()));
        flight.extend(end.out.drain(..count));
        end.written += count;
        if count > 0 || end.out.is_empty() {
            end.took = now;
        }
        if !end.out.is_empty() || end.is_dead() {
            return count > 0;
        }
        let before = end.life;
        match end.conn.closing() {
            None if end.life == Life::Open && end.conn.is_half_closed() => end.life = Life::Half,
            None => {}
            Some(_) if end.incoming != Incoming::Open => end.drop_it(),
            Some(Closing::Flush) if end.input.is_empty() => end.drop_it(),
            Some(_) if end.life != Life::Shut => {
                end.life = Life::Shut;
                if !end.conn.linger(now) {
                    end.drop_it();
                }
            }
            Some(_) => {}
        }
        count > 0 || end.life != before
    }

    /// Lets up to `most` bytes of one direction arrive, or their end, which comes by itself.
    pub(super) fn deliver(&mut self, from: usize, most: usize) -> bool {
        let last = match self.ends[from].life {
            Life::Open => Incoming::Open,
            Life::Half | Life::Shut | Life::Dead => Incoming::Ended,
            Life::Broken => Incoming::Reset,
        };
        let (reader, flight) = (&mut self.ends[1 - from], &mut self.flights[from]);
        if reader.is_dead() || reader.incoming != Incoming::Open {
            // Nobody is there, which is as good as being read.
            let lost = !flight.is_empty();
            flight.clear();
            return lost;
        }
        let mut count = 0;
        if reader.conn.wants_read() {
            count = most.min(flight.len()).min(MOST_INPUT.saturating_sub(reader.input.len()));
            reader.input.extend(flight.drain(..count));
        }
        if count == 0 && flight.is_empty() {
            reader.incoming = last;
        }
        count > 0 || reader.incoming != Incoming::Open
    }

    /// What is on its way is lost, and both ends are told so.
    pub(super) fn reset(&mut self) {
        for (end, flight) in self.ends.iter_mut().zip(&mut self.flights) {
            flight.clear();
            end.out.clear();
            end.incoming = Incoming::Reset;
        }
    }
}
