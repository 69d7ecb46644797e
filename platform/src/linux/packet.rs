//! Copies of UDP packets for a port that WireGuard owns: packet(7) sockets behind a classic BPF filter.
//!
//! Two sockets, one a family, since a socket bound to one ethertype sees a packet once, after bridges, bonds and VLANs
//! have passed it on, and never an outgoing one; `ETH_P_ALL` would see it at every stage, twice on loopback, and cost
//! something for every packet of the host. An epoll descriptor makes one of the two.
//!
//! The link-layer header is cut off by the kernel (`SOCK_DGRAM`), so every kind of link works, those without one too.
//! What a firewall's `input` chain drops is seen all the same. IPv6 packets with extension headers, and fragments, are
//! not: no initiation needs them. UDP checksums are not verified; the caller's mac1 check is stronger.

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use socket2::{Domain, SockFilter, Socket, Type};

use super::bpf::{self, epoll};
use crate::bpf::{Payload, Program, W};
use crate::datagram::{IPV4_HEADER_MAX, UDP_HEADER, parse};
use crate::messages::{INITIATION_LEN, INITIATIONS, WAKEUPS};
use crate::types::Family;
use crate::{Error, Result};

/// For [`InitiationTap::recv`]: no copied packet is longer.
pub const BUFFER_LEN: usize = IPV4_HEADER_MAX + UDP_HEADER + INITIATION_LEN as usize;
/// Of each socket, in bytes as the kernel counts them (bookkeeping included): some 300 packets. Any system grants it:
/// `net.core.rmem_default` and `rmem_max` are 208 KiB, doubled by the kernel.
const RECEIVE_BUFFER: usize = 400 << 10;

/// How often a family that was found empty is passed over while the other one has packets.
const STAY: u8 = 15;

/// `linux/if_packet.h`, missing from libc.
const PACKET_HOST: u32 = 0;

/// A tap on WireGuard messages that come in for one UDP port, whoever owns it. Non-blocking; the descriptor is
/// readable while copies wait. What is captured may be forged: only its shape was checked.
#[derive(Debug)]
pub struct InitiationTap {
    epoll: OwnedFd,
    v4: Socket,
    v6: Socket,
    /// Which family is read first next time, so that a flood of one never hides the other.
    v6_first: AtomicBool,
    /// For so many reads more: the other family was found empty.
    stay: AtomicU8,
    drops: AtomicU64,
}

impl InitiationTap {
    /// Copies handshake initiations (type 1, exactly 148 bytes) for `port`. Needs CAP_NET_RAW.
    pub fn open(port: u16) -> Result<Self> {
        Self::with_filter(port, &INITIATIONS)
    }

    /// Copies the first four payload bytes of initiations, responses and data messages of any length for `port`: a
    /// sign that something came back, not its content. Needs CAP_NET_RAW.
    pub fn open_wakeup(port: u16) -> Result<Self> {
        Self::with_filter(port, &WAKEUPS)
    }

    fn with_filter(port: u16, wanted: &Payload) -> Result<Self> {
        let tap = |source| Error::system(format!("copy incoming packets for UDP port {port}"), source);
        let v4 = open_socket(Family::V4, &filter(Family::V4, port, wanted)).map_err(tap)?;
        let v6 = open_socket(Family::V6, &filter(Family::V6, port, wanted)).map_err(tap)?;
        let epoll = epoll(&[&v4, &v6]).map_err(tap)?;
        Ok(InitiationTap {
            epoll,
            v4,
            v6,
            v6_first: AtomicBool::new(false),
            stay: AtomicU8::new(0),
            drops: AtomicU64::new(0),
        })
    }

    /// The next copy: where it came from (its IP header's source; a link-local one with the interface as scope) and
    /// its UDP payload inside `buf`, which should have [`BUFFER_LEN`] bytes. `None`: nothing waits.
    pub fn recv<'a>(&self, buf: &'a mut [u8]) -> io::Result<Option<(SocketAddr, &'a [u8])>> {
        let stay = self.stay.load(Ordering::Relaxed);
        self.stay.store(stay.saturating_sub(1), Ordering::Relaxed);
        let v6_first = self.v6_first.load(Ordering::Relaxed) ^ (stay == 0);
        self.v6_first.store(v6_first, Ordering::Relaxed);
        let mut order = [(&self.v4, Family::V4), (&self.v6, Family::V6)];
        if v6_first {
            order.reverse();
        }
        for (socket, family) in order {
            if let Some((source, payload)) = recv_from(socket, family, buf)? {
                if (family == Family::V6) != v6_first {
                    self.v6_first.store(family == Family::V6, Ordering::Relaxed);
                    self.stay.store(STAY, Ordering::Relaxed);
                }
                return Ok(Some((source, &buf[payload])));
            }
        }
        self.stay.store(0, Ordering::Relaxed);
        Ok(None)
    }

    /// How many copies the kernel had no room for, since the tap was opened.
    pub fn dropped(&self) -> io::Result<u64> {
        for socket in [&self.v4, &self.v6] {
            let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
            let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
            // SAFETY: the kernel writes at most `length` bytes into `statistics`, which lives through the call.
            let result = unsafe {
                libc::getsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    libc::PACKET_STATISTICS,
                    (&raw mut statistics).cast(),
                    &raw mut length,
                )
            };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
            // reading resets the kernel's count, packet(7)
            self.drops.fetch_add(u64::from(statistics.tp_drops), Ordering::Relaxed);
        }
        Ok(self.drops.load(Ordering::Relaxed))
    }
}

impl AsRawFd for InitiationTap {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

fn open_socket(family: Family, filter: &[SockFilter]) -> io::Result<Socket> {
    // protocol 0 receives nothing until it is bound, so nothing gets in before the filter stands
    let socket = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), None)?;
    socket.attach_filter(filter)?;
    // SO_RCVBUF is doubled by the kernel, socket(7)
    socket.set_recv_buffer_size(RECEIVE_BUFFER / 2)?;
    let protocol = match family {
        Family::V4 => libc::ETH_P_IP,
        Family::V6 => libc::ETH_P_IPV6,
    };
    // SAFETY: all zeros is a valid sockaddr_ll; interface 0 is every interface.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = (protocol as u16).to_be();
    // SAFETY: `address` is a sockaddr_ll of the length given.
    let result = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

fn recv_from(socket: &Socket, family: Family, buf: &mut [u8]) -> io::Result<Option<(SocketAddr, Range<usize>)>> {
    loop {
        // SAFETY: all zeros is a valid sockaddr_ll.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut from_len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `buf.len()` and `from_len` bytes, into memory that lives through the call.
        let result = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                buf.as_mut_ptr().cast(),
                buf.len(),
                libc::MSG_TRUNC,
                (&raw mut from).cast(),
                &raw mut from_len,
            )
        };
        if result < 0 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(None),
                Some(libc::EINTR) => continue,
                _ => return Err(error),
            }
        }
        let length = result as usize;
        if length <= buf.len()
            && let Some((source, payload)) = parse(family, &buf[..length], from.sll_ifindex as u32)
        {
            return Ok(Some((source, payload)));
        }
    }
}

/// The filter for one family.
fn filter(family: Family, port: u16, wanted: &Payload) -> Vec<SockFilter> {
    let mut program = Program::default();
    // addressed to this host: no promiscuous sightings, no multicast or broadcast
    program.load(W, (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32);
    program.require(&[PACKET_HOST]);
    program.require_udp(family, 0, port);
    bpf::filter(&program.finish_with(0, wanted))
}
