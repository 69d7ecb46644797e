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
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use socket2::{Domain, SockFilter, Socket, Type};

use super::bpf::{self, epoll};
use super::sockopt;
use crate::bpf::{Payload, Program, W};
use crate::datagram::{IPV4_HEADER_MAX, UDP_HEADER, parse};
use crate::messages::{INITIATION_LEN, INITIATIONS, WAKEUPS};
use crate::types::Family;
use crate::{Error, Result};

/// For [`InitiationTap::recv`]: no copied packet is longer.
pub const BUFFER_LEN: usize = IPV4_HEADER_MAX + UDP_HEADER + INITIATION_LEN as usize;
/// How many initiations of a family wait at most: what 50,000 a second bring in 10 ms.
const INITIATIONS_KEPT: usize = 512;
/// How many signs that something came back: one is enough.
const WAKEUPS_KEPT: usize = 8;

/// Where a frame's sockaddr_ll begins, `TPACKET2_HDRLEN` without it.
const HEADER: usize = size_of::<libc::tpacket2_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT);
/// Length of a frame in bytes: its header, 16 that the kernel leaves before a packet without a link-layer header, and
/// the longest copy.
const FRAME: usize = (libc::TPACKET2_HDRLEN.next_multiple_of(libc::TPACKET_ALIGNMENT) + 16 + BUFFER_LEN)
    .next_multiple_of(libc::TPACKET_ALIGNMENT);

/// `linux/if_packet.h`, missing from libc.
const PACKET_HOST: u32 = 0;

/// A tap on WireGuard messages that come in for one UDP port, whoever owns it. Non-blocking; the descriptor is
/// readable while copies wait. What is captured may be forged: only its shape was checked.
#[derive(Debug)]
pub struct InitiationTap {
    epoll: OwnedFd,
    /// One a family; the first had its turn last.
    rings: Mutex<[Ring; 2]>,
    drops: AtomicU64,
}

impl InitiationTap {
    /// Copies handshake initiations (type 1, by its UDP header 148 bytes) for `port`. Needs CAP_NET_RAW.
    pub fn open(port: u16) -> Result<Self> {
        Self::with_filter(port, &INITIATIONS, INITIATIONS_KEPT)
    }

    /// Copies the first four payload bytes of initiations, responses and data messages of any length for `port`: a
    /// sign that something came back, not its content. Needs CAP_NET_RAW.
    pub fn open_wakeup(port: u16) -> Result<Self> {
        Self::with_filter(port, &WAKEUPS, WAKEUPS_KEPT)
    }

    fn with_filter(port: u16, wanted: &Payload, copies: usize) -> Result<Self> {
        let open = || -> io::Result<Self> {
            let v4 = Ring::open(Family::V4, &filter(Family::V4, port, wanted), copies)?;
            let v6 = Ring::open(Family::V6, &filter(Family::V6, port, wanted), copies)?;
            let epoll = epoll(&[&v4.socket, &v6.socket])?;
            Ok(InitiationTap { epoll, rings: Mutex::new([v4, v6]), drops: AtomicU64::new(0) })
        };
        open().map_err(|source| Error::system(format!("copy incoming packets for UDP port {port}"), source))
    }

    fn rings(&self) -> MutexGuard<'_, [Ring; 2]> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next copy: where it came from (its IP header's source; a link-local one with the interface as scope) and
    /// its UDP payload inside `buf`, which should have [`BUFFER_LEN`] bytes; cut, down to nothing, where a header claims more
    /// than came. `None`: nothing waits.
    pub fn recv<'a>(&self, buf: &'a mut [u8]) -> io::Result<Option<(SocketAddr, &'a [u8])>> {
        let mut rings = self.rings();
        for _ in 0..2 {
            // in turn, so that a flood of one family never hides the other
            rings.swap(0, 1);
            while let Some(copy) = rings[0].take(buf) {
                if let Some((source, payload)) = copy {
                    return Ok(Some((source, &buf[payload])));
                }
            }
        }
        Ok(None)
    }

    /// Whether copies that come make the descriptor readable, as they do at first. Who looks at times of its own, in a
    /// flood, is not woken for each of them.
    pub fn announce(&self, copies: bool) -> io::Result<()> {
        self.rings().iter().try_for_each(|ring| bpf::listen(&self.epoll, &ring.socket, copies))
    }

    /// How many copies the kernel had no room for, since the tap was opened.
    pub fn dropped(&self) -> io::Result<u64> {
        for Ring { socket, .. } in self.rings().iter() {
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

/// A socket of one family and the memory that the kernel puts its copies into: no system call fetches them, which is what
/// costs in a flood. Linux, Documentation/networking/packet_mmap.rst
#[derive(Debug)]
struct Ring {
    socket: Socket,
    family: Family,
    /// One mapping of `blocks` times `block` bytes.
    memory: NonNull<u8>,
    /// Length in bytes of what the kernel allocates in one piece: a page. Frames do not span two.
    block: usize,
    blocks: usize,
    /// The frame that the kernel fills next, or has filled longest ago.
    next: usize,
}

// SAFETY: the mapping is this ring's alone and lives as long; nothing in it belongs to a thread.
unsafe impl Send for Ring {}

impl Ring {
    /// Room for at least that many copies.
    fn open(family: Family, filter: &[SockFilter], copies: usize) -> io::Result<Self> {
        // protocol 0 receives nothing until it is bound, so nothing gets in before the filter stands
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        socket.attach_filter(filter)?;
        sockopt::set(
            &socket,
            libc::SOL_PACKET,
            libc::PACKET_VERSION,
            &(libc::tpacket_versions::TPACKET_V2 as libc::c_int),
        )?;
        // SAFETY: a plain number.
        let block = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(io::Error::other)?;
        let blocks = copies.div_ceil(block / FRAME);
        let request = libc::tpacket_req {
            tp_block_size: block as u32,
            tp_block_nr: blocks as u32,
            tp_frame_size: FRAME as u32,
            tp_frame_nr: (block / FRAME * blocks) as u32,
        };
        sockopt::set(&socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        // SAFETY: a new mapping of the ring just made, at an address of the kernel's choice.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                block * blocks,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let ring = Ring { socket, family, memory, block, blocks, next: 0 };
        bind(&ring.socket, family)?;
        Ok(ring)
    }

    /// Takes the next copy into `buf` and gives its place back: the source and the payload's place in `buf`. `Some(None)`
    /// is one that is no packet for us or does not fit; `None`: nothing waits.
    fn take(&mut self, buf: &mut [u8]) -> Option<Option<(SocketAddr, Range<usize>)>> {
        let a_block = self.block / FRAME;
        let offset = self.next / a_block * self.block + self.next % a_block * FRAME;
        // SAFETY: `next` is below the number of frames, so the whole frame lies in the mapping; the frame's header begins
        // with its status, which the kernel and we change by whole aligned words.
        let (frame, status) = unsafe {
            let frame = self.memory.add(offset);
            (frame, AtomicU32::from_ptr(frame.cast().as_ptr()))
        };
        // the kernel fills a frame first and sets its status then
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: as long as its status says so the frame is ours, and nobody else touches it.
        let frame = unsafe { std::slice::from_raw_parts(frame.as_ptr(), FRAME) };
        let found = self.parse(frame, buf);
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % (a_block * self.blocks);
        Some(found)
    }

    fn parse(&self, frame: &[u8], buf: &mut [u8]) -> Option<(SocketAddr, Range<usize>)> {
        // SAFETY: any bytes are valid in both, and the frame is longer than where they end; it may not be aligned.
        let (header, from): (libc::tpacket2_hdr, libc::sockaddr_ll) = unsafe {
            let header = frame.as_ptr();
            (
                header.cast::<libc::tpacket2_hdr>().read_unaligned(),
                header.add(HEADER).cast::<libc::sockaddr_ll>().read_unaligned(),
            )
        };
        let start = usize::from(header.tp_net);
        let copy = frame.get(start..start.checked_add(usize::try_from(header.tp_snaplen).ok()?)?)?;
        let room = buf.get_mut(..copy.len())?;
        room.copy_from_slice(copy);
        parse(self.family, room, from.sll_ifindex as u32)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping that `open` made; no reference into it outlives a call of `take`.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.block * self.blocks) };
    }
}

/// From now on it receives packets of that family, on every interface.
fn bind(socket: &Socket, family: Family) -> io::Result<()> {
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
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
