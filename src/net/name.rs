//! Names of tunnels.

/// The tunnel of those who name none.
const DEFAULT: &str = "default";
/// The longest name: a label of a host name (RFC 1035 §2.3.4).
const LONGEST: usize = 63;
/// A tunnel's name, in lower case, without an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelName {
    bytes: [u8; LONGEST],
    len: usize,
}

impl TunnelName {
    /// Reads a name: 1 to 63 letters, digits, `-` and `_`, in any case.
    pub fn of(name: &[u8]) -> Option<TunnelName> {
        let fits = (1..=LONGEST).contains(&name.len());
        let good = name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if !fits || !good {
            return None;
        }
        let mut bytes = [0; LONGEST];
        bytes[..name.len()].copy_from_slice(name);
        bytes.make_ascii_lowercase();
        Some(TunnelName { bytes, len: name.len() })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or(DEFAULT)
    }
}

impl Default for TunnelName {
    /// The one of those who name none.
    fn default() -> TunnelName {
        let mut bytes = [0; LONGEST];
        bytes[..DEFAULT.len()].copy_from_slice(DEFAULT.as_bytes());
        TunnelName { bytes, len: DEFAULT.len() }
    }
}

impl std::fmt::Display for TunnelName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
