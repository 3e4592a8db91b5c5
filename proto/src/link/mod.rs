//! How a connection becomes a link: the handshake of each dialect and the turn, and what is tolerated of known peers.

pub mod queue;
pub mod upgrade;
