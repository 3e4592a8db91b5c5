//! The event loop: sockets, time, and turns. It knows when a peer can be read and written and how long it may be silent; what
//! peers say to each other is the business of the [`App`] above it.
//!
//! One turn, phase by phase:
//!
//! 1. `wait` until a socket is ready, a deadline is due, or at once when work was left over; the clock is read here only, once;
//! 2. `read` each ready socket once, and accept what knocks, within a budget;
//! 3. `step` each peer that has something new: the app understands it;
//! 4. `route`: the app carries between peers what the steps brought;
//! 5. `flush`: each touched peer's output is written once, interest and deadline are computed anew; what went through a
//!    [pipe](Core::pipe) is there at once, and steps 3 to 5 are gone through again for its reader;
//! 6. `expire`: deadlines that have come;
//! 7. `reap`: closed peers are dropped, in one place, behind everything that could still name them.

pub mod signal;
pub mod slots;
pub mod timers;

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use ptth_proto::conn::{Config, Conn};
use ptth_proto::limits::{BYPASSES_REST, Wait};
use ptth_proto::time::Instant;
use ptth_proto::wire::head::Head;

use crate::net::addr::{Place, Remote};
use crate::net::buf::Pool;
use crate::net::{self, Transport, resolve};
use crate::peer::{Gone, Peer, Twin};
use signal::{Asked, Signals};
use slots::Slots;
use timers::Timers;

/// Events taken from the poll at once. What doesn't fit comes in the next turn.
const EVENTS: usize = 1024;
/// Connections accepted in one turn, so that a crowd at the door doesn't starve those inside. Redis takes 1000, nginx one.
const ACCEPTS: usize = 64;
/// How long accepting rests when there are no descriptors left; those that wait stay in the kernel's queue.
const ACCEPT_REST: Duration = Duration::from_millis(500);

/// Descriptors that run out again within this time have not been enough in between: that is no news.
const FULL_AGAIN: Duration = Duration::from_secs(60);

/// A loop that goes on so much later than it meant to was stopped: by SIGSTOP, with a laptop's lid, by a crowd of other programs.
/// All deadlines seem to have passed then, though it is us who were late.
const OVERSLEPT: Duration = Duration::from_millis(100);

/// How often in one turn the other ends of pipes have a step at once. A message through a pipe and its answer take four; more, and
/// the sockets would wait.
const ROUNDS: usize = 8;

/// How often in one turn the poll is asked again before what was gathered is written.
const GATHERS: usize = 2;

/// Tokens above all places in the table.
const SIGNALS: Token = Token(usize::MAX - 1);
const WAKER: Token = Token(usize::MAX - 2);
const LISTENERS: usize = usize::MAX - 1024;

/// Why a peer was lost.
#[derive(Debug)]
pub enum Loss {
    /// The socket could not be connected, or reading it failed.
    Io(io::Error),
    /// The socket takes nothing more; what the peer has sent before may still be there to be read.
    Deaf(io::Error),
    /// A deadline passed.
    Late(Wait),
}

/// News from outside the loop's own sockets.
#[derive(Debug)]
pub enum Message {
    /// A look-up that [`Core::look_up`] began.
    Resolved(usize, io::Result<Vec<SocketAddr>>),
    /// A peer from another loop, taken out there by [`Core::detach`], and what the app there has to say of it.
    Handed(Box<Peer>, Box<dyn Any + Send>),
    /// The process is to stop: from the loop that the signal reached.
    Stop,
    /// It is to stop at once.
    StopAtOnce,
    /// A word from the app on another loop.
    Word(Box<dyn Any + Send>),
}

/// Where a loop can be told news, from any thread.
#[derive(Clone, Debug)]
pub struct Mailbox {
    sender: Sender<Message>,
    waker: Arc<Waker>,
}

impl Mailbox {
    /// Leaves a message and wakes the loop. A loop that has ended needs no news.
    pub fn send(&self, message: Message) {
        let _ = self.sender.send(message);
        let _ = self.waker.wake();
    }
}

/// What those speak who come in at a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// HTTP.
    Http,
    /// Anything: their bytes go through a tunnel. The number is the program's own.
    Tunnel(usize),
}

/// What runs on the loop.
pub trait App {
    /// A connection was accepted, and is in the table.
    fn accepted(&mut self, core: &mut Core, token: Token, door: Door);
    /// Something is new at this peer: bytes, their end, the connection itself, or room in its output.
    fn step(&mut self, core: &mut Core, token: Token);
    /// Every step of this turn was made: carry on what they brought.
    fn route(&mut self, core: &mut Core);
    /// The peer's socket failed, or a deadline of it passed that its connection can't deal with itself. The peer is still
    /// there; whoever wants it gone calls [`Core::drop_peer`].
    fn lost(&mut self, core: &mut Core, token: Token, loss: Loss);
    /// The peer is out of the table; its token names nobody any more.
    fn gone(&mut self, core: &mut Core, token: Token, peer: Peer);
    /// A timer set by [`Core::set_timer`] is due.
    fn timer(&mut self, core: &mut Core, key: usize);
    /// News.
    fn message(&mut self, core: &mut Core, message: Message);
    /// The process was asked to stop.
    fn stop(&mut self, core: &mut Core);
    /// It was asked again: this turn is the last one.
    fn stop_at_once(&mut self, core: &mut Core);
    /// Whether the app has something to do at once, whatever the sockets say.
    fn is_busy(&self) -> bool;
    /// Whether something that was said in this turn may share its write with what is ready by now.
    fn is_gathering(&mut self) -> bool {
        false
    }
    /// The turn is over and the loop may sleep: time for what can wait until then.
    fn rest(&mut self, core: &mut Core);
    /// Whether the loop is to end, and with what.
    fn exit(&self, core: &Core) -> Option<u8>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Accept,
    Surplus,
    App(usize),
    Peer(Token),
}

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    door: Door,
    ready: bool,
}

/// What an app works with: the peers, the time, and the lists of what is to be done in this turn.
#[derive(Debug)]
pub struct Core {
    /// Limits and deadlines of every connection.
    pub config: Config,
    /// The time of this turn.
    pub now: Instant,
    /// Where heads are read into; whoever wants to keep one swaps it for an empty one.
    pub head: Head,
    /// Spare buffers.
    pub pool: Pool,
    peers: Slots<Peer>,
    registry: Registry,
    timers: Timers<Key>,
    listeners: Vec<Listener>,
    accept: Accept,
    /// When there were last no descriptors left.
    said_full: Option<Instant>,
    /// Peers to read in the next turn although the poll has nothing new of them.
    reads: Vec<Token>,
    /// Peers to step.
    steps: VecDeque<Token>,
    /// Peers to flush.
    touched: Vec<Token>,
    /// Peers to drop.
    dead: Vec<Token>,
    /// Something went through a pipe since the last look.
    poured: bool,
    /// Bytes of all peers' buffers.
    buffered: usize,
    mailbox: Mailbox,
}

/// Whether the door is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accept {
    Open,
    /// No descriptors: until the timer.
    Resting,
    /// For good.
    Closed,
}

impl Core {
    /// Listens on an address, alone or shared with other loops. Gives where that is: the system chooses for port 0.
    ///
    /// # Errors
    /// When the address can't be had.
    pub fn listen(&mut self, address: SocketAddr, shared: bool, door: Door) -> io::Result<SocketAddr> {
        let deadlines = &self.config.deadlines;
        let mut socket = net::listen(address, shared, deadlines.keepalive, deadlines.write)?;
        let at = socket.local_addr()?;
        self.registry.register(&mut socket, Token(LISTENERS + self.listeners.len()), Interest::READABLE)?;
        self.listeners.push(Listener { socket, door, ready: false });
        Ok(at)
    }

    /// Accepts all that wait at the door, and nothing more.
    pub fn close_listeners(&mut self, app: &mut impl App) {
        for listener in &mut self.listeners {
            net::let_no_more_queue(&listener.socket);
            listener.ready = true;
        }
        while self.knocks() {
            self.accept(app);
        }
        for mut listener in self.listeners.drain(..) {
            let _ = self.registry.deregister(&mut listener.socket);
        }
        self.accept = Accept::Closed;
    }

    /// Takes a connection into the loop.
    ///
    /// # Errors
    /// When the system won't watch it.
    pub fn add(&mut self, mut transport: Transport, remote: Remote, conn: Conn, connecting: bool) -> io::Result<Token> {
        let token = self.peers.next_token();
        transport.register(&self.registry, token)?;
        let token = self.peers.insert(Peer::new(transport, remote, conn, connecting, self.now));
        self.touch(token);
        Ok(token)
    }

    /// Makes a pipe: a connection both ends of which are in this loop. Gives the near end and the far end.
    pub fn pipe(&mut self, near: Conn, far: Conn) -> (Token, Token) {
        let now = self.now;
        let mut end = |conn| self.peers.insert(Peer::new(Transport::Pipe, Remote::Unix, conn, false, now));
        let (near, far) = (end(near), end(far));
        if let Some((near_peer, far_peer)) = self.peers.pair_mut(near, far) {
            near_peer.twin = Twin::Far(far);
            far_peer.twin = Twin::Near(near);
        }
        (near, far)
    }

    /// Carries bytes through a pipe, both ways. False when the other end is gone.
    fn pour(&mut self, token: Token, twin: Token) -> bool {
        let Core { peers, pool, config, now, .. } = self;
        let Some((a, b)) = peers.pair_mut(token, twin) else { return false };
        let (there, back) = (a.pour(b, *now, pool, config), b.pour(a, *now, pool, config));
        for token in [there.then_some(twin), back.then_some(token)].into_iter().flatten() {
            self.poured = true;
            self.step_again(token);
        }
        if there || back {
            // Either may have room now for what waits for it.
            self.touch(token);
            self.touch(twin);
        }
        true
    }

    /// A peer that is still there.
    pub fn peer(&mut self, token: Token) -> Option<&mut Peer> {
        self.peers.get_mut(token)
    }

    /// A peer, where heads are read into, and the settings: all that understanding what it sent takes.
    pub fn hear(&mut self, token: Token) -> Option<(&mut Peer, &mut Head, &Config)> {
        let Core { peers, head, config, .. } = self;
        peers.get_mut(token).map(|peer| (peer, head, &*config))
    }

    /// A peer that is about to be told something, and is touched by that.
    pub fn tell(&mut self, token: Token) -> Option<&mut Peer> {
        self.tell_much(token, 0)
    }

    /// The same for some so many bytes.
    pub fn tell_much(&mut self, token: Token, bytes: usize) -> Option<&mut Peer> {
        self.touch(token);
        let Core { peers, pool, now, .. } = self;
        let peer = peers.get_mut(token)?;
        peer.prepare(bytes, *now, pool);
        Some(peer)
    }

    /// Two peers between which something is carried, with what that takes; both are touched.
    pub fn between(&mut self, from: Token, to: Token) -> Option<(&mut Peer, &mut Peer, &mut Head, &Config)> {
        self.between_whom(from, to, usize::MAX)
    }

    /// The same where some `most` bytes of what the first one has are for the second.
    pub fn between_whom(
        &mut self,
        from: Token,
        to: Token,
        most: usize,
    ) -> Option<(&mut Peer, &mut Peer, &mut Head, &Config)> {
        let Core { peers, head, config, pool, now, touched, .. } = self;
        let (source, sink) = peers.pair_mut(from, to)?;
        for (peer, token) in [(&mut *source, from), (&mut *sink, to)] {
            if !peer.touched {
                peer.touched = true;
                touched.push(token);
            }
        }
        sink.prepare(source.input.len().min(most), *now, pool);
        Some((source, sink, head, &*config))
    }

    /// The same for bytes that nobody has to understand, with what they need to go past us.
    pub fn past(&mut self, from: Token, to: Token) -> Option<(&mut Peer, &mut Peer, &mut Pool)> {
        let Core { peers, pool, .. } = self;
        let (from, to) = peers.pair_mut(from, to)?;
        Some((from, to, pool))
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = (Token, &Peer)> {
        self.peers.iter()
    }

    /// The peer is to be flushed, and its deadline to be looked at, at the end of this turn.
    pub fn touch(&mut self, token: Token) {
        if let Some(peer) = self.peers.get_mut(token)
            && !peer.touched
        {
            peer.touched = true;
            self.touched.push(token);
        }
    }

    /// The peer is to be stepped, in this turn or the next.
    pub fn step_again(&mut self, token: Token) {
        self.steps.push_back(token);
        self.touch(token);
    }

    /// Reads what the last read of a peer may have left behind because its buffer was full. Before something is asked, that
    /// must be known: what waits in the socket would be taken for the answer.
    pub fn read_on(&mut self, token: Token) {
        let Core { peers, pool, config, .. } = self;
        let Some(peer) = peers.get_mut(token).filter(|peer| peer.can_read(config)) else { return };
        if peer.fill(pool, config).is_err() {
            peer.break_off();
        }
        self.step_again(token);
    }

    /// Ends a connection without another word. What was not sent yet is not sent.
    pub fn drop_peer(&mut self, token: Token) {
        if let Some(peer) = self.peers.get_mut(token) {
            peer.die();
            self.dead.push(token);
        }
    }

    /// Wakes the app with `key` after a while.
    pub fn set_timer(&mut self, after: Duration, key: usize) {
        self.timers.set(self.now + after, Key::App(key));
    }

    /// Looks a name up; the answer comes as [`Message::Resolved`] with this id.
    ///
    /// # Errors
    /// When the place is not a name, or no thread can be had.
    pub fn look_up(&self, place: &Place, id: usize) -> io::Result<()> {
        let Place::Host(host, port) = place else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mailbox = self.mailbox();
        resolve::look_up(host.clone(), *port, move |found| mailbox.send(Message::Resolved(id, found)))
    }

    /// Where this loop can be told news.
    pub fn mailbox(&self) -> Mailbox {
        self.mailbox.clone()
    }

    /// Takes a peer out of this loop, to be handed to another one. Its token is stale from now on.
    pub fn detach(&mut self, token: Token) -> Option<Box<Peer>> {
        let mut peer = self.peers.remove(token)?;
        if peer.armed.is_some() {
            self.timers.leave_behind();
        }
        self.buffered -= std::mem::take(&mut peer.counted);
        peer.leave(&self.registry);
        Some(Box::new(peer))
    }

    /// Takes a peer in that was detached from another loop.
    ///
    /// # Errors
    /// When the system won't watch it.
    pub fn adopt(&mut self, mut peer: Box<Peer>) -> io::Result<Token> {
        peer.transport().register(&self.registry, self.peers.next_token())?;
        let token = self.peers.insert(*peer);
        self.step_again(token);
        Ok(token)
    }

    /// Bytes of all peers' buffers and of the heads of their requests, as they were when each was last touched.
    pub fn buffered(&self) -> usize {
        self.buffered
    }

    /// The time of day.
    pub fn wall_clock(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// The loop and what runs on it.
#[derive(Debug)]
pub struct Reactor<A> {
    /// What the app works with; to be used before the loop starts.
    pub core: Core,
    /// What runs.
    pub app: A,
    poll: Poll,
    events: Events,
    inbox: Receiver<Message>,
    signals: Option<Signals>,
    wake: Wake,
}

/// When a turn began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    /// As it was to. Also directly behind a late one, so that a loop that is always late has deadlines nevertheless.
    InTime,
    /// Later than it was to, by more than [`OVERSLEPT`].
    Late,
}

impl<A: App> Reactor<A> {
    /// A loop around an app.
    ///
    /// # Errors
    /// When the system gives no poll.
    pub fn new(app: A, config: Config) -> io::Result<Reactor<A>> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let (sender, inbox) = mpsc::channel();
        let waker = Arc::new(Waker::new(&registry, WAKER)?);
        let core = Core {
            config,
            now: clock(),
            head: Head::default(),
            pool: Pool::default(),
            peers: Slots::default(),
            registry,
            timers: Timers::default(),
            listeners: Vec::new(),
            accept: Accept::Open,
            said_full: None,
            reads: Vec::new(),
            steps: VecDeque::new(),
            touched: Vec::new(),
            dead: Vec::new(),
            poured: false,
            buffered: 0,
            mailbox: Mailbox { sender, waker },
        };
        Ok(Reactor { core, app, poll, events: Events::with_capacity(EVENTS), inbox, signals: None, wake: Wake::InTime })
    }

    /// Stops in an orderly way at SIGINT and SIGTERM.
    ///
    /// # Errors
    /// When the signals can't be had.
    pub fn handle_signals(&mut self) -> io::Result<()> {
        self.signals = Some(Signals::register(self.poll.registry(), SIGNALS)?);
        Ok(())
    }

    /// Turns until the app says that it is over. Gives what the process is to exit with.
    ///
    /// # Errors
    /// When the poll itself fails.
    pub fn run(&mut self) -> io::Result<u8> {
        loop {
            if let Some(code) = self.app.exit(&self.core) {
                self.app.rest(&mut self.core);
                // What they were not sent yet they won't be: to the system, the end of the process is that of what it has.
                self.core.peers.iter_mut().for_each(Peer::die);
                if let Some(signals) = &self.signals {
                    signals.leave();
                }
                return Ok(code);
            }
            self.turn()?;
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        self.wait()?;
        self.read();
        for _ in 0..ROUNDS {
            self.core.poured = false;
            self.step();
            self.app.route(&mut self.core);
            self.gather()?;
            self.flush();
            if !self.core.poured {
                break;
            }
        }
        self.expire();
        self.reap();
        Ok(())
    }

    /// Where several requests share a connection, what is ready by now goes along in the same write.
    fn gather(&mut self) -> io::Result<()> {
        for _ in 0..GATHERS {
            if !self.app.is_gathering() {
                return Ok(());
            }
            match self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
                done => done?,
            }
            if self.events.is_empty() {
                return Ok(());
            }
            self.read();
            self.step();
            self.app.route(&mut self.core);
        }
        Ok(())
    }

    fn wait(&mut self) -> io::Result<()> {
        let core = &mut self.core;
        let listed = [core.reads.len(), core.steps.len(), core.touched.len(), core.dead.len()];
        let busy = listed.iter().any(|list| *list > 0) || core.knocks() || self.app.is_busy();
        let timeout = if busy {
            Some(Duration::ZERO)
        } else {
            self.app.rest(core);
            if core.pool.has_surplus() {
                core.timers.set(core.now + BYPASSES_REST, Key::Surplus);
            }
            // mio rounds up to whole milliseconds, so that a deadline is not waited for in a circle. That a turn takes a while is no
            // reason to look at the clock twice.
            core.timers.next().map(|at| at.since(core.now))
        };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => done?,
        }
        let before = core.now;
        core.now = clock();
        self.wake = match self.wake {
            Wake::InTime if timeout.is_some_and(|timeout| core.now.since(before) > timeout + OVERSLEPT) => Wake::Late,
            _ => Wake::InTime,
        };
        Ok(())
    }

    fn read(&mut self) {
        let Reactor { core, app, events, inbox, signals, .. } = self;
        // Taken out by number, so that the list keeps its memory: only `flush` adds to it.
        let left_over = core.reads.len();
        for at in 0..left_over {
            core.read_peer(app, core.reads[at]);
        }
        core.reads.drain(..left_over);
        for event in events.iter() {
            match event.token() {
                SIGNALS => match signals.as_mut().map_or(Asked::Nothing, Signals::take) {
                    Asked::Nothing => {}
                    Asked::ToStop => app.stop(core),
                    Asked::ToStopAtOnce => app.stop_at_once(core),
                },
                WAKER => {}
                Token(n) if n >= LISTENERS => {
                    if let Some(listener) = core.listeners.get_mut(n - LISTENERS) {
                        listener.ready = true;
                    }
                }
                token => {
                    let Some(peer) = core.peers.get_mut(token) else { continue };
                    let gone = match (event.is_error(), event.is_read_closed()) {
                        (true, _) => Gone::Whole,
                        (false, true) => Gone::Half,
                        (false, false) => Gone::No,
                    };
                    let readable = event.is_readable() || gone != Gone::No;
                    peer.ready(readable, event.is_writable() || event.is_write_closed(), gone);
                    if peer.is_connecting() {
                        core.connect_peer(app, token);
                    } else {
                        core.read_peer(app, token);
                    }
                }
            }
        }
        self.events.clear();
        while let Ok(message) = inbox.try_recv() {
            match message {
                Message::Stop => app.stop(core),
                Message::StopAtOnce => app.stop_at_once(core),
                message => app.message(core, message),
            }
        }
        core.accept(app);
    }

    fn step(&mut self) {
        // Those that ask to be stepped again while they are stepped have their turn in the next one.
        for _ in 0..self.core.steps.len() {
            let Some(token) = self.core.steps.pop_front() else { break };
            if self.core.peers.get(token).is_some_and(|peer| !peer.is_dead()) {
                self.app.step(&mut self.core, token);
            }
        }
    }

    fn flush(&mut self) {
        let Reactor { core, app, .. } = self;
        while let Some(token) = core.touched.pop() {
            let Some(peer) = core.peers.get_mut(token) else { continue };
            peer.touched = false;
            peer.end_turn();
            if peer.is_dead() {
                continue;
            }
            let flushed = match peer.twin.token() {
                Some(twin) => {
                    let gone = !core.pour(token, twin);
                    let unsent = core.peers.get(token).is_some_and(|peer| !peer.output.is_empty());
                    if gone && unsent { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
                }
                None => peer.flush(core.now),
            };
            let Some(peer) = core.peers.get_mut(token) else { continue };
            if let Err(error) = flushed {
                peer.go_deaf();
                app.lost(core, token, Loss::Deaf(error));
                continue;
            }
            if peer.wind_up(core.now) {
                peer.die();
                core.dead.push(token);
                continue;
            }
            // Room is an empty buffer: the kernel's own is full enough to bridge the moment until it is filled again.
            let room = peer.fed && !peer.is_connecting() && peer.output.is_empty();
            peer.fed &= !room;
            let read = peer.can_read(&core.config);
            peer.input.release(&mut core.pool);
            peer.output.release(&mut core.pool);
            let bytes = peer.input.memory() + peer.output.memory() + peer.head;
            let counted = std::mem::replace(&mut peer.counted, bytes);
            core.buffered = core.buffered - counted + peer.counted;
            if let Some((at, _)) = peer.deadline(&core.config.deadlines)
                && peer.armed.is_none_or(|armed| at < armed)
            {
                if peer.armed.replace(at).is_some() {
                    core.timers.leave_behind();
                }
                core.timers.set(at, Key::Peer(token));
            }
            if room {
                core.steps.push_back(token);
            }
            if read {
                core.reads.push(token);
            }
        }
    }

    fn expire(&mut self) {
        if self.wake == Wake::Late {
            // The next turn comes at once, and has heard what came in the meantime.
            return;
        }
        let Reactor { core, app, .. } = self;
        let mut due = false;
        while let Some((at, key)) = core.timers.pop(core.now) {
            due = true;
            match key {
                Key::Accept => {
                    core.accept = Accept::Open;
                    for listener in &mut core.listeners {
                        listener.ready = true;
                    }
                }
                Key::Surplus => core.pool.give_surplus_back(),
                Key::App(key) => app.timer(core, key),
                Key::Peer(token) => core.expire_peer(app, token, at),
            }
        }
        if due {
            self.app.route(&mut self.core);
            self.flush();
        }
    }

    fn reap(&mut self) {
        let Reactor { core, app, .. } = self;
        while let Some(token) = core.dead.pop() {
            let Some(mut peer) = core.peers.remove(token) else { continue };
            // Closing the socket takes it out of the poll.
            peer.input.consume(peer.input.len());
            peer.input.release(&mut core.pool);
            peer.output.clear();
            peer.output.release(&mut core.pool);
            core.buffered -= peer.counted;
            if let Some(twin) = peer.twin.token()
                && let Some(other) = core.peers.get_mut(twin)
            {
                other.hang_up();
                core.step_again(twin);
            }
            if peer.armed.is_some() {
                core.timers.leave_behind();
            }
            app.gone(core, token, peer);
        }
        let Core { peers, timers, .. } = core;
        timers.tidy(|at, key| match key {
            Key::Peer(token) => peers.get(*token).is_some_and(|peer| peer.armed == Some(at)),
            Key::Accept | Key::Surplus | Key::App(_) => true,
        });
    }
}

impl Core {
    fn read_peer(&mut self, app: &mut impl App, token: Token) {
        let Some(peer) = self.peers.get_mut(token).filter(|peer| !peer.is_dead()) else { return };
        if peer.can_read(&self.config)
            && let Err(error) = peer.fill(&mut self.pool, &self.config)
        {
            app.lost(self, token, Loss::Io(error));
            return;
        }
        self.step_again(token);
    }

    fn connect_peer(&mut self, app: &mut impl App, token: Token) {
        let Some(peer) = self.peers.get_mut(token) else { return };
        match peer.connected(self.now) {
            Ok(()) => self.step_again(token),
            Err(error) => app.lost(self, token, Loss::Io(error)),
        }
    }

    fn expire_peer(&mut self, app: &mut impl App, token: Token, entry: Instant) {
        let Some(peer) = self.peers.get_mut(token).filter(|peer| !peer.is_dead()) else { return };
        if peer.armed != Some(entry) {
            // An older entry: the one that counts is still in the queue.
            return;
        }
        peer.armed = None;
        self.touch(token);
        let Some(peer) = self.peers.get_mut(token) else { return };
        let Some((at, wait)) = peer.deadline(&self.config.deadlines) else { return };
        if at > self.now {
            return;
        }
        match wait {
            Wait::Linger => self.drop_peer(token),
            _ => app.lost(self, token, Loss::Late(wait)),
        }
    }

    /// Whether somebody is known to wait at the door.
    fn knocks(&self) -> bool {
        self.accept == Accept::Open && self.listeners.iter().any(|listener| listener.ready)
    }

    fn accept(&mut self, app: &mut impl App) {
        for number in 0..self.listeners.len() {
            for _ in 0..ACCEPTS {
                if self.accept != Accept::Open || !self.listeners[number].ready {
                    break;
                }
                match self.listeners[number].socket.accept() {
                    Ok((stream, address)) => {
                        self.welcome(app, Transport::Tcp(stream), address, self.listeners[number].door)
                    }
                    Err(error) => self.not_accepted(number, &error),
                }
            }
        }
    }

    fn welcome(&mut self, app: &mut impl App, transport: Transport, address: SocketAddr, door: Door) {
        let conn = match door {
            Door::Http => Conn::server(self.now),
            Door::Tunnel(_) => Conn::tunnel(self.now),
        };
        match self.add(transport, Remote::Ip(address), conn, false) {
            Ok(token) => app.accepted(self, token, door),
            Err(error) => log::warn!("can't watch the connection from {address}: {error}"),
        }
    }

    fn not_accepted(&mut self, number: usize, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.listeners[number].ready = false,
            // The visitor was gone before it was let in: the next one may be fine.
            io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted => {}
            // EMFILE, ENFILE, no memory: nothing that trying again at once would change. Said once for each time that it
            // begins, however often it is run into until it is over.
            _ => {
                if self.said_full.is_none_or(|said| self.now.since(said) > FULL_AGAIN) {
                    let open = self.peers.len();
                    if net::is_out_of_files(error) {
                        log::warn!(
                            "out of file descriptors with {open} connections open: new ones wait until some are closed \
                             (raise the limit with `ulimit -n`)"
                        );
                    } else {
                        log::warn!("can't accept connections with {open} open: {error}; new ones wait");
                    }
                }
                self.said_full = Some(self.now);
                self.accept = Accept::Resting;
                self.timers.set(self.now + ACCEPT_REST, Key::Accept);
            }
        }
    }
}

/// The one place that reads the monotonic clock. All loops of the process count from the same start, so that a peer can go from
/// one to another with what it waits for.
#[allow(clippy::disallowed_methods, reason = "this is the place that all others ask")]
fn clock() -> Instant {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    let now = std::time::Instant::now();
    let elapsed = now.saturating_duration_since(*START.get_or_init(|| now));
    Instant::from_micros(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
}
