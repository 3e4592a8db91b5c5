//! `Max-Forwards` (RFC 9110 §7.6.2): how many more programs an OPTIONS or a TRACE may pass. Whoever it reaches with 0 answers it
//! itself; everyone else takes one off. On any other request the field means nothing and goes along.

use ptth_proto::wire::fields::{Field, Name};
use ptth_proto::wire::head::{FieldWriter, Head};

/// How many more programs the request may pass; `None` when it does not say so, or not in a number.
pub(crate) fn left(head: &Head) -> Option<u64> {
    let counts = head.fields.has(Name::MaxForwards) && matches!(head.method(), b"OPTIONS" | b"TRACE");
    counts.then(|| head.fields.first(Name::MaxForwards).and_then(number)).flatten()
}

/// Passes a field of the request on.
pub(crate) fn pass(head: &Head, field: Field<'_>, fields: &mut FieldWriter<'_>) {
    if field.known == Name::MaxForwards
        && left(head).is_some()
        && let Some(left) = number(field.value)
    {
        return fields.field(field.name, left.saturating_sub(1).to_string());
    }
    fields.copy(field);
}

fn number(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    // What is too large to be counted is as good as no end.
    digits.then(|| std::str::from_utf8(value).ok()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptth_proto::limits::Limits;

    fn request(method: &str, value: &str) -> Head {
        let mut head = Head::default();
        let text = format!("{method} / HTTP/1.1\r\nHost: x\r\nMax-Forwards: {value}\r\n\r\n");
        head.parse_request(text.as_bytes(), &Limits::default()).unwrap();
        head
    }

    #[test]
    fn hops_are_counted_where_they_mean_something() {
        for (method, value, expected) in [
            ("OPTIONS", "0", Some(0)),
            ("TRACE", "10", Some(10)),
            ("GET", "0", None),
            ("options", "0", None),
            ("OPTIONS", "", None),
            ("OPTIONS", "-1", None),
            ("OPTIONS", "+1", None),
            ("OPTIONS", "1, 2", None),
            ("OPTIONS", "99999999999999999999", None),
        ] {
            assert_eq!(left(&request(method, value)), expected, "{method} {value}");
        }
    }
}
