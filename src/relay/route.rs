//! Which tunnel a request means: `NAME.DOMAIN` in its host; or the path `/frontend/servers/NAME/…`, as the `ptth` relay has it;
//! else the tunnel `default`. An agent's tunnel is the first segment of the path that it posts its offer to.

use std::borrow::Cow;

use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::{Head, Target, split_port};

/// The tunnel of those who name none.
const DEFAULT: &str = "default";
/// The longest name: a label of a host name (RFC 1035 §2.3.4).
const LONGEST: usize = 63;
/// Where tunnels are found by path.
const PREFIX: &[u8] = b"/frontend/servers/";

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

    fn default() -> TunnelName {
        let mut bytes = [0; LONGEST];
        bytes[..DEFAULT.len()].copy_from_slice(DEFAULT.as_bytes());
        TunnelName { bytes, len: DEFAULT.len() }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or(DEFAULT)
    }
}

impl std::fmt::Display for TunnelName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a visitor's request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed {
    /// The tunnel.
    pub name: TunnelName,
    /// Bytes at the front of the path that are not passed on.
    pub cut: usize,
}

/// Whose host a request names: that of an absolute target, which RFC 9112 §3.2.2 puts above `Host`, else `Host`; empty
/// when neither does.
pub fn authority(head: &Head) -> &[u8] {
    match Target::of(head.method(), head.target()) {
        Some(Target::Absolute { authority, .. }) => authority,
        _ => head.fields.first(Name::Host).unwrap_or_default(),
    }
}

/// The path and query of a request's target; `*` of an OPTIONS.
fn path(head: &Head) -> &[u8] {
    match Target::of(head.method(), head.target()) {
        Some(Target::Absolute { path, .. }) => path,
        _ => head.target(),
    }
}

/// Settles which tunnel a visitor means.
pub fn route(head: &Head, domain: &[u8]) -> Routed {
    if let Some(name) = name_of_host(authority(head), domain) {
        return Routed { name, cut: 0 };
    }
    let by_path = path(head).strip_prefix(PREFIX).and_then(|rest| {
        let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
        let name = TunnelName::of(&rest[..end])?;
        Some(Routed { name, cut: PREFIX.len() + end })
    });
    by_path.unwrap_or(Routed { name: TunnelName::default(), cut: 0 })
}

fn name_of_host(authority: &[u8], domain: &[u8]) -> Option<TunnelName> {
    let (host, _) = split_port(authority)?;
    // A name in the DNS may be written with its root.
    let host = host.strip_suffix(b".").unwrap_or(host);
    let dot = host.len().checked_sub(domain.len() + 1)?;
    let (name, rest) = host.split_at(dot);
    (rest[0] == b'.' && rest[1..].eq_ignore_ascii_case(domain)).then(|| TunnelName::of(name)).flatten()
}

/// The tunnel that an agent's offer to this target is for; `None` when the name can't be one.
pub fn name_of_path(target: &[u8]) -> Option<TunnelName> {
    let path = match Target::of(b"POST", target)? {
        Target::Absolute { path, .. } | Target::Origin(path) => path,
        Target::Authority(_) | Target::Asterisk => return None,
    };
    let path = path.split(|b| *b == b'?').next().unwrap_or_default();
    let path = path.strip_prefix(b"/").unwrap_or(path);
    match path.split(|b| *b == b'/').next() {
        None | Some([]) => Some(TunnelName::default()),
        Some(segment) => TunnelName::of(segment),
    }
}

/// The target as the agent is to see it: in origin form, without what names the tunnel.
pub fn target(head: &Head, cut: usize) -> Cow<'_, [u8]> {
    match path(head).get(cut..) {
        // RFC 9112 §3.2.4: OPTIONS of a whole server by its URL becomes `*` at the last hop that sees the URL.
        Some([]) if cut == 0 && head.method() == b"OPTIONS" => Cow::Borrowed(b"*"),
        None | Some([]) => Cow::Borrowed(b"/"),
        Some(query @ [b'?', ..]) => Cow::Owned([b"/", query].concat()),
        Some(rest) => Cow::Borrowed(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptth_proto::limits::Limits;

    fn request(method: &str, target: &str, host: &str) -> Head {
        let mut head = Head::default();
        let text = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        head.parse_request(text.as_bytes(), &Limits::default()).unwrap();
        head
    }

    #[test]
    fn visitors() {
        for (target_, host, name, passed) in [
            ("/x", "demo.localhost:9999", "demo", "/x"),
            ("/x", "DEMO.LocalHost.", "demo", "/x"),
            ("/x", "localhost:9999", "default", "/x"),
            ("/x", "", "default", "/x"),
            ("/x", "a.b.localhost", "default", "/x"),
            ("/x", "xlocalhost", "default", "/x"),
            ("/x", ".localhost", "default", "/x"),
            ("/x", "[::1]:9999", "default", "/x"),
            ("/x", "demo.example.org", "default", "/x"),
            ("/frontend/servers/demo/a/b?c", "localhost", "demo", "/a/b?c"),
            ("/frontend/servers/demo/", "localhost", "demo", "/"),
            ("/frontend/servers/demo", "localhost", "demo", "/"),
            ("/frontend/servers/demo?a", "localhost", "demo", "/?a"),
            ("http://demo.localhost?a", "localhost", "demo", "/?a"),
            ("/frontend/servers/", "localhost", "default", "/frontend/servers/"),
            ("/frontend/servers/demo/", "other.localhost", "other", "/frontend/servers/demo/"),
            ("http://demo.localhost:9999/y?z", "other.localhost", "demo", "/y?z"),
            ("http://demo.localhost", "other.localhost", "demo", "/"),
        ] {
            let head = request("GET", target_, host);
            let routed = route(&head, b"localhost");
            assert_eq!(routed.name.as_str(), name, "{target_} {host}");
            assert_eq!(&target(&head, routed.cut)[..], passed.as_bytes(), "{target_} {host}");
        }
        assert_eq!(&target(&request("OPTIONS", "*", "x"), 0)[..], b"*");
        assert_eq!(&target(&request("OPTIONS", "http://x", "x"), 0)[..], b"*");
    }

    #[test]
    fn agents() {
        for (target, name) in [
            ("/", Some("default")),
            ("/?id=x", Some("default")),
            ("/demo", Some("demo")),
            ("/Demo/more?x", Some("demo")),
            ("http://relay/demo", Some("demo")),
            ("http://relay", Some("default")),
            ("/a.b", None),
            ("/a%20b", None),
        ] {
            assert_eq!(
                name_of_path(target.as_bytes()).map(|n| n.as_str().to_owned()),
                name.map(String::from),
                "{target}"
            );
        }
    }
}
