//! The userspace device's process: started so that it outlives us only when we say so, and ended without ever signalling
//! another process that got its number. And the two programs of macOS that have no other interface: pfctl(8) for pf's
//! rules, scutil(8) for DNS.

use std::ffi::{CStr, OsString, c_char, c_int};
use std::fs::File;
use std::io::{self, Write};
use std::mem::{size_of, zeroed};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;

use super::queue;
pub use super::uapi::{remove_uapi_socket, uapi_owner, wait_uapi};
use crate::types::ProcessId;
use crate::{Error, Result};

/// Where a started program finds others; it gets no more of our environment.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a process may take to vanish after SIGKILL.
const KILLED: Duration = Duration::from_secs(5);
/// `SZOMB` of `sys/proc.h`.
const ZOMBIE: u32 = 5;

/// A started program that waits for our go. Dropped without [`HeldDevice::release`], its standard input ends and it
/// exits; so it does when this process dies first.
#[derive(Debug)]
pub struct HeldDevice {
    /// The process, for the journal.
    pub id: ProcessId,
    stdin: ChildStdin,
}

impl HeldDevice {
    /// Lets the program go on: one byte on its standard input.
    pub fn release(mut self) -> Result<()> {
        self.stdin.write_all(b"\n").map_err(|e| Error::system(format!("release process {}", self.id.pid), e))
    }
}

/// Starts `program` in a session of its own, with the given environment only (and a plain `PATH`), its standard input
/// our pipe, its outputs in `log` or nowhere, working directory `/`, umask 077.
/// The program must read one byte from its standard input before it does anything, and exit at its end.
pub fn spawn_held(
    program: &Path,
    args: &[OsString],
    envs: &[(OsString, OsString)],
    log: Option<File>,
) -> Result<HeldDevice> {
    let operation = format!("start {}", program.display());
    let start = || -> io::Result<HeldDevice> {
        let (stdout, stderr): (Stdio, Stdio) = match log {
            Some(log) => (log.try_clone()?.into(), log.into()),
            None => (Stdio::null(), Stdio::null()),
        };
        let mut command = Command::new(program);
        command.args(args).env_clear().env("PATH", PATH).envs(envs.iter().cloned()).current_dir("/");
        command.stdin(Stdio::piped()).stdout(stdout).stderr(stderr);
        // SAFETY: between fork and exec only async-signal-safe calls are made, without allocation; sigaction(2).
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 {
                    return Err(io::Error::last_os_error());
                }
                libc::umask(0o077);
                Ok(())
            });
        }
        let mut child = command.spawn()?;
        let stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let id = process_id(child.id());
        // a thread that waits for it, so that it never stays a zombie of ours; should there be none to have, dropping
        // `stdin` ends the child
        std::thread::Builder::new().name("reap".to_owned()).stack_size(64 << 10).spawn(move || child.wait())?;
        Ok(HeldDevice { id: id.ok_or(io::ErrorKind::NotFound)?, stdin })
    };
    start().map_err(|e| Error::system(operation, e))
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

/// Whether exactly this process still runs (a zombie doesn't).
pub fn alive(id: &ProcessId) -> bool {
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

/// Which files other processes have open: libproc could tell, and is not asked.
pub fn open_elsewhere(_wanted: impl Fn(&Path) -> bool) -> Vec<std::path::PathBuf> {
    Vec::new()
}

/// Overwrites an argument of this process where ps(1) reads it. Other users saw it until now.
pub fn conceal_argument(argument: &str) {
    if argument.is_empty() {
        return;
    }
    // SAFETY: argv is an array of C strings that ends with a null pointer; they lie in writable memory that stays for as
    // long as the process, and nobody else writes there.
    unsafe {
        let mut next = *_NSGetArgv();
        while !next.is_null() && !(*next).is_null() {
            let text = CStr::from_ptr(*next).to_bytes();
            let found = text.windows(argument.len()).position(|part| part == argument.as_bytes());
            if let Some(at) = found {
                std::ptr::write_bytes((*next).add(at), b'x', argument.len());
            }
            next = next.add(1);
        }
    }
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
