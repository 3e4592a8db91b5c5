//! What the fuzz targets do with their bytes. Each takes any bytes and panics when a promise of `ptth-proto` is broken; the
//! programs in `fuzz_targets/` only call them, and so does a short test here, so that `cargo test` has tried them too.
//!
//! `make fuzz` looks for more; `fuzz/README.md` says what each target promises.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken promise is to be seen")]

mod bytes;
mod messages;
mod ops;
mod pair;
#[cfg(test)]
mod tests;
mod values;

pub use bytes::conn_bytes;
pub use messages::{comet, packed};
pub use ops::conn_ops;
pub use pair::pair;
pub use values::{chunk, head, upgrade};

use ptth_proto::conn::{Body, Config, Conn};
use ptth_proto::role::Role;
use ptth_proto::time::Instant;

/// What a connection keeps to in every state.
fn sound(conn: &Conn, config: &Config) {
    if conn.closing().is_some() {
        assert!(conn.close_reason().is_some() && !conn.is_idle() && !conn.is_link());
    }
    if conn.is_idle() {
        assert!(conn.role().is_some() && conn.wants_read() && !conn.is_speaking());
    }
    // What it says can be done can be done.
    if conn.can_respond() {
        conn.clone().send_response(Instant::default(), &mut Vec::new(), (408, b""), Body::None, |_| {}).unwrap();
    }
    if conn.is_idle() && conn.role() == Some(Role::Client) {
        conn.clone().send_request(Instant::default(), &mut Vec::new(), (b"GET", b"/"), Body::None, |_| {}).unwrap();
    }
    if conn.is_tunnel() {
        assert!(conn.role().is_none() && !conn.can_respond() && !conn.is_idle() && !conn.is_link());
        assert!(conn.is_half_closed() == (!conn.is_speaking() && !conn.has_heard_all()));
    }
    // It is waited for us or for the peer, and for the peer not for ever.
    let ours = conn.closing().is_some() || conn.is_idle() || conn.is_speaking() || conn.can_respond();
    assert!(ours || conn.deadline(&config.deadlines).is_some(), "it may hang: {conn:?}");
}
