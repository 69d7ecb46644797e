//! A timer that counts the time of a suspend, too: kqueue(2), `EVFILT_TIMER` by `mach_continuous_time`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::queue;
use crate::{Error, Result};

/// Readable when it has expired. Non-blocking.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// Opens one that never expires.
    pub fn open() -> Result<Self> {
        queue::new().map(Timer).map_err(|source| Error::system("make a timer", source))
    }

    /// To expire after this long, instead of what was set before.
    pub fn set(&self, after: Duration) -> io::Result<()> {
        queue::once(&self.0, after)
    }

    /// Whether it has expired, since this was asked last.
    pub fn expired(&self) -> bool {
        queue::ready(&self.0).is_ok_and(|ready| !ready.is_empty())
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
