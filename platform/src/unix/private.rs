//! What [`crate::files`] needs from a Unix: modes, links, directories that last.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

pub(crate) use super::lock_holder;
use crate::files::{parent, refuse};

/// Options that follow no link in the last component, and do not hang on a FIFO that someone put there.
pub(crate) fn careful() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK);
    options
}

/// Makes a rename, a creation or a removal in the directory of `path` last; fsync(2).
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}

/// Creates the directories above.
pub(crate) fn make_parents(path: &Path) -> io::Result<()> {
    fs::create_dir_all(parent(path))
}

/// The place is the administrator's choice.
pub(crate) fn check_place(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// Creates a directory with mode 0700. One that is there is an error.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Refuses a directory that is not ours (or root's), or that others may write to.
pub(crate) fn check_dir(path: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    // SAFETY: geteuid(2) always succeeds and touches no memory.
    let us = unsafe { libc::geteuid() };
    if found.uid() != us && found.uid() != 0 {
        return Err(refuse("it belongs to another user"));
    }
    if found.mode() & 0o022 != 0 {
        return Err(refuse("others may write to it"));
    }
    Ok(())
}

/// Creates a file with this mode, whatever the umask, for writing. One that is there is an error.
pub(crate) fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    let file = careful().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode)).inspect_err(|_| {
        let _ = fs::remove_file(path);
    })?;
    Ok(file)
}

/// Opens a log, mode 0600; one on a read-only file system for reading only.
pub(crate) fn open_log(path: &Path) -> io::Result<File> {
    match careful().read(true).append(true).create(true).mode(0o600).open(path) {
        Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem => careful().read(true).open(path).map_err(|_| e),
        other => other,
    }
}

/// Whether `path` still names this file.
pub(crate) fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let opened = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok(named.ino() == opened.ino() && named.dev() == opened.dev()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes a file, then closes it: nobody gets our lock before the name is gone.
pub(crate) fn remove_open(file: File, path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    sync_parent(path)?;
    drop(file);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Scratch;
    use crate::files::{private_dir, read_bounded, write_atomic};

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
    fn a_file_gets_its_mode_whatever_the_umask() {
        let scratch = Scratch::new();
        for mode in [0o600, 0o644, 0o666] {
            write_atomic(&scratch.0.join("file"), b"x", mode).unwrap();
            assert_eq!(fs::metadata(scratch.0.join("file")).unwrap().mode() & 0o777, mode);
        }
    }

    #[test]
    fn links_and_fifos_are_not_read() {
        let scratch = Scratch::new();
        fs::write(scratch.0.join("big"), "12345").unwrap();
        std::os::unix::fs::symlink(scratch.0.join("big"), scratch.0.join("link")).unwrap();
        assert!(read_bounded(&scratch.0.join("link"), 9).is_err());
        let fifo = std::ffi::CString::new(scratch.0.join("fifo").to_str().unwrap()).unwrap();
        // SAFETY: a valid C string.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        assert!(read_bounded(&scratch.0.join("fifo"), 9).is_err());
    }
}
