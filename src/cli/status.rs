//! `peervpn status`.

use std::time::Duration;

use clap::Args;

use super::{Context, Outcome, render, terminal};
use crate::config::value;
use crate::node::control::{self, Request, Response, Status};

/// How often `--watch` asks again.
const EVERY: Duration = Duration::from_secs(2);
/// Clear the screen and go home (ECMA-48 §8.3.39, §8.3.21).
const CLEAR: &str = "\x1b[2J\x1b[H";

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo peervpn status                                every node that runs here
  sudo peervpn status --watch                        again every 2 s, until Ctrl-C
  sudo peervpn status --json                         for scripts: one object a node")]
pub(super) struct StatusArgs {
    /// Show it again every 2 s
    #[arg(long)]
    watch: bool,
    /// Interface of the node to ask [default: all that run]
    #[arg(long, value_name = "NAME", value_parser = value::interface)]
    interface: Option<String>,
}

/// Asks every running node.
pub(super) fn run(args: &StatusArgs, context: &Context) -> Outcome {
    loop {
        let nodes = ask(args, context)?;
        let written = terminal::to_stdout(|out| {
            if args.watch && !context.json && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
                out.write_all(CLEAR.as_bytes())?;
            }
            for (index, node) in nodes.iter().enumerate() {
                if context.json {
                    render::json(out, node)?;
                    continue;
                }
                if index > 0 {
                    writeln!(out)?;
                }
                render::status(out, node, context.stdout)?;
            }
            Ok(())
        });
        if !args.watch || !written {
            return Ok(());
        }
        std::thread::sleep(EVERY);
    }
}

/// The status of the node that was named, or of all.
fn ask(args: &StatusArgs, context: &Context) -> Result<Vec<Status>, crate::error::Failure> {
    let interfaces = match &args.interface {
        Some(interface) => vec![Some(interface.clone())],
        None => {
            let running = control::running(&context.places);
            // with none running, the request says so
            if running.is_empty() { vec![None] } else { running.into_iter().map(Some).collect() }
        }
    };
    let one =
        |interface: Option<String>| match control::request(&context.places, interface.as_deref(), &Request::Status)? {
            Response::Status(status) => Ok(status),
            other => Err(super::unexpected(other)),
        };
    interfaces.into_iter().map(one).collect()
}
