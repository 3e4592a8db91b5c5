//! Reverse HTTP without sockets and without a clock.
//!
//! A host that nobody can reach dials out and offers `Upgrade: PTTH/1.0`; after the 101 the roles on that connection are
//! swapped, and the dialling side serves HTTP. This crate holds everything of that which is protocol: it takes bytes and the
//! time, and gives events and bytes. It owns no buffer, reads no clock, opens no socket, and never panics on what a peer
//! sent. Out of scope: TLS, names, retries, what to answer.
//!
//! ```text
//!   bytes ─▶ wire: values ─▶ http, link: may it be said now? ─▶ Event ─▶ (whoever drives this)
//!   bytes ◀───────────────── wire ◀──────────────────────────── send_… ◀──────────┘
//! ```
//!
//! One whole conversation, the agent's side left and the relay's right:
//!
//! ```
//! use ptth_proto::conn::{Body, Config, Conn, Event};
//! use ptth_proto::link::upgrade::Token;
//! use ptth_proto::time::Instant;
//! use ptth_proto::wire::head::Head;
//!
//! let (now, config, mut head) = (Instant::default(), Config::default(), Head::default());
//! let (mut agent, mut relay) = (Conn::client(now), Conn::server(now));
//! let (mut to_relay, mut to_agent) = (Vec::new(), Vec::new());
//!
//! // The agent dials and offers; the relay takes the offer.
//! agent.send_offer(now, &mut to_relay, (b"/demo", b"relay.example"), Token::PTTH_1_0, |_| {})?;
//! let (used, event) = relay.recv(now, &to_relay, &mut head, &config)?;
//! assert_eq!(event, Some(Event::Offer(Token::PTTH_1_0)));
//! assert_eq!(head.target(), b"/demo");
//! to_relay.drain(..used);
//! relay.accept(now, &mut to_agent)?;
//!
//! // The turn: now the relay asks. Its request may share a segment with the 101.
//! relay.send_request(now, &mut to_agent, (b"GET", b"/hello"), Body::None, |f| f.field("Host", ""))?;
//! relay.send_end(now, None, &mut to_agent)?;
//! let (used, event) = agent.recv(now, &to_agent, &mut head, &config)?;
//! assert_eq!(event, Some(Event::Turned));
//! to_agent.drain(..used);
//! let (used, event) = agent.recv(now, &to_agent, &mut head, &config)?;
//! assert!(matches!(event, Some(Event::Request(_))));
//! assert_eq!((head.method(), head.target()), (&b"GET"[..], &b"/hello"[..]));
//! to_agent.drain(..used);
//! assert_eq!(agent.recv(now, &to_agent, &mut head, &config)?, (0, Some(Event::End { trailers: false })));
//!
//! // The agent answers.
//! agent.send_response(now, &mut to_relay, (200, b"OK"), Body::Length(5), |_| {})?;
//! agent.send_data(now, b"olleh", &mut to_relay)?;
//! agent.send_end(now, None, &mut to_relay)?;
//! assert_eq!(to_relay, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nolleh");
//! let (used, event) = relay.recv(now, &to_relay, &mut head, &config)?;
//! assert!(matches!(event, Some(Event::Response(_))));
//! assert_eq!(relay.recv(now, &to_relay[used..], &mut head, &config)?, (5, Some(Event::Data(b"olleh"))));
//! assert_eq!(relay.recv(now, b"", &mut head, &config)?, (0, Some(Event::End { trailers: false })));
//!
//! // Both are where they were after the turn.
//! assert!(relay.is_idle() && agent.is_idle());
//! # Ok::<(), ptth_proto::error::Error>(())
//! ```
#![no_std]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails should say where"))]

extern crate alloc;

pub mod conn;
pub mod error;
pub mod http;
pub mod limits;
pub mod link;
pub mod role;
pub mod time;
pub mod wire;
