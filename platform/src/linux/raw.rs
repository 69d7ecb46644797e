//! STUN from a port that WireGuard owns: raw(7) sockets with our port as source.
//!
//! WireGuard's socket can't be shared, but the kernel gives every raw socket a copy of what comes in, and sends what it
//! is handed. A classic BPF filter lets through only what is for our port and carries the STUN magic cookie, and on demand
//! only what says something new; WireGuard gets its own copy and drops it. Probes carry the device's fwmark, so they take
//! the way its outer packets take.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::bpf::{self, epoll};
use crate::bpf::{H, Program};
use crate::datagram::{self, IPV4_HEADER_MAX, UDP_HEADER};
use crate::messages::STUN;
use crate::types::Family;
use crate::{Error, Result};

/// For [`RawStun::recv`]: longest IPv4 header, UDP header and message.
pub const BUFFER_LEN: usize = IPV4_HEADER_MAX + UDP_HEADER + STUN.snap as usize;
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

    /// From now on leaves out success responses whose XOR-MAPPED-ADDRESS is one of these, at most one a family: they
    /// wake nobody. Whatever else comes is still let through.
    pub fn leave_out(&self, expected: &[SocketAddr]) -> io::Result<()> {
        for (socket, family) in std::iter::once((&self.v4, Family::V4)).chain(self.v6.as_ref().map(|s| (s, Family::V6)))
        {
            let expected = expected.iter().copied().find(|address| Family::of(&address.ip()) == family);
            socket.attach_filter(&filter(family, self.port, expected))?;
        }
        Ok(())
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
        let datagram = datagram::encode(source, self.port, to, message).ok_or(io::ErrorKind::InvalidInput)?;
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

/// Hands a datagram to the owner of `to`, an address of this host, as if it came from `from`: loopback carries it. Needs
/// CAP_NET_RAW and CAP_NET_ADMIN; ip(7) and ipv6(7), `IP_TRANSPARENT`.
pub fn hand_over(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
    let datagram = datagram::encode(from.ip(), from.port(), to, payload).ok_or(io::ErrorKind::InvalidInput)?;
    let socket = match (from, to) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP))?;
            socket.set_ip_transparent_v4(true)?;
            socket
        }
        (SocketAddr::V6(_), SocketAddr::V6(_)) => {
            let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::UDP))?;
            socket.set_ip_transparent_v6(true)?;
            socket
        }
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    send_from(&socket, from.ip(), to, &datagram)
}

fn open_socket(family: Family, port: u16, fwmark: u32) -> io::Result<Socket> {
    let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::UDP))?;
    socket.attach_filter(&filter(family, port, None))?;
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
fn filter(family: Family, port: u16, leave_out: Option<SocketAddr>) -> Vec<SockFilter> {
    let mut program = Program::default();
    match family {
        Family::V4 => program.set_x_to_ipv4_header(0),
        Family::V6 => program.set_x(0),
    }
    program.load_behind_x(H, 2);
    program.require(&[u32::from(port)]);
    if let Some(expected) = leave_out {
        program.refuse_expected(0, 0, expected);
    }
    bpf::filter(&program.finish_with(0, &STUN))
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
    // size_t, or socklen_t with musl
    message.msg_controllen = control.0.len() as _;
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
            Family::V4 => datagram::parse(Family::V4, bytes, 0),
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

    #[test]
    fn a_udp_length_beyond_the_packet_is_no_message() {
        let from: SocketAddrV6 = "[2001:db8::2]:0".parse().unwrap();
        assert_eq!(parse_v6(from, &[0x0d, 0x96, 0, 1, 0, 9, 0, 0]), None);
        assert_eq!(parse_v6(from, &[0x0d, 0x96, 0, 1, 0, 7, 0, 0]), None);
        let (from, payload) = parse_v6(from, &[0x0d, 0x96, 0, 1, 0, 9, 0, 0, 1]).unwrap();
        assert_eq!((from.port(), payload), (3478, 8..9));
    }

    #[test]
    fn the_kernel_takes_the_filters() {
        for expected in ["203.0.113.45:51820", "[2001:db8::1]:51820"] {
            let expected: SocketAddr = expected.parse().unwrap();
            let (near, _far) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
            for leave_out in [None, Some(expected)] {
                near.attach_filter(&filter(Family::of(&expected.ip()), 51820, leave_out)).unwrap();
            }
        }
    }
}
