//! Giving up privileges: capabilities(7), prctl(2). Credentials belong to threads, and one thread cannot change
//! another's, so every thread that is started gives up its own.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::types::Capability;
use crate::{Error, Result};

/// `_LINUX_CAPABILITY_VERSION_3`, linux/capability.h: two words of 32 capabilities each.
const VERSION: u32 = 0x2008_0522;
/// No kernel has more capabilities than these two words hold.
const MOST: u32 = 64;

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// This thread's (effective, permitted) capabilities as bits.
fn get() -> io::Result<(u64, u64)> {
    let (mut header, mut sets) = (Header { version: VERSION, pid: 0 }, [Sets::default(); 2]);
    // SAFETY: capget(2) with a version 3 header fills two words of sets; 0 is this thread.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let join = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    Ok((join(sets[0].effective, sets[1].effective), join(sets[0].permitted, sets[1].permitted)))
}

/// Sets this thread's capabilities; none are inheritable.
fn set(effective: u64, permitted: u64) -> io::Result<()> {
    let mut header = Header { version: VERSION, pid: 0 };
    let word = |shift: u32| Sets {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: 0,
    };
    let sets = [word(0), word(32)];
    // SAFETY: capset(2) with a version 3 header reads two words of sets; 0 is this thread.
    match unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn bits(capabilities: &[Capability]) -> u64 {
    capabilities.iter().fold(0, |bits, capability| bits | 1 << capability.number())
}

/// Gives up every capability of this thread but those of `keep` that it has, and every way to get one back: the
/// bounding set, the ambient set, and, by `no_new_privs`, programs that would bring some. Returns how many went.
pub fn confine(keep: &[Capability]) -> Result<u32> {
    let give_up = || -> io::Result<u32> {
        let (_, permitted) = get()?;
        let kept = permitted & bits(keep);
        // SAFETY: prctl(2) with plain numbers.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        for capability in (0..MOST).filter(|number| kept & 1 << number == 0) {
            // SAFETY: prctl(2) with plain numbers. EINVAL: the kernel knows no more; EPERM: no CAP_SETPCAP, and then
            // no_new_privs keeps what is dropped below from coming back.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
                break;
            }
        }
        // SAFETY: prctl(2) with plain numbers; kernels before 4.3 have no ambient set.
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
        set(kept, kept)?;
        Ok((permitted & !kept).count_ones())
    };
    give_up().map_err(|e| Error::system("give up capabilities", e))
}

/// Gives up every capability of this thread, as far as the system lets us: for threads that only wait, read or look up.
pub fn confine_thread() {
    let _ = confine(&[]);
}

/// Whether this process could write to every one of these directories with none but the capabilities `keep`: those that
/// are there and that it cannot may belong to someone else, or lie below a directory that does.
pub fn reachable(directories: &[&Path], keep: &[Capability]) -> Result<bool> {
    let look = || -> io::Result<bool> {
        let (effective, permitted) = get()?;
        set(permitted & bits(keep), permitted)?;
        let all = directories.iter().all(|directory| {
            let Ok(path) = CString::new(directory.as_os_str().as_bytes()) else { return false };
            // SAFETY: faccessat(2) reads a live C string. AT_EACCESS: judged by the effective set.
            let status =
                unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK | libc::X_OK, libc::AT_EACCESS) };
            status == 0 || io::Error::last_os_error().kind() == io::ErrorKind::NotFound
        });
        set(effective, permitted)?;
        Ok(all)
    };
    look().map_err(|e| Error::system("look which capabilities are needed", e))
}

/// Whether this process may write to a file or directory that is there.
pub fn writable(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: faccessat(2) reads a live C string.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK, libc::AT_EACCESS) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{DirBuilderExt as _, chown};

    fn status(field: &str) -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    }

    #[test]
    fn a_confined_thread_has_what_it_kept_and_gets_no_more() {
        std::thread::spawn(|| {
            let had = status("CapPrm:");
            let keep = [Capability::NetAdmin, Capability::NetRaw];
            confine(&keep).unwrap();
            assert_eq!(status("CapEff:"), had & bits(&keep));
            assert_eq!(status("CapPrm:"), had & bits(&keep));
            assert_eq!((status("CapInh:"), status("CapAmb:"), status("NoNewPrivs:")), (0, 0, 1));
            if had & 1 << 8 != 0 {
                // CAP_SETPCAP
                assert_eq!(status("CapBnd:"), had & bits(&keep));
            }
            let child = std::process::Command::new("grep").args(["CapPrm", "/proc/self/status"]).output().unwrap();
            let child = String::from_utf8(child.stdout).unwrap();
            let got = u64::from_str_radix(child.trim().strip_prefix("CapPrm:").unwrap().trim(), 16).unwrap();
            assert_eq!(got & !bits(&keep), 0, "a program we start has more");
            confine_thread();
            assert_eq!(status("CapPrm:"), 0);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_directory_of_someone_else_needs_a_capability() {
        // SAFETY: geteuid(2) has no preconditions.
        if unsafe { libc::geteuid() } != 0 {
            println!("SKIP: root");
            return;
        }
        let path = std::env::temp_dir().join(format!("peervpn-privilege-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        assert!(reachable(&[&path], &[]).unwrap());
        chown(&path, Some(65534), None).unwrap();
        assert!(!reachable(&[&path], &[]).unwrap());
        assert!(reachable(&[&path], &[Capability::DacOverride]).unwrap());
        assert!(reachable(&[&path.join("none")], &[Capability::DacOverride]).unwrap());
        std::fs::remove_dir(&path).unwrap();
    }
}
