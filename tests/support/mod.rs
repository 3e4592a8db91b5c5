//! What end-to-end tests are made of: the two built programs as child processes ([`Relay`], [`Agent`]), both ends of an HTTP
//! connection in raw bytes ([`wire`]), a server behind the agent that does as it is told ([`upstream`]), and an agent of bare
//! bytes ([`link`]).
//!
//! Nothing here waits by the clock: whoever waits names what for, and gives up after [`PATIENCE`], which is far beyond what
//! any machine needs.

#![allow(dead_code, reason = "no test uses all of it")]

pub(crate) mod link;
pub(crate) mod random;
pub(crate) mod upstream;
pub(crate) mod wire;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use wire::Wire;

/// After so long, what a test waits for is taken never to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How often a test looks in that time.
const TRIES: u32 = 5000;

/// Lines that a program has written so far, read in the background.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    state: Mutex<(Vec<String>, bool)>,
    news: Condvar,
}

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Arc<Lines> {
        let lines = Arc::new(Lines::default());
        let writer = Arc::clone(&lines);
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                locked(&writer.state).0.push(String::from_utf8_lossy(&line).into_owned());
                writer.news.notify_all();
            }
            locked(&writer.state).1 = true;
            writer.news.notify_all();
        });
        lines
    }

    /// Those so far.
    pub(crate) fn so_far(&self) -> Vec<String> {
        locked(&self.state).0.clone()
    }

    /// All of them; the program has ended, or is about to.
    pub(crate) fn all(&self) -> Vec<String> {
        let state = locked(&self.state);
        let (state, timeout) = self.news.wait_timeout_while(state, PATIENCE, |(_, over)| !*over).unwrap();
        assert!(!timeout.timed_out(), "the program has not ended");
        state.0.clone()
    }

    /// How many lines have this text in them.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.so_far().iter().filter(|line| line.contains(text)).count()
    }

    /// Waits for the first line with this text in it.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        self.wait_for_count(1, text).remove(0)
    }

    /// Waits until so many lines have this text in them, and gives them.
    pub(crate) fn wait_for_count(&self, count: usize, text: &str) -> Vec<String> {
        let found = |lines: &[String]| lines.iter().filter(|line| line.contains(text)).cloned().collect::<Vec<_>>();
        let state = locked(&self.state);
        let too_few = |(lines, over): &mut (Vec<String>, bool)| !*over && found(lines).len() < count;
        let (state, _) = self.news.wait_timeout_while(state, PATIENCE, too_few).unwrap();
        let found = found(&state.0);
        let all = state.0.join("\n");
        assert!(found.len() >= count, "`{text}` is not {count} times, but {} times in\n{all}", found.len());
        found
    }
}

/// A program that runs, and is killed when the test is over, however it ends.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    pub(crate) out: Arc<Lines>,
    pub(crate) log: Arc<Lines>,
}

impl Program {
    /// Starts a command with everything it writes taken in.
    pub(crate) fn start(command: &mut Command) -> Program {
        for variable in ["PTTH_VIA", "PTTH_NAME", "PTTH_TOKEN"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let out = Lines::of(child.stdout.take().unwrap());
        let log = Lines::of(child.stderr.take().unwrap());
        Program { child, out, log }
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Asks it to stop.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Stops it in the middle of whatever it does, as a laptop's lid would.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
        // The signal takes effect at once, but for each of its threads by itself.
        eventually("the process to be stopped", || self.status_of("State").contains("T (stopped)").then_some(()));
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    pub(crate) fn exit(&mut self) -> ExitStatus {
        let status = (0..TRIES).find_map(|_| {
            let status = self.child.try_wait().unwrap();
            if status.is_none() {
                pause();
            }
            status
        });
        status.unwrap_or_else(|| panic!("the program has not ended; its log:\n{}", self.log.so_far().join("\n")))
    }

    /// Waits for its end and gives its exit code.
    pub(crate) fn exit_code(&mut self) -> i32 {
        let status = self.exit();
        status.code().unwrap_or_else(|| panic!("ended by a signal: {status}"))
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// A value from `/proc/PID/status`.
    pub(crate) fn status_of(&self, key: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {key} in\n{text}")).trim().to_owned()
    }

    /// The most memory that it ever had, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.bytes_of("VmHWM")
    }

    /// The memory that it has, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.bytes_of("VmRSS")
    }

    fn bytes_of(&self, key: &str) -> u64 {
        let kib = self.status_of(key);
        kib.strip_suffix(" kB").and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_else(|| panic!("{key} {kib}")) * 1024
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How many files it has open.
    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Lets it open so many files more, and no others.
    pub(crate) fn leave_files(&self, more: usize) {
        let open = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let open: Vec<u64> = open.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
        // A new file has the lowest number that is free, and a number has to be below the limit.
        let last = (0..).filter(|number| !open.contains(number)).nth(more).unwrap();
        let most = Rlimit { current: Some(last), maximum: getrlimit(Resource::Nofile).maximum };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, most).unwrap();
    }

    /// Waits until it has closed all but so many files.
    pub(crate) fn wait_for_files(&self, most: usize) {
        let mut open = 0;
        let mut look = || {
            open = self.open_files();
            open <= most
        };
        assert!((0..TRIES).any(|_| look() || pause()), "{open} files are open, not {most}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- stdout\n{}\n--- stderr\n{}", self.out.so_far().join("\n"), last(&self.log.so_far(), 60));
        }
    }
}

/// The end of a long log.
fn last(lines: &[String], most: usize) -> String {
    lines[lines.len().saturating_sub(most)..].join("\n")
}

/// A command for the relay.
pub(crate) fn relay_command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptth-relay"));
    command.args(args);
    command
}

/// A command for the agent, which reaches its relay as the tests of this program have it.
pub(crate) fn agent_command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptth-reverse"));
    command.args(dialect().flags()).args(args);
    command
}

/// How agents reach their relay. The end-to-end tests are there once, and run once over each of these: which one it is depends
/// on the program that they were built into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// By connections that are turned. The agents are left to find that out.
    Flip,
    /// By polls, with messages of COMET: whole both ways.
    Comet,
    /// By polls, with messages of the `ptth` dialect: whole on the way to the agent, streams on the way back.
    Ptth,
}

/// That of the tests of this program.
pub(crate) fn dialect() -> Dialect {
    match env!("CARGO_CRATE_NAME") {
        "over_comet" => Dialect::Comet,
        "over_ptth" => Dialect::Ptth,
        _ => Dialect::Flip,
    }
}

impl Dialect {
    /// The agent's flags for it.
    pub(crate) fn flags(self) -> &'static [&'static str] {
        match self {
            Dialect::Flip => &[],
            Dialect::Comet => &["--dialect", "comet"],
            Dialect::Ptth => &["--dialect", "ptth-relay"],
        }
    }

    /// Where an agent says that its tunnel is found.
    pub(crate) fn public_url(self, port: u16, name: &str) -> String {
        match (self, name) {
            (Dialect::Ptth, _) => format!("http://127.0.0.1:{port}/frontend/servers/{name}/"),
            (_, "default") => format!("http://localhost:{port}/"),
            _ => format!("http://{name}.localhost:{port}/"),
        }
    }
}

/// What not every dialect carries. A test that is about one of these has to be left out there ([`lacks`]), and one that only
/// uses it looks at less ([`carries`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A request's body while it comes; and with it, its end that never comes, its trailers, an answer before that end, and a
    /// word of the upstream's on whether it wants the body at all.
    ComingRequest,
    /// A response's body while it comes, its end that never comes, and its trailers.
    ComingResponse,
    /// Responses in front of the response (103).
    Interim,
}

/// Whether the dialect of this program's tests has this.
pub(crate) fn carries(part: Part) -> bool {
    match (dialect(), part) {
        (Dialect::Flip, _) | (Dialect::Ptth, Part::ComingResponse) => true,
        (Dialect::Comet | Dialect::Ptth, _) => false,
    }
}

/// Whether it doesn't, so that there is nothing to be tested.
pub(crate) fn lacks(part: Part) -> bool {
    let lacks = !carries(part);
    if lacks {
        eprintln!("not tested: messages of {:?} have no {part:?}", dialect());
    }
    lacks
}

/// What a visitor gets of an answer of status 200 that broke off at the upstream behind this much of its body: a part of that,
/// and no clean end. Where answers are whole, this one is none, and the visitor is told so. Gives the status and the code.
pub(crate) fn expect_broken(visitor: &mut Wire, part: &[u8]) -> (u16, &'static str) {
    if !carries(Part::ComingResponse) {
        let answer = visitor.response("GET");
        assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream-lost"));
        return (502, "upstream-lost");
    }
    assert_eq!(visitor.response_head("GET").unwrap().0.status(), 200);
    let mut body = Vec::new();
    visitor.rest(&mut body).expect_err("a body that broke off has a clean end");
    // Whatever of it was there may have arrived, and nothing else.
    assert!(part.starts_with(&body), "{}", body.escape_ascii());
    (200, "link-lost")
}

/// A relay that listens.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) program: Program,
    pub(crate) port: u16,
}

impl Relay {
    /// Starts one on a port that the system chooses.
    pub(crate) fn start(args: &[&str]) -> Relay {
        Relay::start_on(0, args)
    }

    /// Starts one on this port.
    pub(crate) fn start_on(port: u16, args: &[&str]) -> Relay {
        let mut command = relay_command(&["--listen", &format!("127.0.0.1:{port}"), "-v"]);
        if !args.contains(&"--workers") {
            // Which link has its turn, and what some limits come to, is for each worker by itself.
            command.args(["--workers", "1"]);
        }
        Relay::run(command.args(args))
    }

    /// Starts one by a command of the test's own.
    pub(crate) fn run(command: &mut Command) -> Relay {
        let program = Program::start(command);
        let line = program.log.wait_for("listening on http://127.0.0.1:");
        let port =
            line.split("http://127.0.0.1:").nth(1).and_then(|rest| rest.split([',', '/', ' ']).next()?.parse().ok());
        Relay { port: port.unwrap_or_else(|| panic!("no port in `{line}`")), program }
    }

    /// What agents are given as `--via`.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A visitor's connection.
    pub(crate) fn visitor(&self) -> Wire {
        Wire::connect(self.port)
    }

    /// A visitor's GET on a connection of its own: the whole answer.
    pub(crate) fn get(&self, tunnel: &str, target: &str) -> wire::Message {
        self.visitor().get(tunnel, target)
    }

    /// The lines of its log so far and from now on.
    pub(crate) fn log(&self) -> &Lines {
        &self.program.log
    }
}

/// An agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) program: Program,
    pub(crate) url: String,
}

impl Agent {
    /// Starts one for an upstream, and waits until its tunnel stands.
    pub(crate) fn start(relay: &Relay, name: &str, upstream: &str, args: &[&str]) -> Agent {
        Agent::run(agent_command(&[upstream, "--via", &relay.url(), "--name", name, "-v"]).args(args))
    }

    /// Starts one by a command of the test's own.
    pub(crate) fn run(command: &mut Command) -> Agent {
        let program = Program::start(command);
        let url = program.out.wait_for("http://");
        Agent { program, url }
    }

    /// The lines of its log so far and from now on.
    pub(crate) fn log(&self) -> &Lines {
        &self.program.log
    }
}

/// What a mutex guards, even if a thread that held it has failed: the others go on, and what is over is cleaned up.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks again and again, with a pause in between, until there is an answer.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    for _ in 0..TRIES {
        if let Some(answer) = ask() {
            return answer;
        }
        pause();
    }
    panic!("waited in vain for {what}")
}

/// Lets others work for a moment, before a test looks again. Always false.
fn pause() -> bool {
    thread::sleep(PATIENCE / TRIES);
    false
}

/// A port that nothing listens on, and that stays free: below those that the system gives to connections of its own accord.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 20_000;
    const PORTS: u32 = 12_000;
    // Other test processes look for ports in other places.
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..PORTS {
        let port = FIRST + ((start + u32::from(NEXT.fetch_add(1, Ordering::Relaxed))) % PORTS) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port")
}

/// A path for a file of this test alone, removed when the test is over.
#[derive(Debug)]
pub(crate) struct TempPath(pub(crate) PathBuf);

impl TempPath {
    pub(crate) fn new(what: &str) -> TempPath {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("ptth-{}-{}-{what}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        TempPath(env::temp_dir().join(name))
    }

    pub(crate) fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
