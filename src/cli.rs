//! The command line as it is typed. What the words mean is settled in [`config`](crate::config).

#![allow(rustdoc::bare_urls, reason = "these comments are the help that people read in a terminal")]

use std::path::PathBuf;

use clap::Parser;

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

/// The public side of a tunnel: takes agents' connections in and sends visitors' requests down them.
#[derive(Debug, Parser)]
#[command(name = "ptth-relay", version, max_term_width = 100, after_long_help = after_help(RELAY_HELP))]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub struct Relay {
    /// What to do other than to serve.
    #[command(subcommand)]
    pub task: Option<Task>,

    /// Listen on this address, for visitors and agents alike; may be given again
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9999")]
    pub listen: Vec<String>,

    /// The domain under which a tunnel NAME is found as NAME.DOMAIN
    #[arg(long, value_name = "DOMAIN", default_value = "localhost")]
    pub domain: String,

    /// Let only the agents in this file claim names, each with a credential of its own (see --help)
    #[arg(long, value_name = "FILE")]
    pub agents: Option<PathBuf>,

    /// Let anyone who can reach this relay claim any name; without --agents, needed on other than loopback addresses
    #[arg(long)]
    pub open: bool,

    /// Take connections of any kind in at this address and pass them to the tunnel's upstream, byte by byte; may be given again
    #[arg(long, value_name = "ADDR:PORT=NAME")]
    pub tcp: Vec<String>,

    /// Let visitors go on with this protocol by `Upgrade`, or with any for `*` (but never h2c); may be given again
    #[arg(long, value_name = "TOKEN", default_value = "websocket")]
    pub allow_upgrade: Vec<String>,

    /// Turn no connections: agents that offer it are given their requests as messages (COMET)
    #[arg(long)]
    pub no_upgrade: bool,

    /// Have the queues of agents that poll below this path, so that visitors of `default` may POST JSON to any other
    #[arg(long, value_name = "PATH")]
    pub queue_prefix: Option<String>,

    /// Pass query strings on to agents of the ptth dialect too; their own relay cuts them off
    #[arg(long)]
    pub ptth_query: bool,

    /// Run so many event loops, each on a thread of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub workers: u8,

    /// Believe X-Forwarded-…, Forwarded and Via of visitors from this address or network; may be given again
    #[arg(long, value_name = "ADDR[/BITS]")]
    pub trust_forwarded: Vec<String>,

    /// What both programs have.
    #[command(flatten)]
    pub common: Common,
}

/// What the relay's program does instead of serving.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
pub enum Task {
    /// Read an agent's key from stdin, and print its line for the file of --agents
    ///
    /// The key is any line of text; make it long and random, because others may read its hash and try keys against it.
    HashKey,
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
    #[arg(long, value_name = "MIN..MAX", default_value = "2..64")]
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

const RELAY_HELP: &str = "\
How a visitor names a tunnel: NAME.DOMAIN in the host, or the path /frontend/servers/NAME/…; any other request goes to the
tunnel `default`.

The file of --agents is TOML, with a table for each credential:
  [[agent]]
  names = [\"demo\", \"lab-*\"]  # what it may claim
  hash = \"…\"                 # as `ptth-relay hash-key` prints it; a list of two while a key is being changed

Exit codes: 0 stopped by a signal, 1 could not start, 2 wrong flags.
";

const REVERSE_HELP: &str = "\
Exit codes: 0 stopped by a signal, 1 could not start, 2 wrong flags; with --once also 3 relay not reached, 4 tunnel
refused by the relay, 5 relay gone.
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
