//! What a connection says, in a word: for stories in which only the order counts.

use ptth_proto::conn::Event;

pub(crate) fn word(event: &Event<'_>) -> &'static str {
    match event {
        Event::Request(_) => "request",
        Event::Offer(_) => "offer",
        Event::Informational => "informational",
        Event::Alive => "alive",
        Event::Aside => "aside",
        Event::Leaving => "leaving",
        Event::Response(_) => "response",
        Event::Turned => "turned",
        Event::Switched => "switched",
        Event::Data(_) => "data",
        Event::End { .. } => "end",
        Event::Closed => "closed",
    }
}
