//! The command line as it is typed. What the words mean is settled in [`config`](crate::config).

#![allow(rustdoc::bare_urls, reason = "these comments are the help that people read in a terminal")]

#[cfg(feature = "relay")]
mod relay;

use std::path::PathBuf;

use clap::Parser;
#[cfg(feature = "relay")]
pub use relay::{Relay, Task};

/// Flags that both programs have.
#[derive(Clone, Debug, clap::Args)]
pub struct Common {
    /// Change how long something may last, such as `answer=5m`; may be given again (see --help)
    #[arg(long = "timeout", value_name = "NAME=TIME")]
    pub timeouts: Vec<String>,

    /// Change how much of something there may be, such as `head=16384`; may be given again (see --help)
    #[arg(long = "limit", value_name = "NAME=N")]
    pub limits: Vec<String>,

    /// Write a line for each request to the end of FILE
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,

    /// Say more: a line for each request; twice: each step
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// Say only what goes wrong
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
}

/// Makes a local port reachable through a relay, from behind any NAT or firewall.
///
/// When the tunnel stands, its public URL is printed to stdout, and nothing else is.
#[derive(Debug, Parser)]
#[command(name = "ptth-reverse", version, max_term_width = 100, after_long_help = after_help(REVERSE_HELP))]
pub struct Reverse {
    /// What to make reachable: PORT, HOST:PORT, unix:PATH, or `hello`, a built-in page that shows each request
    #[arg(value_name = "UPSTREAM")]
    pub upstream: String,

    /// The relay, such as http://relay.example:9999; without it, one is started here, on 127.0.0.1:9999
    #[arg(long, value_name = "URL", env = "PTTH_VIA")]
    #[cfg_attr(not(feature = "relay"), arg(help = "The relay, such as http://relay.example:9999"))]
    pub via: Option<String>,

    /// The tunnel's name: letters, digits, `-` and `_`
    #[arg(long, value_name = "NAME", env = "PTTH_NAME", default_value = "default")]
    pub name: String,

    /// Send the credential in this file to the relay (or the one in the environment variable PTTH_TOKEN)
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// How to make links: by upgrade (`ptth/1.0`), by polls (`comet`), or by polls of a relay of the ptth dialect (`ptth-relay`);
    /// `auto` tries the upgrade and falls back to polls, and takes ptth-relay when the relay's URL ends in its path
    #[arg(long, value_name = "DIALECT", default_value = "auto", value_parser = ["auto", "ptth/1.0", "comet", "ptth-relay"])]
    pub dialect: String,

    /// Keep MIN links waiting for requests, and at most MAX in all
    #[arg(long, value_name = "MIN..MAX", default_value = "2..256")]
    pub links: String,

    /// Send this as Host to the upstream, for servers that refuse names they don't know
    #[arg(long, value_name = "HOST")]
    pub host_header: Option<String>,

    /// End when the relay can't be reached or goes away, instead of dialling again for ever
    #[arg(long)]
    pub once: bool,

    /// Print a JSON object a line for each thing that happens to the tunnel, instead of the URL alone
    #[arg(long)]
    pub json: bool,

    /// What both programs have.
    #[command(flatten)]
    pub common: Common,
}

const REVERSE_HELP: &str = "\
Exit codes: 0 stopped by a signal, 130 by a second one, 1 could not start, 2 wrong flags; with --once also 3 relay not
reached, 4 tunnel refused by the relay, 5 relay gone.
";

/// The end of the long help: the names that --timeout and --limit take, from the one table that has them.
fn after_help(own: &str) -> String {
    use ptth_proto::limits::{Deadlines, Limits, NONE};
    let (deadlines, limits) = (Deadlines::default(), Limits::default());
    let mut help = String::from(own);
    help.push_str("\nNames for --timeout:\n");
    for (name, about) in Deadlines::NAMES {
        let time = deadlines.get(name).map(|time| humantime::format_duration(time).to_string()).unwrap_or_default();
        help.push_str(&format!("  {name:<19} {about} [default: {time}]\n"));
    }
    help.push_str("\nNames for --limit:\n");
    for (name, about) in Limits::NAMES {
        let number = limits.get(name).filter(|number| *number != NONE);
        let number = number.map_or("none".into(), |number| number.to_string());
        help.push_str(&format!("  {name:<19} {about} [default: {number}]\n"));
    }
    help
}
