//! `peervpn export`.

use std::path::PathBuf;

use clap::Args;

use super::{Context, Outcome, invite, terminal};
use crate::config::value;
use crate::node::control::{self, Request, Response};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo peervpn export                                the running node's configuration, to look at
  sudo peervpn export --show-keys > peervpn.conf     complete, for wg-quick
  sudo peervpn export --show-keys --qr               the same as a QR code")]
pub(super) struct ExportArgs {
    /// With the secret keys
    #[arg(long)]
    show_keys: bool,
    /// Draw it as a QR code, on the terminal or into a picture; no app takes one without keys
    #[arg(
        long,
        value_name = "FILE.png|.svg",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "-",
        requires = "show_keys"
    )]
    qr: Option<PathBuf>,
    /// Interface of the node to ask [default: the one that runs]
    #[arg(long, value_name = "NAME", value_parser = value::interface)]
    interface: Option<String>,
}

/// Asks the running node and shows its answer.
pub(super) fn run(args: &ExportArgs, context: &Context) -> Outcome {
    if let Some(picture) = &args.qr {
        invite::check_picture(picture)?;
    }
    let request = Request::Export { show_keys: args.show_keys };
    match control::request(&context.places, args.interface.as_deref(), &request)? {
        Response::Export { wg_quick } => match &args.qr {
            Some(picture) => invite::draw(wg_quick.reveal(), picture, context),
            None if context.json => {
                let answer = serde_json::json!({ "wg_quick": wg_quick });
                terminal::to_stdout(|out| super::render::json(out, &answer));
                Ok(())
            }
            None => {
                terminal::to_stdout(|out| write!(out, "{}", wg_quick.reveal()));
                Ok(())
            }
        },
        other => Err(super::unexpected(other)),
    }
}
