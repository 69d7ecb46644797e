//! `peervpn service`.

use std::ffi::OsString;

use clap::{Args, Parser as _, Subcommand};

use super::{Cli, Command, Context, Outcome, terminal};
use crate::error::Failure;
use crate::node;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  peervpn service install connect PUBKEY@203.0.113.20:51820
                                     connect now, and whenever this machine starts
  peervpn service install connect PUBKEY@203.0.113.20:51820 --no-lan --interface office
  peervpn service uninstall          stop, put this host back, and start no more

Windows only, in a terminal opened with \"Run as administrator\". Linux has systemd units for this (make install), macOS
launchd property lists.")]
pub(super) struct ServiceArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Have the system run this command now and whenever it starts
    #[command(after_help = "\
Examples:
  peervpn service install connect PUBKEY@203.0.113.20:51820")]
    Install {
        /// connect PUBKEY@ENDPOINT and its options
        #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Stop the service, put this host back, and remove it
    #[command(after_help = "\
Examples:
  peervpn service uninstall")]
    Uninstall,
    /// What the service manager starts
    #[command(hide = true)]
    Run {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Installs, removes or runs the service.
pub(super) fn run(args: ServiceArgs, context: &Context) -> Outcome {
    match args.action {
        Action::Install { command } => {
            check(&command)?;
            node::service_install(&command)?;
            say("installed and started: it runs whenever this machine starts; peervpn status shows how it stands");
        }
        Action::Uninstall => {
            say(if node::service_uninstall()? { "stopped and removed" } else { "there was no service" });
        }
        Action::Run { command } => {
            check(&command)?;
            node::service_run(&context.places, move || super::run_to_end(line(&command)))?;
        }
    }
    Ok(())
}

fn line(command: &[OsString]) -> Vec<OsString> {
    std::iter::once("peervpn".into()).chain(command.iter().cloned()).collect()
}

/// The command must be one that a node runs by, before it is stored where every user of the machine can read it.
fn check(command: &[OsString]) -> Outcome {
    let cli = Cli::try_parse_from(line(command)).map_err(|error| {
        let said = error.to_string();
        let first = said.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Failure::usage(format!("the service's command is wrong: {first}"), "peervpn connect --help shows its options")
    })?;
    match cli.command {
        Command::Connect(args) if args.carries_invite() => Err(Failure::usage(
            "an invite is a secret, and a service's command can be read by everyone",
            "join once with peervpn connect -, then install the service with the connect string",
        )),
        Command::Connect(_) | Command::Exit(_) => Ok(()),
        _ => Err(Failure::usage(
            "a service runs connect, and nothing that ends by itself",
            "peervpn service install connect PUBKEY@ENDPOINT",
        )),
    }
}

fn say(text: &str) {
    terminal::to_stdout(|out| writeln!(out, "{text}"));
}
