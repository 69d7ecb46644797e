//! Kernel settings under `/proc/sys`, by their name in slash form; sysctl(8), proc_sys(5).

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use crate::{Error, Result};

/// The file of a setting. Names in slash form may carry dots (`net/ipv4/conf/eth0.100/forwarding`).
fn path(operation: &str, key: &str) -> Result<PathBuf> {
    if key.is_empty() || key.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        let why = std::io::Error::new(ErrorKind::InvalidInput, "not a sysctl name in slash form");
        return Err(Error::system(operation, why));
    }
    Ok(PathBuf::from("/proc/sys").join(key))
}

/// The setting's value, trimmed; `None` if the kernel has no such setting.
pub(super) fn read(key: &str) -> Result<Option<String>> {
    let operation = format!("read sysctl {key}");
    match fs::read_to_string(path(&operation, key)?) {
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
