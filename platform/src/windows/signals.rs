//! What ends a node: the console's events, and the service manager's word.

use tokio::signal::windows::{CtrlBreak, CtrlC, CtrlClose, CtrlLogoff, CtrlShutdown};
use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_logoff, ctrl_shutdown};
use tokio::sync::Notify;

use crate::{Error, Result};

/// Raised by [`stop`].
static STOPPED: Notify = Notify::const_new();

/// Ends the node as Ctrl-C does: for the service manager's control handler, from any thread.
pub fn stop() {
    STOPPED.notify_one();
}

/// Ctrl-C, Ctrl-Break, the closed console, log-off, shutdown, and [`stop`] as one stream. From the moment it exists none
/// of them ends the process at once; after the last three Windows gives it some seconds (HandlerRoutine).
#[derive(Debug)]
pub struct StopSignals {
    interrupt: CtrlC,
    pause: CtrlBreak,
    close: CtrlClose,
    logoff: CtrlLogoff,
    shutdown: CtrlShutdown,
}

impl StopSignals {
    /// Takes them over.
    pub fn install() -> Result<Self> {
        let failed = |error| Error::system("watch for the end of the console", error);
        Ok(StopSignals {
            interrupt: ctrl_c().map_err(failed)?,
            pause: ctrl_break().map_err(failed)?,
            close: ctrl_close().map_err(failed)?,
            logoff: ctrl_logoff().map_err(failed)?,
            shutdown: ctrl_shutdown().map_err(failed)?,
        })
    }

    /// One came. Can be dropped and called again at any time.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.pause.recv() => {}
            _ = self.close.recv() => {}
            _ = self.logoff.recv() => {}
            _ = self.shutdown.recv() => {}
            () = STOPPED.notified() => {}
        }
    }
}

/// Terminals stop nobody here.
pub fn read_terminal_or_fail() {}
