//! Drives `nat::lifetime` for one family.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peervpn_platform::os::udp;
use peervpn_platform::types::Family;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{FamilyReport, Progress};
use crate::nat::lifetime::{Ladder, Outcome, finer_ladder, first_ladder};
use crate::nat::stun::MAX_MESSAGE;
use crate::nat::verdict::NatType;
use crate::node::stun::transaction_id;

/// Fills in the lifetime where there is a mapping (or a firewall's memory) to measure and a server that helps.
pub(super) async fn measure(name: &str, report: &mut FamilyReport, progress: Progress<'_>) {
    let Some(server) = report.measured.server.filter(|_| report.nat_type != NatType::Open) else { return };
    let mut longest = None;
    let mut rungs = first_ladder();
    while !rungs.is_empty() {
        progress(format!("{name}: testing how long a mapping lives, {} s at most", rungs[rungs.len() - 1].as_secs()));
        let outcome = climb(name, server, &rungs, progress).await;
        rungs = match outcome {
            Ok(Outcome::Between { alive, dead }) => {
                longest = Some(alive);
                finer_ladder(alive, dead)
            }
            Ok(Outcome::AtLeast(alive)) => {
                // of a finer ladder: all between lived
                longest = Some(longest.unwrap_or_default().max(alive));
                Vec::new()
            }
            Ok(Outcome::NotMeasurable) => {
                if longest.is_none() {
                    progress(format!(
                        "{name}: {server} doesn't answer to RESPONSE-PORT, so the lifetime stays unknown"
                    ));
                }
                Vec::new()
            }
            Err(error) => {
                progress(format!("{name}: the lifetime can't be measured: {error}"));
                Vec::new()
            }
        };
    }
    report.lifetime_s = longest.map(|longest| longest.as_secs());
}

async fn climb(name: &str, server: SocketAddr, rungs: &[Duration], progress: Progress<'_>) -> io::Result<Outcome> {
    let sockets = (0..=rungs.len()).map(|_| bind(server)).collect::<io::Result<Vec<UdpSocket>>>()?;
    let sockets: Vec<std::sync::Arc<UdpSocket>> = sockets.into_iter().map(Into::into).collect();
    let (arrived, mut arrivals) = mpsc::channel(rungs.len());
    let mut readers = JoinSet::new();
    for (port, socket) in sockets.iter().cloned().enumerate() {
        let arrived = arrived.clone();
        readers.spawn(async move {
            let mut buffer = [0; MAX_MESSAGE + 1];
            loop {
                if let Ok((length, from)) = socket.recv_from(&mut buffer).await
                    && arrived.send((port, from, buffer[..length].to_vec())).await.is_err()
                {
                    return;
                }
            }
        });
    }
    let mut ladder = Ladder::new(server, rungs, transaction_id, Instant::now());
    let mut told = Duration::ZERO;
    loop {
        let now = Instant::now();
        ladder.handle_timeout(now);
        while let Some((port, transmit)) = ladder.poll_transmit(now) {
            if let Err(error) = sockets[port].send_to(&transmit.bytes, transmit.to).await {
                tracing::debug!(remote = %transmit.to, %error, "cannot send a STUN request");
            }
        }
        if ladder.alive() > told {
            told = ladder.alive();
            progress(format!("{name}: a mapping lives at least {} s", told.as_secs()));
        }
        if let Some(outcome) = ladder.outcome() {
            return Ok(outcome);
        }
        let wake = ladder.poll_timeout(now).unwrap_or(now);
        tokio::select! {
            Some((port, from, bytes)) = arrivals.recv() => ladder.handle(port, from, &bytes, Instant::now()),
            () = tokio::time::sleep_until(wake.into()) => {}
        }
    }
}

fn bind(server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = udp::bind(Family::of(&server.ip()), 0, None).map_err(io::Error::other)?;
    UdpSocket::from_std(socket)
}
