//! Our interface names and the system's. macOS numbers its tunnels itself (`utunN`), so `--interface peervpn0` names the
//! node, and a file beside the control socket says which utun is its: the file that wireguard-go writes for
//! `WG_TUN_NAME_FILE`, and the bundled device likewise. It is also our mark: there is no alias to put on an interface.
//!
//! A device that was killed leaves its file, and another program may get the same number later. A utun goes with its
//! process, and the process makes its UAPI socket right after the interface: so a file counts only while the interface is
//! there and the socket is as old as the file.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::places::RUN_DIR;
use crate::macos_formats::names::utun;
use crate::{Error, Result};

/// Where wg(8) looks for UAPI sockets.
pub(super) const SOCKETS: &str = "/var/run/wireguard";
/// Longest time between a device's interface and its socket.
const APART: Duration = Duration::from_secs(10);
const SUFFIX: &str = ".utun";
/// A name's file is not longer, in bytes.
const NAME_MAX: usize = 64;

/// The userspace device that is taken when none is named, where it is installed: the one that most Macs run.
pub const USUAL_DEVICE: Option<&str> = Some("wireguard-go");

/// The file for an interface name of ours.
pub(super) fn file(name: &str) -> PathBuf {
    Path::new(RUN_DIR).join(format!("{name}{SUFFIX}"))
}

/// Makes room for a new device's file.
pub(super) fn prepare(name: &str) -> Result<PathBuf> {
    crate::files::private_dir(Path::new(RUN_DIR))?;
    forget(name)?;
    Ok(file(name))
}

/// Says which utun is ours.
pub(super) fn remember(name: &str, real: &str) -> std::io::Result<()> {
    let write = || crate::files::write_atomic(&prepare(name)?, format!("{real}\n").as_bytes(), 0o600);
    write().map_err(std::io::Error::other)
}

/// What a new device is to be called, and what its program is told beside that: the system numbers it, and wireguard-go
/// writes the number where `WG_TUN_NAME_FILE` says.
pub fn for_device(name: &str) -> Result<(String, Vec<(String, String)>)> {
    let file = prepare(name)?.to_string_lossy().into_owned();
    Ok(("utun".to_owned(), vec![("WG_TUN_NAME_FILE".to_owned(), file)]))
}

/// Removes the file of a device that has ended.
pub(super) fn forget(name: &str) -> Result<()> {
    let path = file(name);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::system(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

/// The utun behind a name of ours, while its device lives.
pub(super) fn utun_of(name: &str) -> Option<String> {
    let path = file(name);
    let text = String::from_utf8(crate::files::read_bounded(&path, NAME_MAX).ok()??).ok()?;
    let real = utun(&text)?;
    let written = |path: &Path| fs::symlink_metadata(path).ok()?.modified().ok();
    let (file, socket) = (written(&path)?, written(&Path::new(SOCKETS).join(format!("{real}.sock")))?);
    let apart = socket.duration_since(file).unwrap_or_else(|error| error.duration());
    (apart <= APART && index(real).is_some()).then(|| real.to_owned())
}

/// The system's name for one of ours; any other name stands for itself.
pub(super) fn real(name: &str) -> String {
    utun_of(name).unwrap_or_else(|| name.to_owned())
}

/// Our names and the system's, of every device of ours that lives.
pub(super) fn ours() -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir(RUN_DIR) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|file| {
            let name = file.strip_suffix(SUFFIX)?.to_owned();
            utun_of(&name).map(|real| (name, real))
        })
        .collect()
}

/// The index of an interface by the system's name.
pub(super) fn index(real: &str) -> Option<u32> {
    let name = CString::new(real).ok()?;
    // SAFETY: a live C string.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => None,
        index => Some(index),
    }
}

/// A name that fits a request and a file.
pub(super) fn check(operation: &str, name: &str) -> Result<()> {
    let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name == "." || name == ".." || name.contains(odd) {
        let why = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not an interface name");
        return Err(Error::system(operation, why));
    }
    Ok(())
}
