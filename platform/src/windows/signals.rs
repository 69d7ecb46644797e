//! What ends a node: the console's events, and the service manager's word.

use tokio::signal::windows::{CtrlBreak, CtrlC, CtrlClose, CtrlShutdown};
use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};
use tokio::sync::Notify;
use windows_sys::Win32::System::Console::{CTRL_LOGOFF_EVENT, SetConsoleCtrlHandler};
use windows_sys::core::BOOL;

use crate::{Error, Result};

/// Raised by [`stop`].
static STOPPED: Notify = Notify::const_new();

/// Ends the node as Ctrl-C does: for the service manager's control handler, from any thread.
pub fn stop() {
    STOPPED.notify_one();
}

/// Somebody has logged off, and nobody says who: services alone are told (HandlerRoutine), and go on. Without this they
/// would be ended.
unsafe extern "system" fn go_on(event: u32) -> BOOL {
    (event == CTRL_LOGOFF_EVENT).into()
}

/// Ctrl-C, Ctrl-Break, the closed console, shutdown, and [`stop`] as one stream. From the moment it exists none of them
/// ends the process at once; after a close or shutdown Windows gives it some seconds (HandlerRoutine).
#[derive(Debug)]
pub struct StopSignals {
    interrupt: CtrlC,
    pause: CtrlBreak,
    close: CtrlClose,
    shutdown: CtrlShutdown,
}

impl StopSignals {
    /// Takes them over.
    pub fn install() -> Result<Self> {
        let failed = |error| Error::system("watch for the end of the console", error);
        // SAFETY: the handler touches nothing, and stays for as long as the process does.
        if unsafe { SetConsoleCtrlHandler(Some(go_on), 1) } == 0 {
            return Err(failed(std::io::Error::last_os_error()));
        }
        Ok(StopSignals {
            interrupt: ctrl_c().map_err(failed)?,
            pause: ctrl_break().map_err(failed)?,
            close: ctrl_close().map_err(failed)?,
            shutdown: ctrl_shutdown().map_err(failed)?,
        })
    }

    /// One came. Can be dropped and called again at any time.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.pause.recv() => {}
            _ = self.close.recv() => {}
            _ = self.shutdown.recv() => {}
            () = STOPPED.notified() => {}
        }
    }
}

/// Terminals stop nobody here.
pub fn read_terminal_or_fail() {}

#[cfg(test)]
mod tests {
    use windows_sys::Win32::System::Console::{CTRL_C_EVENT, CTRL_SHUTDOWN_EVENT};

    use super::*;

    #[test]
    fn a_log_off_ends_nothing_and_is_all_that_is_kept_from_the_others() {
        // SAFETY: it touches nothing.
        let kept = [CTRL_LOGOFF_EVENT, CTRL_C_EVENT, CTRL_SHUTDOWN_EVENT].map(|event| unsafe { go_on(event) });
        assert_eq!(kept, [1, 0, 0]);
    }
}
