//! The relay: the public side of tunnels.

use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;

use clap::Parser;
use ptth::cli::{Relay, Task};
use ptth::config::Failure;
use ptth::relay::agents;
use ptth::{config, log, relay};

fn main() -> ExitCode {
    let cli = Relay::parse();
    log::to_stderr("ptth-relay", config::level(&cli.common));
    let done = match cli.task {
        Some(Task::HashKey) => hash_key(),
        None => run(&cli),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(Failure(error, code)) => {
            ::log::error!("{error}");
            ExitCode::from(code)
        }
    }
}

fn run(cli: &Relay) -> Result<u8, Failure> {
    let settings = config::relay::settings(cli).map_err(Failure::flags)?;
    let files = config::raise_file_limit();
    let domain = settings.domain.clone();
    let (mut reactors, addresses) = relay::start(settings, files).map_err(Failure::start)?;
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

/// Reads a key and prints what lets its holder in.
fn hash_key() -> Result<u8, Failure> {
    let stdin = io::stdin();
    let mut text = String::new();
    let read = if stdin.is_terminal() {
        ::log::info!("type or paste the key that the agent will have, and press Enter");
        stdin.read_line(&mut text)
    } else {
        stdin.lock().read_to_string(&mut text)
    };
    read.map_err(|error| Failure::start(format!("the key can't be read from stdin: {error}")))?;
    let key = config::credential(&text).map_err(Failure::flags)?;
    print_line(&agents::hash_line(key)).map_err(|error| Failure::start(format!("stdout can't be written: {error}")))?;
    Ok(0)
}

/// Prints a line to stdout: the one place that does.
fn print_line(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
