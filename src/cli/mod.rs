//! The command line: parses, asks [`crate::node`] or a running node, renders. One file a command.
//!
//! stdout carries the answer, stderr the rest; with `--json` stdout carries one object a line. Exit status: 0 done,
//! 1 expected failure, 2 usage, 3 the host could not be fully put back.

mod args;
mod connect;
mod doctor;
mod down;
mod exit;
mod export;
mod info;
mod invite;
mod lane;
mod log;
mod nattest;
mod peers;
mod prototype;
mod recover;
mod render;
mod service;
mod status;
mod style;
mod terminal;
mod usage;
mod userspace_device;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{ConfigFile, Places};
use crate::error::{Failure, Status};
use crate::node::control::Response;
use crate::node::{self, places};
use style::Style;

/// A VPN between two people and no server: one runs `peervpn exit`, the other's traffic leaves through it.
#[derive(Debug, Parser)]
#[command(name = "peervpn", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "\
Examples:
  sudo peervpn exit                          share this machine's way to the internet
  sudo peervpn connect PUBKEY@ENDPOINT       use it (`exit` prints this line)
  peervpn nattest                            whether this machine can be an exit
  sudo peervpn status                        how the running node stands
  sudo peervpn down                          stop it and put this host back

Exit status: 0 done, 1 expected failure, 2 wrong usage, 3 the host could not be fully put back.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: args::GlobalArgs,
}

// the options of one command are enough to run it: most of a short command's time is its start
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Let peers' traffic leave through this machine.
    Exit(exit::ExitArgs),
    /// Send this machine's traffic through an exit.
    Connect(connect::ConnectArgs),
    /// Show this machine's key, back ends and places.
    Info(info::InfoArgs),
    /// Measure this network: how its NAT behaves, whether this machine can be an exit.
    Nattest(nattest::NattestArgs),
    /// Show how the running node stands.
    Status(status::StatusArgs),
    /// Show and admit peers of the running node.
    Peers(peers::PeersArgs),
    /// Invite someone: a line, a wg-quick file or a QR code that lets them in without being asked about.
    Invite(invite::InviteArgs),
    /// Show the running node's configuration as a wg-quick file.
    Export(export::ExportArgs),
    /// Stop the running node and put this host back.
    Down(down::DownArgs),
    /// Put this host back after a crash.
    Recover(recover::RecoverArgs),
    /// Find what would stop exit or connect here, and what mends it.
    Doctor(doctor::DoctorArgs),
    /// Windows: have the system keep this machine connected.
    Service(service::ServiceArgs),
    /// The bundled userspace WireGuard device, in a process of its own.
    #[command(name = crate::node::device::SUBCOMMAND, hide = true)]
    UserspaceDevice(userspace_device::DeviceArgs),
}

/// What every command gets.
struct Context {
    /// Where things live.
    places: Places,
    /// `--config` or `PEERVPN_CONFIG`.
    config: Option<PathBuf>,
    /// `--json`.
    json: bool,
    /// Colour on stdout.
    stdout: Style,
    /// Colour on stderr.
    stderr: Style,
}

impl Context {
    /// The settings of the configuration file, for a command that changes the host.
    fn config_file(&self) -> Result<ConfigFile, Failure> {
        let usual = places::path(places::CONFIG);
        if self.config.is_none() {
            node::check_config(&usual)?;
        }
        ConfigFile::read(self.config.as_deref(), &usual).map_err(|error| Failure::from(error).host("unchanged"))
    }
}

/// Runs the program; the exit code is that of cli.md.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    ExitCode::from(run_to_end(args.collect()))
}

/// The exit status.
fn run_to_end(args: Vec<OsString>) -> u8 {
    let args = prototype::translate(args);
    let Cli { command, global } = match usage::parse(&args) {
        Ok(cli) => cli,
        Err(error) => return usage::report(&error, &args),
    };
    let context = global.context();
    log::to_stderr(global.verbose, context.stderr);
    perform(command, &global, &context)
}

/// The exit status.
fn perform(command: Command, global: &args::GlobalArgs, context: &Context) -> u8 {
    let result = match command {
        Command::Exit(args) => exit::run(args, context),
        Command::Connect(args) => connect::run(args, context),
        Command::Info(args) => info::run(&args, context),
        Command::Nattest(args) => nattest::run(args, context),
        Command::Status(args) => status::run(&args, context),
        Command::Peers(args) => peers::run(args, context),
        Command::Invite(args) => invite::run(&args, context),
        Command::Export(args) => export::run(&args, context),
        Command::Down(args) => down::run(&args, context),
        Command::Recover(args) => recover::run(&args, context),
        Command::Doctor(args) => doctor::run(&args, context),
        Command::Service(args) => service::run(args, global, context),
        Command::UserspaceDevice(args) => userspace_device::run(&args),
    };
    let status = match result {
        Ok(()) => Status::Done,
        Err(failure) => {
            terminal::to_stderr(|err| render::failure(err, &failure, context.stderr));
            failure.status
        }
    };
    terminal::finish();
    status as u8
}

/// What a command returns.
type Outcome = Result<(), Failure>;

/// An answer of the running node that is an error, or none of those that were expected.
fn unexpected(answer: Response) -> Failure {
    match answer {
        Response::Failed { error, hint } => Failure { message: error, host: None, hint, status: Status::Failed },
        other => Failure::new(
            format!("the running node gave an answer to another question: {other:?}"),
            "update the program that runs the node, or this one: they are of different versions",
        ),
    }
}
