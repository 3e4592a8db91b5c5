//! Addresses as people write them, and as they are dialled.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// Where something listens, before any name in it was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A host name or address, and a port.
    Host(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Place {
    /// Reads `PORT`, `HOST:PORT`, `[V6]:PORT` or `unix:PATH`. A port alone is on this machine, as `localhost`.
    pub fn parse(text: &str) -> Result<Place, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err("`unix:` needs the path of a socket behind it".into()),
                path => Ok(Place::Unix(path.into())),
            };
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port),
            None => ("localhost", text),
        };
        let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
            format!("`{text}` is no PORT, HOST:PORT or unix:PATH: `{port}` is no port number from 1 to 65535")
        })?;
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || (host.contains(':') && host.parse::<Ipv6Addr>().is_err()) {
            return Err(format!("`{text}` has no host name in front of its port"));
        }
        Ok(Place::Host(host.into(), port))
    }

    /// The addresses, where they are known without asking anyone. `localhost` is both of its addresses: a dev server may
    /// listen on either one alone.
    pub fn known(&self) -> Option<Vec<SocketAddr>> {
        let Place::Host(host, port) = self else { return None };
        if host.eq_ignore_ascii_case("localhost") {
            let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
            return Some(vec![SocketAddr::new(v4, *port), SocketAddr::new(v6, *port)]);
        }
        host.parse::<IpAddr>().ok().map(|ip| vec![SocketAddr::new(ip, *port)])
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Host(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Place::Host(host, port) => write!(f, "{host}:{port}"),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Who is at the other end of a connection, for logs and forwarding fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remote {
    /// A TCP peer.
    Ip(SocketAddr),
    /// A peer on this machine without an address.
    Unix,
}

impl Remote {
    /// The address without its port.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            // An IPv4 visitor on a socket for both families is still an IPv4 visitor.
            Remote::Ip(address) => Some(address.ip().to_canonical()),
            Remote::Unix => None,
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remote::Ip(address) => address.fmt(f),
            Remote::Unix => f.write_str("unix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let host = |host: &str, port| Ok(Place::Host(host.into(), port));
        assert_eq!(Place::parse("8080"), host("localhost", 8080));
        assert_eq!(Place::parse("a.b:80"), host("a.b", 80));
        assert_eq!(Place::parse("[::1]:80"), host("::1", 80));
        assert_eq!(Place::parse("unix:/x"), Ok(Place::Unix("/x".into())));
        for bad in ["", "0", "65536", "a:", ":80", "a", "unix:", "a:b:80"] {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Place::parse("[::1]:80").unwrap().to_string(), "[::1]:80");
        assert_eq!(Place::parse("8080").unwrap().known().unwrap().len(), 2);
        assert_eq!(Place::parse("a:80").unwrap().known(), None);
    }
}
