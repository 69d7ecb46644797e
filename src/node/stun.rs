//! STUN before the handoff: sends `nat::gather`'s requests from the WireGuard port itself, while we still hold it.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peervpn_platform::os::{self, udp};
use peervpn_platform::types::{Family, PortHolder};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::error::{Hint, Status};
use crate::nat::gather::{Gather, Gathered};
use crate::nat::stun::{MAX_MESSAGE, TransactionId};

/// How long the exit's start waits for STUN at most; design §3.
pub const LIMIT: Duration = Duration::from_secs(3);

/// How many ports are tried where any port will do and the kernel's choice is free in one family only.
const ANY_PORT_TRIES: u32 = 16;

/// Why nothing could be asked. Silence of every server is no error but an empty [`Gathered`].
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// Someone else has the port.
    #[error("UDP port {port} is in use{}", by(.holder))]
    PortInUse {
        /// The port.
        port: u16,
        /// Who, where the system tells.
        holder: Option<PortHolder>,
    },
    /// No socket in either family for another reason.
    #[error(transparent)]
    Bind(#[from] peervpn_platform::Error),
    /// The socket can't be driven.
    #[error("cannot watch the STUN socket: {0}")]
    Watch(#[source] io::Error),
}

fn by(holder: &Option<PortHolder>) -> String {
    holder.as_ref().map(|h| format!(" by {} (process {})", h.program, h.pid)).unwrap_or_default()
}

impl Hint for GatherError {
    fn hint(&self) -> Option<String> {
        match self {
            GatherError::PortInUse { holder: Some(holder), .. } => {
                Some(format!("stop {} or choose another port: --port N", holder.program))
            }
            GatherError::PortInUse { holder: None, .. } => Some("choose another port: --port N".to_owned()),
            GatherError::Bind(error) => error.hint(),
            GatherError::Watch(_) => Some("try again, or start without STUN: --no-stun".to_owned()),
        }
    }
    fn status(&self) -> Status {
        Status::Failed
    }
}

/// A fresh transaction ID from the operating system's randomness.
pub fn transaction_id() -> TransactionId {
    let mut id = [0; 12];
    getrandom::fill(&mut id).expect("the operating system gives random bytes");
    TransactionId(id)
}

/// Learns our reflexive addresses from UDP port `port` (0: any; [`Gathered::port`] says which), asking all `servers`
/// (`HOST:PORT`) of both families side by side. Returns as soon as two servers agree or nobody is left to wait for, and
/// after `limit` at the latest. Both sockets are closed when it returns, so WireGuard can have the port in the next
/// call. With no servers it still checks that the port is free.
pub async fn gather(port: u16, servers: &[String], limit: Duration) -> Result<Gathered, GatherError> {
    let started = Instant::now();
    let (port, v4, v6) = bind(port)?;
    let mut gather = Gather::new(servers, limit, started);
    let v4 = watch(v4, Family::V4, &mut gather)?;
    let v6 = watch(v6, Family::V6, &mut gather)?;
    let mut lookups = JoinSet::new();
    for (number, server) in servers.iter().cloned().enumerate() {
        lookups.spawn(async move { (number, tokio::net::lookup_host(server).await.map(Vec::from_iter)) });
    }
    let (mut buffer4, mut buffer6) = ([0; MAX_MESSAGE + 1], [0; MAX_MESSAGE + 1]);
    loop {
        let now = Instant::now();
        gather.handle_timeout(now);
        while let Some(transmit) = gather.poll_transmit(now) {
            let Some(socket) = (if transmit.to.is_ipv4() { &v4 } else { &v6 }) else { continue };
            if let Err(error) = socket.send_to(&transmit.bytes, transmit.to).await {
                tracing::debug!(remote = %transmit.to, %error, "cannot send a STUN request");
                if no_way(&error) {
                    gather.unsendable(transmit.id, error.to_string());
                }
            }
        }
        if gather.is_done(now) {
            break;
        }
        tokio::select! {
            biased;
            received = receive(v4.as_ref(), &mut buffer4) => take(&mut gather, received, &buffer4),
            received = receive(v6.as_ref(), &mut buffer6) => take(&mut gather, received, &buffer6),
            Some(done) = lookups.join_next() => match done {
                Ok((number, Ok(addresses))) if !addresses.is_empty() => {
                    gather.resolved(number, &addresses, transaction_id, Instant::now());
                }
                Ok((number, Ok(_))) => gather.unresolved(number, "the name has no address".to_owned()),
                Ok((number, Err(error))) => gather.unresolved(number, error.to_string()),
                Err(error) => tracing::debug!(%error, "a name look-up was lost"),
            },
            () = tokio::time::sleep_until(gather.poll_timeout(now).into()) => {}
        }
    }
    let gathered = gather.finish(port, Instant::now());
    tracing::debug!(local = port, v4 = ?gathered.v4, v6 = ?gathered.v6, silent = ?gathered.silent, "gathered");
    Ok(gathered)
}

/// The error means that there is no route. Any other one, such as a firewall's drop (`EPERM`), is a lost datagram.
pub(super) fn no_way(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), AddrNotAvailable | HostUnreachable | NetworkUnreachable)
}

type Bound = Result<std::net::UdpSocket, peervpn_platform::Error>;

/// A socket of each family on the same port. One family may be missing, an occupied port may not.
fn bind(wanted: u16) -> Result<(u16, Bound, Bound), GatherError> {
    let mut tries = if wanted == 0 { ANY_PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let v4 = udp::bind(Family::V4, wanted, None);
        let port = v4.as_ref().ok().and_then(|s| s.local_addr().ok()).map_or(wanted, |address| address.port());
        let v6 = udp::bind(Family::V6, port, None);
        let in_use = |bound: &Bound| bound.as_ref().is_err_and(|e| e.kind() == Some(io::ErrorKind::AddrInUse));
        match (&v4, &v6) {
            _ if in_use(&v4) || in_use(&v6) => {
                if tries == 0 {
                    return Err(GatherError::PortInUse { port, holder: os::port_holder(port) });
                }
            }
            (Err(_), Err(_)) => return Err(v4.expect_err("just matched").into()),
            _ => {
                let port =
                    [&v4, &v6].into_iter().flatten().find_map(|s| s.local_addr().ok()).map_or(port, |a| a.port());
                return Ok((port, v4, v6));
            }
        }
    }
}

fn watch(bound: Bound, family: Family, gather: &mut Gather) -> Result<Option<UdpSocket>, GatherError> {
    match bound {
        Ok(socket) => UdpSocket::from_std(socket).map(Some).map_err(GatherError::Watch),
        Err(error) => {
            gather.unavailable(family, error.to_string());
            Ok(None)
        }
    }
}

/// The next datagram of a socket that may not be there.
async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(buffer).await,
        None => std::future::pending().await,
    }
}

fn take(gather: &mut Gather, received: io::Result<(usize, SocketAddr)>, buffer: &[u8]) {
    match received {
        Ok((length, from)) => gather.handle(from, &buffer[..length], Instant::now()),
        // an ICMP error of an earlier request; its transaction goes on
        Err(error) => tracing::debug!(%error, "STUN socket"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers binding requests for as long as the test runs.
    fn server() -> SocketAddr {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; MAX_MESSAGE];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if let Some(answer) = answer(&buffer[..length], from) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        address
    }

    /// A success response with XOR-MAPPED-ADDRESS; RFC 8489 §5, §14.2.
    fn answer(request: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
        const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
        let SocketAddr::V4(from) = from else { return None };
        let id = request.get(8..20)?;
        let mut answer = vec![0x01, 0x01, 0, 12];
        answer.extend(COOKIE);
        answer.extend(id);
        answer.extend([0, 0x20, 0, 8, 0, 1]);
        answer.extend((from.port() ^ 0x2112).to_be_bytes());
        answer.extend(from.ip().octets().iter().zip(COOKIE).map(|(byte, mask)| byte ^ mask));
        Some(answer)
    }

    #[test]
    fn the_port_is_asked_about_and_then_free() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let gathered = runtime.block_on(gather(0, &[server().to_string()], LIMIT)).unwrap();
        assert_eq!(gathered.reflexive(), [SocketAddr::from(([127, 0, 0, 1], gathered.port))]);
        // so that WireGuard can have it
        udp::bind(Family::V4, gathered.port, None).unwrap();
    }
}
