//! What a relay is told.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZero;
use std::thread;

use ipnet::IpNet;
use ptth_proto::http::tunnel::is_never_passed;
use ptth_proto::limits::WORKERS;
use ptth_proto::wire::fields::is_token;
use ptth_proto::wire::head::is_host;

use super::{OWN_RELAY, access_log, config};
use crate::cli::{Common, Relay};
use crate::net::name::TunnelName;
use crate::relay::agents::{Access, Agents};
use crate::relay::{Polling, Service, Settings};

/// A relay's settings.
///
/// # Errors
/// When they can't be.
pub fn settings(cli: &Relay) -> Result<Settings, String> {
    let listen = cli.listen.iter().map(|text| listen(text)).collect::<Result<Vec<_>, _>>()?;
    let anyone = cli.agents.is_none() && !cli.open;
    if let Some(public) = listen.iter().find(|address| !address.ip().is_loopback() && anyone) {
        return Err(format!(
            "--listen {public} can be reached from other machines, and whoever reaches it could claim any tunnel: say \
             with --agents FILE who may, say --open if anyone may, or listen on 127.0.0.1"
        ));
    }
    let agents = access(cli)?;
    let polling = polling(cli)?;
    let domain = cli.domain.trim_matches('.').to_ascii_lowercase();
    if domain.is_empty() || domain.contains(':') || !is_host(domain.as_bytes()) {
        return Err(format!("--domain {}: it is a host name, such as tunnels.example.org", cli.domain));
    }
    let trusted = cli.trust_forwarded.iter().map(|text| network(text)).collect::<Result<Vec<_>, _>>()?;
    let services = cli.tcp.iter().map(|text| service(text)).collect::<Result<Vec<_>, _>>()?;
    let upgrades = upgrades(&cli.allow_upgrade)?;
    let cores = || thread::available_parallelism().map_or(1, NonZero::get).min(WORKERS);
    let workers = cli.workers.map_or_else(cores, usize::from);
    let access_logs = (0..workers).map(|_| access_log(&cli.common)).collect::<Result<Vec<_>, _>>()?;
    let config = config(&cli.common)?;
    Ok(Settings { listen, services, upgrades, domain, workers, trusted, config, access_logs, agents, polling })
}

/// Those of the relay that an agent starts for itself.
///
/// # Errors
/// When they can't be.
pub fn own(common: &Common) -> Result<Settings, String> {
    Ok(Settings {
        listen: vec![listen(OWN_RELAY)?],
        services: Vec::new(),
        upgrades: vec!["websocket".into()],
        domain: "localhost".into(),
        workers: 1,
        trusted: Vec::new(),
        config: config(common)?,
        access_logs: vec![access_log(common)?],
        agents: Access::Anyone,
        polling: Polling::default(),
    })
}

fn service(text: &str) -> Result<Service, String> {
    let parts = text.split_once('=').and_then(|(listen, name)| {
        Some(Service { listen: listen.parse().ok()?, name: TunnelName::of(name.as_bytes())? })
    });
    parts.ok_or_else(|| format!("--tcp {text}: it is ADDR:PORT=NAME, such as 0.0.0.0:2222=demo"))
}

fn upgrades(tokens: &[String]) -> Result<Vec<String>, String> {
    for token in tokens {
        let token = token.as_bytes();
        // A protocol may have a version behind a slash (RFC 9110 §7.8).
        if !token.split(|b| *b == b'/').all(is_token) {
            return Err(format!("--allow-upgrade {}: it is a protocol, such as websocket", token.escape_ascii()));
        }
        if is_never_passed(token) {
            return Err(format!(
                "--allow-upgrade {}: behind it, requests would come that nobody has looked at; it is never passed on",
                token.escape_ascii()
            ));
        }
    }
    Ok(tokens.to_vec())
}

fn polling(cli: &Relay) -> Result<Polling, String> {
    let prefix = cli.queue_prefix.as_deref().unwrap_or_default().trim_end_matches('/');
    let good = |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#');
    if !prefix.is_empty() && (!prefix.starts_with('/') || !prefix.bytes().all(good)) {
        return Err(format!("--queue-prefix {prefix}: it is a path, such as /queues"));
    }
    Ok(Polling { no_upgrade: cli.no_upgrade, prefix: prefix.into(), query: cli.ptth_query })
}

fn access(cli: &Relay) -> Result<Access, String> {
    let Some(path) = &cli.agents else { return Ok(Access::Anyone) };
    let name = path.display();
    if cli.open {
        return Err(format!(
            "--agents {name} and --open contradict each other: drop --open to let in those in the file alone, or \
             --agents to let in anyone"
        ));
    }
    let text = fs::read_to_string(path).map_err(|error| format!("--agents {name}: can't be read: {error}"))?;
    let agents = Agents::parse(&text).map_err(|error| format!("--agents {name}: {error}"))?;
    Ok(Access::Listed(agents))
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("--listen {text}: it is ADDR:PORT, such as 127.0.0.1:9999 or [::]:80"))
}

fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().ok();
    let address = || text.parse().ok().map(|ip: std::net::IpAddr| IpNet::from(ip));
    network
        .or_else(address)
        .ok_or_else(|| format!("--trust-forwarded {text}: it is an address or a network, such as 10.0.0.0/8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn every_flag_has_a_negative_case() {
        let relay_of = |args: &[&str]| settings(&Relay::parse_from([&["ptth-relay"], args].concat())).map(|_| ());
        for args in [
            &["--listen", "9999"][..],
            &["--listen", "0.0.0.0:9999"],
            &["--listen", "127.0.0.1:9999", "--listen", "[::]:9999"],
            &["--domain", "a b"],
            &["--domain", "a:80"],
            &["--trust-forwarded", "proxy"],
            &["--agents", "/no/such/file"],
            &["--agents", "/dev/null"],
            &["--agents", "Cargo.toml"],
            &["--agents", "/dev/null", "--open"],
        ] {
            assert!(relay_of(args).is_err(), "{args:?}");
        }
        assert!(relay_of(&["--listen", "0.0.0.0:9999", "--open", "--trust-forwarded", "10.0.0.0/8"]).is_ok());
    }

    #[test]
    fn what_an_agent_is_told_holds_for_the_relay_that_it_starts() {
        let cli = crate::cli::Reverse::parse_from(["ptth-reverse", "8080", "--limit", "head=16384"]);
        let own = own(&cli.common).unwrap();
        assert_eq!((own.listen[0].to_string().as_str(), own.config.limits.head), (OWN_RELAY, 16384));
    }
}
