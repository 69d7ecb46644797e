//! `peervpn peers`.

use clap::{Args, Subcommand};

use super::{Context, Outcome, render, terminal};
use crate::config::value;
use crate::node::control::{self, Request, Response};
use crate::node::offline;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo peervpn peers list                            who is in
  sudo peervpn peers pending                         who waits for admission
  sudo peervpn peers accept 012255-093004-201117 --name phone
  sudo peervpn peers revoke phone                    throw it out, at once and for good

All but `add` also work while no node runs.")]
pub(super) struct PeersArgs {
    #[command(subcommand)]
    command: PeersCommand,
    /// Interface of the node to ask [default: the one that runs]
    #[arg(long, global = true, value_name = "NAME", value_parser = value::interface)]
    interface: Option<String>,
}

#[derive(Debug, Subcommand)]
enum PeersCommand {
    /// Show the peers that are in.
    #[command(after_help = "Examples:\n  sudo peervpn peers list\n  sudo peervpn peers list --json")]
    List,
    /// Show the peers that wait for admission.
    #[command(after_help = "Examples:\n  sudo peervpn peers pending\n  sudo peervpn peers pending --json")]
    Pending,
    /// Let a waiting peer in.
    #[command(after_help = "\
Examples:
  sudo peervpn peers accept 012255-093004-201117
  sudo peervpn peers accept 012255-093004-201117 --name phone

Compare the peer ID with the one on the other person's screen first.")]
    Accept {
        /// Its peer ID or public key
        id: String,
        /// A name for it
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Don't let a waiting peer in; its key is ignored for an hour.
    #[command(after_help = "Examples:\n  sudo peervpn peers deny 012255-093004-201117")]
    Deny {
        /// Its peer ID or public key
        id: String,
    },
    /// Give a peer a name, or another one.
    #[command(after_help = "\
Examples:
  sudo peervpn peers rename 012255-093004-201117 phone
  sudo peervpn peers rename phone \"\"                    takes the name away")]
    Rename {
        /// Its peer ID, public key or name
        id: String,
        /// The new name
        #[arg(value_name = "N")]
        name: String,
    },
    /// Throw a peer out for good, or take an invite back. `peers accept ID` lets it in again.
    #[command(after_help = "\
Examples:
  sudo peervpn peers revoke 012255-093004-201117
  sudo peervpn peers revoke phone")]
    Revoke {
        /// Its peer ID, public key or name
        id: String,
    },
    /// Let a peer in by its key, and call it at its endpoint: opens the way through two strict NATs.
    #[command(after_help = "\
Examples:
  sudo peervpn peers add PUBKEY@198.51.100.7:40001      as the other side's connect shows it
  sudo peervpn peers add PUBKEY --name phone            a stock WireGuard app, by its public key")]
    Add {
        /// PUBKEY or PUBKEY@ENDPOINT, as the other side shows it
        #[arg(value_name = "PUBKEY[@ENDPOINT]")]
        target: String,
        /// A name for it
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
}

/// Asks the running node and shows its answer.
pub(super) fn run(args: PeersArgs, context: &Context) -> Outcome {
    let request = match args.command {
        PeersCommand::List => Request::PeersList,
        PeersCommand::Pending => Request::PeersPending,
        PeersCommand::Accept { id, name } => Request::PeersAccept { id, name },
        PeersCommand::Deny { id } => Request::PeersDeny { id },
        PeersCommand::Rename { id, name } => Request::PeersRename { id, name: (!name.is_empty()).then_some(name) },
        PeersCommand::Revoke { id } => Request::PeersRevoke { id },
        PeersCommand::Add { target, name } => Request::PeersAdd { target: control::resolve(&target)?, name },
    };
    let answer = offline::request(&context.places, args.interface.as_deref(), &request)?;
    let style = context.stdout;
    // a reader that went away is no failure
    let _written = match answer {
        Response::Peers { peers } if context.json => {
            terminal::to_stdout(|out| peers.iter().try_for_each(|peer| render::json(out, peer)))
        }
        Response::Peers { peers } if peers.is_empty() => terminal::to_stdout(|out| writeln!(out, "No peers yet.")),
        Response::Peers { peers } => terminal::to_stdout(|out| render::peers(out, &peers, style)),
        Response::Pending { pending } if context.json => {
            terminal::to_stdout(|out| pending.iter().try_for_each(|peer| render::json(out, peer)))
        }
        Response::Pending { pending } if pending.is_empty() => {
            terminal::to_stdout(|out| writeln!(out, "No peer waits for admission."))
        }
        Response::Pending { pending } => terminal::to_stdout(|out| render::pending(out, &pending, style)),
        Response::Accepted(peer) if context.json => terminal::to_stdout(|out| render::json(out, &peer)),
        Response::Accepted(peer) => terminal::to_stdout(|out| {
            writeln!(out, "Peer {} is in.", peer.peer_id)?;
            render::peers(out, &[peer], style)
        }),
        Response::Changed(changed) if context.json => terminal::to_stdout(|out| render::json(out, &changed)),
        Response::Changed(changed) => terminal::to_stdout(|out| render::changed(out, &changed)),
        other => return Err(super::unexpected(other)),
    };
    Ok(())
}
