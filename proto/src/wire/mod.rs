//! Bytes to values and back: heads, fields, chunks, and whole messages in the notations of the polls. No role, no time, no
//! memory of the past. Readers of a stream have three answers, never two: here it is, more is needed, or this is wrong; those
//! of a whole message have two. None panics, whatever the bytes.

mod bytes;
pub mod chunk;
pub mod comet;
pub mod fields;
pub mod head;
mod literal;
pub mod message;
pub mod packed;
