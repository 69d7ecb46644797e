//! State files: written so that a crash leaves the old or the new one, read within bounds, and the journal's log with
//! its lock. Symbolic links are never followed in the last component.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

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

/// Makes a rename, a creation or a removal in the directory of `path` last; fsync(2).
fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}

/// Options that follow no link and hang on no FIFO.
fn careful() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// Makes sure that a directory for our eyes only is there: created with mode 0700, its parents with the usual mode.
/// One that is there already must be a real directory, ours (or root's), and writable by nobody else.
pub fn private_dir(path: &Path) -> Result<()> {
    let make = || -> io::Result<()> {
        fs::create_dir_all(parent(path))?;
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => return sync_parent(path),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        let found = fs::symlink_metadata(path)?;
        // SAFETY: geteuid(2) always succeeds and touches no memory.
        let us = unsafe { libc::geteuid() };
        if !found.is_dir() {
            return Err(refuse("it is not a directory of its own"));
        }
        if found.uid() != us && found.uid() != 0 {
            return Err(refuse("it belongs to another user"));
        }
        if found.mode() & 0o022 != 0 {
            return Err(refuse("others may write to it"));
        }
        Ok(())
    };
    make().map_err(|e| Error::system(format!("use directory {}", path.display()), e))
}

/// Writes a file with this mode so that after a crash the old content or the new one is there, never a part.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let write = || -> io::Result<()> {
        let name = path.file_name().ok_or_else(|| refuse("it names no file"))?.to_string_lossy();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = parent(path).join(format!(".{name}.{}-{count}.tmp", std::process::id()));
        let mut file = careful().write(true).create_new(true).mode(mode).open(&temporary)?;
        let mut finish = || -> io::Result<()> {
            // the mode as asked for, whatever the umask
            file.set_permissions(fs::Permissions::from_mode(mode))?;
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
            loop {
                let file = careful().read(true).append(true).create(true).mode(0o600).open(path)?;
                let opened = file.metadata()?;
                if !opened.is_file() {
                    return Err(refuse("it is not a regular file"));
                }
                match file.try_lock() {
                    Ok(()) => {}
                    Err(TryLockError::WouldBlock) => return Ok(LogOpen::Busy(None)),
                    Err(TryLockError::Error(e)) => return Err(e),
                }
                // its holder may have removed it between our open and our lock: then we hold a file without a name
                match fs::symlink_metadata(path) {
                    Ok(named) if named.ino() == opened.ino() && named.dev() == opened.dev() => {
                        sync_parent(path)?;
                        return Ok(LogOpen::Locked(Log { file, path: path.to_owned() }));
                    }
                    Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
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
        let write = || -> io::Result<()> {
            (&self.file).write_all(bytes)?;
            self.file.sync_data()
        };
        write().map_err(|e| {
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

    /// Removes the file, then gives the lock up.
    pub fn remove(self) -> Result<()> {
        let remove = || -> io::Result<()> {
            fs::remove_file(&self.path)?;
            sync_parent(&self.path)
        };
        remove().map_err(|e| self.failed("remove", e))
    }
}
