//! `peervpn connect`.

use std::time::Duration;

use clap::Args;
use ipnetwork::IpNetwork;

use super::args::{NodeArgs, said};
use super::terminal::Terminal;
use super::{Context, Outcome};
use crate::config::{Settings, value};
use crate::nat::servers;
use crate::node;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo peervpn connect PUBKEY@203.0.113.20:51820     the line that `peervpn exit` prints
  sudo peervpn connect 'PUBKEY@203.0.113.20:51820,[2001:db8::20]:51820'
                                                     several endpoints: the first that answers is used
  sudo peervpn connect PUBKEY@vpn.example.org:51820 --allowed-ips 198.51.100.0/24
                                                     send only that network through the exit
  sudo peervpn connect PUBKEY@203.0.113.20:51820 --timeout 30 --retry 3")]
pub(super) struct ConnectArgs {
    /// The exit's connect string: PUBKEY@ENDPOINT[,ENDPOINT…], an endpoint being IPv4:port, [IPv6]:port or name:port
    #[arg(value_name = "PUBKEY@ENDPOINT")]
    target: String,
    /// How long to wait for the first handshake: 15, 30s, 2m [default: 15]
    #[arg(long, value_name = "SECONDS", value_parser = value::duration)]
    timeout: Option<Duration>,
    /// How many times to try [default: 1]
    #[arg(long, value_name = "N", value_parser = value::count)]
    retry: Option<u32>,
    /// Send only these prefixes through the exit, comma-separated [default: everything]
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',', value_parser = value::cidr)]
    allowed_ips: Vec<IpNetwork>,
    /// Keep these prefixes out of the tunnel, comma-separated
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',', value_parser = value::cidr)]
    exclude: Vec<IpNetwork>,
    /// Send even the LAN's addresses through the exit
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    no_lan: Option<bool>,
    #[command(flatten)]
    node: NodeArgs,
}

impl ConnectArgs {
    /// What the flags say, and the target.
    fn settings(self) -> (Settings, String) {
        let settings = Settings {
            timeout: self.timeout,
            retry: self.retry,
            allowed_ips: said(self.allowed_ips),
            exclude: said(self.exclude),
            no_lan: self.no_lan,
            ..self.node.settings()
        };
        (settings, self.target)
    }
}

/// Runs until it is stopped.
pub(super) fn run(args: ConnectArgs, context: &Context) -> Outcome {
    let file = context.config_file()?;
    let (flags, target) = args.settings();
    let options = flags.over(file.for_connect()).connect(target, servers::DEFAULT);
    node::connect::run(&options, &context.places, &mut Terminal::new(context))
}
