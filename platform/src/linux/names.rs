//! Interface names: on Linux a device has the name that it was asked to have.

use crate::Result;

pub(super) use super::host::check;

/// The userspace device that is taken when none is named; `None` is the bundled one.
pub const USUAL_DEVICE: Option<&str> = None;

/// The system's name for one of ours.
pub(super) fn real(name: &str) -> &str {
    name
}

/// Forgets the system's name of a device that has ended.
pub(super) fn forget(_name: &str) -> Result<()> {
    Ok(())
}

/// Says what the system calls a device of ours.
pub(super) fn remember(_name: &str, _real: &str) -> std::io::Result<()> {
    Ok(())
}

/// What a new device is to be called, and what its program is told beside that.
pub fn for_device(name: &str) -> Result<(String, Vec<(String, String)>)> {
    Ok((name.to_owned(), Vec::new()))
}
