//! One exchange of HTTP/1: who may say what next ([`exchange`]), how long a body is ([`framing`]), the reading and writing of
//! bodies ([`body`]), and what follows an upgrade or a CONNECT ([`tunnel`]).

pub mod body;
pub mod exchange;
pub mod framing;
pub mod tunnel;
