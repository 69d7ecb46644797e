//! `peervpn info`.

use clap::Args;

use super::{Context, Outcome, render, terminal};
use crate::config::{DEFAULT_INTERFACE, value};
use crate::node::info::{self, Info};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo peervpn info                                  key, peer ID, back ends, interface, places
  sudo peervpn info --json")]
pub(super) struct InfoArgs {
    /// Interface to look at
    #[arg(long, value_name = "NAME", value_parser = value::interface, default_value = DEFAULT_INTERFACE)]
    interface: String,
}

/// Shows what is known without changing anything.
pub(super) fn run(args: &InfoArgs, context: &Context) -> Outcome {
    let info = info::gather(&context.places, &args.interface)?;
    terminal::to_stdout(|out| if context.json { render::json(out, &info) } else { text(out, &info) });
    info.unreadable.map_or(Ok(()), Err)
}

/// For people.
fn text(out: render::Out, info: &Info) -> std::io::Result<()> {
    let none_yet = || match info.unreadable {
        None => "none yet: exit and connect make one".to_owned(),
        Some(_) => "unreadable".to_owned(),
    };
    let yes = |available| if available { "available" } else { "not available here" }.to_owned();
    let kernel = match &info.backends.fault {
        None => yes(info.backends.kernel),
        Some(fault) => format!("not available here: {}", fault.message),
    };
    writeln!(out, "peervpn {}", info.version)?;
    render::table(
        out,
        &[
            ("peer ID", info.peer_id.clone().unwrap_or_else(none_yet)),
            ("public key", info.public_key.map_or_else(none_yet, |key| key.to_string())),
            ("kernel WireGuard", kernel),
            ("userspace WireGuard", yes(info.backends.userspace)),
            (&format!("interface {}", info.interface.name), info.interface.state.to_owned()),
            ("state directory", info.state_dir.display().to_string()),
            ("run directory", info.run_dir.display().to_string()),
        ],
    )
}
