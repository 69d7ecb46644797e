//! `peervpn down`.

use clap::Args;

use super::{Context, Outcome, render, terminal};
use crate::config::value;
use crate::error::{Failure, Status, Words};
use crate::node;
use crate::node::control::{self, Request, Response};
use crate::node::event::Event;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo peervpn down
  sudo peervpn down --interface peervpn1             where several nodes run")]
pub(super) struct DownArgs {
    /// Interface of the node to stop [default: the one that runs]
    #[arg(long, value_name = "NAME", value_parser = value::interface)]
    interface: Option<String>,
}

/// Stops the node and says what is left on the host. After a crash it puts the host back like `recover`.
pub(super) fn run(args: &DownArgs, context: &Context) -> Outcome {
    let interface = control::meant(&context.places, args.interface.as_deref())?;
    if !control::running(&context.places).contains(&interface) && control::orphaned(&context.places, &interface) {
        let done = node::recover::run(&context.places, Some(&interface), &mut terminal::Terminal::new(context))?;
        if done.running.is_empty() {
            return say(context, &Event::Stopped { host: "restored".to_owned() });
        }
        return Err(Failure::new(
            format!("a node is just starting or stopping on {interface}"),
            "try again in a moment",
        ));
    }
    match control::request(&context.places, Some(&interface), &Request::Down)? {
        Response::Stopped { host, restored: true } => say(context, &Event::Stopped { host }),
        Response::Stopped { host, restored: false } => Err(Failure {
            message: "the node has stopped, but this host could not be fully put back".to_owned(),
            host: Some(host),
            hint: Some(Words::HERE.ours("recover")),
            status: Status::NotRestored,
        }),
        other => Err(super::unexpected(other)),
    }
}

fn say(context: &Context, event: &Event) -> Outcome {
    terminal::to_stdout(|out| if context.json { render::json(out, event) } else { render::stopped(out, event) });
    Ok(())
}
