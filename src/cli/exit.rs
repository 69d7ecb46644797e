//! `peervpn exit`.

use clap::Args;

use super::args::{NodeArgs, said};
use super::terminal::Terminal;
use super::{Context, Outcome};
use crate::config::{Accept, Dns, Settings, value};
use crate::nat::servers;
use crate::node;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo peervpn exit                                  ask before a peer is let in
  sudo peervpn exit --accept any --port 51820        let everyone in who has the connect string
  sudo peervpn exit --endpoint vpn.example.org:51820 --no-stun
                                                     the router forwards that port to this machine
  sudo peervpn exit --json                           for scripts: one event a line")]
pub(super) struct ExitArgs {
    /// What to do with an unknown peer: ask, any (let everyone in), none [default: ask]
    #[arg(long, value_name = "WHOM", value_parser = value::accept)]
    accept: Option<Accept>,
    /// Let peers reach this machine's LAN and this machine itself
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    allow_lan: Option<bool>,
    /// Let peers reach each other
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    allow_peers: Option<bool>,
    /// An endpoint under which peers reach this machine; may be repeated
    #[arg(long, value_name = "HOST:PORT", value_parser = value::host_port)]
    endpoint: Vec<String>,
    /// Ask no router for a port mapping
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    no_portmap: Option<bool>,
    /// Where peers' DNS queries go: system (this machine's resolver), none, or servers [default: system]
    #[arg(long, value_name = "system|none|ADDR,…", value_parser = value::dns)]
    dns: Option<Dns>,
    #[command(flatten)]
    node: NodeArgs,
}

impl ExitArgs {
    /// What the flags say.
    fn settings(self) -> Settings {
        Settings {
            accept: self.accept,
            allow_lan: self.allow_lan,
            allow_peers: self.allow_peers,
            endpoint: said(self.endpoint),
            no_portmap: self.no_portmap,
            dns: self.dns,
            ..self.node.settings()
        }
    }
}

/// Runs until it is stopped.
pub(super) fn run(args: ExitArgs, context: &Context) -> Outcome {
    let file = context.config_file()?;
    let options = args.settings().over(file.for_exit()).exit(servers::DEFAULT);
    node::exit::run(&options, &context.places, &mut Terminal::new(context))
}
