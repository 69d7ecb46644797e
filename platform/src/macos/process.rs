//! The userspace device's process: started so that it outlives us only when we say so, and ended without ever signalling
//! another process that got its number. And the two programs of macOS that have no other interface: pfctl(8) for pf's
//! rules, scutil(8) for DNS.

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::fs::File;
use std::io::{self, Write};
use std::mem::{size_of, zeroed};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

pub use super::held::{HeldDevice, spawn_held};
use super::queue;
pub use super::uapi::{remove_uapi_socket, uapi_owner, wait_uapi};
use crate::types::ProcessId;
use crate::{Error, Result};

/// Where a started program finds others; it gets no more of our environment.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a process may take to vanish after SIGKILL.
const KILLED: Duration = Duration::from_secs(5);
/// `SZOMB` of `sys/proc.h`.
const ZOMBIE: u32 = 5;
/// `PROC_ALL_PIDS` of `sys/proc_info.h`.
const ALL_PROCESSES: u32 = 1;

/// Marks every descriptor from 3 up to go at exec. Async-signal-safe: one fcntl(2) each.
pub(super) fn close_at_exec() {
    // SAFETY: plain numbers; of one that is not open the kernel says so.
    unsafe {
        for fd in 3..libc::getdtablesize() {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

/// What the kernel says about a process, proc_pidinfo of `libproc.h`.
fn info(pid: u32) -> Option<libc::proc_bsdinfo> {
    let length = size_of::<libc::proc_bsdinfo>() as c_int;
    // SAFETY: all zeros is a valid proc_bsdinfo, and the kernel writes at most `length` bytes into it.
    unsafe {
        let mut info: libc::proc_bsdinfo = zeroed();
        let written = libc::proc_pidinfo(pid as c_int, libc::PROC_PIDTBSDINFO, 0, (&raw mut info).cast(), length);
        (written == length).then_some(info)
    }
}

fn started(info: &libc::proc_bsdinfo) -> u64 {
    info.pbi_start_tvsec * 1_000_000 + info.pbi_start_tvusec
}

/// The identity of a running process; `None` if there is none of that number. Start times are in microseconds since the
/// Unix epoch.
pub fn process_id(pid: u32) -> Option<ProcessId> {
    info(pid).map(|info| ProcessId { pid, started: started(&info) })
}

/// The name of a running process's program, as the kernel keeps it (`p_comm`): where pf has it from, too.
pub(super) fn program(pid: u32) -> Option<String> {
    let name: Vec<u8> = info(pid)?.pbi_comm.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    Some(String::from_utf8_lossy(&name).into_owned())
}

/// Whether exactly this process still runs (a zombie doesn't).
fn alive(id: &ProcessId) -> bool {
    info(id.pid).is_some_and(|info| started(&info) == id.started && info.pbi_status != ZOMBIE)
}

/// Ends a process: SIGTERM, up to `grace` to obey, then SIGKILL. One that is already gone is no error, and another
/// process under a recycled number is left alone.
pub fn terminate(id: &ProcessId, grace: Duration) -> Result<()> {
    let end = || -> io::Result<()> {
        let queue = queue::new()?;
        match queue::exit(&queue, id.pid) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            other => other?,
        }
        // watched before it is looked at: its end from here on is seen
        for (signal, time) in [(libc::SIGTERM, grace), (libc::SIGKILL, KILLED)] {
            if !alive(id) {
                return Ok(());
            }
            // SAFETY: plain numbers.
            if unsafe { libc::kill(id.pid as libc::pid_t, signal) } != 0 {
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(libc::ESRCH) {
                    return Err(error);
                }
            }
            if queue::wait(&queue, time)? {
                return Ok(());
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "it did not end after SIGKILL"))
    };
    end().map_err(|e| Error::system(format!("end process {}", id.pid), e))
}

unsafe extern "C" {
    /// `crt_externs.h`: the arguments as the kernel has put them on the initial stack, where ps(1) reads them.
    fn _NSGetArgv() -> *mut *mut *mut c_char;
}

/// `struct proc_fileinfo` of `sys/proc_info.h`: not in libc.
#[repr(C)]
pub(super) struct FileInfo {
    pub(super) open_flags: u32,
    pub(super) status: u32,
    pub(super) offset: libc::off_t,
    pub(super) kind: i32,
    pub(super) guard_flags: u32,
}

/// `struct vnode_fdinfowithpath`, likewise.
#[repr(C)]
pub(super) struct OpenFile {
    pub(super) file: FileInfo,
    pub(super) vnode: libc::vnode_info_path,
}

/// `PROC_PIDFDVNODEPATHINFO`.
const VNODE_WITH_PATH: c_int = 2;

/// Asks `fill` twice: how many items there are (with no buffer), then for them. Both answers are in bytes.
fn listed<T: Clone>(blank: T, fill: impl Fn(*mut c_void, c_int) -> c_int) -> Vec<T> {
    let bytes = fill(std::ptr::null_mut(), 0).max(0) as usize;
    // some may come in between
    let mut items = vec![blank; bytes / size_of::<T>() + 32];
    let written = fill(items.as_mut_ptr().cast(), (items.len() * size_of::<T>()) as c_int).max(0) as usize;
    items.truncate(written / size_of::<T>());
    items
}

/// The files that other processes have open, with the process; of processes that belong to root or to us, since anyone
/// could hold files of any name. `libproc.h`, as lsof(8) asks it.
fn open_files() -> impl Iterator<Item = (u32, OpenFile)> {
    // SAFETY: geteuid(2) always succeeds and touches no memory.
    let us = unsafe { libc::geteuid() };
    // SAFETY: the kernel writes at most `length` bytes into `buffer`; PROC_ALL_PIDS takes no argument.
    let processes = listed(0u32, |buffer, length| unsafe { libc::proc_listpids(ALL_PROCESSES, 0, buffer, length) });
    let others = processes.into_iter().filter(move |pid| {
        *pid != std::process::id() && info(*pid).is_some_and(|info| info.pbi_uid == 0 || info.pbi_uid == us)
    });
    others.flat_map(|pid| {
        let blank = libc::proc_fdinfo { proc_fd: 0, proc_fdtype: 0 };
        // SAFETY: the kernel writes at most `length` bytes into `buffer`: a proc_fdinfo each.
        let descriptors = listed(blank, |buffer, length| unsafe {
            libc::proc_pidinfo(pid as c_int, libc::PROC_PIDLISTFDS, 0, buffer, length)
        });
        let files = descriptors.into_iter().filter(|fd| fd.proc_fdtype == libc::PROX_FDTYPE_VNODE as u32);
        files.filter_map(move |fd| {
            let length = size_of::<OpenFile>() as c_int;
            // SAFETY: all zeros is a valid OpenFile, and the kernel writes at most `length` bytes into it.
            let (open, written) = unsafe {
                let mut open: OpenFile = zeroed();
                let into = (&raw mut open).cast();
                let written = libc::proc_pidfdinfo(pid as c_int, fd.proc_fd, VNODE_WITH_PATH, into, length);
                (open, written)
            };
            (written == length).then_some((pid, open))
        })
    })
}

/// Those of the files `wanted` that other processes have open.
pub fn open_elsewhere(wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let path = |open: &OpenFile| {
        let text: Vec<u8> = open.vnode.vip_path.iter().flatten().map(|c| *c as u8).take_while(|c| *c != 0).collect();
        PathBuf::from(OsStr::from_bytes(&text))
    };
    open_files().map(|(_, open)| path(&open)).filter(|path| wanted(path)).collect()
}

/// The process that holds a file's lock: flock(2) tells nobody, but only who wants the lock opens such a file.
pub(crate) fn lock_holder(file: &File) -> Option<u32> {
    let file = file.metadata().ok()?;
    let same = |open: &OpenFile| {
        let vnode = &open.vnode.vip_vi.vi_stat;
        u64::from(vnode.vst_dev) == file.dev() & u64::from(u32::MAX) && vnode.vst_ino == file.ino()
    };
    open_files().find(|(_, open)| same(open)).map(|(pid, _)| pid)
}

/// Overwrites an argument of this process where ps(1) reads it; whether it was there. Other users saw it until now.
pub fn conceal_argument(argument: &str) -> bool {
    if argument.is_empty() {
        return false;
    }
    let mut done = false;
    // SAFETY: argv is an array of C strings that ends with a null pointer; they lie in writable memory that stays for as
    // long as the process, and nobody else writes there.
    unsafe {
        let mut next = *_NSGetArgv();
        while !next.is_null() && !(*next).is_null() {
            let text = CStr::from_ptr(*next).to_bytes();
            let found = text.windows(argument.len()).position(|part| part == argument.as_bytes());
            if let Some(at) = found {
                std::ptr::write_bytes((*next).add(at), b'x', argument.len());
                done = true;
            }
            next = next.add(1);
        }
    }
    done
}

/// Runs a program of the system's with this on its standard input; what it prints.
pub(super) fn run(program: &str, args: &[&str], input: &str) -> Result<String> {
    let operation = format!("run {program} {}", args.join(" ")).trim_end().to_owned();
    let start = || -> io::Result<std::process::Output> {
        let mut command = Command::new(program);
        command.args(args).env_clear().env("PATH", PATH).env("LC_ALL", "C").current_dir("/");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let written = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?.write_all(input.as_bytes());
        let output = child.wait_with_output()?;
        // one that did not read its input says why itself
        if output.status.success() { written.map(|()| output) } else { Ok(output) }
    };
    let output = start().map_err(|e| Error::system(&operation, e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::system(operation, io::Error::other(format!("{}: {said}", output.status))))
}

/// The process at the other end of a socket, `LOCAL_PEERPID` of unix(4).
pub(super) fn peer(socket: &impl AsRawFd) -> Option<u32> {
    let mut pid: libc::pid_t = 0;
    let mut length = size_of::<libc::pid_t>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel writes at most `length` bytes, the size of `pid`.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_LOCAL,
            libc::LOCAL_PEERPID,
            (&raw mut pid).cast(),
            &raw mut length,
        )
    };
    (status == 0 && pid > 0).then_some(pid as u32)
}
