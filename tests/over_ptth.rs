//! End to end over the `ptth` dialect, in the form that our own programs have among themselves: the tests of `e2e/` once more,
//! with agents that poll. Where they differ by dialect, they say so themselves (`tests/support/mod.rs`).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test that fails should say where, and a test is no event loop"
)]

mod support;

#[path = "e2e/basics.rs"]
mod basics;
#[path = "e2e/bodies.rs"]
mod bodies;
#[path = "e2e/credentials.rs"]
mod credentials;
#[path = "e2e/deadlines.rs"]
mod deadlines;
#[path = "e2e/endings.rs"]
mod endings;
#[path = "e2e/failures.rs"]
mod failures;
#[path = "e2e/headers.rs"]
mod headers;
#[path = "e2e/load.rs"]
mod load;
#[path = "e2e/logs.rs"]
mod logs;
#[path = "e2e/messages.rs"]
mod messages;
#[path = "e2e/restarts.rs"]
mod restarts;
#[path = "e2e/start.rs"]
mod start;
#[path = "e2e/streaming.rs"]
mod streaming;
#[path = "e2e/workers.rs"]
mod workers;
