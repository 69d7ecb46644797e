//! STUN from a port that WireGuard owns: raw(7) sockets with our port as source.
//!
//! WireGuard's socket can't be shared, but the kernel gives every raw socket a copy of what comes in, and sends what it
//! is handed. A classic BPF filter lets through only what is for our port and carries the STUN magic cookie; WireGuard
//! gets its own copy and drops it. Probes carry the device's fwmark, so they take the way its outer packets take.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::bpf::{Program, epoll};
use super::packet;
use crate::types::Family;
use crate::{Error, Result};

/// RFC 8489 §5; at byte 4 of every STUN message.
const MAGIC_COOKIE: u32 = 0x2112_a442;
/// UDP header, RFC 768.
const UDP_HEADER: usize = 8;
/// STUN messages we look at are no longer.
const SNAP: u32 = 1500;
/// For [`RawStun::recv`]: longest IPv4 header, UDP header and message.
pub const BUFFER_LEN: usize = 60 + UDP_HEADER + SNAP as usize;
/// As the kernel counts it: a few dozen answers.
const RECEIVE_BUFFER: usize = 64 << 10;

/// Sends and receives STUN messages with a source port that another socket holds. Non-blocking; the descriptor is
/// readable while answers wait.
#[derive(Debug)]
pub struct RawStun {
    epoll: OwnedFd,
    v4: Socket,
    /// `None` where this kernel has no IPv6.
    v6: Option<Socket>,
    port: u16,
}

impl RawStun {
    /// For `port`, with the device's fwmark (0 for none). Needs CAP_NET_RAW, and CAP_NET_ADMIN for the mark.
    pub fn open(port: u16, fwmark: u32) -> Result<Self> {
        let raw = |source| Error::system(format!("open a raw socket beside UDP port {port}"), source);
        let v4 = open_socket(Family::V4, port, fwmark).map_err(raw)?;
        let v6 = match open_socket(Family::V6, port, fwmark) {
            Ok(socket) => Some(socket),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(raw(error)),
        };
        let sockets: Vec<&Socket> = std::iter::once(&v4).chain(&v6).collect();
        let epoll = epoll(&sockets).map_err(raw)?;
        Ok(RawStun { epoll, v4, v6, port })
    }

    /// Sends one message from `source` (a local address, from a route look-up with the same mark) and our port.
    pub fn send(&self, source: IpAddr, to: SocketAddr, message: &[u8]) -> io::Result<()> {
        let (socket, family) = match to {
            SocketAddr::V4(_) => (&self.v4, Family::V4),
            SocketAddr::V6(_) => (self.v6.as_ref().ok_or(io::ErrorKind::Unsupported)?, Family::V6),
        };
        if Family::of(&source) != family {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let datagram = datagram(source, self.port, to, message).ok_or(io::ErrorKind::InvalidInput)?;
        send_from(socket, source, to, &datagram)
    }

    /// The next message for our port: who sent it, and it itself inside `buf`, which should have [`BUFFER_LEN`] bytes.
    /// `None`: nothing waits. Only its shape was checked; whose answer it is, the transaction ID tells.
    pub fn recv<'a>(&self, buf: &'a mut [u8]) -> io::Result<Option<(SocketAddr, &'a [u8])>> {
        for (socket, family) in std::iter::once((&self.v4, Family::V4)).chain(self.v6.as_ref().map(|s| (s, Family::V6)))
        {
            if let Some((from, payload)) = recv_from(socket, family, buf)? {
                return Ok(Some((from, &buf[payload])));
            }
        }
        Ok(None)
    }
}

impl AsRawFd for RawStun {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

fn open_socket(family: Family, port: u16, fwmark: u32) -> io::Result<Socket> {
    let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::UDP))?;
    socket.attach_filter(&filter(family, port))?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER / 2)?;
    if fwmark != 0 {
        socket.set_mark(fwmark)?;
    }
    // what came in before the filter stood
    let mut rest = [std::mem::MaybeUninit::uninit(); 1];
    while socket.recv(&mut rest).is_ok() {}
    Ok(socket)
}

/// An IPv4 raw socket sees its IP header first, an IPv6 one the UDP header; raw(7), ipv6(7).
fn filter(family: Family, port: u16) -> Vec<SockFilter> {
    use libc::{BPF_B, BPF_H, BPF_W};
    let mut program = Program::default();
    match family {
        Family::V4 => program.push(libc::BPF_LDX | BPF_B | libc::BPF_MSH, 0),
        Family::V6 => program.push(libc::BPF_LDX | BPF_W | libc::BPF_IMM, 0),
    }
    program.load_behind_x(BPF_H, 2);
    program.require(&[u32::from(port)]);
    program.load_behind_x(BPF_W, UDP_HEADER as u32 + 4);
    program.require(&[MAGIC_COOKIE]);
    program.finish(UDP_HEADER as u32 + SNAP)
}

/// UDP header and payload, checksummed with its pseudo-header (RFC 768, RFC 8200 §8.1); `None` if it is too long.
fn datagram(source: IpAddr, port: u16, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let mut bytes = Vec::with_capacity(usize::from(length));
    for word in [port, to.port(), length, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(payload);
    let mut sum = u32::from(length) + libc::IPPROTO_UDP as u32;
    let mut add = |bytes: &[u8]| {
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    };
    for address in [source, to.ip()] {
        match address {
            IpAddr::V4(v4) => add(&v4.octets()),
            IpAddr::V6(v6) => add(&v6.octets()),
        }
    }
    add(&bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // 0 means "no checksum"; all ones is the same number (RFC 768)
    let checksum = match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    };
    bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
    Some(bytes)
}

/// One packet-information control message, ip(7) and ipv6(7), aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

fn send_from(socket: &Socket, source: IpAddr, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
    // the port of a raw socket's destination address must be 0 or its protocol, raw(7)
    let mut to = to;
    to.set_port(0);
    let to = socket2::SockAddr::from(to);
    let mut control = Control([0; 64]);
    let mut iov = libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
    // SAFETY: all zeros is a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    // SAFETY: the control buffer is aligned and longer than either message; CMSG_* compute positions inside it; the
    // kernel only reads, from memory that lives through the call.
    let sent = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let length = match source {
            IpAddr::V4(source) => {
                let mut info: libc::in_pktinfo = zeroed();
                info.ipi_spec_dst.s_addr = u32::from_ne_bytes(source.octets());
                (*header).cmsg_level = libc::IPPROTO_IP;
                (*header).cmsg_type = libc::IP_PKTINFO;
                libc::CMSG_DATA(header).cast::<libc::in_pktinfo>().write_unaligned(info);
                size_of::<libc::in_pktinfo>()
            }
            IpAddr::V6(source) => {
                let mut info: libc::in6_pktinfo = zeroed();
                info.ipi6_addr.s6_addr = source.octets();
                (*header).cmsg_level = libc::IPPROTO_IPV6;
                (*header).cmsg_type = libc::IPV6_PKTINFO;
                libc::CMSG_DATA(header).cast::<libc::in6_pktinfo>().write_unaligned(info);
                size_of::<libc::in6_pktinfo>()
            }
        } as libc::c_uint;
        (*header).cmsg_len = libc::CMSG_LEN(length) as _;
        message.msg_controllen = libc::CMSG_SPACE(length) as _;
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn recv_from(
    socket: &Socket,
    family: Family,
    buf: &mut [u8],
) -> io::Result<Option<(SocketAddr, std::ops::Range<usize>)>> {
    loop {
        // SAFETY: u8 and MaybeUninit<u8> have the same layout, and socket2 writes initialised bytes only.
        let uninit = unsafe { &mut *(std::ptr::from_mut(buf) as *mut [std::mem::MaybeUninit<u8>]) };
        let (length, from) = match socket.recv_from(uninit) {
            Ok(received) => received,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(None),
                io::ErrorKind::Interrupted => continue,
                // an ICMP error for an earlier probe, reported once
                io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable => continue,
                _ => return Err(error),
            },
        };
        let bytes = &buf[..length];
        let parsed = match family {
            Family::V4 => packet::parse(Family::V4, bytes, 0),
            Family::V6 => from.as_socket_ipv6().and_then(|from| parse_v6(from, bytes)),
        };
        if let Some(parsed) = parsed {
            return Ok(Some(parsed));
        }
    }
}

fn parse_v6(from: SocketAddrV6, udp: &[u8]) -> Option<(SocketAddr, std::ops::Range<usize>)> {
    let word = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    let length = usize::from(word(4)?);
    if length < UDP_HEADER || length > udp.len() {
        return None;
    }
    let ip: Ipv6Addr = *from.ip();
    Some((SocketAddr::V6(SocketAddrV6::new(ip, word(0)?, 0, from.scope_id())), UDP_HEADER..length))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum over pseudo-header and datagram, checksum included, is all ones; RFC 1071 §1.
    fn verifies(source: IpAddr, to: IpAddr, datagram: &[u8]) -> bool {
        let mut bytes = Vec::new();
        for address in [source, to] {
            match address {
                IpAddr::V4(v4) => bytes.extend(v4.octets()),
                IpAddr::V6(v6) => bytes.extend(v6.octets()),
            }
        }
        bytes.extend((datagram.len() as u32).to_be_bytes());
        bytes.extend([0, 0, 0, 17]);
        bytes.extend(datagram);
        let mut sum: u32 = bytes.chunks(2).map(|p| u32::from(p[0]) << 8 | p.get(1).map_or(0, |b| u32::from(*b))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum == 0xffff
    }

    #[test]
    fn checksums_verify_for_both_families_and_odd_lengths() {
        for (source, to) in [("192.0.2.1", "198.51.100.7:3478"), ("2001:db8::1", "[2001:db8::2]:3478")] {
            let (source, to): (IpAddr, SocketAddr) = (source.parse().unwrap(), to.parse().unwrap());
            for length in 0..40 {
                let payload: Vec<u8> = (0..length).map(|n| (n * 37) as u8).collect();
                let datagram = datagram(source, 51820, to, &payload).unwrap();
                assert!(verifies(source, to.ip(), &datagram), "{to} {length}");
                assert_eq!(&datagram[..4], [0xca, 0x6c, 0x0d, 0x96]);
            }
            assert_eq!(datagram(source, 1, to, &[0; 70_000]), None);
        }
    }

    #[test]
    fn a_udp_length_beyond_the_packet_is_no_message() {
        let from: SocketAddrV6 = "[2001:db8::2]:0".parse().unwrap();
        assert_eq!(parse_v6(from, &[0x0d, 0x96, 0, 1, 0, 9, 0, 0]), None);
        assert_eq!(parse_v6(from, &[0x0d, 0x96, 0, 1, 0, 7, 0, 0]), None);
        let (from, payload) = parse_v6(from, &[0x0d, 0x96, 0, 1, 0, 9, 0, 0, 1]).unwrap();
        assert_eq!((from.port(), payload), (3478, 8..9));
    }
}
