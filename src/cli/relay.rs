//! The command line of the relay.

use std::path::PathBuf;

use clap::Parser;

use super::{Common, after_help};

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

    /// Run so many event loops, each on a thread of its own [default: one for each core, at most 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub workers: Option<u8>,

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

const RELAY_HELP: &str = "\
How a visitor names a tunnel: NAME.DOMAIN in the host, or the path /frontend/servers/NAME/…; any other request goes to the
tunnel `default`.

The file of --agents is TOML, with a table for each credential:
  [[agent]]
  names = [\"demo\", \"lab-*\"]  # what it may claim
  hash = \"…\"                 # as `ptth-relay hash-key` prints it; a list of two while a key is being changed

Exit codes: 0 stopped by a signal, 130 by a second one, 1 could not start, 2 wrong flags.
";
