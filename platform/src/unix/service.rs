//! There is no service manager here that a program would install itself with: units and property lists do it.

use std::ffi::OsString;
use std::path::Path;

use crate::types::{Installed, Service};
use crate::{Error, Result};

fn unsupported<T>() -> Result<T> {
    let instead = if cfg!(target_os = "macos") {
        "load the launchd property list that comes with the bundle: sudo launchctl bootstrap system PLIST"
    } else {
        "make install brings systemd units: sudo systemctl enable --now peervpn-exit, or peervpn-connect@NAME"
    };
    Err(Error::Unsupported { what: "installing itself as a service", instead })
}

/// Installs nothing.
pub fn install(_arguments: &[OsString]) -> Result<Installed> {
    unsupported()
}

/// Removes nothing.
pub fn uninstall() -> Result<bool> {
    unsupported()
}

/// Looks at nothing.
pub fn status() -> Result<Option<Service>> {
    unsupported()
}

/// Runs nothing.
pub fn run(_log: &Path, _work: impl FnOnce() -> u8 + Send + 'static) -> Result<()> {
    unsupported()
}
