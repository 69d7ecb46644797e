//! What [`crate::files`] needs from Windows: access control lists, reparse points, sharing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::FromRawHandle;
use std::path::Path;
use std::ptr::null_mut;
use std::time::Duration;

use windows_sys::Win32::Foundation::{ERROR_SHARING_VIOLATION, GENERIC_READ, GENERIC_WRITE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::Storage::FileSystem::{
    CREATE_NEW, CreateDirectoryW, CreateFileW, DELETE, FILE_ATTRIBUTE_NORMAL, FILE_FLAG_DELETE_ON_CLOSE,
    FILE_FLAG_OPEN_REPARSE_POINT, FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE, OPEN_ALWAYS,
};

use super::security::{self, Descriptor, Standing};
use super::text::wide;
use crate::files::{parent, refuse};

/// Options that follow no link in the last component; CreateFileW.
pub(crate) fn careful() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(FILE_FLAG_OPEN_REPARSE_POINT);
    options
}

/// Windows writes directory entries through on its own; there is nothing to ask for.
pub(crate) fn sync_parent(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// Creates the directories above, each like [`make_dir`].
pub(crate) fn make_parents(path: &Path) -> io::Result<()> {
    let above = parent(path);
    if above.is_dir() {
        return Ok(());
    }
    make_parents(above)?;
    match make_dir(above) {
        // somebody was quicker
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Refuses a file, or the directory that it is in, as [`check_dir`] does.
pub(crate) fn check_place(path: &Path) -> io::Result<()> {
    // one that may not be looked at is not read either
    if !fs::exists(path).unwrap_or(false) {
        return Ok(());
    }
    check_dir(parent(path))?;
    check_dir(path)
}

/// Creates a directory for the system, the administrators and its owner. One that is there is an error.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    let descriptor = Descriptor::parse(security::DIRECTORY)?;
    // SAFETY: a path that ends with zero, and attributes whose descriptor lives through the call.
    match unsafe { CreateDirectoryW(wide(path).as_ptr(), &descriptor.attributes()) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Refuses a directory that is not ours (or the administrators'), or that others may write to.
pub(crate) fn check_dir(path: &Path) -> io::Result<()> {
    match security::standing(path)? {
        Standing::Ours => Ok(()),
        Standing::Foreign => Err(refuse("it belongs to another user")),
        Standing::Loose => Err(refuse("others may write to it")),
    }
}

/// Opens a file for reading and writing that only the three may use when it is new.
fn open_private(path: &Path, share: u32, how: u32) -> io::Result<File> {
    open_private_with(path, share, how, 0)
}

/// A file that is there for as long as it is open, in this process, and that nobody else opens for writing meanwhile.
pub(super) fn open_held(path: &Path) -> io::Result<File> {
    open_private_with(path, FILE_SHARE_READ | FILE_SHARE_DELETE, OPEN_ALWAYS, FILE_FLAG_DELETE_ON_CLOSE)
}

/// Whether somebody has that file open so.
pub(super) fn is_held(path: &Path) -> bool {
    matches!(careful().write(true).open(path), Err(error) if in_use(&error))
}

fn open_private_with(path: &Path, share: u32, how: u32, flags: u32) -> io::Result<File> {
    let descriptor = Descriptor::parse(security::OBJECT)?;
    // SAFETY: a path that ends with zero, and attributes whose descriptor lives through the call.
    let handle = unsafe {
        CreateFileW(
            wide(path).as_ptr(),
            GENERIC_READ | GENERIC_WRITE | if flags & FILE_FLAG_DELETE_ON_CLOSE != 0 { DELETE } else { 0 },
            share,
            &descriptor.attributes(),
            how,
            FILE_ATTRIBUTE_NORMAL | FILE_FLAG_OPEN_REPARSE_POINT | flags,
            null_mut(),
        )
    };
    if handle == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: an open handle that nobody else has.
    Ok(unsafe { File::from_raw_handle(handle) })
}

/// Creates a file for writing. One that is there is an error.
pub(crate) fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    if mode & 0o077 == 0 {
        return open_private(path, 0, CREATE_NEW);
    }
    careful().write(true).create_new(true).open(path)
}

/// How often a log is tried to be opened that somebody is about to remove, and the pause between two tries.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// Opens a log.
pub(crate) fn open_log(path: &Path) -> io::Result<File> {
    let mut tries = 0;
    loop {
        tries += 1;
        match open_private(path, FILE_SHARE_READ | FILE_SHARE_WRITE, OPEN_ALWAYS) {
            Err(error) if tries < TRIES && (in_use(&error) || error.kind() == ErrorKind::PermissionDenied) => {
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

/// Somebody has it open and does not share what is asked for.
fn in_use(error: &io::Error) -> bool {
    error.raw_os_error() == Some(ERROR_SHARING_VIOLATION as i32)
}

/// Whether `path` still names this file: nobody removes a log while it is open, since nobody shares the right to.
pub(crate) fn is_named(_file: &File, _path: &Path) -> io::Result<bool> {
    Ok(true)
}

/// The process that holds a file's lock; Windows does not say.
pub(crate) fn lock_holder(_file: &File) -> Option<u32> {
    None
}

/// Empties a file, closes it, then removes it: Windows removes none that is open like a log. If another process opened it
/// in between, it stays, empty, and is that one's.
pub(crate) fn remove_open(file: File, path: &Path) -> io::Result<()> {
    file.set_len(0)?;
    drop(file);
    match fs::remove_file(path) {
        Err(error) if in_use(&error) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::private_dir;
    use crate::files::tests::Scratch;

    #[test]
    fn a_private_dir_is_ours_and_files_are_refused() {
        let scratch = Scratch::new();
        private_dir(&scratch.0.join("a/b")).unwrap();
        private_dir(&scratch.0.join("a/b")).unwrap();
        assert_eq!(security::standing(&scratch.0.join("a/b")).unwrap(), Standing::Ours);
        fs::write(scratch.0.join("file"), "").unwrap();
        assert!(private_dir(&scratch.0.join("file")).is_err());
    }
}
