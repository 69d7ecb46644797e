//! A node as a service that the system itself starts.

use std::ffi::OsString;
use std::path::PathBuf;

use peervpn_platform::types::Installed;
pub use peervpn_platform::types::{Service, ServiceState};
use peervpn_platform::{files, os};

use super::apply;
use crate::config::Places;
use crate::error::{Failure, Words};

/// What it says stands here.
pub fn log(places: &Places) -> PathBuf {
    places.state_dir.join("service.log")
}

fn refused(error: peervpn_platform::Error, command: &str) -> Failure {
    match error.kind() {
        Some(std::io::ErrorKind::PermissionDenied) => super::not_root(command),
        _ => error.into(),
    }
}

/// Has the system run this command of ours now and whenever it starts; whether it was not so already. A service that runs
/// another one is an error.
pub fn install(arguments: &[OsString]) -> Result<bool, Failure> {
    match os::service::install(arguments).map_err(|error| refused(error, "service install"))? {
        Installed::Made => Ok(true),
        Installed::Same => Ok(false),
        Installed::Other(arguments) => {
            let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy()).collect();
            Err(Failure::new(
                format!("there is a service already, with another command: {}", arguments.join(" ")),
                format!("remove it first: {}", Words::HERE.ours("service uninstall")),
            )
            .host("unchanged"))
        }
    }
}

/// Removes that service; whether there was one.
pub fn uninstall() -> Result<bool, Failure> {
    os::service::uninstall().map_err(|error| refused(error, "service uninstall"))
}

/// How it stands; `None` if it is not installed.
pub fn status() -> Result<Option<Service>, Failure> {
    os::service::status().map_err(|error| refused(error, "service status"))
}

/// Runs `work` as the service.
pub fn run(places: &Places, work: impl FnOnce() -> u8 + Send + 'static) -> Result<(), Failure> {
    files::private_dir(&places.state_dir).map_err(apply::unwritable)?;
    Ok(os::service::run(&log(places), work)?)
}
