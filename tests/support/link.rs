//! An agent of bare bytes: a link that does what no sane agent would, or what agents of other makes do.

use super::Relay;
use super::wire::Wire;

/// The relay's answer to an offer: the one form that satisfies every known agent.
pub(crate) const SWITCH: &[u8] = b"HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\n\r\n";

/// The same to an agent that knows what `docs/links.md` says.
pub(crate) const SWITCH_OURS: &[u8] =
    b"HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\nPtth-Accept: ping\r\n\r\n";

/// The same to one that takes further requests before it has answered.
pub(crate) const SWITCH_LINES: &[u8] =
    b"HTTP/1.1 101 \r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\nPtth-Accept: ping, pipeline\r\n\r\n";

/// What an agent says on an idle link that is to be closed.
pub(crate) const LEAVE: &str = "HTTP/1.1 102 Processing\r\nConnection: close\r\n\r\n";

/// What it says while it works on a request.
pub(crate) const SIGN: &str = "HTTP/1.1 102 Processing\r\nPtth-Accept: ping\r\n\r\n";

/// What it answers when it is asked whether it is there.
pub(crate) const PONG: &str = "HTTP/1.1 204 No Content\r\n\r\n";

/// Offers a connection as a link of a tunnel, and reads the 101. From here on requests come on it.
pub(crate) fn link(relay: &Relay, name: &str) -> Wire {
    offer(relay, name, "", SWITCH)
}

/// The same as an agent that knows what `docs/links.md` says.
pub(crate) fn link_ours(relay: &Relay, name: &str) -> Wire {
    offer(relay, name, "Ptth-Accept: ping\r\n", SWITCH_OURS)
}

/// The same as an agent that takes further requests before it has answered, and is called this.
pub(crate) fn link_lines(relay: &Relay, name: &str, agent: u64) -> Wire {
    offer(relay, name, &format!("Ptth-Accept: ping, pipeline\r\nPtth-Aside: {agent:016x}\r\n"), SWITCH_LINES)
}

/// What such an agent says when it sets an answer aside.
pub(crate) fn aside(agent: u64, rest: &str) -> String {
    format!("HTTP/1.1 102 Processing\r\nPtth-Aside: {agent:016x}-{rest}\r\n\r\n")
}

fn offer(relay: &Relay, name: &str, more: &str, switch: &[u8]) -> Wire {
    let mut wire = relay.visitor();
    wire.send(format!(
        "POST /{name} HTTP/1.1\r\nHost: relay.example\r\nUpgrade: PTTH/1.0\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\
         {more}\r\n"
    ));
    let answer = wire.raw(switch.len());
    assert_eq!(answer.escape_ascii().to_string(), switch.escape_ascii().to_string());
    wire
}
