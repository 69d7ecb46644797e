//! The signals that end a node, and the one that would stop it.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{Error, Result};

/// SIGINT, SIGTERM and SIGHUP as one stream. From the moment it exists no signal ends the process by itself.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl StopSignals {
    /// Takes them over.
    pub fn install() -> Result<Self> {
        let install = |kind| signal(kind).map_err(|error| Error::system("watch for signals", error));
        Ok(StopSignals {
            interrupt: install(SignalKind::interrupt())?,
            terminate: install(SignalKind::terminate())?,
            hangup: install(SignalKind::hangup())?,
        })
    }

    /// One came. Can be dropped and called again at any time.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// From now on this thread's read from a terminal fails, where otherwise it would stop the whole process: a shell's
/// background job gets SIGTTIN for it, unless the reader blocks that (tcsetpgrp(3), POSIX general terminal interface).
pub fn read_terminal_or_fail() {
    // SAFETY: both calls write to or read a signal set that lives here; the mask is this thread's own.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTTIN);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}
