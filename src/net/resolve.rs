//! Names to addresses, without holding up the loop: the system's resolver blocks, so each look-up has a thread of its own for
//! as long as it takes. Nothing is remembered: an agent whose relay moves follows it at the next dial.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::thread;

/// Looks a name up and hands the addresses, or why there are none, to `done` on another thread.
///
/// # Errors
/// When no thread can be had.
pub fn look_up(
    host: String,
    port: u16,
    done: impl FnOnce(io::Result<Vec<SocketAddr>>) + Send + 'static,
) -> io::Result<()> {
    let run = move || {
        let found = (host.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        done(found.and_then(|found| match found.is_empty() {
            true => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
            false => Ok(found),
        }));
    };
    thread::Builder::new().name("resolve".into()).spawn(run).map(drop)
}
