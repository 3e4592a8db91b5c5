//! Every limit and every deadline: its name, its number, why, and who chose the same. An operator reads this one page; the
//! programs take each name in `--limit NAME=N` and `--timeout NAME=TIME`.

use core::time::Duration;

/// Declares a struct of named numbers with a default each, and the table by which they are found by name.
macro_rules! named_numbers {
    ($(#[$meta:meta])* $name:ident : $type:ty { $($(#[$doc:meta])* $field:ident = $key:literal, $default:expr, $about:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$doc])* pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                $name { $($field: $default,)* }
            }
        }

        impl $name {
            /// The names with a few words on each, in the order of this page: what `--help` lists.
            pub const NAMES: &'static [(&'static str, &'static str)] = &[$(($key, $about),)*];

            /// Sets the number called `name`. False, and nothing changes, when there is none of that name.
            pub fn set(&mut self, name: &str, value: $type) -> bool {
                match name {
                    $($key => self.$field = value,)*
                    _ => return false,
                }
                true
            }

            /// The number called `name`.
            pub fn get(&self, name: &str) -> Option<$type> {
                match name {
                    $($key => Some(self.$field),)*
                    _ => None,
                }
            }
        }
    };
}

named_numbers! {
    /// Sizes and counts that a peer can't exceed.
    Limits: usize {
        /// Bytes of one message's head, line ends included. A request beyond it gets 431, a response 502. Node allows
        /// 16 KiB, h11 16 KiB and then as much as one read brought, nginx 32 KiB in four buffers, Go 1 MiB; cookies
        /// and signed URLs of real applications pass 32 KiB at times.
        head = "head", 64 * 1024, "bytes of a message's head (431 beyond)";
        /// Fields in one head or trailer section. hyper and Apache allow 100. At most [`MAX_FIELDS`].
        fields = "fields", 100, "fields in a head (431 beyond)";
        /// Bytes of a chunk's size line with its extensions, CRLF included. Nobody sends extensions; without a limit they
        /// are a way to keep a connection busy for nothing (Go CVE-2023-39326). hyper allows 16 KiB for all of a body's.
        chunk_line = "chunk-line", 256, "bytes of a chunk's size line (400 beyond)";
        /// Bytes of a trailer section. Apache's LimitRequestFieldSize is 8190.
        trailers = "trailers", 8 * 1024, "bytes of a trailer section (431 beyond)";
        /// Body bytes of one direction that wait in memory for a slow reader before its writer is no longer read.
        /// Linux's own default for a pipe is 64 KiB.
        buffer = "buffer", 64 * 1024, "bytes held for a slow reader, each way";
        /// Bytes of a visitor's request body, in a relay. Off: what is too much is the upstream's to say (nginx 1 MiB, Apache and
        /// Node any length).
        body = "body", NONE, "bytes of a visitor's request body (413 beyond)";
        /// Bytes a second that a visitor's request has to bring, averaged over each time of [`Deadlines::body`]; what comes of its
        /// answer meanwhile counts as well. A note of a hundred bytes every ten seconds is a stream; a byte a second holds a
        /// link for nothing. Apache's RequestReadTimeout asks for 500.
        body_rate = "body-rate", 8, "bytes a second that a visitor's body has to bring (408 below)";
        /// Connections of visitors that a relay has in all; never more than its descriptors allow. Four times nginx's usual
        /// `worker_connections`, and a descriptor limit of 20,000 has room for it.
        connections = "connections", 16_384, "connections of visitors (503 beyond)";
        /// Those of one address; of IPv6, of one /64, which is what a household gets. A load test passes, and an office behind one
        /// address; and no machine takes everything.
        address_connections = "address-connections", 4096, "connections of one address (429 beyond)";
        /// Connections beyond either number that are let in to be told so: each has the time of [`Deadlines::linger`] to say what it
        /// wants, for it may be an agent's. Those beyond that are closed without a word.
        surplus = "surplus", 256, "connections too many that are told so";
        /// Requests of one tunnel that are under way, waiting or with a link: twice its links.
        tunnel_requests = "tunnel-requests", 8192, "requests of a tunnel under way (503 beyond)";
        /// Requests of one tunnel that wait for a link; those beyond get a 503 at once.
        waiting = "waiting", 1024, "requests of a tunnel that may wait for a link";
        /// The same of all tunnels: each visitor has one of them at most.
        waiting_all = "waiting-all", 16_384, "requests that may wait for a link in all (503 beyond)";
        /// Bytes of the buffers of all connections of a relay, and of the messages of agents that poll. Beyond it no request
        /// begins, and those under way go on: each of them is bounded by `buffer`.
        memory = "memory", 512 * 1024 * 1024, "bytes buffered in all (503 beyond)";
        /// Links of one tunnel. The newest always gets in: beyond the limit, the link that has been idle longest goes.
        links = "links", 4096, "links of a tunnel";
        /// Tunnels of one relay.
        tunnels = "tunnels", 10_000, "tunnels of a relay";
        /// Links or upstream connections that one request is tried on. nginx tries every server once; a stale pool shows
        /// itself after two.
        tries = "tries", 4, "links that one request may be tried on";
        /// Requests that a relay sends down a link of an agent of ours before the first of them is answered, when a tunnel has many quick
        /// ones. 1 is none. A turn of the loop seldom has more for one tunnel; and their answers fit into what a new TCP
        /// connection sends without waiting (10 segments).
        pipeline = "pipeline", 16, "requests on a link before the first is answered";
        /// Bytes of an answer's body, and of its head ([`WHOLE_HEAD`] at most), that may be given behind others on such a link, or
        /// before them; a larger one is set aside and has a link of its own. Sixteen of them delay the last one by a fifth of a second
        /// at 10 Mbit/s.
        whole = "whole", 16 * 1024, "bytes of an answer on a link that others wait for";
        /// Bytes of a body that travels as a message, where bodies are whole. nginx's `client_max_body_size`.
        message = "message", 1024 * 1024, "bytes of a body where bodies travel whole (413 or 502 beyond)";
        /// Bytes of one tunnel's messages, from their first byte to their answer: those beyond get a 503 at once. Sixteen of the
        /// largest.
        queue = "queue", 16 * 1024 * 1024, "bytes of a tunnel's messages (503 beyond)";
        /// Requests under way at an agent's upstream beyond which it takes no more that stand in lines, which wait then: each has a
        /// connection of its own. Half as many as the process may have files open, where that is less.
        upstream = "upstream", 1024, "requests at an agent's upstream before lines wait";
        /// Idle connections to the upstream that an agent keeps: a load that comes in waves finds those of the last one, and what is
        /// not needed goes after [`Deadlines::upstream_idle`]. nginx's documentation suggests 16 to 32 in `keepalive`, for pools that
        /// have no end of their own.
        upstream_idle = "upstream-idle", 1024, "idle upstream connections an agent keeps";
    }
}

/// A limit of this number is none.
pub const NONE: usize = usize::MAX;

/// Workers of a relay that is not told how many: one for each core it may run on, up to so many. An agent has two links to begin with,
/// and a visitor who comes to a worker without one has to move; what a worker brings is less, the more of them there are.
pub const WORKERS: usize = 8;

/// Descriptors of a relay that are not for visitors, of so many that it may have: for links, listeners, files, and bodies that go
/// past its memory.
pub const fn descriptors_kept(all: usize) -> usize {
    all / 8 + 2 * bypasses(all) + 16
}

/// Pipes of the kernel by which bodies go past the memory of a program that may have so many descriptors. One is in use until a
/// slow reader has taken what is in it; where there is none left, a body is read and written as ever. Linux
/// lets all pipes of a user have 64 MiB (`pipe-user-pages-soft`) and gives those beyond 8 KiB each: all of ours have half of
/// that, at [`BYPASS_PIPE`] each.
pub const fn bypasses(all: usize) -> usize {
    if all < 64 * 64 { all / 64 } else { 64 }
}

/// The share of one of so many loops, and no more than 16: as many readers of one loop may be slow before the bodies of others are
/// copied, and an agent next to a relay takes another eighth of what their user may have.
pub const fn bypasses_of_loop(all: usize, loops: usize) -> usize {
    let share = bypasses(all) / loops;
    if share < 16 { share } else { 16 }
}

/// How long the system is not asked for another such pipe when it had none to give, or too small a one ([`BYPASS_LEAST`]). To ask costs
/// five system calls.
pub const BYPASS_AGAIN: Duration = Duration::from_secs(1);

/// Pipes of a loop that stay when nothing needs them: a few long bodies at a time are common, a crowd of them is not. Those beyond go
/// back to the system after [`BYPASSES_REST`].
pub const BYPASSES_SPARE: usize = 4;

/// How long a pipe is not needed before it is given back. One that is made anew costs four system calls: nothing, once in this time.
pub const BYPASSES_REST: Duration = Duration::from_secs(1);

/// Bytes of one body that go past our memory in a turn of the loop, before all others have theirs: a tenth of a millisecond. With
/// half of that a body of 1 GiB costs a tenth more, with a quarter a quarter more.
pub const BYPASS: usize = 512 * 1024;

/// The size of such a pipe, as the kernel counts it: a whole page for each piece of a segment, which has a third of that on an
/// Ethernet. Smaller than Linux lets one pipe be (1 MiB), for it counts what all pipes of a user have: see [`bypasses`]. A body of 1 GiB
/// costs the same with either, and a seventh more with 256 KiB.
pub const BYPASS_PIPE: usize = BYPASS;

/// A pipe that got less than this is not worth having: a read takes as much at once, into a buffer of the size that Linux gives a new
/// pipe.
pub const BYPASS_LEAST: usize = 64 * 1024;

/// Bytes of a body that have to be still to come for it to go past our memory. Measured: it costs as much as to copy 4 KiB, and a fifth
/// less for the whole request where there are 12.
pub const BYPASS_FROM: u64 = 8 * 1024;

/// A body of which less than this is found at a time is read again, for it comes in small pieces: see [`BYPASS_FROM`].
pub const BYPASS_LITTLE: usize = 4 * 1024;

/// How soon an agent that may have no more files open tries again to connect its upstream, if none of its own was closed before:
/// one system call each time, and hardly a wait to those who wait.
pub const FILES_AGAIN: Duration = Duration::from_millis(100);

/// Bytes of the head of an answer that may be given behind others on a link, or before them, where [`Limits::whole`] is not less; and its
/// fields, and what stands behind its body. A relay that was told nothing else takes as many, whatever its agent does: one that it refuses
/// would cost all others on the link theirs.
pub const WHOLE_HEAD: usize = 16 * 1024;
/// See [`WHOLE_HEAD`].
pub const WHOLE_FIELDS: usize = 100;
/// See [`WHOLE_HEAD`]; with the size line of the last chunk.
pub const WHOLE_TRAILERS: usize = 8 * 1024;

/// Bytes and fields that a relay may add to a visitor's head: a link takes so much more, or what one hop lets through the next
/// one would refuse.
pub const RELAY_ADDS: (usize, usize) = (4 * 1024, 16);

impl Limits {
    /// These limits on a link.
    pub const fn of_link(&self) -> Limits {
        let (bytes, fields) = RELAY_ADDS;
        Limits { head: self.head.saturating_add(bytes), fields: self.fields.saturating_add(fields), ..*self }
    }
}

/// The most fields that one head may have, whatever [`Limits::fields`] says: the parser's table lives on the stack.
pub const MAX_FIELDS: usize = 256;

/// Empty lines that a server skips in front of a request line. RFC 9112 §2.2 asks for "at least one"; old browsers sent one
/// behind a POST body.
pub const BLANK_LINES: u8 = 2;

named_numbers! {
    /// How long each state may last. None is shorter than a person's patience or longer than a NAT's memory without reason.
    Deadlines: Duration {
        /// A request's head, from its first byte to its last. nginx 60 s, Apache 20 s, Go's documentation 5 s; a head is one
        /// segment or two.
        head = "head", Duration::from_secs(10), "a request's head, first byte to last (408 beyond)";
        /// A visitor's connection between requests. nginx 75 s, Apache 5 s, browsers themselves 60 to 300 s.
        idle = "idle", Duration::from_secs(60), "a visitor's connection without a request";
        /// A request's body, between two reads that bring something.
        body = "body", Duration::from_secs(60), "a request's body without a byte (408 beyond)";
        /// A TCP connection, each address of a name. curl waits 300 s, browsers 75 to 120 s; someone watches ours.
        connect = "connect", Duration::from_secs(10), "a connection being made, each address";
        /// From an agent's offer to the relay's 101, or from its poll to what comes of it. Yaler's devices wait 75 s, because its
        /// relay answers within 60.
        upgrade = "upgrade", Duration::from_secs(75), "the relay's answer to an agent's offer or poll";
        /// From the end of a request to the first byte of the upstream's response. nginx's `proxy_read_timeout`.
        answer = "answer", Duration::from_secs(60), "the upstream's first byte (504 beyond)";
        /// The same on a link: longer than `answer`, so that the hop that failed is the hop that says so. An agent of ours gives a
        /// sign of life every `ping` meanwhile, and each begins this time anew.
        link_answer = "link-answer", Duration::from_secs(75), "the first byte of an agent's answer (504 beyond)";
        /// An agent's answer in all, while it gives signs of life. What its own `answer` is, the relay can't know: it is as patient
        /// as with a `stream`, and not for ever.
        signs = "signs", Duration::from_secs(3600), "an agent's answer while it gives signs of life (504 beyond)";
        /// An idle link of an agent of ours before the relay asks whether the agent is still there; and an agent that waits for its
        /// upstream before it says that it is. The shortest NAT timeouts seen in the field are about 30 s, so that this keeps links
        /// open, too. HTTP/2 libraries ping every 10 to 60 s.
        ping = "ping", Duration::from_secs(10), "an idle link, or a late answer, before a sign of life";
        /// The answer to that question. With `ping` it makes 20 s until a dead link is known as one; a link over a satellite or a
        /// phone that wakes up may take seconds.
        pong = "pong", Duration::from_secs(10), "an agent's answer to the question whether it is there";
        /// Between our own two sides, a link without a byte of the other one: an idle one on the agent's side, one with a request on
        /// the relay's. Longer than `ping` and `pong` together, and than two signs that are lost to a slow path: who sets those on a
        /// relay sets this with its agents.
        silence = "silence", Duration::from_secs(30), "a link without any sign of the other side";
        /// A response's body between two reads that bring something. Event streams may be silent for long, and nobody
        /// notices when nothing is lost; but not for ever.
        stream = "stream", Duration::from_secs(3600), "a response's body without a byte";
        /// A tunnel, after an upgrade or for TCP, in which no byte goes either way. A WebSocket may rest for hours, a shell over
        /// night; TCP keep-alive watches both ends meanwhile. HAProxy's documentation has an hour in `timeout tunnel`.
        tunnel = "tunnel", Duration::from_secs(24 * 3600), "a tunnel or WebSocket without a byte";
        /// The same when one direction has ended: what is still to come is an answer. HAProxy: `timeout client-fin`.
        tunnel_end = "tunnel-end", Duration::from_secs(3600), "a tunnel without a byte, one direction of which has ended";
        /// Output that the peer doesn't take. nginx's `send_timeout`.
        write = "write", Duration::from_secs(60), "bytes that a peer does not take";
        /// A request waiting for a link of its tunnel.
        link = "link", Duration::from_secs(10), "a request waiting for a link (503 beyond)";
        /// After a visitor's end of input behind a whole request: most that do this are gone, some (`nc -N`) only half.
        half_close = "half-close", Duration::from_secs(2), "an answer to a visitor that closed its side";
        /// After our last byte, for the peer to read it before the socket goes: else a reset may overtake it (RFC 9112
        /// §9.6). nginx's `lingering_timeout` is 5 s.
        linger = "linger", Duration::from_secs(2), "a closed connection's last bytes to arrive";
        /// An agent's poll while there is nothing for it. `ptth_relay` holds one for 25 s, because its agent gives up after 30;
        /// proxies on the way seldom give up before 60.
        poll = "poll", Duration::from_secs(25), "an agent's poll while there is nothing for it";
        /// An agent that polls because its upgrade was refused, before it tries that again. Whoever is in the way is
        /// seldom gone sooner; the attempt is one small request.
        upgrade_again = "upgrade-again", Duration::from_secs(300), "an agent that polls tries the upgrade again";
        /// Visitors' idle connections after SIGTERM: a request may be on its way on one already, since its visitor can't know that we
        /// go. Longer than a round trip to anywhere, and short enough not to be waited for.
        farewell = "farewell", Duration::from_secs(1), "visitors' idle connections after a signal to stop";
        /// Running exchanges after SIGTERM. systemd kills after 90 s, Kubernetes after 30.
        drain = "drain", Duration::from_secs(30), "running exchanges after a signal to stop";
        /// An agent's link beyond its spare ones, without a request.
        spare = "spare", Duration::from_secs(30), "links beyond the spare ones to be let go";
        /// The first wait after a failed dial; doubles up to `backoff-max`, less up to half at random.
        backoff = "backoff", Duration::from_millis(500), "the first wait after a failed dial";
        /// The longest wait between two dials.
        backoff_max = "backoff-max", Duration::from_secs(30), "the longest wait between dials";
        /// An answer that is there, behind one that is not, on a link with several requests; or a part of an answer: then the one that
        /// is not, or not whole, is set aside. Answers to requests that came together differ by less, where nothing is slow.
        turn = "turn", Duration::from_millis(5), "an answer behind another one on a link";
        /// An answer that was set aside, for the relay to ask for it on a link of its own: as long as a request waits for one.
        aside = "aside", Duration::from_secs(10), "an answer set aside, for the relay to ask for it";
        /// An idle upstream connection. Node closes its own after 5 s, nginx after 75; closing first avoids the race.
        upstream_idle = "upstream-idle", Duration::from_secs(4), "an upstream connection without a request";
        /// TCP keep-alive: the first probe after this, then three more a third of it apart, so that a peer that is gone is
        /// noticed within twice this time. The shortest NAT timeouts seen in the field are about 30 s.
        keepalive = "keepalive", Duration::from_secs(15), "a silent connection before TCP keep-alive probes";
    }
}

/// net-ptth loses a request that shares a read with the 101: its own tests pause 500 ms, 50 ms served on a real path.
pub const NET_PTTH_PAUSE: Duration = Duration::from_millis(100);

/// net-ptth neither says a body's length nor closes behind it: silence of this length ends one.
pub const NET_PTTH_QUIET: Duration = Duration::from_millis(500);

/// Why a connection has a deadline at the moment: what a log line names when it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wait {
    /// [`Deadlines::head`]
    Head,
    /// [`Deadlines::idle`]
    Idle,
    /// [`Deadlines::body`]
    Body,
    /// [`Deadlines::connect`]
    Connect,
    /// [`Deadlines::upgrade`]
    Upgrade,
    /// [`Deadlines::answer`] or [`Deadlines::link_answer`]
    Answer,
    /// [`Deadlines::signs`]
    Signs,
    /// [`Deadlines::ping`]
    Ping,
    /// [`Deadlines::pong`]
    Pong,
    /// [`Deadlines::silence`]
    Silence,
    /// [`Deadlines::linger`], of a link whose end was announced.
    Leave,
    /// [`Deadlines::stream`]
    Stream,
    /// [`Deadlines::tunnel`]
    Tunnel,
    /// [`Deadlines::tunnel_end`]
    TunnelEnd,
    /// [`Deadlines::write`]
    Write,
    /// [`Deadlines::link`]
    Link,
    /// [`Deadlines::half_close`]
    HalfClose,
    /// [`Deadlines::linger`]
    Linger,
    /// [`Deadlines::turn`]
    Turn,
    /// [`Deadlines::aside`]
    Aside,
    /// [`Deadlines::upstream_idle`]
    UpstreamIdle,
    /// [`NET_PTTH_PAUSE`]
    Pause,
    /// [`NET_PTTH_QUIET`]
    Quiet,
}

impl Wait {
    /// The name of the deadline, as `--timeout` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Wait::Head => "head",
            Wait::Idle => "idle",
            Wait::Body => "body",
            Wait::Connect => "connect",
            Wait::Upgrade => "upgrade",
            Wait::Answer => "answer",
            Wait::Signs => "signs",
            Wait::Ping => "ping",
            Wait::Pong => "pong",
            Wait::Silence => "silence",
            Wait::Leave => "linger",
            Wait::Stream => "stream",
            Wait::Tunnel => "tunnel",
            Wait::TunnelEnd => "tunnel-end",
            Wait::Write => "write",
            Wait::Link => "link",
            Wait::HalfClose => "half-close",
            Wait::Linger => "linger",
            Wait::Turn => "turn",
            Wait::Aside => "aside",
            Wait::UpstreamIdle => "upstream-idle",
            Wait::Pause => "pause",
            Wait::Quiet => "quiet",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_found_by_its_name() {
        let mut limits = Limits::default();
        for (name, about) in Limits::NAMES {
            assert!(limits.set(name, 7), "{name}");
            assert_eq!(limits.get(name), Some(7));
            assert!(!about.is_empty());
        }
        let mut deadlines = Deadlines::default();
        for (name, _) in Deadlines::NAMES {
            assert!(deadlines.set(name, Duration::from_secs(7)), "{name}");
        }
        assert!(!deadlines.set("no-such", Duration::ZERO));
        assert!(MAX_FIELDS >= Limits::default().fields);
    }
}
