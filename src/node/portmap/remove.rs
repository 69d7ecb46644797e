//! Deletes a mapping: synchronous, from whichever process undoes the journal, and bounded in time.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::gateway::service;
use super::{lease_text, ours};
use crate::host::change::PortMapping;
use crate::nat::gateway::PORT;
use crate::nat::portmap::upnp::{self, Fault, Service};
use crate::nat::portmap::{http, nat_pmp, pcp};

/// Waits for the answers to a deletion and its repetitions; a gateway is one hop away, and one that is gone must not
/// hold up the end of a node.
const WAITS: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(300)];
/// Both HTTP exchanges together.
const HTTP: Duration = Duration::from_millis(1500);

/// The gateway did not confirm.
#[derive(Debug, thiserror::Error)]
#[error("{why}; {then}")]
pub struct Unconfirmed {
    why: String,
    /// What becomes of the mapping.
    then: String,
}

/// Deletes the mapping; one that is gone or is no longer ours is no error.
pub fn remove(mapping: &PortMapping) -> Result<(), Unconfirmed> {
    let removed = match mapping {
        PortMapping::Pcp { gateway, client, port, nonce } => {
            let wanted = pcp::Mapping { client: *client, port: *port, nonce: *nonce };
            let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
            let bytes = pcp::request(&wanted, Duration::ZERO, any);
            ask(*gateway, *client, &bytes, |answer| {
                Some(pcp::answer(answer, &wanted)?.map(drop).map_err(|no| no.to_string()))
            })
        }
        PortMapping::NatPmp { gateway, client, port } => {
            let bytes = nat_pmp::request(*port, 0, Duration::ZERO);
            ask(*gateway, *client, &bytes, |answer| {
                Some(nat_pmp::answer(answer, *port)?.map(drop).map_err(|no| no.to_string()))
            })
        }
        PortMapping::Upnp { external_port, client, port, .. } => {
            let service = service(mapping).expect("a UPnP mapping");
            delete_upnp(&service, *external_port, *client, *port)
        }
    };
    removed.map_err(|why| Unconfirmed {
        why,
        then: match mapping {
            PortMapping::Upnp { permanent: true, external_port, server, .. } => {
                format!("delete the forwarding of UDP port {external_port} on the router {} by hand", server.ip())
            }
            _ => format!("it ends by itself within {}", lease_text()),
        },
    })
}

fn ask(
    gateway: Ipv4Addr,
    client: Ipv4Addr,
    request: &[u8],
    read: impl Fn(&[u8]) -> Option<Result<(), String>>,
) -> Result<(), String> {
    let gone = |error: std::io::Error| format!("the gateway {gateway} can't be asked: {error}");
    let socket = UdpSocket::bind((client, 0)).map_err(gone)?;
    socket.connect((gateway, PORT)).map_err(gone)?;
    let mut buffer = [0; 1100];
    for wait in WAITS {
        socket.send(request).map_err(gone)?;
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left)).map_err(gone)?;
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    if let Some(answer) = read(&buffer[..length]) {
                        return answer;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return Err(gone(error)),
                Err(_) => break,
            }
        }
    }
    Err(format!("the gateway {gateway} does not answer"))
}

/// Deletes the external port's mapping if it is ours: someone else may have it by now.
fn delete_upnp(service: &Service, external_port: u16, client: Ipv4Addr, port: u16) -> Result<(), String> {
    let server = service.control.server;
    let until = Instant::now() + HTTP;
    match upnp::entry(&call(server, &upnp::get_entry(service, external_port), until)?) {
        Ok(entry) if !ours(&entry, client, port) => return Ok(()),
        Ok(_) => {}
        Err(Fault { code: Fault::NO_SUCH_ENTRY, .. }) => return Ok(()),
        // whose it is can't be known, so it stays
        Err(fault) => return Err(format!("the gateway {} says {fault}", server.ip())),
    }
    match upnp::done(&call(server, &upnp::delete(service, external_port), until)?) {
        Ok(_) | Err(Fault { code: Fault::NO_SUCH_ENTRY, .. }) => Ok(()),
        Err(fault) => Err(format!("the gateway {} says {fault}", server.ip())),
    }
}

fn call(server: SocketAddrV4, request: &[u8], until: Instant) -> Result<http::Answer, String> {
    let gone = |error: std::io::Error| format!("the gateway {server} can't be asked: {error}");
    let silent = || format!("the gateway {server} does not answer");
    let left = || Some(until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero());
    let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(server), left().ok_or_else(silent)?).map_err(gone)?;
    stream.set_write_timeout(Some(left().ok_or_else(silent)?)).map_err(gone)?;
    stream.write_all(request).map_err(gone)?;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    while bytes.len() <= http::MAX_ANSWER {
        stream.set_read_timeout(Some(left().ok_or_else(silent)?)).map_err(gone)?;
        let length = stream.read(&mut buffer).map_err(|_| silent())?;
        bytes.extend_from_slice(&buffer[..length]);
        match http::answer(&bytes, length == 0) {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(malformed) => return Err(format!("the gateway {server} gives an answer that is {malformed}")),
        }
    }
    Err(format!("the gateway {server} does not end its answer"))
}
