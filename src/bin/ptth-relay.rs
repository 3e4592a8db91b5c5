//! The relay: the public side of tunnels.

use std::process::ExitCode;

use clap::Parser;
use ptth::cli::Relay;
use ptth::{config, log, relay};

fn main() -> ExitCode {
    let cli = Relay::parse();
    log::to_stderr("ptth-relay", config::level(&cli.common));
    match run(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            ::log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Relay) -> Result<u8, String> {
    let settings = config::relay(cli)?;
    config::raise_file_limit();
    let domain = settings.domain.clone();
    let (reactors, addresses) = relay::start(settings)?;
    for address in addresses {
        ::log::info!("listening on http://{address}, tunnels are http://NAME.{domain}:{}/", address.port());
    }
    relay::run(reactors)
}
