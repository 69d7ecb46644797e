//! Where things live unless the user says otherwise: below `%ProgramData%`, which is the machine's, not a user's.

use std::path::PathBuf;

/// Identity key, peers, journals. For administrators only, and so is what lies in it.
pub const STATE_DIR: &str = r"%ProgramData%\PeerVPN";
/// Which nodes run.
pub const RUN_DIR: &str = r"%ProgramData%\PeerVPN\run";
/// Settings.
pub const CONFIG: &str = r"%ProgramData%\PeerVPN\config.toml";

/// One of these as a path.
pub fn path(place: &str) -> PathBuf {
    match (place.strip_prefix("%ProgramData%\\"), std::env::var_os("ProgramData")) {
        (Some(rest), Some(data)) => PathBuf::from(data).join(rest),
        (Some(rest), None) => PathBuf::from(r"C:\ProgramData").join(rest),
        (None, _) => place.into(),
    }
}
