//! The hidden subcommand under which this program runs the userspace device in a process of its own.

use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use crate::config::value;
use crate::node::device;

#[derive(Debug, Args)]
pub(super) struct DeviceArgs {
    /// Interface to make
    #[arg(value_parser = value::interface)]
    interface: String,
    /// Become this program instead of the bundled device
    #[arg(long)]
    program: Option<PathBuf>,
}

/// Runs until it is told to end or its interface goes.
pub(super) fn run(args: &DeviceArgs) -> Outcome {
    device::run(&args.interface, args.program.as_deref())
}
