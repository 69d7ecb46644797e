//! `peervpn status`.

use std::io::ErrorKind;
use std::time::Duration;

use clap::Args;

use super::{Context, Outcome, render, terminal};
use crate::config::value;
use crate::error::Failure;
use crate::node::control::{self, Request, Response};

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
        if context.json {
            let (mut some, mut result) = (false, Ok(()));
            let written = terminal::to_stdout(|out| {
                let (nodes, failure) =
                    ask(args, context, &mut |interface| control::status_json(&context.places, interface, out));
                some = !nodes.is_empty();
                result = failure.map_or(Ok(()), Err);
                if nodes.contains(&false) { Err(ErrorKind::BrokenPipe.into()) } else { Ok(()) }
            });
            if !some || !args.watch || !written {
                return result;
            }
            std::thread::sleep(EVERY);
            continue;
        }
        let (nodes, failure) = ask(args, context, &mut |interface| match control::request(
            &context.places,
            interface,
            &Request::Status,
        )? {
            Response::Status(status) => Ok(status),
            other => Err(super::unexpected(other)),
        });
        if nodes.is_empty() {
            return failure.map_or(Ok(()), Err);
        }
        let written = terminal::to_stdout(|out| {
            if args.watch && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
                out.write_all(CLEAR.as_bytes())?;
            }
            for (index, node) in nodes.iter().enumerate() {
                if index > 0 {
                    writeln!(out)?;
                }
                render::status(out, node, context.stdout)?;
            }
            Ok(())
        });
        if !args.watch || !written {
            return failure.map_or(Ok(()), Err);
        }
        std::thread::sleep(EVERY);
    }
}

/// The status of the node that was named, or of all, as `one` asks for it; and what one of them said instead.
fn ask<S>(
    args: &StatusArgs,
    context: &Context,
    one: &mut dyn FnMut(Option<&str>) -> Result<S, Failure>,
) -> (Vec<S>, Option<Failure>) {
    let interfaces = match &args.interface {
        Some(interface) => vec![Some(interface.clone())],
        // with none running, the request says so; and of one alone it finds out as fast as we do
        None if control::listed(&context.places).len() < 2 => vec![None],
        None => {
            let running = control::running(&context.places);
            if running.is_empty() { vec![None] } else { running.into_iter().map(Some).collect() }
        }
    };
    let (mut nodes, mut failure) = (Vec::new(), None);
    for interface in interfaces {
        match one(interface.as_deref()) {
            Ok(status) => nodes.push(status),
            Err(error) => failure = Some(error),
        }
    }
    (nodes, failure)
}
