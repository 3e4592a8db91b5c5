//! End to end: the built programs over loopback, one relay and one set of ports for each test, so that they can all run at
//! once. Each module is a part of what a user can rely on, each test a sentence of it.
//!
//! What the tests are made of is in `tests/support/`. A failed test prints what its programs had logged.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test that fails should say where, and a test is no event loop"
)]

#[path = "../support/mod.rs"]
mod support;

mod agents;
mod basics;
mod bodies;
mod comet;
mod credentials;
mod deadlines;
mod drain;
mod endings;
mod failures;
mod fallback;
mod fresh;
mod headers;
mod hostile;
mod limits;
mod lines;
mod links;
mod load;
mod logs;
mod memory;
mod messages;
mod past;
mod polls;
mod ptth;
mod resets;
mod restarts;
mod start;
mod streaming;
mod tcp;
mod upgrades;
mod workers;
