//! UDP sockets on the WireGuard port, before WireGuard owns it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::types::Family;
use crate::{Error, Result};

/// A non-blocking UDP socket on the wildcard address of a family; v6 sockets carry v6 only (Windows' default,
/// `IPV6_V6ONLY`). `port` 0 lets the system choose. Windows has no fwmark: any `mark` is unsupported. A port that is
/// held gives [`std::io::ErrorKind::AddrInUse`].
pub fn bind(family: Family, port: u16, mark: Option<u32>) -> Result<UdpSocket> {
    if mark.is_some() {
        return Err(Error::Unsupported { what: "an fwmark on a socket", instead: "bind without a mark" });
    }
    let address = match family {
        Family::V4 => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        Family::V6 => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
    };
    let open = || {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    open().map_err(|source: std::io::Error| Error::system(format!("bind UDP {address}"), source))
}
