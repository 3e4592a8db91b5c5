//! Sockets: what carries a connection's bytes, and how one is made.

pub mod addr;
pub mod buf;
pub mod bypass;
pub mod guests;
pub mod name;
pub mod resolve;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::io::Errno;

/// Connections that may wait to be accepted: the most that Linux allows by itself.
const BACKLOG: i32 = 4096;

/// Listens on an address. `shared`: several loops do, and the system deals the connections out among them. What is set for the
/// listening socket holds for every connection that it accepts (Linux, the BSDs), without a call for each.
///
/// # Errors
/// When the address can't be had.
pub fn listen(address: SocketAddr, shared: bool, idle: Duration, patience: Duration) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    // A relay that was restarted must not wait for its old connections to be forgotten.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_tcp_nodelay(true)?;
    #[cfg(target_os = "linux")]
    if is_within_the_machine(address) {
        do_not_pace(&socket);
    }
    // A visitor that vanished in a silent stream would hold its link for as long as that may last.
    probe(&socket, idle);
    give_up_after(&socket, Some(patience));
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// Begins a connection; it stands when the socket becomes writable and has no error to report.
///
/// # Errors
/// When the system has no socket to give, or knows no way to the address.
pub fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    #[cfg(target_os = "linux")]
    if is_within_the_machine(address) {
        let kind = socket2::Type::STREAM.nonblocking();
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), kind, None)?;
        do_not_pace(&socket);
        return match socket.connect(&address.into()) {
            Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => Err(error),
            _ => Ok(TcpStream::from_std(socket.into())),
        };
    }
    TcpStream::connect(address)
}

/// Lets nobody else queue at a listener that is about to be closed: whoever has been let into its queue is reset with it. Where
/// the system has more than one connection in a queue of 0 (Linux has one), the last one between an empty queue and the close is.
pub fn let_no_more_queue(listener: &TcpListener) {
    // If it can't be done, a few more may be reset.
    let _ = rustix::net::listen(listener, 0);
}

/// Whether the process, or the system, has as many files open as it may: something has to be closed first.
pub fn is_out_of_files(error: &io::Error) -> bool {
    let [of_process, of_system] = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| code == of_process || code == of_system)
}

/// What carries a connection's bytes.
#[derive(Debug)]
pub enum Transport {
    /// TCP in the clear.
    Tcp(TcpStream),
    /// A Unix socket: `unix:PATH`.
    Unix(UnixStream),
    /// None: the other end is a peer of the same loop, and the loop carries the bytes over by itself.
    Pipe,
}

impl Transport {
    /// Begins a TCP connection; it stands when the socket becomes writable and [`Transport::take_error`] gives nothing.
    pub fn dial(address: SocketAddr) -> io::Result<Transport> {
        dial(address).map(Transport::Tcp)
    }

    /// Connects to a Unix socket.
    pub fn dial_unix(path: &Path) -> io::Result<Transport> {
        UnixStream::connect(path).map(Transport::Unix)
    }

    /// Registers for both directions, once and for all: the registration is edge-triggered, and what it said is remembered
    /// by the peer until a read or write finds otherwise.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.source().map_or(Ok(()), |source| source.register(registry, token, both))
    }

    /// Takes the socket out of the poll again.
    pub fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.source().map_or(Ok(()), |source| source.deregister(registry))
    }

    fn source(&mut self) -> Option<&mut dyn Source> {
        match self {
            Transport::Tcp(stream) => Some(stream),
            Transport::Unix(stream) => Some(stream),
            Transport::Pipe => None,
        }
    }

    /// Reads once.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Tcp(stream) => stream.read(into),
            Transport::Unix(stream) => stream.read(into),
            Transport::Pipe => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// The descriptor of a socket that takes and gives bytes as they are.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Transport::Tcp(stream) => Some(stream.as_fd()),
            Transport::Unix(stream) => Some(stream.as_fd()),
            Transport::Pipe => None,
        }
    }

    /// Whether it has bytes that nobody has read, as far as the system says.
    pub fn has_unread(&self) -> bool {
        self.socket().is_none_or(|socket| !matches!(rustix::io::ioctl_fionread(socket), Ok(0)))
    }

    /// Writes once.
    pub fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Transport::Tcp(stream) => stream.write(from),
            Transport::Unix(stream) => stream.write(from),
            Transport::Pipe => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Writes once what the end of our direction follows in the same turn: both leave in one segment, which saves each end the
    /// work for a second one.
    pub fn write_last(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            Transport::Tcp(stream) => {
                let flags = rustix::net::SendFlags::MORE | rustix::net::SendFlags::NOSIGNAL;
                Ok(rustix::net::send(stream, from, flags)?)
            }
            other => other.write(from),
        }
    }

    /// Ends our direction. An error means that the other end is gone, which the next read says better.
    pub fn shutdown_write(&mut self) {
        let _ = match self {
            Transport::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Transport::Unix(stream) => stream.shutdown(Shutdown::Write),
            Transport::Pipe => Ok(()),
        };
    }

    /// When the socket is closed, the peer is to see that it broke, and not a clean end.
    pub fn break_on_close(&self) {
        if let Transport::Tcp(stream) = self {
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// The error that the socket has to report, such as that of a connection that could not be made.
    pub fn take_error(&self) -> io::Result<()> {
        let error = match self {
            Transport::Tcp(stream) => stream.take_error()?,
            Transport::Unix(stream) => stream.take_error()?,
            Transport::Pipe => None,
        };
        error.map_or(Ok(()), Err)
    }

    /// Sends each write at once: what is written is meant to go, and several writes of a turn are one already.
    pub fn no_delay(&self) {
        if let Transport::Tcp(stream) = self {
            let _ = stream.set_nodelay(true);
        }
    }

    /// Acknowledges at once what has come so far, where the system can be told so. A peer that writes a head and a body apart, and
    /// lets the second wait until the first is acknowledged, would wait 40 ms for nothing: `ptth_server` and `ptth_relay` do.
    pub fn acknowledge(&self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Transport::Tcp(stream) = self {
            let _ = socket2::SockRef::from(stream).set_tcp_quickack(true);
        }
    }

    /// Watches a connection that may be silent for hours and that nothing else watches: probes after `idle`, and gives up on it
    /// after twice that time.
    pub fn keep_alive(&self, idle: Duration) {
        if let Transport::Tcp(stream) = self {
            let socket = socket2::SockRef::from(stream);
            probe(&socket, idle);
            give_up_after(&socket, None);
        }
    }

    /// Watches a connection on which something is said now and then: gives up on it, too, when the other end takes nothing for
    /// `patience`.
    pub fn watch(&self, idle: Duration, patience: Duration) {
        if let Transport::Tcp(stream) = self {
            let socket = socket2::SockRef::from(stream);
            probe(&socket, idle);
            give_up_after(&socket, Some(patience));
        }
    }
}

/// Whether no network lies between.
#[cfg(target_os = "linux")]
fn is_within_the_machine(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Where the system's congestion control spaces segments out in time, as BBR does, it does so on the loopback interface too: a body costs
/// three times the CPU time there, and comes half as fast. Another one is chosen before there is a connection, for what BBR has begun goes
/// on under any; and at a listener only where all who come are within the machine.
#[cfg(target_os = "linux")]
fn do_not_pace(socket: &socket2::Socket) {
    // The one that each Linux has, and allows everybody unless somebody has taken it away: then the system's own does as well.
    let _ = socket.set_tcp_congestion(b"reno");
}

/// Probes after `idle`, three times a third of it apart.
fn probe(socket: &socket2::Socket, idle: Duration) {
    let interval = (idle / 3).max(Duration::from_secs(1));
    let idle = idle.max(Duration::from_secs(1));
    let probes = socket2::TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(3);
    // Where the system can't, a dead peer is noticed later: nothing that could be done about it here.
    let _ = socket.set_tcp_keepalive(&probes);
}

/// Gives up on a connection whose other end acknowledges nothing for `patience`: Linux alone would send it again and again for
/// a quarter of an hour, and keep-alive does not probe meanwhile.
///
/// No less than the patience with a peer that takes nothing (`write`): on Linux this ends connections whose reader rests as well.
/// And not where keep-alive has to find out on its own that the other end is gone, for there it takes the place of the probes'
/// count: 30 s become 60.
fn give_up_after(socket: &socket2::Socket, patience: Option<Duration>) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = socket.set_tcp_user_timeout(patience);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (socket, patience);
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn accept(listener: &TcpListener) -> Transport {
        loop {
            match listener.accept() {
                Ok((accepted, _)) => break Transport::Tcp(accepted),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    fn tcp(transport: &Transport) -> &TcpStream {
        let Transport::Tcp(stream) = transport else { panic!("no TCP") };
        stream
    }

    /// The congestion control of both ends of a connection to a port of this listener.
    fn controls(listener: &TcpListener, to: IpAddr) -> [String; 2] {
        let dialled = Transport::dial((to, listener.local_addr().unwrap().port()).into()).unwrap();
        [dialled, accept(listener)].map(|end| {
            let name = socket2::SockRef::from(tcp(&end)).tcp_congestion().unwrap();
            String::from_utf8(name).unwrap().trim_end_matches('\0').into()
        })
    }

    #[test]
    fn what_stays_within_the_machine_is_not_paced() {
        let day = Duration::from_secs(86_400);
        let systems = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
        let (systems, loopback) = (systems.trim_end(), IpAddr::from([127, 0, 0, 1]));
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        // Somebody may have taken it away.
        let unpaced = socket.set_tcp_congestion(b"reno").map_or(systems, |()| "reno");
        let listener = listen((loopback, 0).into(), false, day, day).unwrap();
        assert_eq!(controls(&listener, loopback), [unpaced, unpaced]);
        // There, others may come from elsewhere.
        let listener = listen((IpAddr::from([0, 0, 0, 0]), 0).into(), false, day, day).unwrap();
        assert_eq!(controls(&listener, loopback), [unpaced, systems]);
        assert_eq!(controls(&listener, IpAddr::from([0, 0, 0, 0])), [systems, systems]);
    }

    #[test]
    fn what_is_set_for_the_listener_holds_for_what_it_accepts() {
        let patience = Duration::from_secs(60);
        let listener = listen("127.0.0.1:0".parse().unwrap(), false, Duration::from_secs(15), patience).unwrap();
        let _dialled = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = accept(&listener);
        let socket = socket2::SockRef::from(tcp(&accepted));
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(patience));
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(15));
        accepted.keep_alive(Duration::from_secs(15));
        assert_eq!(socket.tcp_user_timeout().unwrap().unwrap_or_default(), Duration::ZERO);
        accepted.watch(Duration::from_secs(15), patience);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(patience));
    }
}
