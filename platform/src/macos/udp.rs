//! UDP sockets on the WireGuard port, before WireGuard owns it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::types::Family;
use crate::{Error, Result};

/// A non-blocking UDP socket on the wildcard address of a family; v6 sockets carry v6 only. `port` 0 lets the system
/// choose. macOS has no fwmark: any `mark` is unsupported. A port that is held gives `EADDRINUSE`.
pub fn bind(family: Family, port: u16, mark: Option<u32>) -> Result<UdpSocket> {
    if mark.is_some() {
        return Err(Error::Unsupported { what: "an fwmark on a socket", instead: "bind without a mark" });
    }
    let (domain, address) = match family {
        Family::V4 => (Domain::IPV4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
        Family::V6 => (Domain::IPV6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))),
    };
    let open = || {
        // close-on-exec is the default of `Socket::new`
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if family == Family::V6 {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        Ok(socket.into())
    };
    open().map_err(|source: std::io::Error| Error::system(format!("bind UDP {address}"), source))
}
