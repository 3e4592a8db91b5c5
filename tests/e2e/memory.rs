//! What those cost who are there and say nothing.

use crate::support::Relay;
use crate::support::link::link_ours;
use crate::support::wire::Wire;

/// Enough for what each costs to stand out from what a program has anyway.
const CROWD: u64 = 2000;

/// What one may cost: a relay of 20,000 links has 80 MiB for them.
const EACH: u64 = 4 * 1024;

/// Lets a crowd come, and looks what each of it costs.
fn crowd(relay: &Relay, who: &str, come: impl Fn() -> Wire) -> Vec<Wire> {
    let before = relay.program.memory();
    let crowd = (0..CROWD).map(|_| come()).collect();
    let each = relay.program.memory().saturating_sub(before) / CROWD;
    assert!(each < EACH, "{each} bytes for each of {CROWD} {who}");
    crowd
}

#[test]
fn idle_links_and_visitors_cost_a_relay_little() {
    ptth::config::raise_file_limit();
    // Nobody here answers questions.
    let relay = Relay::start(&["--timeout", "ping=1h"]);
    let visitors = crowd(&relay, "visitors", || {
        // There were buffers for what it asked and was answered.
        let mut visitor = relay.visitor();
        visitor.send("OPTIONS * HTTP/1.1\r\nHost: x\r\nMax-Forwards: 0\r\n\r\n");
        assert_eq!(visitor.response("OPTIONS").status(), 204);
        visitor
    });
    let links = crowd(&relay, "links", || link_ours(&relay, "demo"));
    drop((visitors, links));
}
