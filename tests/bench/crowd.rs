//! Many peers that an exit doesn't know, in one process: all send their first initiation in the same instant, from an
//! address each, and repeat it as `peervpn connect` does. A peer is in when its first data packet, a keepalive, has come;
//! it stays until the last one is in.
//!
//! `crowd PUBKEY EXIT:PORT NUMBER FIRST-IPV4` prints `{"joined":N,"half_s":S,"last_s":S}`. The addresses must be local
//! ones (`ip route add local …`); what is left unanswered for a minute is given up.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::noise::{Tunn, TunnResult};
use gotatun::packet::{Packet, WgKind};
use gotatun::x25519;
use peervpn::key::{PrivateKey, PublicKey};
use tokio::sync::mpsc;

/// As `connect` does: after one second, then after twice that, up to WireGuard's own 5 s.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(5);
const GIVE_UP: Duration = Duration::from_secs(60);

struct Peer {
    tunnel: Tunn,
    socket: tokio::net::UdpSocket,
}

impl Peer {
    fn new(exit: &PublicKey, endpoint: SocketAddr, address: Ipv4Addr) -> std::io::Result<Peer> {
        let theirs = x25519::PublicKey::from(exit.0);
        let private = PrivateKey::generate();
        let limiter = Arc::new(RateLimiter::new(&private.public().0.into(), 100));
        let tunnel = Tunn::new(private.as_x25519().clone(), theirs, None, None, IndexTable::from_os_rng(), limiter);
        let socket = UdpSocket::bind((address, 40000))?;
        socket.connect(endpoint)?;
        socket.set_nonblocking(true)?;
        Ok(Peer { tunnel, socket: tokio::net::UdpSocket::from_std(socket)? })
    }

    async fn send(&self, packet: WgKind) {
        // a full buffer on the way is a lost packet
        let _ = self.socket.send(Packet::from(packet).as_ref()).await;
    }

    /// Says when it was in, after `started`.
    async fn join(mut self, started: Instant, joined: mpsc::UnboundedSender<Duration>) {
        let (mut buffer, mut gap, mut inside) = ([0; 2048], ASK_AGAIN, false);
        loop {
            if !inside && let Some(initiation) = self.tunnel.format_handshake_initiation(true) {
                self.send(WgKind::HandshakeInit(initiation)).await;
            }
            let until = tokio::time::Instant::now() + gap;
            gap = (gap * 2).min(ASK_AGAIN_MAX);
            while let Ok(received) = tokio::time::timeout_at(until, self.socket.recv(&mut buffer)).await {
                let Ok(length) = received else { continue };
                let Ok(packet) = Packet::copy_from(&buffer[..length]).try_into_wg() else { continue };
                let data = matches!(packet, WgKind::Data(_));
                match self.tunnel.handle_incoming_packet(packet) {
                    TunnResult::WriteToNetwork(answer) => self.send(answer).await,
                    TunnResult::Err(_) => {}
                    _ if data && !inside => {
                        inside = true;
                        let _ = joined.send(started.elapsed());
                    }
                    _ => {}
                }
            }
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, key, endpoint, number, first] = &args[..] else { return Err("PUBKEY EXIT:PORT NUMBER FIRST-IPV4".into()) };
    let (key, endpoint): (PublicKey, SocketAddr) = (key.parse()?, endpoint.parse()?);
    let (number, first): (u32, Ipv4Addr) = (number.parse()?, first.parse()?);
    let peers: Result<Vec<Peer>, _> =
        (0..number).map(|n| Peer::new(&key, endpoint, Ipv4Addr::from_bits(first.to_bits() + n))).collect();
    let started = Instant::now();
    let (sender, mut joined) = mpsc::unbounded_channel();
    for peer in peers? {
        tokio::spawn(peer.join(started, sender.clone()));
    }
    let mut times = Vec::new();
    let until = tokio::time::Instant::now() + GIVE_UP;
    while times.len() < number as usize
        && let Ok(Some(time)) = tokio::time::timeout_at(until, joined.recv()).await
    {
        times.push(time);
    }
    let at = |index: usize| times.get(index).map_or(0.0, Duration::as_secs_f64);
    let (half, last) = (at(times.len() / 2), at(times.len().saturating_sub(1)));
    println!("{{\"joined\":{},\"half_s\":{half:.3},\"last_s\":{last:.3}}}", times.len());
    Ok(())
}
