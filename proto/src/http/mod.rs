//! One exchange of HTTP/1: who may say what next ([`exchange`]), how long a body is ([`framing`]), and the reading and
//! writing of bodies ([`body`]).

pub mod body;
pub mod exchange;
pub mod framing;
