//! From the command line to settings that hold: nothing invalid gets past this file. Each complaint is one sentence that says
//! what to do.

#[cfg(feature = "relay")]
pub mod relay;

use std::fs;
use std::path::Path;

use log::LevelFilter;
use ptth_proto::conn::Config;
use ptth_proto::limits::{MAX_FIELDS, Wait};
use ptth_proto::wire::fields::is_value;
use ptth_proto::wire::head::{Target as RequestTarget, is_host};

use crate::agent::links::Size;
use crate::agent::upstream::Target;
use crate::agent::{self, Dialect, Via};
use crate::cli::{Common, Reverse};
use crate::log::AccessLog;
use crate::net::addr::Place;
use crate::net::name::TunnelName;

/// Where the relay listens that an agent without `--via` starts.
pub const OWN_RELAY: &str = "127.0.0.1:9999";

/// Why a program ends without having served: the sentence for the person who started it, and the exit code.
#[derive(Debug)]
pub struct Failure(pub String, pub u8);

impl Failure {
    /// The flags are wrong: 2, as clap has it.
    pub fn flags(error: String) -> Failure {
        Failure(error, 2)
    }

    /// It could not start, or not go on: 1.
    pub fn start(error: String) -> Failure {
        Failure(error, 1)
    }
}

/// What is said on stderr.
pub fn level(common: &Common) -> LevelFilter {
    match (common.quiet, common.verbose) {
        (true, _) => LevelFilter::Warn,
        (false, 0 | 1) => LevelFilter::Info,
        (false, _) => LevelFilter::Debug,
    }
}

fn config(common: &Common) -> Result<Config, String> {
    let mut config = Config::default();
    for setting in &common.timeouts {
        let (name, value) = pair(setting, "--timeout", "answer=5m")?;
        let time = humantime::parse_duration(value)
            .map_err(|error| format!("--timeout {setting}: `{value}` is no time such as 500ms, 10s or 5m ({error})"))?;
        if time.is_zero() {
            return Err(format!("--timeout {setting}: no time at all would end everything at once"));
        }
        if !config.deadlines.set(name, time) {
            return Err(format!("--timeout {setting}: there is no `{name}`; --help lists the names"));
        }
    }
    for setting in &common.limits {
        let (name, value) = pair(setting, "--limit", "head=16384")?;
        let number = value
            .parse::<usize>()
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(|| format!("--limit {setting}: `{value}` is no number above 0"))?;
        if !config.limits.set(name, number) {
            return Err(format!("--limit {setting}: there is no `{name}`; --help lists the names"));
        }
    }
    if config.limits.fields > MAX_FIELDS {
        return Err(format!("--limit fields: at most {MAX_FIELDS}"));
    }
    debug_assert!(config.deadlines.get(Wait::Answer.name()).is_some());
    Ok(config)
}

fn pair<'a>(setting: &'a str, flag: &str, example: &str) -> Result<(&'a str, &'a str), String> {
    setting.split_once('=').ok_or_else(|| format!("{flag} {setting}: it is NAME=VALUE, such as {flag} {example}"))
}

fn access_log(common: &Common) -> Result<AccessLog, String> {
    match &common.access_log {
        Some(path) => {
            AccessLog::file(path).map_err(|error| format!("--access-log {}: can't be opened: {error}", path.display()))
        }
        None if common.verbose > 0 => Ok(AccessLog::stderr()),
        None => Ok(AccessLog::none()),
    }
}

/// An agent's settings. One that was told of no relay starts one of its own.
///
/// # Errors
/// When they can't be.
pub fn reverse(cli: &Reverse) -> Result<agent::Settings, String> {
    if cli.via.is_none() && cfg!(not(feature = "relay")) {
        return Err(
            "--via is missing: this program was built without a relay of its own (feature `relay`), so it has to be \
                    told which one to dial"
                .into(),
        );
    }
    let upstream = match cli.upstream.as_str() {
        "hello" => Target::Hello,
        text => Target::Place(Place::parse(text).map_err(|error| format!("UPSTREAM {error}"))?),
    };
    let name = TunnelName::of(cli.name.as_bytes())
        .ok_or_else(|| format!("--name {}: it is 1 to 63 letters, digits, `-` and `_`", cli.name))?;
    let own_relay = format!("http://{OWN_RELAY}");
    let (via, dialect, public_url) = via(cli.via.as_deref().unwrap_or(&own_relay), name.as_str(), &cli.dialect)?;
    // The relay sees every request, those that no link was there for too: its lines are enough.
    let agents_log = if cli.via.is_none() { AccessLog::none() } else { access_log(&cli.common)? };
    let host_header = match &cli.host_header {
        Some(host) if host.is_empty() || !is_host(host.as_bytes()) => {
            return Err(format!("--host-header {host}: it is HOST or HOST:PORT"));
        }
        host => host.clone(),
    };
    Ok(agent::Settings {
        upstream,
        via,
        name: name.as_str().into(),
        public_url,
        token: token(cli)?,
        host_header,
        dialect,
        size: size(&cli.links)?,
        once: cli.once,
        json: cli.json,
        config: config(&cli.common)?,
        access_log: agents_log,
    })
}

fn size(text: &str) -> Result<Size, String> {
    let size = text.split_once("..").and_then(|(spare, most)| {
        let size = Size { spare: spare.parse().ok()?, most: most.parse().ok()? };
        (1 <= size.spare && size.spare <= size.most && size.most <= 10_000).then_some(size)
    });
    size.ok_or_else(|| format!("--links {text}: it is MIN..MAX with 1 <= MIN <= MAX <= 10000, such as 2..64"))
}

/// The path below which a relay of the `ptth` dialect has its agents.
const PTTH_PATH: &str = "/7ZSFUKGV";

/// Reads `--via` and `--dialect`, and settles where visitors will find the tunnel behind it.
fn via(url: &str, name: &str, dialect: &str) -> Result<(Via, Dialect, String), String> {
    let complaint = |why: &str| format!("--via {url}: {why}");
    let wrong = |why: &str| Err(complaint(why));
    let rest = match url.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
            return wrong("TLS is not built in yet; use http://, behind a tunnel or proxy that encrypts");
        }
        Some(_) => return wrong("only http:// URLs can be dialled"),
        None => url,
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = path.trim_end_matches('/');
    let dialect = match dialect {
        "auto" if path.ends_with(PTTH_PATH) => Dialect::PtthRelay,
        "ptth-relay" => Dialect::PtthRelay,
        "comet" => Dialect::Comet,
        "ptth/1.0" => Dialect::Ptth10,
        _ => Dialect::Auto,
    };
    match dialect {
        // A relay may have its queues below a path (--queue-prefix).
        Dialect::PtthRelay | Dialect::Comet
            if RequestTarget::of(b"POST", path.as_bytes()).is_some() || path.is_empty() => {}
        _ if path.is_empty() => {}
        _ => return wrong("give the relay alone, without a path; the tunnel's name goes into --name"),
    }
    if authority.is_empty() || !is_host(authority.as_bytes()) {
        return wrong("it is http://HOST:PORT");
    }
    let has_port = authority.rfind(':').is_some_and(|colon| colon > authority.rfind(']').unwrap_or(0));
    let place = if has_port { Place::parse(authority) } else { Place::parse(&format!("{authority}:80")) };
    let place = place.map_err(|error| complaint(&error))?;
    let port = if has_port { &authority[authority.rfind(':').unwrap_or(authority.len())..] } else { "" };
    let (path, public_url) = match (dialect, name) {
        (Dialect::PtthRelay, _) => {
            let root = path.strip_suffix(PTTH_PATH).unwrap_or(path);
            let public_url = format!("http://{authority}{root}/frontend/servers/{name}/");
            (format!("{root}{PTTH_PATH}"), public_url)
        }
        (_, "default") => (format!("{path}/"), public_url(&place, port, name)),
        (_, name) => (format!("{path}/{name}"), public_url(&place, port, name)),
    };
    let url = format!("http://{authority}");
    Ok((Via { place, authority: authority.into(), path, url }, dialect, public_url))
}

/// Where visitors find a tunnel, as far as the relay's address tells: a name in front of the relay's, or a path where that is
/// an address that no name can stand in front of.
fn public_url(place: &Place, port: &str, name: &str) -> String {
    let Place::Host(host, _) = place else { return String::new() };
    let ip = host.parse::<std::net::IpAddr>().ok();
    let host = match ip {
        Some(ip) if ip.is_loopback() => "localhost".into(),
        Some(ip) if ip.is_ipv6() => format!("[{ip}]"),
        _ => host.clone(),
    };
    match ip {
        _ if name == "default" => format!("http://{host}{port}/"),
        Some(ip) if !ip.is_loopback() => format!("http://{host}{port}/frontend/servers/{name}/"),
        _ => format!("http://{name}.{host}{port}/"),
    }
}

fn token(cli: &Reverse) -> Result<Option<String>, String> {
    let text = match &cli.token_file {
        Some(path) => read_token(path)?,
        // Not a flag with a value: what stands on a command line, everyone on the machine can read.
        None => match std::env::var("PTTH_TOKEN") {
            Ok(text) => text,
            Err(_) => return Ok(None),
        },
    };
    Ok(Some(credential(&text)?.into()))
}

/// The credential in what was read: the same for the agent that sends it as for the relay's operator who hashes it.
///
/// # Errors
/// When there is none, or one that could not be sent.
pub fn credential(text: &str) -> Result<&str, String> {
    match text.trim() {
        "" => Err("the credential is empty".into()),
        text if !is_value(text.as_bytes()) => {
            Err("the credential can't be sent: it is one line, without control characters".into())
        }
        text => Ok(text),
    }
}

fn read_token(path: &Path) -> Result<String, String> {
    use std::os::unix::fs::PermissionsExt;
    let name = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("--token-file {name}: can't be read: {error}"))?;
    if fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0) {
        log::warn!("others on this machine can read the credential in {name}: `chmod 600 {name}`");
    }
    Ok(text)
}

/// Raises the soft limit on open files to the hard one: each visitor and each link is a file. Gives what it is then.
pub fn raise_file_limit() -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it can't be had, the old one holds, and running into it is said when it happens.
    let _ = setrlimit(Resource::Nofile, limit);
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn reverse_of(args: &[&str]) -> Result<agent::Settings, String> {
        reverse(&Reverse::parse_from([&["ptth-reverse"], args].concat()))
    }

    #[test]
    fn public_urls() {
        for (via, name, url) in [
            ("http://localhost:9999", "demo", "http://demo.localhost:9999/"),
            ("http://127.0.0.1:9999", "demo", "http://demo.localhost:9999/"),
            ("http://relay.example", "demo", "http://demo.relay.example/"),
            ("relay.example:80/", "demo", "http://demo.relay.example:80/"),
            ("http://192.0.2.1:9999", "demo", "http://192.0.2.1:9999/frontend/servers/demo/"),
            ("http://[2001:db8::1]:9999", "demo", "http://[2001:db8::1]:9999/frontend/servers/demo/"),
            ("http://relay.example", "default", "http://relay.example/"),
            ("http://relay.example", "Demo", "http://demo.relay.example/"),
        ] {
            let settings = reverse_of(&["8080", "--via", via, "--name", name]).unwrap();
            assert_eq!(settings.public_url, url, "{via} {name}");
        }
    }

    #[test]
    fn every_flag_has_a_negative_case() {
        for args in [
            &["x"][..],
            &["8080", "--via", "https://relay.example"],
            &["8080", "--via", "ftp://relay.example"],
            &["8080", "--via", "http://relay.example/path"],
            &["8080", "--via", "http://"],
            &["8080", "--name", "a.b"],
            &["8080", "--links", "0..4"],
            &["8080", "--links", "5..4"],
            &["8080", "--links", "5"],
            &["8080", "--host-header", "a b"],
            &["8080", "--token-file", "/no/such/file"],
            &["8080", "--timeout", "answer"],
            &["8080", "--timeout", "answer=soon"],
            &["8080", "--timeout", "answer=0s"],
            &["8080", "--timeout", "nothing=1s"],
            &["8080", "--limit", "head=0"],
            &["8080", "--limit", "nothing=1"],
            &["8080", "--limit", "fields=1000"],
            &["8080", "--via", "http://a", "--access-log", "/no/such/folder/log"],
        ] {
            assert!(reverse_of(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn a_credential_is_one_line_without_the_space_around_it() {
        for (text, key) in [("k\n", "k"), (" a b\r\n", "a b"), ("\u{e9}", "\u{e9}")] {
            assert_eq!(credential(text), Ok(key));
        }
        for text in ["", "\n", " \t\r\n", "a\nb", "a\0b", "a\x7f"] {
            assert!(credential(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn settings_reach_where_they_are_used() {
        let args = ["8080", "--via", "http://a", "--timeout", "answer=5m", "--limit", "head=16384", "--links", "1..3"];
        let settings = reverse_of(&args).unwrap();
        assert_eq!(settings.config.deadlines.answer.as_secs(), 300);
        assert_eq!(settings.config.limits.head, 16384);
        assert_eq!(settings.size, Size { spare: 1, most: 3 });
    }
}
