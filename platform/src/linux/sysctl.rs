//! Kernel settings under `/proc/sys`, by their name in slash form; sysctl(8), proc_sys(5).

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The file of a setting. Names in slash form may carry dots (`net/ipv4/conf/eth0.100/forwarding`).
fn path(operation: &str, key: &str) -> Result<PathBuf> {
    if key.is_empty() || key.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        let why = std::io::Error::new(ErrorKind::InvalidInput, "not a sysctl name in slash form");
        return Err(Error::system(operation, why));
    }
    Ok(PathBuf::from("/proc/sys").join(key))
}

/// No file of procfs that we read is longer, in bytes.
const PROC_MAX: u64 = 64 << 20;

/// A file of procfs, whose size is not known before: with room, so that most take one read(2) and the one that ends; and
/// behind a bound, or the library asks for the size all the same.
pub(super) fn read_proc(path: impl AsRef<Path>) -> std::io::Result<String> {
    let mut text = String::with_capacity(4096);
    File::open(path)?.take(PROC_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The setting's value, trimmed; `None` if the kernel has no such setting.
pub(super) fn read(key: &str) -> Result<Option<String>> {
    let operation = format!("read sysctl {key}");
    match read_proc(path(&operation, key)?) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::system(operation, e)),
    }
}

/// Writes a setting in one write(2), as proc_sys(5) wants it.
pub(super) fn write(key: &str, value: &str) -> Result<()> {
    let operation = format!("set sysctl {key} to {value}");
    let path = path(&operation, key)?;
    let write = || OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes());
    write().map_err(|e| Error::system(operation, e))
}
