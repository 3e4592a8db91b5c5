//! The server behind an agent, which does for each request what the test says.

use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use super::locked;
use super::wire::{Framing, Head, Wire, ok};

/// What becomes of the connection behind an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Keep,
    Close,
}

/// A request whose head has come; its body is still to be read from the wire.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) head: Head,
    pub(crate) framing: Framing,
    pub(crate) wire: &'a mut Wire,
    /// Which connection of this upstream it came on, counted from 0.
    pub(crate) connection: usize,
    /// Which request on that connection it is, counted from 0.
    pub(crate) number: usize,
}

impl Asked<'_> {
    /// Reads the request's body; nothing when it breaks off.
    pub(crate) fn body(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        self.wire.rest(&mut body).ok().map(|_| body)
    }
}

#[derive(Debug, Default)]
struct Shared {
    over: AtomicBool,
    open: AtomicUsize,
    connections: Mutex<Vec<TcpStream>>,
    requests: Mutex<Vec<Head>>,
}

/// A server on a port of its own.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) port: u16,
    shared: Arc<Shared>,
}

impl Upstream {
    /// One that calls `serve` for each request, on a thread for each connection.
    pub(crate) fn start(serve: impl Fn(&mut Asked<'_>) -> After + Send + Sync + 'static) -> Upstream {
        Upstream::start_on(0, serve)
    }

    /// The same on a port that the test has chosen.
    pub(crate) fn start_on(port: u16, serve: impl Fn(&mut Asked<'_>) -> After + Send + Sync + 'static) -> Upstream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let (accepting, serve) = (Arc::clone(&shared), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut connections = locked(&accepting.connections);
                if accepting.over.load(Ordering::SeqCst) {
                    return;
                }
                let number = connections.len();
                connections.push(stream.try_clone().unwrap());
                accepting.open.fetch_add(1, Ordering::SeqCst);
                let (shared, serve) = (Arc::clone(&accepting), Arc::clone(&serve));
                let connection = move || run(Wire::new(stream), number, &shared, &*serve);
                thread::Builder::new().stack_size(512 * 1024).spawn(connection).unwrap();
            }
        });
        Upstream { port, shared }
    }

    /// One that answers every request with this text.
    pub(crate) fn saying(text: &'static str) -> Upstream {
        Upstream::start(move |asked| {
            asked.body();
            let _ = asked.wire.try_send(ok(text));
            After::Keep
        })
    }

    /// One that answers every request with the head and body that came to it.
    pub(crate) fn showing() -> Upstream {
        Upstream::start(|asked| {
            let Some(body) = asked.body() else { return After::Close };
            let shown = [asked.head.text.as_bytes(), &body].concat();
            let length = shown.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n");
            let body: &[u8] = if asked.head.method() == "HEAD" { b"" } else { &shown };
            let _ = asked.wire.try_send([head.as_bytes(), body].concat());
            After::Keep
        })
    }

    /// One that answers every request with these bytes, and then closes.
    pub(crate) fn answering(bytes: &'static str) -> Upstream {
        Upstream::start(move |asked| {
            asked.body();
            let _ = asked.wire.try_send(bytes);
            After::Close
        })
    }

    /// How the agent is told of it.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How many connections came so far.
    pub(crate) fn connections(&self) -> usize {
        locked(&self.shared.connections).len()
    }

    /// How many of them are still open.
    pub(crate) fn open_connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// The heads of all requests so far.
    pub(crate) fn requests(&self) -> MutexGuard<'_, Vec<Head>> {
        locked(&self.shared.requests)
    }

    /// The head of the last request so far.
    pub(crate) fn last_request(&self) -> Head {
        self.requests().last().unwrap_or_else(|| panic!("no request came")).clone()
    }
}

impl Drop for Upstream {
    /// Closes everything, as if its process were gone.
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        for connection in locked(&self.shared.connections).iter() {
            let _ = connection.shutdown(Shutdown::Both);
        }
        // Wakes the listener, and waits until it is gone, so that its port is free.
        while let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) {
            drop(stream);
            thread::yield_now();
        }
    }
}

fn run(mut wire: Wire, connection: usize, shared: &Shared, serve: &(impl Fn(&mut Asked<'_>) -> After + ?Sized)) {
    for number in 0.. {
        let Ok(Some((head, framing))) = wire.request_head() else { break };
        locked(&shared.requests).push(head.clone());
        let mut asked = Asked { head, framing, wire: &mut wire, connection, number };
        if serve(&mut asked) == After::Close {
            break;
        }
    }
    let _ = wire.stream.shutdown(Shutdown::Both);
    shared.open.fetch_sub(1, Ordering::SeqCst);
}
