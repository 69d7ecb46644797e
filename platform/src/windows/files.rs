//! State files: written so that a crash leaves the old or the new one, read within bounds, and the journal's log with
//! its lock. Symbolic links are never followed in the last component.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::windows::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Opens a symbolic link itself, not what it points to; CreateFileW.
const FILE_FLAG_OPEN_REPARSE_POINT: u32 = 0x0020_0000;
/// `FILE_SHARE_READ | FILE_SHARE_WRITE`; CreateFileW.
const SHARE_READ_WRITE: u32 = 3;
const INSTEAD: &str = "use a Linux machine, or a Linux virtual machine on this one";

/// Longest log that is read back, in bytes.
const LOG_MAX: u64 = 64 << 20;

fn refuse(reason: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, reason)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Windows writes directory entries through on its own; there is nothing to ask for.
fn sync_parent(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// Options that follow no link.
fn careful() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(FILE_FLAG_OPEN_REPARSE_POINT);
    options
}

/// A directory for our eyes only needs an access control list, which is not written yet.
pub fn private_dir(_path: &Path) -> Result<()> {
    Err(Error::Unsupported { what: "a directory that only its owner can read", instead: INSTEAD })
}

/// Writes a file so that after a crash the old content or the new one is there, never a part. A mode that shuts others
/// out (like 0600) is unsupported: it needs an access control list.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    if mode & 0o077 == 0 {
        return Err(Error::Unsupported { what: "a file that only its owner can read", instead: INSTEAD });
    }
    let write = || -> io::Result<()> {
        let name = path.file_name().ok_or_else(|| refuse("it names no file"))?.to_string_lossy();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = parent(path).join(format!(".{name}.{}-{count}.tmp", std::process::id()));
        let mut file = careful().write(true).create_new(true).open(&temporary)?;
        let mut finish = || -> io::Result<()> {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        finish().inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })?;
        sync_parent(path)
    };
    write().map_err(|e| Error::system(format!("write {}", path.display()), e))
}

/// Reads a regular file of at most `max` bytes; `None` if there is none. A larger one is an error.
pub fn read_bounded(path: &Path, max: usize) -> Result<Option<Vec<u8>>> {
    let read = || -> io::Result<Option<Vec<u8>>> {
        let mut file = match careful().read(true).open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(refuse("it is not a regular file"));
        }
        // room for all of it at once: a growing buffer would leave copies of a secret behind
        let mut bytes = Vec::with_capacity(found.len().min(max as u64) as usize + 1);
        (&mut file).take(max as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > max {
            return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it is larger than {max} bytes")));
        }
        Ok(Some(bytes))
    };
    read().map_err(|e| Error::system(format!("read {}", path.display()), e))
}

/// An append-only file, locked for as long as it is open.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
}

/// What opening a log came to.
#[derive(Debug)]
pub enum LogOpen {
    /// It is ours.
    Locked(Log),
    /// Another process has it, with its process ID where the system tells.
    Busy(Option<u32>),
}

impl Log {
    /// Opens or creates the file and locks it.
    pub fn open(path: &Path) -> Result<LogOpen> {
        let open = || -> io::Result<LogOpen> {
            // without FILE_SHARE_DELETE nobody removes it while it is open, so the name always means our file; `append`
            // alone would leave out the right to cut a torn record off
            let file = careful()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .share_mode(SHARE_READ_WRITE)
                .open(path)?;
            if !file.metadata()?.is_file() {
                return Err(refuse("it is not a regular file"));
            }
            match file.try_lock() {
                Ok(()) => Ok(LogOpen::Locked(Log { file, path: path.to_owned() })),
                Err(TryLockError::WouldBlock) => Ok(LogOpen::Busy(None)),
                Err(TryLockError::Error(e)) => Err(e),
            }
        };
        open().map_err(|e| Error::system(format!("open {}", path.display()), e))
    }

    fn failed(&self, verb: &str, error: io::Error) -> Error {
        Error::system(format!("{verb} {}", self.path.display()), error)
    }

    /// All of it.
    pub fn contents(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut read = || -> io::Result<()> {
            self.file.seek(SeekFrom::Start(0))?;
            (&self.file).take(LOG_MAX + 1).read_to_end(&mut bytes)?;
            Ok(())
        };
        let outcome = read();
        outcome.map_err(|e| self.failed("read", e))?;
        if bytes.len() as u64 > LOG_MAX {
            return Err(self.failed("read", io::Error::new(ErrorKind::FileTooLarge, "it is too large for a journal")));
        }
        Ok(bytes)
    }

    /// Appends and returns when it is on the disk. After a failure the file is as it was, as far as the system lets us.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let before = self.len()?;
        let mut write = || -> io::Result<()> {
            self.file.seek(SeekFrom::Start(before))?;
            self.file.write_all(bytes)?;
            self.file.sync_data()
        };
        let outcome = write();
        outcome.map_err(|e| {
            let _ = self.file.set_len(before);
            self.failed("append to", e)
        })
    }

    /// Length in bytes.
    pub fn len(&self) -> Result<u64> {
        self.file.metadata().map(|found| found.len()).map_err(|e| self.failed("look at", e))
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Gives the lock up and removes the file: Windows removes no file that is open like this one. Should another
    /// process open it in between, the removal fails and says so.
    pub fn remove(self) -> Result<()> {
        let Log { file, path } = self;
        drop(file);
        fs::remove_file(&path).map_err(|e| Error::system(format!("remove {}", path.display()), e))
    }
}
