//! `peervpn service`.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use clap::{Args, Parser as _, Subcommand};
use serde::Serialize;

use super::args::GlobalArgs;
use super::{Cli, Command, Context, Outcome, render, terminal};
use crate::error::{Failure, Words};
use crate::host::firewall::can_exit;
use crate::node::system_service::{self, Service, ServiceState};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  peervpn service install connect PUBKEY@203.0.113.20:51820
                                     connect now, and whenever this machine starts
  peervpn service install connect PUBKEY@203.0.113.20:51820 --no-lan --interface office
  peervpn service status             whether it runs, and what it ended with
  peervpn service uninstall          stop, put this host back, and start no more

Windows only, in a terminal opened with \"Run as administrator\". Elsewhere `make install` brings what the system's own
service manager takes.")]
pub(super) struct ServiceArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Have the system run this command now and whenever it starts
    #[command(after_help = "\
Examples:
  peervpn service install connect PUBKEY@203.0.113.20:51820
  peervpn --state-dir D:\\PeerVPN service install connect PUBKEY@203.0.113.20:51820 --lockdown")]
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
    /// Show how the service stands
    #[command(after_help = "\
Examples:
  peervpn service status
  peervpn service status --json")]
    Status,
    /// What the service manager starts
    #[command(hide = true)]
    Run {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
}

/// `peervpn service … --json`.
#[derive(Debug, Serialize)]
struct Report {
    /// It is there.
    installed: bool,
    /// What was done, or how it stands.
    #[serde(flatten)]
    about: About,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum About {
    /// Install: it was not there, or with another command. Uninstall: there was one.
    Change { changed: bool },
    /// Status.
    Status { state: ServiceState, pid: Option<u32>, exit_status: Option<u32>, arguments: Vec<String>, log: String },
}

/// Installs, removes, shows or runs the service.
pub(super) fn run(args: ServiceArgs, global: &GlobalArgs, context: &Context) -> Outcome {
    match args.action {
        Action::Install { command } => {
            let told = check(&command)?.global.or(global);
            let changed = system_service::install(&arguments(&told, command)?)?;
            let text = match changed {
                true => "installed and started: it runs whenever this machine starts; peervpn service status shows it",
                false => "installed already, with this command; it runs whenever this machine starts",
            };
            say(context, &Report { installed: true, about: About::Change { changed } }, text);
        }
        Action::Uninstall => {
            let changed = system_service::uninstall()?;
            let text = if changed { "stopped and removed" } else { "there was no service" };
            say(context, &Report { installed: false, about: About::Change { changed } }, text);
        }
        Action::Status => show(context)?,
        Action::Run { command } => {
            let Cli { command, global } = check(&command)?.with(global);
            let context = global.context();
            let places = context.places.clone();
            system_service::run(&places, move || super::perform(command, &global, &context))?;
        }
    }
    Ok(())
}

fn say(context: &Context, report: &Report, text: &str) {
    terminal::to_stdout(|out| if context.json { render::json(out, report) } else { writeln!(out, "{text}") });
}

impl Cli {
    /// With what stood before it.
    fn with(self, global: &GlobalArgs) -> Cli {
        Cli { global: self.global.or(global), command: self.command }
    }
}

fn line(command: &[OsString]) -> Vec<OsString> {
    std::iter::once("peervpn".into()).chain(command.iter().cloned()).collect()
}

/// The command must be one that a node runs by, before it is stored where every user of the machine can read it.
fn check(command: &[OsString]) -> Result<Cli, Failure> {
    let cli = Cli::try_parse_from(line(command)).map_err(|error| {
        let said = error.to_string();
        let first = said.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Failure::usage(format!("the service's command is wrong: {first}"), "peervpn connect --help shows its options")
    })?;
    match &cli.command {
        Command::Connect(args) if args.carries_invite() => Err(Failure::usage(
            "an invite is a secret, and a service's command can be read by everyone",
            "join once with peervpn connect -, then install the service with the connect string",
        )),
        Command::Connect(args) => args.check_target().map(|()| cli),
        Command::Exit(_) => can_exit(Words::HERE.0).map(|()| cli).map_err(Failure::from),
        _ => Err(Failure::usage(
            "a service runs connect, and nothing that ends by itself",
            "peervpn service install connect PUBKEY@ENDPOINT",
        )),
    }
}

/// What the service is started with: the places as they are meant here and now, since it has another working directory
/// and environment, then the command without them.
fn arguments(told: &GlobalArgs, mut command: Vec<OsString>) -> Result<Vec<OsString>, Failure> {
    let context = told.context();
    let places = [
        ("--state-dir", Some(context.places.state_dir)),
        ("--run-dir", Some(context.places.run_dir)),
        ("--config", context.config),
    ];
    let mut arguments = Vec::new();
    for (option, place) in places {
        take_out(&mut command, option);
        if let Some(place) = place {
            arguments.extend([option.into(), absolute(&place)?]);
        }
    }
    arguments.extend(std::iter::repeat_n("-v".into(), told.verbose.into()));
    arguments.extend(["service".into(), "run".into()]);
    arguments.extend(command);
    Ok(arguments)
}

fn absolute(place: &Path) -> Result<OsString, Failure> {
    std::path::absolute(place)
        .map(Into::into)
        .map_err(|error| Failure::new(format!("{} is no place: {error}", place.display()), "give its full path"))
}

/// Takes an option with a value out of arguments that are known to be right: `--option VALUE` or `--option=VALUE`.
fn take_out(arguments: &mut Vec<OsString>, option: &str) {
    let with_value = format!("{option}=");
    while let Some(at) = arguments
        .iter()
        .position(|argument| argument == option || argument.as_encoded_bytes().starts_with(with_value.as_bytes()))
    {
        let after = if arguments[at] == option { at + 2 } else { at + 1 };
        arguments.drain(at..after.min(arguments.len()));
    }
}

/// How the service stands.
fn show(context: &Context) -> Outcome {
    let Some(service) = system_service::status()? else {
        return Err(Failure::new(
            "the service is not installed",
            format!("install it: {}", Words::HERE.ours("service install connect PUBKEY@ENDPOINT")),
        ));
    };
    // it keeps its log where its own command says
    let own = Cli::try_parse_from(line(&service.arguments)).map(|cli| cli.global.context().places);
    let log = system_service::log(own.as_ref().unwrap_or(&context.places)).display().to_string();
    let Service { state, pid, exit, arguments } = service;
    let arguments: Vec<String> = arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    terminal::to_stdout(|out| {
        if context.json {
            let about = About::Status { state, pid, exit_status: exit, arguments, log };
            return render::json(out, &Report { installed: true, about });
        }
        stands(out, state, pid, exit, &arguments, &log)
    });
    Ok(())
}

/// For people.
fn stands(
    out: render::Out,
    state: ServiceState,
    pid: Option<u32>,
    exit: Option<u32>,
    arguments: &[String],
    log: &str,
) -> io::Result<()> {
    let state = match (state, exit) {
        (ServiceState::Starting, _) => "starting".to_owned(),
        (ServiceState::Running, _) => "running".to_owned(),
        (ServiceState::Stopping, _) => "stopping".to_owned(),
        (ServiceState::Stopped, None | Some(0)) => "stopped".to_owned(),
        (ServiceState::Stopped, Some(exit)) => format!("stopped with exit status {exit}: its log says why"),
    };
    let pid = pid.map_or(String::new(), |pid| format!(" (process {pid})"));
    let rows = [("service", format!("{state}{pid}")), ("command", arguments.join(" ")), ("log", log.to_owned())];
    render::table(out, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=@203.0.113.20:51820";

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(|word| word.replace("TARGET", TARGET).into()).collect()
    }

    /// The service's arguments for what a person types, places below `/`.
    fn stored(typed: &str) -> String {
        let Cli { command: Command::Service(args), global } = Cli::try_parse_from(words(typed)).unwrap() else {
            panic!("{typed}")
        };
        let Action::Install { command } = args.action else { panic!("{typed}") };
        let told = check(&command).unwrap().global.or(&global);
        let stored = arguments(&told, command).unwrap();
        // the service takes the same from it
        let Cli { command: Command::Service(args), global } = Cli::try_parse_from(line(&stored)).unwrap() else {
            panic!("{stored:?}")
        };
        let Action::Run { command } = args.action else { panic!("{stored:?}") };
        let run = check(&command).unwrap().with(&global).global;
        let (told_places, run_places) = (told.context().places, run.context().places);
        let same = |told: &Path, run: &Path| assert_eq!(absolute(told).unwrap(), run.as_os_str(), "{stored:?}");
        same(&told_places.state_dir, &run_places.state_dir);
        same(&told_places.run_dir, &run_places.run_dir);
        assert_eq!(told.verbose, run.verbose, "{stored:?}");
        let stored: Vec<_> = stored.iter().map(|argument| argument.to_string_lossy()).collect();
        stored.join(" ").replace(TARGET, "TARGET")
    }

    #[test]
    fn the_service_is_told_what_the_person_said() {
        let cases = [
            (
                "peervpn --state-dir /s --run-dir /r service install connect TARGET --no-lan",
                "--state-dir /s --run-dir /r service run connect TARGET --no-lan",
            ),
            (
                "peervpn service install connect TARGET --state-dir=/s --mtu 1400 --run-dir /r -v",
                "--state-dir /s --run-dir /r -v service run connect TARGET --mtu 1400 -v",
            ),
            (
                "peervpn --run-dir /r -vv --state-dir /outer --config /c service install --state-dir /s connect TARGET",
                "--state-dir /s --run-dir /r --config /c -v -v service run connect TARGET",
            ),
        ];
        // on Windows `/s` is on the drive that one is on
        let root = absolute(Path::new("/")).unwrap().into_string().unwrap();
        for (typed, wanted) in cases {
            let wanted = wanted.replace('/', &root);
            assert_eq!(stored(typed), wanted, "{typed}");
        }
    }

    #[test]
    fn relative_places_are_those_of_the_person() {
        let here = std::env::current_dir().unwrap();
        let stored = stored("peervpn --state-dir s service install connect TARGET --run-dir r");
        let wanted = format!("--state-dir {} --run-dir {} ", here.join("s").display(), here.join("r").display());
        assert!(stored.starts_with(&wanted), "{stored}");
    }

    #[test]
    fn only_what_may_be_stored_is_stored() {
        let refused = |typed: &str| check(&words(typed)).unwrap_err().message;
        assert!(refused("connect -").contains("secret"));
        assert!(refused("connect --invite-file x").contains("secret"));
        assert!(refused("status").contains("nothing that ends by itself"));
        assert!(refused("connect TARGET --no-such-option").contains("--no-such-option"));
        assert!(refused("connect KEY@nowhere").contains("key"), "{}", refused("connect KEY@nowhere"));
    }
}
