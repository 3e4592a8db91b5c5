//! The agent: makes a local port reachable.

use std::process::ExitCode;

use clap::Parser;
use ptth::cli::Reverse;
use ptth::config::Failure;
use ptth::{agent, config, log};

fn main() -> ExitCode {
    let cli = Reverse::parse();
    log::to_stderr("ptth-reverse", config::level(&cli.common));
    match run(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(Failure(error, code)) => {
            ::log::error!("{error}");
            ExitCode::from(code)
        }
    }
}

fn run(cli: &Reverse) -> Result<u8, Failure> {
    let mut settings = config::reverse(cli).map_err(Failure::flags)?;
    let files = config::raise_file_limit();
    // The other half is for links, each of which may bring a request that waits for nobody, and for what is neither.
    let most = (files / 2).max(1);
    if settings.size.most > most {
        ::log::warn!(
            "there will be {most} links at most: {files} files may be open (raise the limit with `ulimit -n`)"
        );
        settings.size.most = most;
        settings.size.spare = settings.size.spare.min(most);
    }
    let limits = &mut settings.config.limits;
    limits.upstream = limits.upstream.min(files / 2);
    limits.upstream_idle = limits.upstream_idle.min(files / 4);
    ::log::debug!("{files} files may be open");
    #[cfg(feature = "relay")]
    let (relay, mailbox) = own_relay::start(cli, files)?.unzip();
    let mut reactor = agent::start(settings, files).map_err(Failure::start)?;
    #[cfg(feature = "relay")]
    // It stops when we do: one loop hears the signals.
    reactor.app.side.set_companion(mailbox);
    let failed = |what: &str, error: std::io::Error| Failure::start(format!("{what}: {error}"));
    reactor.handle_signals().map_err(|error| failed("signals can't be handled", error))?;
    let code = reactor.run().map_err(|error| failed("the event loop failed", error));
    #[cfg(feature = "relay")]
    if let (Some(relay), Ok(0 | ptth::reactor::signal::KILLED)) = (relay, &code) {
        // Stopped by the same signal; its visitors get their last bytes.
        let _ = relay.join();
    }
    code
}

/// A relay of one's own, on a thread of this process: one command shows the whole thing.
#[cfg(feature = "relay")]
mod own_relay {
    use std::thread::{Builder, JoinHandle};

    use ptth::cli::Reverse;
    use ptth::config::{self, Failure};
    use ptth::reactor::Mailbox;
    use ptth::relay;

    /// Starts it where the agent was told of none.
    pub(super) fn start(cli: &Reverse, files: usize) -> Result<Option<(JoinHandle<()>, Mailbox)>, Failure> {
        if cli.via.is_some() {
            return Ok(None);
        }
        let settings = config::relay::own(&cli.common).map_err(Failure::flags)?;
        run(settings, files).map(Some).map_err(Failure::start)
    }

    fn run(settings: relay::Settings, files: usize) -> Result<(JoinHandle<()>, Mailbox), String> {
        let (reactors, _) = relay::start(settings, files).map_err(|error| {
            let at = config::OWN_RELAY;
            format!(
                "no --via was given, and no relay can be started here: {error} (is one running? then --via http://{at})"
            )
        })?;
        let mailbox = reactors.first().map(|first| first.core.mailbox()).ok_or("a relay without a loop")?;
        let run = move || {
            if let Err(error) = relay::run(reactors) {
                ::log::error!("{error}");
            }
        };
        let thread = Builder::new().name("relay".into()).spawn(run);
        thread.map(|thread| (thread, mailbox)).map_err(|error| format!("no thread for the relay: {error}"))
    }
}
