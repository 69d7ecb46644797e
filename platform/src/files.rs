//! State files: written so that a crash leaves the old or the new one, read within bounds, and the journal's log with
//! its lock. Symbolic links are never followed in the last component. What differs from system to system is in
//! `os::private`: modes on a Unix, access control lists on Windows.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::os::{private, process};
use crate::{Error, Result};

/// Longest log that is read back, in bytes.
const LOG_MAX: u64 = 64 << 20;
/// How long the lock of a dead process may last.
const ORPHANED: Duration = Duration::from_secs(2);

pub(crate) fn refuse(reason: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, reason)
}

pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes sure that a directory for our eyes only is there: created with mode 0700 (Windows: for the system, the
/// administrators and its owner), its missing parents with the usual rights (Windows: with the same; the usual ones let
/// others put a directory of theirs in its place). One that is there already must be a real directory, ours (or the
/// administrator's), and writable by nobody else.
pub fn private_dir(path: &Path) -> Result<()> {
    let make = || -> io::Result<()> {
        private::make_parents(path)?;
        match private::make_dir(path) {
            Ok(()) => return private::sync_parent(path),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        if !fs::symlink_metadata(path)?.is_dir() {
            return Err(refuse("it is not a directory of its own"));
        }
        private::check_dir(path)
    };
    make().map_err(|e| Error::system(format!("use directory {}", path.display()), e))
}

/// Refuses a file that others may change or have put there, where anybody may: Windows' `%ProgramData%`. On a Unix
/// whoever may write below `/etc` was let in by the administrator. One that is not there is none of theirs.
pub fn check_place(path: &Path) -> Result<()> {
    private::check_place(path).map_err(|e| Error::system(format!("trust {}", path.display()), e))
}

/// Writes a file with this mode so that after a crash the old content or the new one is there, never a part. On Windows
/// a mode that lets others read leaves the rights to the directory, any other is for those of [`private_dir`].
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let write = || -> io::Result<()> {
        let name = path.file_name().ok_or_else(|| refuse("it names no file"))?;
        let temporary = parent(path).join(format!(".{}.{}.tmp", name.to_string_lossy(), unique()));
        let mut file = private::create_new(&temporary, mode)?;
        let finish = || -> io::Result<()> {
            file.write_all(bytes)?;
            file.sync_all()?;
            // Windows renames no file that is open
            drop(file);
            fs::rename(&temporary, path)
        };
        finish().inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })?;
        private::sync_parent(path)
    };
    write().map_err(|e| Error::system(format!("write {}", path.display()), e))
}

/// Different for every call on this machine.
fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{}-{now}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Reads a regular file of at most `max` bytes; `None` if there is none. A larger one is an error.
pub fn read_bounded(path: &Path, max: usize) -> Result<Option<Vec<u8>>> {
    let read = || -> io::Result<Option<Vec<u8>>> {
        let mut file = match private::careful().read(true).open(path) {
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

/// An append-only file, mode 0600, locked (on a Unix with flock(2)) for as long as it is open.
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
    /// Opens or creates the file and locks it. One on a read-only file system can be read, neither appended to nor
    /// removed.
    pub fn open(path: &Path) -> Result<LogOpen> {
        let open = || -> io::Result<LogOpen> {
            let deadline = Instant::now() + ORPHANED;
            loop {
                let file = private::open_log(path)?;
                if !file.metadata()?.is_file() {
                    return Err(refuse("it is not a regular file"));
                }
                match file.try_lock() {
                    Ok(()) => {}
                    Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Interrupted => continue,
                    Err(TryLockError::Error(e)) => return Err(e),
                    Err(TryLockError::WouldBlock) => {
                        let holder = private::lock_holder(&file);
                        // a child that its parent had just forked when it was killed holds the lock until its exec
                        let dead = holder.is_some_and(|pid| process::process_id(pid).is_none());
                        if dead && Instant::now() < deadline {
                            std::thread::sleep(Duration::from_millis(5));
                            continue;
                        }
                        return Ok(LogOpen::Busy(holder));
                    }
                }
                // its holder may have removed it between our open and our lock: then we hold a file without a name
                if private::is_named(&file, path)? {
                    private::sync_parent(path)?;
                    return Ok(LogOpen::Locked(Log { file, path: path.to_owned() }));
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

    /// Appends in one system call and returns when it is on the disk. After a failure the file is as it was, as far as
    /// the system lets us.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.add(bytes, true)
    }

    /// The same without the wait for the disk: for what does no harm if the next [`Log::append`] or a crash comes first.
    pub fn note(&mut self, bytes: &[u8]) -> Result<()> {
        self.add(bytes, false)
    }

    fn add(&mut self, bytes: &[u8], sync: bool) -> Result<()> {
        let before = self.len()?;
        let write = || -> io::Result<()> {
            let mut file = &self.file;
            file.seek(SeekFrom::Start(before))?;
            let written = loop {
                match file.write(bytes) {
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    other => break other?,
                }
            };
            if written != bytes.len() {
                return Err(ErrorKind::StorageFull.into());
            }
            if sync { file.sync_data() } else { Ok(()) }
        };
        write().map_err(|e| {
            let _ = self.file.set_len(before);
            self.failed("append to", e)
        })
    }

    /// Cuts off what is behind this length in bytes; returns when that is on the disk.
    pub fn truncate(&mut self, length: u64) -> Result<()> {
        let cut = self.file.set_len(length).and_then(|()| self.file.sync_data());
        cut.map_err(|e| self.failed("truncate", e))
    }

    /// Length in bytes.
    pub fn len(&self) -> Result<u64> {
        self.file.metadata().map(|found| found.len()).map_err(|e| self.failed("look at", e))
    }

    /// Whether its path still names this file.
    pub fn is_named(&self) -> Result<bool> {
        private::is_named(&self.file, &self.path).map_err(|e| self.failed("look at", e))
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Removes the file and gives the lock up.
    pub fn remove(self) -> Result<()> {
        let Log { file, path } = self;
        private::remove_open(file, &path).map_err(|e| Error::system(format!("remove {}", path.display()), e))
    }
}

#[cfg(test)]
#[path = "files/tests.rs"]
pub(crate) mod tests;
