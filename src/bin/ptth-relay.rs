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
    let (mut reactor, addresses) = relay::start(settings)?;
    reactor.handle_signals().map_err(|error| format!("signals can't be handled: {error}"))?;
    for address in addresses {
        ::log::info!("listening on http://{address}, tunnels are http://NAME.{domain}:{}/", address.port());
    }
    reactor.run().map_err(|error| format!("the event loop failed: {error}"))
}
