//! Answers that we make ourselves: each names the hop that failed and what to try, and has a code that the access log's line
//! carries too. The codes are stable; `docs/codes.md` lists them.

use std::borrow::Cow;
use std::time::SystemTime;

use ptth_proto::error::Error;
use ptth_proto::wire::fields::{Name, elements};
use ptth_proto::wire::head::{FieldWriter, Head, reason};

/// What went wrong, by its stable name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// The name: on the page, in the log.
    pub name: &'static str,
    /// The status it is answered with.
    pub status: u16,
    /// Its type among those of RFC 9209 §2.3, for `Proxy-Status`.
    pub proxy_error: &'static str,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $status:literal, $error:literal;)*) => {
        impl Code {
            $($(#[$doc])* pub const $constant: Code = Code { name: $name, status: $status, proxy_error: $error };)*
            /// All codes but those of [`Error`], which come with a request that is refused.
            pub const ALL: &'static [Code] = &[$(Code::$constant,)*];
        }
    };
}

codes! {
    /// No agent has a link under the tunnel's name, and none came in time.
    NO_LINK = "no-link", 503, "destination_unavailable";
    /// All links of the tunnel are busy, and none was free in time.
    LINKS_BUSY = "links-busy", 503, "connection_limit_reached";
    /// The tunnel has as many requests, or as many that wait for a link, as it may have.
    TUNNEL_BUSY = "tunnel-busy", 503, "connection_limit_reached";
    /// The relay has as many requests waiting, or as many bytes in memory, as it may have.
    RELAY_BUSY = "relay-busy", 503, "http_request_denied";
    /// The relay has as many visitors as it may have.
    TOO_MANY_CONNECTIONS = "too-many-connections", 503, "http_request_denied";
    /// The visitor's address has as many connections as one may have.
    ADDRESS_BUSY = "address-busy", 429, "http_request_denied";
    /// There are as many tunnels as there may be.
    TOO_MANY_TUNNELS = "too-many-tunnels", 503, "connection_limit_reached";
    /// The agent did not begin its answer in time.
    LINK_TIMEOUT = "link-timeout", 504, "http_response_timeout";
    /// The link broke before the answer was complete.
    LINK_LOST = "link-lost", 502, "connection_terminated";
    /// The agent's answer was no HTTP, or one that two readers could understand differently.
    LINK_PROTOCOL = "link-protocol", 502, "http_protocol_error";
    /// The name of a tunnel that can't be one.
    BAD_NAME = "bad-name", 400, "http_request_error";
    /// An agent that has to show a credential showed none.
    NO_CREDENTIAL = "no-credential", 401, "http_request_denied";
    /// An agent's credential is none of those that the relay knows.
    BAD_CREDENTIAL = "bad-credential", 401, "http_request_denied";
    /// An agent's credential may not claim the tunnel's name.
    NAME_NOT_ALLOWED = "name-not-allowed", 403, "http_request_denied";
    /// A request's body is too large to travel as a message.
    MESSAGE_TOO_LARGE = "message-too-large", 413, "http_request_error";
    /// An answer's body is too large to travel as a message.
    ANSWER_TOO_LARGE = "answer-too-large", 502, "http_response_body_size";
    /// The dialect of the tunnel's agent has no word for this request.
    DIALECT_LIMIT = "dialect-limit", 501, "http_request_denied";
    /// A body is no text, and the agent has not said that it can read it encoded.
    BINARY_BODY = "binary-body", 502, "http_request_denied";
    /// An agent's answer is for no message that it was given, or comes twice, or too late.
    UNKNOWN_MESSAGE = "unknown-message", 404, "http_request_error";
    /// An agent's message can't be read.
    BAD_MESSAGE = "bad-message", 400, "http_request_error";
    /// TRACE that may go no further.
    TRACE = "trace-unsupported", 501, "http_request_denied";
    /// CONNECT.
    CONNECT = "connect-unsupported", 501, "http_request_denied";
    /// The program is stopping.
    STOPPING = "stopping", 503, "destination_unavailable";
    /// The upstream's host name has no address.
    UPSTREAM_NAME = "upstream-name", 502, "dns_error";
    /// Nothing listens at the upstream's address.
    UPSTREAM_REFUSED = "upstream-refused", 502, "connection_refused";
    /// The upstream could not be connected for another reason.
    UPSTREAM_UNREACHABLE = "upstream-unreachable", 502, "destination_ip_unroutable";
    /// The connection to the upstream was not made in time.
    UPSTREAM_CONNECT_TIMEOUT = "upstream-connect-timeout", 504, "connection_timeout";
    /// The upstream did not begin its answer in time.
    UPSTREAM_TIMEOUT = "upstream-timeout", 504, "http_response_timeout";
    /// The upstream closed before its answer was complete.
    UPSTREAM_LOST = "upstream-lost", 502, "connection_terminated";
    /// The upstream's answer was no HTTP, or one that two readers could understand differently.
    UPSTREAM_PROTOCOL = "upstream-protocol", 502, "http_protocol_error";
    /// No byte has gone through a tunnel for too long. Only in the log.
    TUNNEL_SILENT = "tunnel-silent", 504, "connection_timeout";
    /// A request's head was not complete in time.
    HEAD_TIMEOUT = "head-timeout", 408, "http_request_error";
    /// A request's body stopped coming.
    BODY_TIMEOUT = "body-timeout", 408, "http_request_error";
    /// A request's body is larger than the relay takes.
    BODY_TOO_LARGE = "body-too-large", 413, "http_request_error";
    /// A request's body comes too slowly.
    BODY_TOO_SLOW = "body-too-slow", 408, "http_request_error";
    /// The visitor left before its answer was complete. Only in the log: nginx's 499.
    VISITOR_GONE = "visitor-gone", 499, "connection_terminated";
    /// The visitor stopped taking its answer. Only in the log.
    WRITE_TIMEOUT = "write-timeout", 499, "connection_write_timeout";
    /// A bug of ours.
    INTERNAL = "internal", 500, "proxy_internal_error";
}

/// An answer of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What went wrong.
    pub code: Code,
    /// Which hop, which address, what was seen, what to try: a sentence or two for the person who reads it.
    pub text: Cow<'static, str>,
    /// Seconds after which another try is worth it.
    pub retry_after: Option<u32>,
}

impl Answer {
    /// An answer with this text.
    pub fn new(code: Code, text: impl Into<Cow<'static, str>>) -> Answer {
        let retry_after = matches!(code.status, 429 | 503).then_some(5);
        Answer { code, text: text.into(), retry_after }
    }

    /// The answer to a request that broke a rule; `None` when its sender is told nothing.
    pub fn to_error(error: Error) -> Option<Answer> {
        let code = Code { name: error.code(), status: error.status()?, proxy_error: "http_request_error" };
        let text = match error {
            Error::Local(_) => format!("The program ran into a state that it should not be in: the peer {error}."),
            _ => format!("The request was not passed on, because its sender {error}."),
        };
        Some(Answer::new(code, text))
    }

    /// The page: JSON where the request asks for it, else plain text. Ends with a line end.
    pub fn page(&self, program: &str, id: u64, json: bool) -> String {
        let Code { name, status, .. } = self.code;
        if json {
            let page = serde_json::json!({
                "status": status,
                "code": name,
                "message": self.text,
                "program": program,
                "request": id,
            });
            return format!("{page}\n");
        }
        format!("{status} {} ({name})\n\n{}\n\n{program}, request {id}\n", reason(status), self.text)
    }

    /// The fields that go with the page.
    pub fn fields(&self, program: &str, json: bool, now: SystemTime, fields: &mut FieldWriter<'_>) {
        fields.field("Content-Type", if json { "application/json" } else { "text/plain; charset=utf-8" });
        fields.field("Cache-Control", "no-store");
        fields.field("Date", httpdate::fmt_http_date(now));
        let Code { name, status, proxy_error } = self.code;
        if status == 401 {
            // RFC 9110 §11.6.1 asks for a challenge with each; RFC 6750 §3 for a parameter in it.
            fields.field("WWW-Authenticate", format!("Bearer realm=\"{program}\""));
        }
        fields.field("Proxy-Status", format!("{program}; error={proxy_error}; details=\"{name}\""));
        if let Some(seconds) = self.retry_after {
            fields.field("Retry-After", seconds.to_string());
        }
    }
}

/// Whether a request would rather have JSON: it names it, and doesn't name HTML or text.
pub fn wants_json(head: &Head) -> bool {
    let mut accepted = head.fields.all(Name::Accept).flat_map(elements).map(|element| {
        let kind = element.split(|b| *b == b';').next().unwrap_or_default();
        kind.trim_ascii()
    });
    let mut json = false;
    let text = accepted.any(|kind| {
        json |= kind.eq_ignore_ascii_case(b"application/json") || kind.ends_with(b"+json");
        kind.len() > 5 && kind[..5].eq_ignore_ascii_case(b"text/")
    });
    json && !text
}

/// The code in the `Proxy-Status` of an answer that the next program made, so that one failure has one name in both logs. What
/// is no code of that kind, whoever sent it, is none: the log has one column for it.
pub fn code_of(head: &Head) -> Option<Cow<'static, str>> {
    let value = head.fields.first(Name::ProxyStatus)?.strip_prefix(b"ptth-")?;
    let start = value.windows(9).position(|part| part == b"details=\"")? + 9;
    let end = start + value[start..].iter().position(|b| *b == b'"')?;
    let code = &value[start..end];
    let good = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let is_code = (1..=LONGEST_CODE).contains(&code.len()) && code.iter().all(good);
    is_code.then(|| Cow::Owned(String::from_utf8_lossy(code).into_owned()))
}

/// Longer than any of ours.
const LONGEST_CODE: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use ptth_proto::limits::Limits;

    fn request(accept: &str) -> Head {
        let mut head = Head::default();
        let text = format!("GET / HTTP/1.1\r\nHost: x\r\n{accept}\r\n");
        head.parse_request(text.as_bytes(), &Limits::default()).unwrap();
        head
    }

    #[test]
    fn json_for_those_who_ask_for_it() {
        assert!(wants_json(&request("Accept: application/json\r\n")));
        assert!(wants_json(&request("Accept: application/problem+json;q=1, */*\r\n")));
        for text in ["", "Accept: */*\r\n", "Accept: text/html, application/json\r\n"] {
            assert!(!wants_json(&request(text)), "{text}");
        }
    }

    #[test]
    fn a_code_goes_through_proxy_status_and_back() {
        let mut head = Head::default();
        let text = "HTTP/1.1 502 x\r\nProxy-Status: ptth-reverse; error=connection_refused; details=\"upstream-refused\"\r\n\r\n";
        head.parse_response(text.as_bytes(), &Limits::default()).unwrap();
        assert_eq!(code_of(&head).as_deref(), Some("upstream-refused"));
        for forged in ["ptth-x; details=\"a b\"", "ptth-x; details=\"\"", "other; details=\"no-link\"", "ptth-x"] {
            let text = format!("HTTP/1.1 502 x\r\nProxy-Status: {forged}\r\n\r\n");
            head.parse_response(text.as_bytes(), &Limits::default()).unwrap();
            assert_eq!(code_of(&head), None, "{forged}");
        }
    }

    #[test]
    fn every_code_is_in_the_docs() {
        let docs = include_str!("../docs/codes.md");
        for code in Code::ALL {
            assert!(docs.contains(&format!("| `{}` | {} |", code.name, code.status)), "{}", code.name);
        }
    }

    #[test]
    fn a_page_names_its_code() {
        let answer = Answer::new(Code::NO_LINK, "No agent \"x\".");
        assert!(answer.page("ptth-relay", 7, false).starts_with("503 Service Unavailable (no-link)\n\nNo agent"));
        let json: serde_json::Value = serde_json::from_str(&answer.page("ptth-relay", 7, true)).unwrap();
        assert_eq!((&json["code"], &json["request"]), (&"no-link".into(), &7.into()));
    }
}
