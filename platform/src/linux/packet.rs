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
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

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

/// How many copies one system call fetches at most: in a flood the calls are what costs.
const BATCH: usize = 32;

/// `linux/if_packet.h`, missing from libc.
const PACKET_HOST: u32 = 0;

/// A tap on WireGuard messages that come in for one UDP port, whoever owns it. Non-blocking; the descriptor is
/// readable while copies wait. What is captured may be forged: only its shape was checked.
#[derive(Debug)]
pub struct InitiationTap {
    epoll: OwnedFd,
    v4: Socket,
    v6: Socket,
    batch: Mutex<Batch>,
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
        Ok(InitiationTap { epoll, v4, v6, batch: Mutex::new(Batch::default()), drops: AtomicU64::new(0) })
    }

    /// The next copy: where it came from (its IP header's source; a link-local one with the interface as scope) and
    /// its UDP payload inside `buf`, which should have [`BUFFER_LEN`] bytes. `None`: nothing waits.
    pub fn recv<'a>(&self, buf: &'a mut [u8]) -> io::Result<Option<(SocketAddr, &'a [u8])>> {
        let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let family = batch.family;
            while let Some((copy, interface)) = batch.take() {
                let Some(room) = buf.get_mut(..copy.len()) else { continue };
                room.copy_from_slice(copy);
                if let Some((source, payload)) = parse(family, room, interface) {
                    return Ok(Some((source, &buf[payload])));
                }
            }
            // the other family first, so that a flood of one never hides the other
            let sockets = match batch.family {
                Family::V4 => [(&self.v6, Family::V6), (&self.v4, Family::V4)],
                Family::V6 => [(&self.v4, Family::V4), (&self.v6, Family::V6)],
            };
            if !batch.fill(sockets[0])? && !batch.fill(sockets[1])? {
                return Ok(None);
            }
        }
    }

    /// Whether copies that come make the descriptor readable, as they do at first. Who looks at times of its own, in a
    /// flood, is not woken for each of them.
    pub fn announce(&self, copies: bool) -> io::Result<()> {
        [&self.v4, &self.v6].into_iter().try_for_each(|socket| bpf::listen(&self.epoll, socket, copies))
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

/// Copies that were fetched and not yet asked for.
#[derive(Debug)]
struct Batch {
    family: Family,
    buffers: [[u8; BUFFER_LEN]; BATCH],
    /// Length of each copy and the interface it came in by.
    copies: [(usize, u32); BATCH],
    next: usize,
    count: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Batch { family: Family::V6, buffers: [[0; BUFFER_LEN]; BATCH], copies: [(0, 0); BATCH], next: 0, count: 0 }
    }
}

impl Batch {
    /// The next copy, from its IP header on, and its interface.
    fn take(&mut self) -> Option<(&[u8], u32)> {
        let (length, interface) = *self.copies[..self.count].get(self.next)?;
        self.next += 1;
        Some((&self.buffers[self.next - 1][..length], interface))
    }

    /// Fetches what waits on that socket; whether there was anything. recvmmsg(2)
    fn fill(&mut self, (socket, family): (&Socket, Family)) -> io::Result<bool> {
        (self.family, self.next, self.count) = (family, 0, 0);
        // SAFETY: all zeros are valid sockaddr_ll, iovec and mmsghdr: addresses of null with length 0.
        let (mut from, mut parts, mut messages): (
            [libc::sockaddr_ll; BATCH],
            [libc::iovec; BATCH],
            [libc::mmsghdr; BATCH],
        ) = unsafe { std::mem::zeroed() };
        for (((message, part), from), buffer) in
            messages.iter_mut().zip(&mut parts).zip(&mut from).zip(&mut self.buffers)
        {
            *part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            message.msg_hdr.msg_name = std::ptr::from_mut(from).cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
        }
        let fetched = loop {
            // SAFETY: each message points to one address and one part, each part to a buffer of the length it says, and all
            // of them live through the call; the socket does not block.
            let result = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    messages.as_mut_ptr(),
                    BATCH as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                    std::ptr::null_mut(),
                )
            };
            if let Ok(fetched) = usize::try_from(result) {
                break fetched;
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(false),
                Some(libc::EINTR) => continue,
                _ => return Err(error),
            }
        };
        for ((copy, message), from) in self.copies.iter_mut().zip(&messages).zip(&from).take(fetched) {
            // what did not fit is nothing we asked for: empty, no packet
            let whole = message.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
            *copy = (if whole { message.msg_len as usize } else { 0 }, from.sll_ifindex as u32);
        }
        self.count = fetched;
        Ok(fetched > 0)
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
