//! Copies of UDP packets for a port that WireGuard owns. IPv6 packets with extension headers, and fragments, are not
//! among them: no initiation needs them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};

use super::tap::Tap;
use crate::datagram::{IPV4_HEADER_MAX, UDP_HEADER};
use crate::messages::{INITIATION_LEN, INITIATIONS, WAKEUPS};
use crate::{Error, Result};

/// For [`InitiationTap::recv`]: no copied packet is longer.
pub const BUFFER_LEN: usize = IPV4_HEADER_MAX + UDP_HEADER + INITIATION_LEN as usize;

/// A tap on WireGuard messages that come in for one UDP port, whoever owns it. Non-blocking; the descriptor is
/// readable while copies wait. What is captured may be forged: only its shape was checked.
#[derive(Debug)]
pub struct InitiationTap(Tap);

impl InitiationTap {
    /// Copies handshake initiations (type 1, by its UDP header 148 bytes) for `port`. Needs root.
    pub fn open(port: u16) -> Result<Self> {
        Self::of(Tap::open(port, &INITIATIONS), port)
    }

    /// Copies the first four payload bytes of initiations, responses and data messages of any length for `port`: a
    /// sign that something came back, not its content. Needs root.
    pub fn open_wakeup(port: u16) -> Result<Self> {
        Self::of(Tap::open(port, &WAKEUPS), port)
    }

    fn of(tap: io::Result<Tap>, port: u16) -> Result<Self> {
        tap.map(InitiationTap)
            .map_err(|source| Error::system(format!("copy incoming packets for UDP port {port}"), source))
    }

    /// The next copy: where it came from (its IP header's source; a link-local one with the interface as scope) and
    /// its UDP payload inside `buf`, which should have [`BUFFER_LEN`] bytes; cut, down to nothing, where a header claims more
    /// than came. `None`: nothing waits.
    pub fn recv<'a>(&self, buf: &'a mut [u8]) -> io::Result<Option<(SocketAddr, &'a [u8])>> {
        self.0.recv(buf)
    }

    /// Whether copies that come make the descriptor readable: they always do here.
    pub fn announce(&self, _copies: bool) -> io::Result<()> {
        Ok(())
    }

    /// How many copies the kernel had no room for, since the tap was opened.
    pub fn dropped(&self) -> io::Result<u64> {
        Ok(self.0.dropped())
    }
}

impl AsRawFd for InitiationTap {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
