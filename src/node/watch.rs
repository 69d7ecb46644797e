//! Sockets of the platform in the event loop.

use std::os::fd::AsRawFd;

use tokio::io::unix::AsyncFd;

use crate::error::Failure;

/// Watches a non-blocking socket for packets.
#[expect(deprecated, reason = "the platform's sockets own their descriptor; the new name of this call is unsafe")]
pub fn watch<T: AsRawFd>(socket: T) -> Result<AsyncFd<T>, Failure> {
    AsyncFd::with_interest(socket, tokio::io::Interest::READABLE)
        .map_err(|error| Failure::new(format!("cannot watch a socket: {error}"), "free some file descriptors"))
}
