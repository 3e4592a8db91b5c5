//! Which bytes may stand where. One table for all, so that a text is checked without a branch for each of its bytes.

/// A token (RFC 9110 §5.6.2).
const TOKEN: u8 = 1;
/// A field value (RFC 9110 §5.5): no control bytes but the tab.
const VALUE: u8 = 2;
/// A request-target, in any of its forms: what is printed, but no fragment, which is never sent (RFC 9110 §4.2.5), and where one
/// is, one reader cuts it off and another does not.
const TARGET: u8 = 4;
/// A host name, or an IPv4 address (RFC 3986 §3.2.2): without the comma, which joins two values.
const HOST: u8 = 8;

/// For each byte where it may not stand.
const NOT: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = not(byte as u8);
        byte += 1;
    }
    table
};

const fn not(byte: u8) -> u8 {
    let alphanumeric = byte.is_ascii_alphanumeric();
    let mut not = 0;
    if !(alphanumeric || is_one_of(byte, b"!#$%&'*+-.^_`|~")) {
        not |= TOKEN;
    }
    if !matches!(byte, b'\t' | 0x20..=0x7e | 0x80..) {
        not |= VALUE;
    }
    if !byte.is_ascii_graphic() || byte == b'#' {
        not |= TARGET;
    }
    if !(alphanumeric || is_one_of(byte, b"-._~%!$&'()*+;=")) {
        not |= HOST;
    }
    not
}

const fn is_one_of(byte: u8, these: &[u8]) -> bool {
    let mut at = 0;
    while at < these.len() {
        if these[at] == byte {
            return true;
        }
        at += 1;
    }
    false
}

/// A field name that was looked at when the program was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(&'static str);

impl Label {
    /// For constants: what is no token does not compile as one.
    pub const fn new(name: &'static str) -> Label {
        let bytes = name.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            assert!(not(bytes[at]) & TOKEN == 0, "a field name is a token");
            at += 1;
        }
        assert!(!bytes.is_empty(), "a field name is a token");
        Label(name)
    }

    /// The name.
    pub const fn as_bytes(self) -> &'static [u8] {
        self.0.as_bytes()
    }
}

fn all(text: &[u8], class: u8) -> bool {
    text.iter().fold(0, |found, byte| found | NOT[usize::from(*byte)]) & class == 0
}

/// Whether every byte may stand in a field value.
pub fn is_value(value: &[u8]) -> bool {
    let (pieces, _) = value.as_chunks();
    match value.last_chunk() {
        // Many bytes at a time, the last of them with some that were there before.
        Some(last) => !pieces.iter().fold(has_control(last), |bad, piece| bad | has_control(piece)),
        None => all(value, VALUE),
    }
}

fn has_control(piece: &[u8; 16]) -> bool {
    piece.iter().fold(false, |bad, b| bad | (*b < b' ') & (*b != b'\t') | (*b == 0x7f))
}

/// Whether this is a token.
pub fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && all(name, TOKEN)
}

/// Whether every byte may stand in a request-target.
pub(crate) fn are_of_target(target: &[u8]) -> bool {
    all(target, TARGET)
}

/// Whether every byte may stand in a host that is no IPv6 address.
pub(crate) fn are_of_host(host: &[u8]) -> bool {
    all(host, HOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_its_places() {
        for byte in 0..=u8::MAX {
            let (text, letter) = ([byte], byte.is_ascii_alphanumeric());
            assert_eq!(is_value(&text), byte == b'\t' || byte >= 0x20 && byte != 0x7f, "{byte}");
            assert_eq!(is_token(&text), letter || b"!#$%&'*+-.^_`|~".contains(&byte), "{byte}");
            assert_eq!(are_of_target(&text), byte > 0x20 && byte < 0x7f && byte != b'#', "{byte}");
            assert_eq!(
                is_value(&[b"sixteen and more", &text[..], b"even twice that"].concat()),
                is_value(&text),
                "{byte}"
            );
            assert_eq!(are_of_host(&text), letter || b"-._~%!$&'()*+;=".contains(&byte), "{byte}");
        }
        assert!(!is_token(b"") && is_value(b"") && !is_value(b"a\r"));
    }
}
