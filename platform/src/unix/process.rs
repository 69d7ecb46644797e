//! How a userspace device's process begins: held until it is in the journal, and gone should we die before.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};

use super::process::{PATH, close_at_exec, process_id};
use crate::types::ProcessId;
use crate::{Error, Result};

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
/// our pipe, its outputs in `log` or nowhere, no other descriptor of ours, working directory `/`, umask 077.
/// The program must read one byte from its standard input before it does anything, and exit at its end.
pub fn spawn_held(
    program: &Path,
    args: &[OsString],
    envs: &[(OsString, OsString)],
    log: Option<File>,
) -> Result<HeldDevice> {
    let start = || -> io::Result<HeldDevice> {
        let (stdout, stderr): (Stdio, Stdio) = match log {
            Some(log) => (log.try_clone()?.into(), log.into()),
            None => (Stdio::null(), Stdio::null()),
        };
        let mut command = Command::new(program);
        command.args(args).env_clear().env("PATH", PATH).envs(envs.iter().cloned()).current_dir("/");
        command.stdin(Stdio::piped()).stdout(stdout).stderr(stderr);
        // SAFETY: between fork and exec only async-signal-safe calls are made, without allocation; signal-safety(7).
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 {
                    return Err(io::Error::last_os_error());
                }
                libc::umask(0o077);
                // best effort: ours carry the flag already
                close_at_exec();
                Ok(())
            });
        }
        let mut child = command.spawn()?;
        let stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let id = process_id(child.id());
        // a thread that waits for it, so that it never stays a zombie of ours; should there be none to have, dropping
        // `stdin` ends the child
        std::thread::Builder::new().name("reap".to_owned()).stack_size(64 << 10).spawn(move || {
            super::confine_thread();
            child.wait()
        })?;
        Ok(HeldDevice { id: id.ok_or(io::ErrorKind::NotFound)?, stdin })
    };
    start().map_err(|e| Error::system(format!("start {}", program.display()), e))
}
