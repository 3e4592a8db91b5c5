//! An agent of bare bytes: a link that does what no sane agent would, or what agents of other makes do.

use super::Relay;
use super::wire::Wire;

/// The relay's answer to an offer: the one form that satisfies every known agent.
pub(crate) const SWITCH: &[u8] = b"HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n";

/// Offers a connection as a link of a tunnel, and reads the 101. From here on requests come on it.
pub(crate) fn link(relay: &Relay, name: &str) -> Wire {
    let mut wire = relay.visitor();
    wire.send(format!(
        "POST /{name} HTTP/1.1\r\nHost: relay.example\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n"
    ));
    let answer = wire.raw(SWITCH.len());
    assert_eq!(answer.escape_ascii().to_string(), SWITCH.escape_ascii().to_string());
    wire
}
