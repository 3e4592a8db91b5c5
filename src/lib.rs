//! ptth: Reverse HTTP. A host that nobody can reach dials out, asks `Upgrade: PTTH/1.0`, and after the 101 the roles on that
//! socket are swapped: it now serves HTTP.
//!
//! This crate is what the two programs are made of; everything of it that is protocol and nothing else is in
//! [`ptth_proto`]. In reading order: [`net`] carries bytes, [`peer`] is a live connection, [`reactor`] the event loop,
//! [`bridge`] takes a request from one peer to another, [`relay`] and [`agent`] are what either program does with that,
//! [`cli`] and [`config`] how a person tells it to. `ARCHITECTURE.md` has the picture.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails should say where"))]

pub mod agent;
pub mod answer;
pub mod bridge;
pub mod cli;
pub mod config;
pub mod log;
pub mod net;
pub mod peer;
pub mod reactor;
#[cfg(feature = "relay")]
pub mod relay;
