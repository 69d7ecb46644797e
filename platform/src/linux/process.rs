//! The userspace device's process: started so that it outlives us only when we say so, and ended without ever
//! signalling another process that got its number.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use super::held::{HeldDevice, spawn_held};
pub use super::uapi::{remove_uapi_socket, uapi_owner, wait_uapi};
use crate::types::ProcessId;
use crate::{Error, Result};

/// Where a started program finds others; it gets no more of our environment.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a process may take to vanish after SIGKILL.
const KILLED: Duration = Duration::from_secs(5);

/// Marks every descriptor from 3 up to go at exec; close_range(2), from Linux 5.11 on. Async-signal-safe.
pub(super) fn close_at_exec() {
    // SAFETY: plain numbers.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Start time of a process; proc_pid_stat(5). The name in field 2 may hold spaces and brackets, so fields count from the
/// last closing one.
fn started(pid: u32) -> Option<u64> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&text)
}

fn parse_stat(text: &[u8]) -> Option<u64> {
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&text[end + 1..]).ok()?;
    // the first is field 3, the start time field 22
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// The identity of a running process; `None` if there is none of that number.
pub fn process_id(pid: u32) -> Option<ProcessId> {
    started(pid).map(|started| ProcessId { pid, started })
}

/// Waits for the process of a pidfd to end.
fn ended(pidfd: &OwnedFd, timeout: Duration) -> io::Result<bool> {
    let deadline = std::time::Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = left.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32;
        // SAFETY: `poll` is one valid pollfd for the length of the call.
        match unsafe { libc::poll(&mut poll, 1, milliseconds) } {
            0 => return Ok(false),
            count if count > 0 => return Ok(true),
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
}

fn signal(pidfd: &OwnedFd, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: pidfd_send_signal(2) with an open pidfd, no siginfo and no flags touches no memory of ours.
    let status = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    match io::Error::last_os_error() {
        _ if status == 0 => Ok(()),
        e if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        e => Err(e),
    }
}

/// Ends a process: SIGTERM, up to `grace` to obey, then SIGKILL. One that is already gone is no error, and another
/// process under a recycled number is left alone.
pub fn terminate(id: &ProcessId, grace: Duration) -> Result<()> {
    let operation = format!("end process {}", id.pid);
    let end = || -> io::Result<()> {
        // SAFETY: pidfd_open(2) takes two integers and returns a new descriptor, which is ours alone.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, id.pid, 0) };
        if fd < 0 {
            return match io::Error::last_os_error() {
                // EINVAL: the number lives on only as the session of its children, or as a thread
                e if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => Ok(()),
                e => Err(e),
            };
        }
        // SAFETY: as above.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // checked after opening: if it is the one we mean now, it is the one the descriptor stands for. Of a zombie, too,
        // the other threads may still hold its sockets and its device: only the descriptor says that they are gone
        if process_id(id.pid).as_ref() != Some(id) {
            return Ok(());
        }
        signal(&pidfd, libc::SIGTERM)?;
        if ended(&pidfd, grace)? {
            return Ok(());
        }
        signal(&pidfd, libc::SIGKILL)?;
        match ended(&pidfd, KILLED)? {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::TimedOut, "it did not end after SIGKILL")),
        }
    };
    end().map_err(|e| Error::system(operation, e))
}

/// Those of the files `wanted` that other processes of this network namespace have open; of processes that belong to
/// root or to us, since anyone could hold files of any name.
pub fn open_elsewhere(wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    // SAFETY: geteuid(2) always succeeds and touches no memory.
    let us = unsafe { libc::geteuid() };
    let namespace = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    let (ours, own) = (namespace(Path::new("/proc/thread-self")), std::process::id().to_string());
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let (name, path) = (process.file_name(), process.path());
        let number = name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if !number || *name == *own || !process.metadata().is_ok_and(|of| of.uid() == 0 || of.uid() == us) {
            continue;
        }
        if namespace(&path) == ours {
            let files = fs::read_dir(path.join("fd")).into_iter().flatten().flatten();
            found.extend(files.filter_map(|fd| fs::read_link(fd.path()).ok()).filter(|path| wanted(path)));
        }
    }
    found
}

/// The inode number of the network namespace that this leads to, which names it while it lives: namespaces(7).
pub(super) fn namespace(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.ino())
}

/// A path into that network namespace: the one that `ip netns` gave it, else that of a process in it.
pub(super) fn way_into(inode: u64) -> Option<PathBuf> {
    let below = |directory: &str| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let processes = below("/proc").map(|process| process.join("ns/net"));
    below("/run/netns").chain(processes).find(|path| namespace(path) == Some(inode))
}

/// The process at the other end of a socket, unix(7) `SO_PEERCRED`: the one that called listen(2).
pub(super) fn peer(socket: &impl AsRawFd) -> Option<u32> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel writes at most `length` bytes, the size of `credentials`.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &mut length,
        )
    };
    (status == 0 && credentials.pid > 0).then_some(credentials.pid as u32)
}

/// Overwrites an argument of this process where ps(1) reads it, in `/proc/PID/cmdline`; whether it was there. Other users
/// saw it until now.
pub fn conceal_argument(argument: &str) -> bool {
    let Ok(stat) = fs::read("/proc/self/stat") else { return false };
    let Some(name_end) = stat.iter().rposition(|byte| *byte == b')') else { return false };
    let text = String::from_utf8_lossy(&stat[name_end + 1..]);
    // proc(5): arg_start and arg_end are fields 48 and 49; the first behind the name is 3
    let mut fields = text.split_ascii_whitespace().skip(48 - 3).map(str::parse::<usize>);
    let (Some(Ok(start)), Some(Ok(end))) = (fields.next(), fields.next()) else { return false };
    if argument.is_empty() || start == 0 || end <= start {
        return false;
    }
    // SAFETY: the kernel says that the arguments lie there, on the initial stack, which is writable and stays for as long
    // as the process; nobody else writes to it, and no reference to it outlives this function.
    let area = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, end - start) };
    let mut from = 0;
    while let Some(at) = area[from..].windows(argument.len()).position(|part| part == argument.as_bytes()) {
        area[from + at..from + at + argument.len()].fill(b'x');
        from += at + argument.len();
    }
    from > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        for name in ["(sh)", "(a b)", "(a) R 1 (b)", "())", "(\u{fc})"] {
            assert_eq!(parse_stat(format!("7 {name} {tail}").as_bytes()), Some(4242), "{name}");
        }
        assert_eq!(parse_stat(b"7 (sh) S 1 2"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn another_start_time_is_another_process() {
        let us = process_id(std::process::id()).unwrap();
        let other = ProcessId { started: us.started + 1, ..us };
        // must neither wait nor signal
        terminate(&other, Duration::from_secs(60)).unwrap();
    }

    /// What a device's other threads hold (its port, its link) is free only when they are gone, too.
    #[test]
    fn a_process_whose_first_thread_has_ended_is_ended_whole() {
        let script = "import ctypes, threading, time\n\
                      threading.Thread(target=time.sleep, args=(60,)).start()\n\
                      ctypes.CDLL(None).pthread_exit(None)\n";
        let Ok(mut child) = std::process::Command::new("python3").args(["-c", script]).spawn() else {
            println!("SKIP: no python3");
            return;
        };
        let id = process_id(child.id()).unwrap();
        let state = || fs::read_to_string(format!("/proc/{}/stat", id.pid)).unwrap();
        while !state().contains(") Z ") {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(child.try_wait().unwrap().is_none(), "its other thread lives");
        terminate(&id, Duration::from_secs(60)).unwrap();
        assert!(child.try_wait().unwrap().is_some());
    }
}
