//! The signals that end a node.

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
