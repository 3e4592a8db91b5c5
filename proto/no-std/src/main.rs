//! The conversation of `ptth-proto`'s first page on a host without std: an agent offers, a relay takes the offer, asks, and
//! gets its answer. The exit code is 0 when all of it was as it should be.

#![no_std]
#![no_main]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::panic::PanicInfo;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicUsize, Ordering};

use ptth_proto::conn::{Body, Config, Conn, Event};
use ptth_proto::error::{Error, Misuse};
use ptth_proto::link::upgrade::Token;
use ptth_proto::time::Instant;
use ptth_proto::wire::head::Head;

extern crate alloc;
use alloc::vec::Vec;

/// All the memory that both sides of the conversation get.
const MEMORY: usize = 8 * 1024;

/// Hands out memory and takes none back: enough for one conversation.
struct Arena {
    memory: UnsafeCell<[u8; MEMORY]>,
    used: AtomicUsize,
}

// SAFETY: each byte of the memory is given out once at most, because `used` only grows and is changed atomically.
unsafe impl Sync for Arena {}

// SAFETY: what is given out lies inside the arena, is aligned, and overlaps nothing that was given out before.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start = self.memory.get().cast::<u8>();
        let mut at = 0;
        let found = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            at = used + start.wrapping_add(used).align_offset(layout.align());
            at.checked_add(layout.size()).filter(|end| *end <= MEMORY)
        });
        if found.is_ok() { start.wrapping_add(at) } else { null_mut() }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ARENA: Arena = Arena { memory: UnsafeCell::new([0; MEMORY]), used: AtomicUsize::new(0) };

// What the host needs to start a program and to end one. A board has its own.
#[link(name = "c")]
unsafe extern "C" {
    fn abort() -> !;
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    // SAFETY: abort takes nothing and does not return.
    unsafe { abort() }
}

/// Where the host's C library starts the program.
// SAFETY: no other function of the program has this name.
#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    match converse() {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(_) => 2,
    }
}

fn converse() -> Result<bool, Error> {
    let (now, config, mut head) = (Instant::default(), Config::default(), Head::default());
    let (mut agent, mut relay) = (Conn::client(now), Conn::server(now));
    let (mut to_relay, mut to_agent) = (Vec::new(), Vec::new());

    agent.send_offer(now, &mut to_relay, (b"/board", b"relay.example"), Token::PTTH_1_0, |_| {})?;
    let (used, event) = relay.recv(now, &to_relay, &mut head, &config)?;
    let offered = matches!(event, Some(Event::Offer(_)));
    to_relay.drain(..used);
    relay.accept(now, &mut to_agent)?;

    relay.send_request(now, &mut to_agent, (b"GET", b"/led"), Body::None, |f| f.field("Host", ""))?;
    relay.send_end(now, None, &mut to_agent)?;
    let (used, event) = agent.recv(now, &to_agent, &mut head, &config)?;
    let turned = event == Some(Event::Turned);
    to_agent.drain(..used);
    let (used, _) = agent.recv(now, &to_agent, &mut head, &config)?;
    let asked = head.method() == b"GET" && head.target() == b"/led";
    to_agent.drain(..used);
    agent.recv(now, b"", &mut head, &config)?;

    agent.send_response(now, &mut to_relay, (200, b"OK"), Body::Stream, |_| {})?;
    agent.send_data(now, b"on", &mut to_relay)?;
    agent.send_end(now, None, &mut to_relay)?;

    let mut body = Vec::new();
    loop {
        let (used, event) = relay.recv(now, &to_relay, &mut head, &config)?;
        match event {
            Some(Event::Data(data)) => body.extend_from_slice(data),
            Some(Event::End { .. }) => break,
            None => return Err(Error::Local(Misuse::OutOfTurn)),
            _ => {}
        }
        to_relay.drain(..used);
    }
    Ok(offered && turned && asked && body == b"on" && relay.is_idle() && agent.is_idle())
}
