//! Bytes to values and back: heads, fields, chunks. No role, no time, no memory of the past. Each reader has three answers,
//! never two: here it is, more is needed, or this is wrong; none panics, whatever the bytes.

pub mod chunk;
pub mod fields;
pub mod head;
