//! State files: written so that a crash leaves the old or the new one, read within bounds, and the journal's log with
//! its lock. Symbolic links are never followed in the last component.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Longest log that is read back, in bytes.
const LOG_MAX: u64 = 64 << 20;
/// How long the lock of a dead process may last.
const ORPHANED: std::time::Duration = std::time::Duration::from_secs(2);

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
    let write = || -> io::Result<()> {
        let name = path.file_name().ok_or_else(|| refuse("it names no file"))?;
        let temporary = parent(path).join(format!(".{}.{}.tmp", name.to_string_lossy(), unique()));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&temporary)?;
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

/// Different for every call on this machine.
fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let started = super::process::process_id(std::process::id()).map_or(0, |id| id.started);
    format!("{}-{started}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Reads a regular file of at most `max` bytes; `None` if there is none. A larger one is an error.
pub fn read_bounded(path: &Path, max: usize) -> Result<Option<Vec<u8>>> {
    let operation = format!("read {}", path.display());
    let read = || -> io::Result<Option<Vec<u8>>> {
        // O_NONBLOCK: opening a FIFO that someone put there must not hang us
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
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
    read().map_err(|e| Error::system(operation, e))
}

/// An append-only file, mode 0600, locked with flock(2) for as long as it is open.
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
            let deadline = std::time::Instant::now() + ORPHANED;
            loop {
                let mut options = OpenOptions::new();
                options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK);
                let file = match options.clone().append(true).create(true).mode(0o600).open(path) {
                    Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem => options.open(path).map_err(|_| e)?,
                    other => other?,
                };
                let opened = file.metadata()?;
                if !opened.is_file() {
                    return Err(refuse("it is not a regular file"));
                }
                if !lock(&file)? {
                    let holder = lock_holder(&opened);
                    // a child that its parent had just forked when it was killed holds the lock until its exec
                    let dead = holder.is_some_and(|pid| super::process::process_id(pid).is_none());
                    if dead && std::time::Instant::now() < deadline {
                        std::thread::sleep(std::time::Duration::from_millis(5));
                        continue;
                    }
                    return Ok(LogOpen::Busy(holder));
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

    /// Appends in one write(2) and returns when it is on the disk. After a failure the file is as it was, as far as
    /// the system lets us.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let before = self.len()?;
        let write = || -> io::Result<()> {
            let written = loop {
                match (&self.file).write(bytes) {
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    other => break other?,
                }
            };
            if written != bytes.len() {
                return Err(ErrorKind::StorageFull.into());
            }
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

/// Takes the exclusive lock; `false` if another process has it. Kept by the open file, so it goes with us.
fn lock(file: &File) -> io::Result<bool> {
    loop {
        // SAFETY: flock(2) on an open descriptor touches no memory.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(true);
        }
        match io::Error::last_os_error() {
            e if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            e if e.kind() == ErrorKind::Interrupted => {}
            e => return Err(e),
        }
    }
}

/// The process that holds the lock, from `/proc/locks` (proc_locks(5)): device numbers in hex, then the inode.
fn lock_holder(file: &fs::Metadata) -> Option<u32> {
    let wanted = format!("{:02x}:{:02x}:{}", libc::major(file.dev()), libc::minor(file.dev()), file.ino());
    let find = || {
        fs::read_to_string("/proc/locks").ok()?.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            match fields[..] {
                [_, "FLOCK", _, _, pid, place, ..] if place == wanted => pid.parse().ok(),
                _ => None,
            }
        })
    };
    // the kernel counts its way through a list that others change: an entry can be passed over, but not every time
    (0..5).find_map(|_| find())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fresh directory, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("peervpn-files-{}", unique()));
            private_dir(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_private_dir_is_0700_and_loose_ones_and_links_are_refused() {
        let scratch = Scratch::new();
        assert_eq!(fs::metadata(&scratch.0).unwrap().mode() & 0o777, 0o700);
        private_dir(&scratch.0.join("a/b")).unwrap();
        private_dir(&scratch.0.join("a/b")).unwrap();
        std::os::unix::fs::symlink(scratch.0.join("a"), scratch.0.join("link")).unwrap();
        assert!(private_dir(&scratch.0.join("link")).is_err());
        fs::set_permissions(scratch.0.join("a"), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(private_dir(&scratch.0.join("a")).is_err());
        fs::write(scratch.0.join("file"), "").unwrap();
        assert!(private_dir(&scratch.0.join("file")).is_err());
    }

    #[test]
    fn an_atomic_write_replaces_and_leaves_no_temporary_file() {
        let scratch = Scratch::new();
        let path = scratch.0.join("key");
        for content in ["one", "two"] {
            write_atomic(&path, content.as_bytes(), 0o600).unwrap();
            assert_eq!(read_bounded(&path, 3).unwrap().unwrap(), content.as_bytes());
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
        // a directory in the way: the old state stays, nothing is left behind
        fs::create_dir(scratch.0.join("dir")).unwrap();
        assert!(write_atomic(&scratch.0.join("dir"), b"x", 0o600).is_err());
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 2);
    }

    #[test]
    fn bounded_reads_refuse_large_files_links_and_fifos() {
        let scratch = Scratch::new();
        assert_eq!(read_bounded(&scratch.0.join("none"), 9).unwrap(), None);
        fs::write(scratch.0.join("big"), "12345").unwrap();
        assert!(read_bounded(&scratch.0.join("big"), 4).is_err());
        std::os::unix::fs::symlink(scratch.0.join("big"), scratch.0.join("link")).unwrap();
        assert!(read_bounded(&scratch.0.join("link"), 9).is_err());
        let fifo = std::ffi::CString::new(scratch.0.join("fifo").to_str().unwrap()).unwrap();
        // SAFETY: a valid C string.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        assert!(read_bounded(&scratch.0.join("fifo"), 9).is_err());
    }

    #[test]
    fn a_log_has_one_owner_at_a_time() {
        let scratch = Scratch::new();
        let path = scratch.0.join("journal");
        let LogOpen::Locked(mut log) = Log::open(&path).unwrap() else { panic!("the log is not ours") };
        assert!(log.is_empty().unwrap());
        log.append(b"one\n").unwrap();
        log.append(b"two\n").unwrap();
        assert_eq!(log.contents().unwrap(), b"one\ntwo\n");
        let LogOpen::Busy(holder) = Log::open(&path).unwrap() else { panic!("two owners") };
        assert_eq!(holder, Some(std::process::id()));
        drop(log);
        let LogOpen::Locked(mut log) = Log::open(&path).unwrap() else { panic!("the log stayed locked") };
        log.append(b"three\n").unwrap();
        assert_eq!(log.contents().unwrap(), b"one\ntwo\nthree\n");
        assert_eq!(log.len().unwrap(), 14);
        log.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_log_removed_while_others_open_it_is_never_owned_without_a_name() {
        let scratch = Scratch::new();
        let path = scratch.0.join("journal");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut owned = 0;
                    while owned < 20 {
                        if let LogOpen::Locked(mut log) = Log::open(&path).unwrap() {
                            assert!(path.exists());
                            assert!(log.is_empty().unwrap(), "another owner's file");
                            log.append(b"x").unwrap();
                            log.remove().unwrap();
                            owned += 1;
                        }
                    }
                });
            }
        });
    }
}
