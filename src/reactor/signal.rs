//! SIGINT and SIGTERM as bytes on a socket: the first asks for an orderly stop, the second ends the process at once.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

/// What the process exits with after a second signal: 128 + SIGINT, as shells report it.
const KILLED: i32 = 130;

/// The receiving end.
#[derive(Debug)]
pub struct Signals {
    stream: UnixStream,
}

impl Signals {
    /// Takes the two signals over for the whole process.
    pub fn register(registry: &Registry, token: Token) -> io::Result<Signals> {
        let (read, write) = std::os::unix::net::UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let second = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the flag that makes the second one deadly is set behind the check of it.
            flag::register_conditional_shutdown(signal, KILLED, Arc::clone(&second))?;
            flag::register(signal, Arc::clone(&second))?;
            pipe::register(signal, write.try_clone()?)?;
        }
        let mut stream = UnixStream::from_std(read);
        registry.register(&mut stream, token, Interest::READABLE)?;
        Ok(Signals { stream })
    }

    /// Whether one has arrived.
    pub fn take(&mut self) -> bool {
        let mut bytes = [0; 16];
        matches!(self.stream.read(&mut bytes), Ok(n) if n > 0)
    }
}
