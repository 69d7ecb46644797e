//! Who holds a file's lock.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

/// The process that holds the lock, from `/proc/locks` (proc_locks(5)): device numbers in hex, then the inode.
pub(crate) fn lock_holder(file: &File) -> Option<u32> {
    let file = file.metadata().ok()?;
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
