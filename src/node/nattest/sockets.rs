//! The six sockets of a test: three paths in two families.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::Poll;

use peervpn_platform::os;
use peervpn_platform::types::Family;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use super::{Path, udp};
use crate::nat::stun::MAX_MESSAGE;
use crate::nat::transaction::Transmit;
use crate::node::stun::GatherError;

/// Tries to get a port of the wanted parity; each has an even chance.
const TRIES: u32 = 64;

/// What there is to send from and receive on.
pub(super) struct Sockets {
    all: Vec<(Family, Path, UdpSocket)>,
    buffer: Box<[u8; MAX_MESSAGE + 1]>,
}

impl Sockets {
    /// Binds them; the path asked about on `port` if one is given. A family this host lacks is left out.
    ///
    /// The filtering path gets odd numbers and the others even ones, so that it never has a number whose filter an
    /// earlier run has opened and the NAT still remembers.
    pub(super) fn bind(port: Option<u16>) -> Result<Self, GatherError> {
        let mut all = Vec::new();
        let mut trouble = None;
        for family in Family::BOTH {
            match Self::bind_family(family, port) {
                Ok(three) => {
                    for (path, socket) in three {
                        all.push((family, path, UdpSocket::from_std(socket).map_err(GatherError::Watch)?));
                    }
                }
                Err(error) if error.kind() == Some(io::ErrorKind::AddrInUse) => {
                    let port = port.unwrap_or(0);
                    return Err(GatherError::PortInUse { port, holder: os::port_holder(port) });
                }
                Err(error) => trouble = Some(error),
            }
        }
        match trouble {
            Some(error) if all.is_empty() => Err(error.into()),
            _ => Ok(Sockets { all, buffer: Box::new([0; MAX_MESSAGE + 1]) }),
        }
    }

    fn bind_family(
        family: Family,
        port: Option<u16>,
    ) -> Result<Vec<(Path, std::net::UdpSocket)>, peervpn_platform::Error> {
        Path::ALL
            .into_iter()
            .map(|path| {
                let socket = match (path, port) {
                    (Path::Asked, Some(port)) => udp::bind(family, port, None)?,
                    (path, _) => with_parity(family, u16::from(path == Path::Filter))?,
                };
                Ok((path, socket))
            })
            .collect()
    }

    /// The local ports of a family in the order of [`Path::ALL`]; `None` if this host lacks the family.
    pub(super) fn ports(&self, family: Family) -> Option<[u16; 3]> {
        let mut ports = [0; 3];
        let mut found = false;
        for (of, path, socket) in &self.all {
            if *of == family {
                found = true;
                ports[*path as usize] = socket.local_addr().ok()?.port();
            }
        }
        found.then_some(ports)
    }

    /// Sends a datagram.
    pub(super) async fn send(&self, family: Family, path: Path, transmit: &Transmit) -> io::Result<()> {
        let socket = self.all.iter().find(|(of, on, _)| (*of, *on) == (family, path)).map(|(_, _, socket)| socket);
        let socket = socket.ok_or(io::ErrorKind::NotConnected)?;
        socket.send_to(&transmit.bytes, transmit.to).await.map(drop)
    }

    /// The next datagram: where it came in, from whom, how long it is; [`Self::received`] has its bytes.
    pub(super) async fn receive(&mut self) -> (Family, Path, SocketAddr, usize) {
        poll_fn(|cx| {
            for (family, path, socket) in &self.all {
                loop {
                    let mut buffer = ReadBuf::new(&mut self.buffer[..]);
                    match socket.poll_recv_from(cx, &mut buffer) {
                        Poll::Ready(Ok(from)) => return Poll::Ready((*family, *path, from, buffer.filled().len())),
                        // an ICMP error of an earlier request
                        Poll::Ready(Err(_)) => {}
                        Poll::Pending => break,
                    }
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The bytes of the last datagram received.
    pub(super) fn received(&self, length: usize) -> &[u8] {
        &self.buffer[..length]
    }
}

fn with_parity(family: Family, odd: u16) -> Result<std::net::UdpSocket, peervpn_platform::Error> {
    let mut tries = 0;
    loop {
        let socket = udp::bind(family, 0, None)?;
        tries += 1;
        if socket.local_addr().is_ok_and(|address| address.port() % 2 == odd) || tries == TRIES {
            return Ok(socket);
        }
    }
}
