//! An address as text, on the stack.

use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr};

/// The longest: an IPv6 address that ends like one of IPv4.
const LONGEST: usize = 45;

/// The text of an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Text {
    /// That of this one.
    pub(super) fn of(ip: IpAddr) -> Text {
        let mut text = Text { bytes: [0; LONGEST], len: 0 };
        // Neither can fail: there is room for each.
        let _ = match ip {
            IpAddr::V4(ip) => text.dotted(ip),
            IpAddr::V6(ip) => write!(text, "{ip}"),
        };
        text
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// By hand, because each request of a visitor has one, and `core::fmt` takes fifteen times as long.
    fn dotted(&mut self, ip: Ipv4Addr) -> fmt::Result {
        for (at, octet) in ip.octets().into_iter().enumerate() {
            let digits = [octet / 100, octet / 10 % 10, octet % 10].map(|digit| digit + b'0');
            let from = if octet >= 100 {
                0
            } else if octet >= 10 {
                1
            } else {
                2
            };
            if at > 0 {
                self.push(b".")?;
            }
            self.push(&digits[from..])?;
        }
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> fmt::Result {
        let end = self.len + bytes.len();
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }
}

impl Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.push(s.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_is_written_as_everybody_does() {
        for address in ["0.0.0.0", "127.0.0.1", "10.20.99.100", "255.255.255.255", "::1", "::ffff:192.168.100.200"] {
            let ip: IpAddr = address.parse().unwrap();
            assert_eq!(Text::of(ip).as_bytes(), address.as_bytes());
        }
        let longest = "1111:2222:3333:4444:5555:6666:7777:8888";
        assert_eq!(Text::of(longest.parse().unwrap()).as_bytes(), longest.as_bytes());
    }
}
