//! The relay: the public side of tunnels.

use std::process::ExitCode;

use clap::Parser;
use ptth::cli::Relay;
use ptth::config::Failure;
use ptth::{config, log, relay};

fn main() -> ExitCode {
    let cli = Relay::parse();
    log::to_stderr("ptth-relay", config::level(&cli.common));
    match run(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(Failure(error, code)) => {
            ::log::error!("{error}");
            ExitCode::from(code)
        }
    }
}

fn run(cli: &Relay) -> Result<u8, Failure> {
    let settings = config::relay(cli).map_err(Failure::flags)?;
    config::raise_file_limit();
    let domain = settings.domain.clone();
    let (mut reactors, addresses) = relay::start(settings).map_err(Failure::start)?;
    // One loop hears the signals and tells the others. Before anybody can know that it listens.
    if let Some(first) = reactors.first_mut() {
        let failed = |error| Failure::start(format!("signals can't be handled: {error}"));
        first.handle_signals().map_err(failed)?;
    }
    for address in addresses {
        ::log::info!("listening on http://{address}, tunnels are http://NAME.{domain}:{}/", address.port());
    }
    relay::run(reactors).map_err(Failure::start)
}
