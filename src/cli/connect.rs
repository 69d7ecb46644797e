//! `peervpn connect`.

use std::io::{BufRead as _, IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnetwork::IpNetwork;

use super::args::{NodeArgs, said};
use super::terminal::Terminal;
use super::{Context, Outcome, terminal};
use crate::config::{Dns, Settings, value};
use crate::error::Failure;
use crate::join::connect::ConnectString;
use crate::join::invite::{Invite, MAX_LENGTH};
use crate::nat::servers;
use crate::node;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo peervpn connect PUBKEY@203.0.113.20:51820     the line that `peervpn exit` prints
  sudo peervpn connect \"PUBKEY@203.0.113.20:51820,[2001:db8::20]:51820\"
                                                     several endpoints: the first to answer
  sudo peervpn connect PUBKEY@vpn.example.org:51820 --allowed-ips 198.51.100.0/24
                                                     send only that network through the exit
  sudo peervpn connect PUBKEY@203.0.113.20:51820 --lockdown --no-lan
                                                     nothing else leaves, from now on
  sudo peervpn connect PUBKEY@203.0.113.20:51820 --timeout 30 --retry 3
  sudo peervpn connect -                             join by an invite: paste it when asked")]
pub(super) struct ConnectArgs {
    /// The exit's connect string: PUBKEY@ENDPOINT[,ENDPOINT…], an endpoint being IPv4:port, [IPv6]:port or name:port.
    /// Or an invite, better given as - (read from standard input), which keeps it out of the shell's history
    #[arg(value_name = "PUBKEY@ENDPOINT", required_unless_present = "invite_file")]
    target: Option<String>,
    /// Join by the invite in this file
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    invite_file: Option<PathBuf>,
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
    /// Who answers DNS: exit, none (leave DNS as it is), or servers asked through the tunnel [default: exit]
    #[arg(long, value_name = "exit|none|ADDR,…", value_parser = value::dns)]
    dns: Option<Dns>,
    /// Let traffic out beside the tunnel while the tunnel is down
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    no_kill_switch: Option<bool>,
    /// Let nothing out before the first handshake either, and keep asking until it comes
    #[arg(long, conflicts_with = "no_kill_switch", value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    lockdown: Option<bool>,
    #[command(flatten)]
    node: NodeArgs,
}

impl ConnectArgs {
    /// Whether a secret is on this command line, or waited for.
    pub(super) fn carries_invite(&self) -> bool {
        self.invite_file.is_some()
            || self.target.as_deref().is_some_and(|target| target == "-" || Invite::is_meant(target))
    }

    /// The target must be one that can be connected to, before anything is done with it.
    pub(super) fn check_target(&self) -> Outcome {
        match self.target.as_deref().map(str::parse::<ConnectString>) {
            Some(Err(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// What the flags say, and the target.
    fn settings(self) -> (Settings, Option<String>) {
        let settings = Settings {
            timeout: self.timeout,
            retry: self.retry,
            allowed_ips: said(self.allowed_ips),
            exclude: said(self.exclude),
            no_lan: self.no_lan,
            dns: self.dns,
            no_kill_switch: self.no_kill_switch,
            lockdown: self.lockdown,
            ..self.node.settings()
        };
        (settings, self.target)
    }
}

/// The connect string or invite, from wherever it is to come.
fn target(args: &ConnectArgs) -> Result<String, Failure> {
    if let Some(file) = &args.invite_file {
        return Ok(node::invite::read_private(file)?.to_string());
    }
    let typed = args.target.as_deref().unwrap_or_default();
    if typed != "-" {
        if Invite::is_meant(typed) {
            // other users see the arguments of every process
            let shown =
                if node::conceal_argument(typed) { "" } else { " and, while this runs, in the list of processes" };
            terminal::to_stderr(|err| {
                writeln!(
                    err,
                    "note: the invite now stands in your shell's history{shown}; connect - reads it from standard input"
                )
            });
        }
        return Ok(typed.to_owned());
    }
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        terminal::to_stderr(|err| write!(err, "Paste the invite or connect string, then Enter: "));
    }
    let mut line = String::with_capacity(MAX_LENGTH);
    let mut bounded = stdin.lock().take(MAX_LENGTH as u64);
    // from a pipe, all of it: chat programs break long lines
    let read = if stdin.is_terminal() { bounded.read_line(&mut line) } else { bounded.read_to_string(&mut line) };
    read.map_err(|error| Failure::usage(format!("cannot read standard input: {error}"), "paste one line of text"))?;
    let text = line.trim().to_owned();
    if text.is_empty() {
        return Err(Failure::usage("nothing came on standard input", "paste the invite: one line of text"));
    }
    Ok(text)
}

/// Runs until it is stopped.
pub(super) fn run(args: ConnectArgs, context: &Context) -> Outcome {
    let file = context.config_file()?;
    let target = target(&args)?;
    let (flags, _) = args.settings();
    let options = flags.over(file.for_connect()).connect(target, servers::DEFAULT);
    node::connect::run(&options, &context.places, &mut Terminal::new(context))
}
