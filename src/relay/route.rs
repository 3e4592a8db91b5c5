//! Which tunnel a request means: `NAME.DOMAIN` in its host; or the path `/frontend/servers/NAME/…`, as the `ptth` relay has it;
//! else the tunnel `default`. An agent's tunnel is the first segment of the path that it posts its offer to.

use std::borrow::Cow;

use ptth_proto::http::framing::Framing;
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::{Head, Target, split_port};

use crate::net::name::TunnelName;

/// Where tunnels are found by path.
const PREFIX: &[u8] = b"/frontend/servers/";

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
    match head.form() {
        Some(Target::Absolute { authority, .. }) => authority,
        _ => head.fields.first(Name::Host).unwrap_or_default(),
    }
}

/// The path and query of a request's target; `*` of an OPTIONS.
fn path(head: &Head) -> &[u8] {
    match head.form() {
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

/// The tunnel that an agent's offer is for; `None` when the name can't be one. `prefix` is where the queues are, and offers may
/// be made.
pub fn name_of_offer(head: &Head, prefix: &[u8]) -> Option<TunnelName> {
    let path = path(head);
    let below = path.strip_prefix(prefix).filter(|rest| matches!(rest, [] | [b'/' | b'?', ..]));
    name_of_path(below.unwrap_or(path))
}

/// The tunnel whose name is the first segment of this path.
fn name_of_path(path: &[u8]) -> Option<TunnelName> {
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

/// Where the `ptth` relay has its agents, whatever the name meant to its author.
const PACKED: &[u8] = b"/7ZSFUKGV/";

/// What a request is, as far as its head tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means<'a> {
    /// A visitor's.
    Visit,
    /// An agent's poll of a COMET queue, or an answer, which is a poll too.
    Comet(TunnelName),
    /// The same if its body is a message; else a visitor's.
    PerhapsComet(TunnelName),
    /// A poll of the `ptth` dialect.
    Listen(TunnelName),
    /// An answer of the `ptth` dialect, with the id of its message.
    Respond(&'a [u8]),
    /// An agent's, for a tunnel that can't be one.
    BadName,
}

/// Settles whether a request is an agent's. Under the host of a tunnel all are visitors'. `prefix` is where the queues are; empty
/// for the root, where they share the paths with visitors of the tunnel `default`.
pub fn means<'a>(head: &'a Head, framing: Framing, domain: &[u8], prefix: &[u8]) -> Means<'a> {
    let post = head.method() == b"POST";
    // Nearly all requests end here, before anything of theirs is read again.
    if !post && head.target().starts_with(b"/") && !head.target().starts_with(PACKED) {
        return Means::Visit;
    }
    let path = path(head);
    if !(post || path.starts_with(PACKED)) || name_of_host(authority(head), domain).is_some() {
        return Means::Visit;
    }
    let path = path.split(|b| *b == b'?').next().unwrap_or_default();
    if let Some(rest) = path.strip_prefix(PACKED) {
        let (what, which) = rest.split_at(rest.iter().position(|b| *b == b'/').unwrap_or(rest.len()));
        let which = which.strip_prefix(b"/").unwrap_or_default();
        return match what {
            b"http_listen" if head.method() == b"GET" => TunnelName::of(which).map_or(Means::BadName, Means::Listen),
            b"http_response" if post => Means::Respond(which),
            _ => Means::Visit,
        };
    }
    let fields = &head.fields;
    let offers =
        fields.list(Name::Upgrade).any(|token| token.get(..5).is_some_and(|t| t.eq_ignore_ascii_case(b"PTTH/")));
    let queue = path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with(b"/"));
    if offers || fields.has(Name::PtthAccept) {
        // Nobody but an agent says so.
        return match name_of_path(queue.unwrap_or(path)) {
            Some(name) => Means::Comet(name),
            None => Means::BadName,
        };
    }
    let Some(queue) = queue else { return Means::Visit };
    let queue = queue.strip_prefix(b"/").unwrap_or_default();
    let Some(name) = (if queue.is_empty() { Some(TunnelName::default()) } else { TunnelName::of(queue) }) else {
        return if prefix.is_empty() { Means::Visit } else { Means::BadName };
    };
    match framing {
        _ if !prefix.is_empty() => Means::Comet(name),
        _ if !fields.is_json() => Means::Visit,
        Framing::Empty | Framing::Length(0) => Means::Comet(name),
        _ => Means::PerhapsComet(name),
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
    fn who_is_an_agent() {
        let demo = TunnelName::of(b"demo").unwrap();
        let default = TunnelName::default();
        let json = "Content-type: application/json";
        let cases: [(&str, &str, &str, &str, Framing, Means<'_>); 20] = [
            ("POST", "/demo", "x", json, Framing::Empty, Means::Comet(demo)),
            ("POST", "/demo?x", "x", json, Framing::Length(0), Means::Comet(demo)),
            ("POST", "/", "x", json, Framing::Length(0), Means::Comet(default)),
            ("POST", "/demo", "x", json, Framing::Length(2), Means::PerhapsComet(demo)),
            (
                "POST",
                "/demo",
                "x",
                "Content-type: application/json; charset=utf-8",
                Framing::Chunked,
                Means::PerhapsComet(demo),
            ),
            ("POST", "/demo", "x", "Content-type: text/plain", Framing::Length(2), Means::Visit),
            ("POST", "/demo", "x", "A: b", Framing::Empty, Means::Visit),
            ("POST", "/demo/", "x", json, Framing::Empty, Means::Visit),
            ("POST", "/demo/api", "x", json, Framing::Empty, Means::Visit),
            ("POST", "/demo", "x", "Upgrade: PTTH/0.9", Framing::Empty, Means::Comet(demo)),
            ("POST", "/demo", "x", "Upgrade: websocket", Framing::Empty, Means::Visit),
            ("POST", "/demo", "x", "Ptth-Accept: comet", Framing::Empty, Means::Comet(demo)),
            ("POST", "/d.mo", "x", "Ptth-Accept: comet", Framing::Empty, Means::BadName),
            ("POST", "/demo", "demo.localhost", json, Framing::Empty, Means::Visit),
            ("GET", "/demo", "x", json, Framing::Empty, Means::Visit),
            ("GET", "/7ZSFUKGV/http_listen/demo", "x", "A: b", Framing::Empty, Means::Listen(demo)),
            ("GET", "/7ZSFUKGV/http_listen/", "x", "A: b", Framing::Empty, Means::BadName),
            ("GET", "/7ZSFUKGV/http_listen/demo", "demo.localhost", "A: b", Framing::Empty, Means::Visit),
            ("POST", "/7ZSFUKGV/http_response/ABC", "x", "A: b", Framing::Chunked, Means::Respond(b"ABC")),
            ("GET", "/7ZSFUKGV/else", "x", "A: b", Framing::Empty, Means::Visit),
        ];
        for (method, target, host, field, framing, expected) in cases {
            let head = request(method, target, &format!("{host}\r\n{field}"));
            assert_eq!(means(&head, framing, b"localhost", b""), expected, "{method} {target} {host} {field}");
        }
        // With the queues out of the way, all that is below their prefix is an agent's, and the rest is not.
        let moved = |target: &str, field: &str| {
            let head = request("POST", target, &format!("x\r\n{field}"));
            format!("{:?}", matches!(means(&head, Framing::Empty, b"localhost", b"/q"), Means::Comet(_)))
        };
        assert_eq!(moved("/q/demo", json), "true");
        assert_eq!(moved("/q", "A: b"), "true");
        assert_eq!(moved("/demo", json), "false");
        assert_eq!(moved("/qx", json), "false");
        assert_eq!(moved("/demo", "Upgrade: PTTH/1.0"), "true");
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
                name_of_offer(&request("POST", target, "x"), b"").map(|n| n.as_str().to_owned()),
                name.map(String::from),
                "{target}"
            );
        }
        let below = |target| name_of_offer(&request("POST", target, "x"), b"/q").map(|n| n.as_str().to_owned());
        for (target, name) in
            [("/q/demo", "demo"), ("/q", "default"), ("/q?x", "default"), ("/demo", "demo"), ("/qx", "qx")]
        {
            assert_eq!(below(target).as_deref(), Some(name), "{target}");
        }
    }
}
