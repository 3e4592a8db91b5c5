//! SIGINT and SIGTERM as bytes on a socket: the first asks for an orderly stop, the second for one at once. Where nobody takes the
//! next one, it ends the process by itself: the loop is stuck, or over while others of the process are not.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

/// What the process exits with after a second signal: 128 + SIGINT, as shells report it.
pub const KILLED: u8 = 130;

/// What the signals so far come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing new.
    Nothing,
    /// An orderly stop.
    ToStop,
    /// A stop at once.
    ToStopAtOnce,
}

/// The receiving end.
#[derive(Debug)]
pub struct Signals {
    stream: UnixStream,
    /// The next one ends the process by itself.
    deadly: Arc<AtomicBool>,
    taken: usize,
}

impl Signals {
    /// Takes the two signals over for the whole process.
    pub fn register(registry: &Registry, token: Token) -> io::Result<Signals> {
        let (read, write) = std::os::unix::net::UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let deadly = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the flag that makes the next one deadly is set behind the check of it.
            flag::register_conditional_shutdown(signal, i32::from(KILLED), Arc::clone(&deadly))?;
            flag::register(signal, Arc::clone(&deadly))?;
            pipe::register(signal, write.try_clone()?)?;
        }
        let mut stream = UnixStream::from_std(read);
        registry.register(&mut stream, token, Interest::READABLE)?;
        Ok(Signals { stream, deadly, taken: 0 })
    }

    /// Takes those that have arrived.
    pub fn take(&mut self) -> Asked {
        // Who takes one sees to the next one, too. Before it is read, so that none that comes in between is deadly.
        self.deadly.store(false, Ordering::Relaxed);
        let before = self.taken;
        self.taken += self.stream.read(&mut [0; 16]).unwrap_or(0);
        match (before, self.taken) {
            _ if self.taken == before => Asked::Nothing,
            (0, 1) => Asked::ToStop,
            _ => {
                self.leave();
                Asked::ToStopAtOnce
            }
        }
    }

    /// Nobody takes any more of them.
    pub fn leave(&self) {
        self.deadly.store(true, Ordering::Relaxed);
    }
}
