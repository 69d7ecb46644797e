//! `peervpn recover`.

use clap::Args;

use super::terminal::{self, Terminal};
use super::{Context, Outcome, render};
use crate::error::Words;
use crate::node;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo peervpn recover                               undo what killed nodes left, not running ones")]
pub(super) struct RecoverArgs {}

/// Puts the host back.
pub(super) fn run(_: &RecoverArgs, context: &Context) -> Outcome {
    let done = node::recover::run(&context.places, None, &mut Terminal::new(context))?;
    terminal::to_stdout(|out| {
        if context.json {
            return render::json(out, &done);
        }
        for interface in &done.running {
            writeln!(out, "{interface}: its node runs and was left alone ({} stops it)", Words::HERE.ours("down"))?;
        }
        for interface in &done.interfaces {
            writeln!(out, "{interface}: put back")?;
        }
        if done.running.is_empty() && done.interfaces.is_empty() {
            writeln!(out, "Nothing was left of a crashed node.")?;
        }
        Ok(())
    });
    Ok(())
}
