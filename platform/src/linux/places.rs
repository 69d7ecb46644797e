//! Where things live unless the user says otherwise; hier(7).

use std::path::PathBuf;

/// Identity key, peers, journals.
pub const STATE_DIR: &str = "/var/lib/peervpn";
/// Control sockets.
pub const RUN_DIR: &str = "/run/peervpn";
/// Settings.
pub const CONFIG: &str = "/etc/peervpn/config.toml";

/// One of these as a path.
pub fn path(place: &str) -> PathBuf {
    place.into()
}
