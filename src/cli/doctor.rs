//! `peervpn doctor`.

use clap::Args;

use super::{Context, Outcome, render, terminal};
use crate::config::{DEFAULT_INTERFACE, value};
use crate::error::Failure;
use crate::node::doctor::{self, Level, Report};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo peervpn doctor                                what would stop a node here, and what mends it
  sudo peervpn doctor --json")]
pub(super) struct DoctorArgs {
    /// Interface that the node would have
    #[arg(long, value_name = "NAME", value_parser = value::interface, default_value = DEFAULT_INTERFACE)]
    interface: String,
}

/// Looks, changes nothing, and says what it found.
pub(super) fn run(args: &DoctorArgs, context: &Context) -> Outcome {
    let report = doctor::examine(&context.places, &args.interface);
    terminal::to_stdout(|out| if context.json { render::json(out, &report) } else { text(out, &report) });
    let stopped = match (report.exit, report.connect) {
        (true, true) => return Ok(()),
        (false, true) => "exit",
        (true, false) => "connect",
        (false, false) => "exit and connect",
    };
    Err(Failure::new(format!("{stopped} would not work here"), "do what the hints above say, then ask again"))
}

/// For people.
fn text(out: render::Out, report: &Report) -> std::io::Result<()> {
    for finding in &report.findings {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Stop => "STOP",
        };
        write!(out, "{level:<5} {}", finding.found)?;
        if !finding.stops.is_empty() {
            write!(out, " (stops {})", finding.stops.join(", "))?;
        }
        writeln!(out)?;
        if let Some(hint) = &finding.hint {
            writeln!(out, "      hint: {hint}")?;
        }
    }
    Ok(())
}
