//! `peervpn invite`.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Context, Outcome, render, terminal};
use crate::config::value;
use crate::error::{Failure, Words};
use crate::node::control::{self, Request, Response, SecretText};
use crate::node::invite::{self, Made, Wanted};
use crate::node::offline;
use crate::tunnel::qr::Qr;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo peervpn invite --name Ann                     one line; Ann types: sudo peervpn connect -
  sudo peervpn invite --expires 7d --reusable        for several people
  sudo peervpn invite --name phone --qr              for the WireGuard app: scan it from the screen
  sudo peervpn invite --name tv --wg-quick tv.conf   for anything else that speaks WireGuard

An invite is a secret: whoever has it can join. Hand it over where nobody reads along.")]
pub(super) struct InviteArgs {
    /// A name for who joins by it
    #[arg(long, value_name = "N")]
    name: Option<String>,
    /// How long it can be used first: 30m, 24h, 7d
    #[arg(long, value_name = "TIME", value_parser = value::duration, default_value = "24h")]
    expires: Duration,
    /// Any number of people may use it, each with a slot of their own
    #[arg(long)]
    reusable: bool,
    /// Write a wg-quick file for a stock WireGuard app instead; - writes to stdout
    #[arg(long, value_name = "FILE|-")]
    wg_quick: Option<PathBuf>,
    /// Draw that file as a QR code, on the terminal or into a picture
    #[arg(long, value_name = "FILE.png|.svg", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    qr: Option<PathBuf>,
    /// An endpoint of this exit, needed while it does not run; may be repeated
    #[arg(long, value_name = "HOST:PORT", value_parser = value::host_port)]
    endpoint: Vec<String>,
    /// Interface of the exit to ask [default: the one that runs]
    #[arg(long, value_name = "NAME", value_parser = value::interface)]
    interface: Option<String>,
}

/// Has it made and shows it.
pub(super) fn run(args: &InviteArgs, context: &Context) -> Outcome {
    let wanted = Wanted {
        name: args.name.clone(),
        expires_s: args.expires.as_secs(),
        reusable: args.reusable,
        stock: args.wg_quick.is_some() || args.qr.is_some(),
    };
    if let Some(picture) = &args.qr {
        check_picture(picture)?;
    }
    let runs = control::running(&context.places);
    let runs = args.interface.as_ref().map_or(!runs.is_empty(), |name| runs.contains(name));
    let made = if runs || args.endpoint.is_empty() {
        match control::request(&context.places, args.interface.as_deref(), &Request::Invite(wanted)) {
            Ok(Response::Invite(made)) => *made,
            Ok(other) => return Err(super::unexpected(other)),
            Err(failure) if !runs => {
                return Err(Failure { hint: Some(Words::HERE.invite_without_exit()), ..failure });
            }
            Err(failure) => return Err(failure),
        }
    } else {
        if !crate::node::privileged() {
            return Err(crate::node::not_root("invite"));
        }
        invite::offline(&context.places, &wanted, &args.endpoint, None)?
    };
    show(args, context, &made).inspect_err(|_| {
        // nobody has got it, and nobody can get it any more
        let take_back = Request::PeersRevoke { id: made.peer_id.clone() };
        let _ = offline::request(&context.places, args.interface.as_deref(), &take_back);
    })
}

fn show(args: &InviteArgs, context: &Context, made: &Made) -> Outcome {
    let hours = args.expires.as_secs();
    if let Some(file) = made.wg_quick.as_ref().map(SecretText::reveal) {
        match &args.wg_quick {
            Some(path) if path.as_os_str() == "-" => {
                terminal::to_stdout(|out| write!(out, "{file}"));
            }
            Some(path) => invite::write_private(path, file.as_bytes())?,
            None => {}
        }
        if let Some(path) = &args.qr {
            draw(file, path, context)?;
        }
    }
    if context.json && args.wg_quick.as_ref().is_none_or(|path| path.as_os_str() != "-") {
        terminal::to_stdout(|out| render::json(out, made));
        return Ok(());
    }
    match &made.invite {
        Some(line) => {
            terminal::to_stdout(|out| writeln!(out, "{}", line.reveal()));
            terminal::to_stderr(|err| render::invited(err, made, hours, context.stderr));
        }
        None => terminal::to_stderr(|err| render::invited(err, made, hours, context.stderr)),
    }
    Ok(())
}

/// Draws a text where it was asked for: `-` is the terminal.
pub(super) fn draw(text: &str, path: &std::path::Path, context: &Context) -> Outcome {
    let qr = Qr::new(text)?;
    if path.as_os_str() == "-" {
        let colour = context.stdout.colour || std::io::stdout().is_terminal();
        terminal::to_stdout(|out| write!(out, "{}", qr.terminal(colour)));
        return Ok(());
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("svg") => invite::write_private(path, qr.svg().as_bytes()),
        _ => invite::write_private(path, &qr.png()),
    }
}

/// Refuses a picture of no known kind, before anything is made.
pub(super) fn check_picture(path: &std::path::Path) -> Outcome {
    let known = path.as_os_str() == "-" || path.extension().is_some_and(|e| e == "png" || e == "svg");
    if known {
        return Ok(());
    }
    Err(Failure::usage(
        format!("{} is no picture that can be drawn", path.display()),
        "name it FILE.png or FILE.svg, or leave it out to draw on the terminal",
    ))
}
