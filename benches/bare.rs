//! The floor under the figures of `benches/tunnels.py`: what a request and a GiB cost where nothing is understood at all.
//!
//! `bare LISTEN TO` copies what each connection says to one of its own to TO, and back. One loop, edge-triggered as ours is; what
//! came at once is one read and one write. With `--splice` bytes do not enter its memory, as those of long bodies do not with ours:
//! they go through a pipe of the kernel, of the same size. Its sockets are made as ours are. Two of these in a row make the hops that a
//! tunnel makes.
//!
//! It is there to be measured, and for nothing else: nothing is limited, and trouble with either connection of a pair ends both.

use std::error::Error;
use std::io::{self, Read, Write};
use std::mem;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use ptth::net::{bypass::Bypass, dial, listen};
use ptth_proto::limits::BYPASS;

/// Bytes that are copied at once: as many as ours reads.
const READ: usize = 64 * 1024;
/// When a connection counts as dead. None is that old when a measurement ends.
const PATIENCE: Duration = Duration::from_secs(60);
const LISTENER: Token = Token(usize::MAX);

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (listen, to, make): (_, _, Make) = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [listen, to] => (listen, to, Load::memory),
        [listen, to, "--splice"] => (listen, to, Load::pipe),
        _ => return Err("usage: bare LISTEN TO [--splice]".into()),
    };
    Ok(Bare::new(listen.parse()?, to.parse()?, make)?.run()?)
}

/// The loop and all that it holds.
struct Bare {
    poll: Poll,
    listener: TcpListener,
    to: SocketAddr,
    /// Where a pair is says its tokens: twice that, and one more.
    pairs: Vec<Option<Pair>>,
    free: Vec<usize>,
    spare: Spare,
}

impl Bare {
    fn new(address: SocketAddr, to: SocketAddr, make: Make) -> io::Result<Bare> {
        let poll = Poll::new()?;
        let mut listener = listen(address, false, PATIENCE, PATIENCE)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let spare = Spare { make, loads: Vec::new() };
        Ok(Bare { poll, listener, to, pairs: Vec::new(), free: Vec::new(), spare })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut ended = Vec::new();
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                if event.token() == LISTENER {
                    self.accept()?;
                    continue;
                }
                let place = event.token().0 / 2;
                let Some(pair) = &mut self.pairs[place] else { continue };
                if pair.carry(event, &mut self.spare).is_err() || pair.is_over() {
                    self.pairs[place] = None;
                    ended.push(place);
                }
            }
            // Not before: what the poll has said of one pair is no news of another.
            self.free.append(&mut ended);
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut came = match self.listener.accept() {
                Ok((came, _)) => came,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let mut dialled = dial(self.to)?;
            // What is accepted has that from the listener.
            dialled.set_nodelay(true)?;
            let place = self.free.pop().unwrap_or(self.pairs.len());
            for (stream, side) in [(&mut came, 0), (&mut dialled, 1)] {
                let token = Token(2 * place + side);
                self.poll.registry().register(stream, token, Interest::READABLE | Interest::WRITABLE)?;
            }
            self.pairs.resize_with(self.pairs.len().max(place + 1), || None);
            self.pairs[place] = Some(Pair { came, dialled, there: Flow::Idle, back: Flow::Idle });
        }
    }
}

/// A connection that came, and the one that was made for it.
struct Pair {
    came: TcpStream,
    dialled: TcpStream,
    there: Flow,
    back: Flow,
}

impl Pair {
    fn carry(&mut self, event: &Event, spare: &mut Spare) -> io::Result<()> {
        let Pair { came, dialled, there, back } = self;
        let (this, other, from_this, to_this) =
            if event.token().0.is_multiple_of(2) { (came, dialled, there, back) } else { (dialled, came, back, there) };
        if matches!(from_this, Flow::Idle) && (event.is_readable() || event.is_read_closed()) {
            from_this.carry(this, other, spare, !event.is_read_closed())?;
        }
        if matches!(to_this, Flow::Waiting(_)) && event.is_writable() {
            // What has come to the other one meanwhile, its end perhaps, was not looked at.
            to_this.carry(other, this, spare, false)?;
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        matches!((&self.there, &self.back), (Flow::Ended, Flow::Ended))
    }
}

/// One direction of a pair.
enum Flow {
    /// Whatever came has gone on.
    Idle,
    /// The reader has not taken all of this yet. Nothing more is read before it has.
    Waiting(Load),
    /// The writer has ended, and the reader was told so.
    Ended,
}

impl Flow {
    /// Carries what there is until the writer has no more, or the reader takes no more. `short_is_dry`: a read that leaves room
    /// has taken everything, its end not being there yet.
    fn carry(&mut self, from: &TcpStream, to: &TcpStream, spare: &mut Spare, short_is_dry: bool) -> io::Result<()> {
        let mut load = match mem::replace(self, Flow::Ended) {
            Flow::Idle => spare.lend()?,
            Flow::Waiting(load) => load,
            Flow::Ended => return Ok(()),
        };
        let mut dry = false;
        *self = loop {
            if !load.is_empty() {
                match load.give(to) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        *self = Flow::Waiting(load);
                        return Ok(());
                    }
                    given => given?,
                }
            } else if dry {
                break Flow::Idle;
            } else {
                match load.take(from) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Flow::Idle,
                    Ok(0) => {
                        to.shutdown(Shutdown::Write)?;
                        break Flow::Ended;
                    }
                    taken => dry = short_is_dry && taken? < load.room(),
                }
            }
        };
        spare.loads.push(load);
        Ok(())
    }
}

/// What takes bytes from one socket to the other.
enum Load {
    Memory { bytes: Box<[u8]>, given: usize, taken: usize },
    Pipe(Bypass),
}

impl Load {
    fn memory() -> io::Result<Load> {
        Ok(Load::Memory { bytes: vec![0; READ].into(), given: 0, taken: 0 })
    }

    fn pipe() -> io::Result<Load> {
        Bypass::new(&Arc::new(())).map(Load::Pipe).ok_or_else(|| io::Error::other("the system has no pipe to give"))
    }

    fn is_empty(&self) -> bool {
        match self {
            Load::Memory { given, taken, .. } => given == taken,
            Load::Pipe(pipe) => pipe.load() == 0,
        }
    }

    /// How many bytes of a `take` say nothing of whether there are more. A pipe counts its pages: any number may fill it.
    fn room(&self) -> usize {
        match self {
            Load::Memory { bytes, .. } => bytes.len(),
            Load::Pipe(_) => 0,
        }
    }

    fn take(&mut self, mut from: &TcpStream) -> io::Result<usize> {
        match self {
            Load::Memory { bytes, given, taken } => {
                *given = 0;
                *taken = 0;
                *taken = from.read(bytes)?;
                Ok(*taken)
            }
            Load::Pipe(pipe) => pipe.take(from.as_fd(), BYPASS),
        }
    }

    fn give(&mut self, mut to: &TcpStream) -> io::Result<()> {
        match self {
            Load::Memory { bytes, given, taken } => *given += to.write(&bytes[*given..*taken])?,
            Load::Pipe(pipe) => {
                pipe.give(to.as_fd())?;
            }
        }
        Ok(())
    }
}

/// Loads that nobody uses now, and how one more is made: whoever waits for a reader keeps the one that he has.
struct Spare {
    make: Make,
    loads: Vec<Load>,
}

type Make = fn() -> io::Result<Load>;

impl Spare {
    fn lend(&mut self) -> io::Result<Load> {
        self.loads.pop().map_or_else(self.make, Ok)
    }
}
