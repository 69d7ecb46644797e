//! UDP sockets on the WireGuard port, before WireGuard owns it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::types::Family;
use crate::{Error, Result};

/// A non-blocking UDP socket on the wildcard address of a family. `port` 0 lets the kernel choose; `mark` is the fwmark
/// of what it sends (needs CAP_NET_ADMIN, socket(7) SO_MARK). v6 sockets carry v6 only, so one port has one of each.
///
/// Neither SO_REUSEADDR nor SO_REUSEPORT is set: with either on both sides udp(7) lets two sockets share a port, and
/// another program's socket would go unnoticed here only to make WireGuard fail. A port that anyone holds on any
/// address gives `EADDRINUSE` ([`std::io::ErrorKind::AddrInUse`]). Closing the socket frees the port at once.
pub fn bind(family: Family, port: u16, mark: Option<u32>) -> Result<UdpSocket> {
    let (domain, address) = match family {
        Family::V4 => (Domain::IPV4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
        Family::V6 => (Domain::IPV6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))),
    };
    let failed = |source| Error::system(format!("bind UDP {address}"), source);
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP)).map_err(failed)?;
    if family == Family::V6 {
        socket.set_only_v6(true).map_err(failed)?;
    }
    if let Some(mark) = mark {
        socket.set_mark(mark).map_err(|source| Error::system(format!("set fwmark {mark:#x} on a socket"), source))?;
    }
    socket.bind(&address.into()).map_err(failed)?;
    Ok(socket.into())
}
