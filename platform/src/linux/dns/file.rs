//! `/etc/resolv.conf` itself, resolv.conf(5): a file, a symbolic link, or a file that a container manager mounted there.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::files;
use crate::types::{FileState, ResolvConf};
use crate::{Error, Result};

/// The file that the C library reads.
pub const PATH: &str = "/etc/resolv.conf";
/// Larger ones are not kept in a journal.
const MAX: usize = 16 << 10;
/// `FS_IMMUTABLE_FL` of linux/fs.h, chattr(1) `i`.
const IMMUTABLE: libc::c_int = 0x10;

/// The file as it is.
pub fn state(path: &Path) -> Result<FileState> {
    let operation = format!("read {}", path.display());
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(FileState::Missing),
        Err(e) => Err(Error::system(operation, e)),
        Ok(found) if found.is_symlink() => {
            let target = fs::read_link(path).map_err(|e| Error::system(operation, e))?;
            Ok(FileState::Link { target })
        }
        Ok(found) => {
            let Some(bytes) = files::read_bounded(path, MAX)? else { return Ok(FileState::Missing) };
            let text = String::from_utf8(bytes)
                .map_err(|_| Error::Unexpected { operation, detail: "it is not text".to_owned() })?;
            Ok(FileState::Text { text, mode: found.mode() & 0o7777 })
        }
    }
}

/// Puts a file into this state: by rename, so that every reader sees the old or the new one; or, `in_place`, by writing
/// over it (for a file that is a mount point).
pub fn put(path: &Path, state: &FileState, in_place: bool) -> Result<()> {
    let operation = format!("write {}", path.display());
    let put = || -> io::Result<()> {
        match state {
            FileState::Missing => match fs::remove_file(path) {
                Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            },
            FileState::Link { target } => {
                let temporary = path.with_extension(format!("peervpn-{}", std::process::id()));
                let _ = fs::remove_file(&temporary);
                std::os::unix::fs::symlink(target, &temporary)?;
                fs::rename(&temporary, path).inspect_err(|_| {
                    let _ = fs::remove_file(&temporary);
                })
            }
            FileState::Text { text, .. } => {
                let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
                let mut file = OpenOptions::new().write(true).truncate(true).custom_flags(flags).open(path)?;
                file.write_all(text.as_bytes())?;
                file.sync_all()
            }
        }
    };
    match state {
        FileState::Text { text, mode } if !in_place => files::write_atomic(path, text.as_bytes(), *mode),
        _ => put().map_err(|e| Error::system(operation, e)),
    }
}

/// What there is to know about `/etc/resolv.conf` before it is changed.
pub fn look() -> Result<ResolvConf> {
    let path = Path::new(PATH);
    let state = state(path)?;
    // what programs read, through the link
    let text = match &state {
        FileState::Missing => String::new(),
        FileState::Text { text, .. } => text.clone(),
        FileState::Link { .. } => fs::read_to_string(path).unwrap_or_default(),
    };
    let directory = Path::new("/etc");
    let mounted = mounted(path);
    Ok(ResolvConf {
        immutable: matches!(state, FileState::Text { .. }) && immutable(path),
        read_only: !writable(if mounted { path } else { directory }),
        shared: foreign_namespace() && same_as_hosts(path),
        mounted,
        state,
        text,
    })
}

/// The servers of a resolv.conf that is not `/etc`'s, such as systemd-resolved's list of uplink servers.
pub fn read(path: &Path) -> Option<String> {
    fs::metadata(path).ok().filter(|found| found.is_file() && found.len() <= MAX as u64)?;
    fs::read_to_string(path).ok()
}

/// A file of its own mount can't be renamed over. proc_pid_mountinfo(5): field 5 is the mount point, with spaces and the
/// like as octal escapes, of which this path has none.
fn mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == path))
}

fn writable(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_encoded_bytes()) else { return false };
    // SAFETY: a valid C string.
    unsafe { libc::access(path.as_ptr(), libc::W_OK) == 0 }
}

/// The immutable attribute, ioctl_iflags(2); file systems without attributes have none.
fn immutable(path: &Path) -> bool {
    let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path) else {
        return false;
    };
    let mut flags: libc::c_int = 0;
    // SAFETY: the request writes one int to the pointer, which is valid for the call.
    let status = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &mut flags) };
    status == 0 && flags & IMMUTABLE != 0
}

/// Whether our network namespace is another than that of process 1; namespaces(7).
fn foreign_namespace() -> bool {
    let of =
        |process: &str| fs::metadata(format!("/proc/{process}/ns/net")).map(|found| (found.dev(), found.ino())).ok();
    matches!((of("self"), of("1")), (Some(ours), Some(hosts)) if ours != hosts)
}

/// Whether this is the file that process 1 sees at that path.
fn same_as_hosts(path: &Path) -> bool {
    let of = |path: &Path| fs::symlink_metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let hosts = Path::new("/proc/1/root").join(path.strip_prefix("/").unwrap_or(path));
    of(path) == of(&hosts)
}

/// The mode that a new resolv.conf gets.
pub const MODE: u32 = 0o644;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn every_state_is_read_and_put_back() {
        let dir = std::env::temp_dir().join(format!("peervpn-resolv-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let path = dir.join("resolv.conf");
        let text = FileState::Text { text: "nameserver 192.0.2.1\n".into(), mode: 0o640 };
        for before in [FileState::Missing, text.clone(), FileState::Link { target: "../elsewhere".into() }] {
            put(&path, &before, false).unwrap();
            assert_eq!(state(&path).unwrap(), before);
            let ours = FileState::Text { text: "nameserver 10.1.2.3\n".into(), mode: MODE };
            put(&path, &ours, false).unwrap();
            assert_eq!(state(&path).unwrap(), ours);
            put(&path, &before, false).unwrap();
            assert_eq!(state(&path).unwrap(), before);
        }
        put(&path, &text, false).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        put(&path, &text, true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "in place");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary file is left");
        fs::remove_dir_all(&dir).unwrap();
    }
}
