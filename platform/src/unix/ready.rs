//! What of ours can become readable, in the caller's event loop.

use std::io;
use std::os::fd::AsRawFd;

/// What can be watched.
pub use std::os::fd::AsRawFd as Source;

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use crate::{Error, Result};

/// A non-blocking source, watched by the event loop that runs where it is made.
#[derive(Debug)]
pub struct Watched<T: AsRawFd>(AsyncFd<T>);

impl<T: AsRawFd> Watched<T> {
    /// From now on.
    #[expect(deprecated, reason = "our sources own their descriptor; the new name of this call is unsafe")]
    pub fn new(source: T) -> Result<Self> {
        AsyncFd::with_interest(source, Interest::READABLE)
            .map(Watched)
            .map_err(|error| Error::system("watch a socket", error))
    }

    /// The source.
    pub fn get_ref(&self) -> &T {
        self.0.get_ref()
    }

    /// There may be something to read. Until the caller has found that there is nothing and said so
    /// ([`Ready::clear`]), this returns at once. Can be dropped and called again at any time. Fails only when the event
    /// loop ends.
    pub async fn readable(&self) -> io::Result<Ready<'_, T>> {
        self.0.readable().await.map(Ready)
    }
}

/// A source that may be readable.
#[derive(Debug)]
pub struct Ready<'a, T: AsRawFd>(AsyncFdReadyGuard<'a, T>);

impl<T: AsRawFd> Ready<'_, T> {
    /// Nothing is left to read; what comes from now on wakes again.
    pub fn clear(mut self) {
        self.0.clear_ready();
    }
}
