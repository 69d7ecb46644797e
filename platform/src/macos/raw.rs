//! STUN from a port that WireGuard owns: sent by raw sockets with our port as source, received as copies by `/dev/bpf`.
//! The kernel writes the IP header (so there is no byte order to get wrong, ip(4) `IP_HDRINCL`), we the UDP one.
//! WireGuard gets the answers too, and drops them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::host::bind_to_interface;
use super::tap::{self, Tap};
use crate::datagram::{self, IPV4_HEADER_MAX, UDP_HEADER};
use crate::messages::STUN;
use crate::types::Family;
use crate::{Error, Result};

/// For [`RawStun::recv`]: longest IPv4 header, UDP header and message.
pub const BUFFER_LEN: usize = IPV4_HEADER_MAX + UDP_HEADER + STUN.snap as usize;

/// Hands a datagram to a socket of this host, as if it came from `from`: not by this system's sockets.
pub fn hand_over(_from: SocketAddr, _to: SocketAddr, _payload: &[u8]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Sends and receives STUN messages with a source port that another socket holds. Non-blocking; the descriptor is
/// readable while answers wait.
#[derive(Debug)]
pub struct RawStun {
    tap: Tap,
    port: u16,
    beside_tunnel: bool,
}

impl RawStun {
    /// For `port`. With an fwmark other than 0 what is sent goes beside the tunnel, whatever the routes say. Needs root.
    pub fn open(port: u16, fwmark: u32) -> Result<Self> {
        let tap = Tap::open(port, &STUN)
            .map_err(|source| Error::system(format!("copy incoming packets for UDP port {port}"), source))?;
        Ok(RawStun { tap, port, beside_tunnel: fwmark != 0 })
    }

    /// For answers that say nothing new to wake nobody. They come all the same here: the filters of as many devices as
    /// there are interfaces would have to change at once.
    pub fn leave_out(&self, _expected: &[SocketAddr]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Sends one message from `source` (a local address, from a route look-up with the same mark) and our port.
    pub fn send(&self, source: IpAddr, to: SocketAddr, message: &[u8]) -> io::Result<()> {
        let family = Family::of(&source);
        if Family::of(&to.ip()) != family {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let datagram = datagram::encode(source, self.port, to, message).ok_or(io::ErrorKind::InvalidInput)?;
        let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
        // one for each message: they are rare, and addresses change
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::UDP))?;
        if self.beside_tunnel
            && let Some(index) = tap::interface_of(source).map_err(io::Error::other)?
        {
            bind_to_interface(&socket, family, index)?;
        }
        socket.bind(&SocketAddr::new(source, 0).into())?;
        let mut to = to;
        to.set_port(0);
        socket.send_to(&datagram, &to.into()).map(drop)
    }

    /// The next message for our port: who sent it, and it itself inside `buf`, which should have [`BUFFER_LEN`] bytes.
    /// `None`: nothing waits. Only its shape was checked; whose answer it is, the transaction ID tells.
    pub fn recv<'a>(&self, buf: &'a mut [u8]) -> io::Result<Option<(SocketAddr, &'a [u8])>> {
        self.tap.recv(buf)
    }
}

impl AsRawFd for RawStun {
    fn as_raw_fd(&self) -> RawFd {
        self.tap.as_raw_fd()
    }
}
