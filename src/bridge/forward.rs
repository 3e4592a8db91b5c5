//! What of a request goes on to the next hop: its fields, its word on trailers, the protocols it offers.

use ptth_proto::http::tunnel;
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::{FieldWriter, Head, Version};

use super::exchange::{Exchange, Kind};
use super::{Side, hops};

/// Writes the fields of a request that go on to the next hop, all but `Host` and those that are not wanted there, and whether
/// trailers are.
pub(crate) fn pass_on(exchange: &Exchange, fields: &mut FieldWriter<'_>, is_wanted: impl Fn(Name) -> bool) {
    let head = &exchange.head;
    for field in head.fields.end_to_end() {
        let passes = match field.known {
            Name::Host => false,
            // RFC 9110 §10.1.1: ignored where it is HTTP/1.0's, and the next hop sees our version and not that one.
            Name::Expect if is_http10(head) => false,
            known => is_wanted(known),
        };
        if passes {
            hops::pass(head, field, fields);
        }
    }
    // Behind a 101 there are none; and of two lines of `Connection` some servers read only the first.
    if exchange.kind == Kind::Http && takes_trailers(head) {
        fields.field("TE", "trailers");
        fields.field("Connection", "TE");
    }
}

/// Whether whoever asks has said that it takes trailers (RFC 9110 §10.1.4). We pass them on, so the next hop is told; of the
/// other codings that `TE` may name, none goes through.
pub(crate) fn takes_trailers(head: &Head) -> bool {
    head.fields.lists(Name::Te, b"trailers") && !is_http10(head)
}

/// Whether a message is of HTTP/1.0.
pub fn is_http10(head: &Head) -> bool {
    head.version() == Version::Http10
}

/// Whether a visitor may go on with this protocol.
pub(super) fn passes(side: &impl Side, token: &[u8]) -> bool {
    !tunnel::is_never_passed(token) && side.switches(token)
}
