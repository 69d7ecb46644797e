//! What passes a wire outside the node's namespace, sorted, and programs that keep trying to reach everything.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::net::Namespace;
use crate::topology::{STUN4, STUN6, WEB};

/// A public name server that nobody has told the peer of.
const ELSEWHERE: [&str; 2] = ["192.0.2.53", "2001:db8:ff::53"];

/// What a host may send beside the tunnel.
pub struct Allowed {
    /// The exit's endpoints.
    pub endpoints: Vec<SocketAddr>,
    /// The LAN's prefixes; empty with `--no-lan`. DNS to it is never allowed.
    pub lan: Vec<ipnetwork::IpNetwork>,
}

/// Packets by kind.
#[derive(Default, Clone, Debug)]
pub struct Counts {
    /// To an endpoint of the exit.
    pub outer: u64,
    /// ARP, neighbour discovery, group reports, DHCP.
    pub link: u64,
    /// To the LAN.
    pub lan: u64,
    /// STUN by the node itself.
    pub stun: u64,
    /// Everything else, by what it is.
    pub leaks: BTreeMap<String, u64>,
}

impl Counts {
    pub fn leaked(&self) -> u64 {
        self.leaks.values().sum()
    }
}

/// A capture on one interface of a namespace, of what comes in by it.
pub struct Capture {
    stop: Arc<AtomicBool>,
    counts: Arc<Mutex<Counts>>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    pub fn start(space: &Namespace, interface: &str, allowed: Allowed) -> Capture {
        let socket = space.run(|| open(interface)).unwrap_or_else(|e| panic!("capture on {interface}: {e}"));
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Mutex::new(Counts::default()));
        let (ended, kept) = (stop.clone(), counts.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [0u8; 2048];
            while !ended.load(Ordering::Relaxed) {
                let mut from: libc::sockaddr_ll = no_address();
                let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
                // SAFETY: buffer and address are valid for their lengths.
                let n = unsafe {
                    libc::recvfrom(
                        socket.as_raw_fd(),
                        buffer.as_mut_ptr().cast(),
                        buffer.len(),
                        0,
                        (&raw mut from).cast(),
                        &raw mut length,
                    )
                };
                // what the namespace itself sends is not the host's
                if n > 14 && from.sll_pkttype != libc::PACKET_OUTGOING {
                    sort(&buffer[..n as usize], &allowed, &mut kept.lock().expect("no panic under this lock"));
                }
            }
        });
        Capture { stop, counts, thread: Some(thread) }
    }

    /// The counts since the last call, when what is under way has arrived.
    pub fn take(&self) -> Counts {
        std::thread::sleep(Duration::from_millis(150));
        std::mem::take(&mut *self.counts.lock().expect("no panic under this lock"))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn no_address() -> libc::sockaddr_ll {
    // SAFETY: a plain C structure of integers.
    unsafe { std::mem::zeroed() }
}

fn open(interface: &str) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(interface).expect("no NUL");
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: plain system calls on values of ours; the descriptor is owned at once.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all));
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = OwnedFd::from_raw_fd(fd);
        let mut address = no_address();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        if libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32) != 0 {
            return Err(io::Error::last_os_error());
        }
        let wait = libc::timeval { tv_sec: 0, tv_usec: 50_000 };
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const wait).cast(),
            size_of::<libc::timeval>() as u32,
        );
        Ok(fd)
    }
}

/// One Ethernet frame.
fn sort(frame: &[u8], allowed: &Allowed, counts: &mut Counts) {
    let packet = &frame[14..];
    let (protocol, destination, rest): (u8, IpAddr, &[u8]) = match u16::from_be_bytes([frame[12], frame[13]]) {
        0x0806 => {
            counts.link += 1;
            return;
        }
        0x0800 if packet.len() >= 20 => {
            let to: [u8; 4] = packet[16..20].try_into().expect("four");
            let header = usize::from(packet[0] & 15) * 4;
            (packet[9], Ipv4Addr::from(to).into(), packet.get(header..).unwrap_or_default())
        }
        0x86dd if packet.len() >= 40 => {
            let to: [u8; 16] = packet[24..40].try_into().expect("sixteen");
            let (mut next, mut rest) = (packet[6], &packet[40..]);
            // group reports carry a hop-by-hop option
            if next == 0 && rest.len() >= 8 {
                let length = (usize::from(rest[1]) + 1) * 8;
                (next, rest) = (rest[0], rest.get(length..).unwrap_or_default());
            }
            (next, Ipv6Addr::from(to).into(), rest)
        }
        other => {
            *counts.leaks.entry(format!("ethertype {other:#06x}")).or_default() += 1;
            return;
        }
    };
    let port = |at: usize| rest.get(at..at + 2).map_or(0, |p| u16::from_be_bytes([p[0], p[1]]));
    let (from, to) = if matches!(protocol, 6 | 17) { (port(0), port(2)) } else { (0, 0) };
    let kind = rest.first().copied().unwrap_or_default();
    let stun = STUN4.map(IpAddr::V4).contains(&destination) || STUN6.map(IpAddr::V6).contains(&destination);
    let link_scope = match destination {
        IpAddr::V4(ip) => ip.is_broadcast() || ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.segments()[0] == 0xff02,
    };
    let dns = matches!(to, 53 | 853);
    // once the interface is gone, the kernel tells the exit that nobody listens
    let unreachable = matches!((protocol, kind), (1, 3) | (58, 1));
    if (protocol == 17 && allowed.endpoints.contains(&SocketAddr::new(destination, to)))
        || (unreachable && allowed.endpoints.iter().any(|endpoint| endpoint.ip() == destination))
    {
        counts.outer += 1;
    } else if (protocol == 17 && matches!((from, to), (68, 67) | (546, 547)))
        || (protocol == 58 && matches!(kind, 133..=136 | 143))
        || (protocol == 2 && link_scope)
    {
        counts.link += 1;
    } else if protocol == 17 && stun && to == 3478 {
        counts.stun += 1;
    } else if !dns
        && (allowed.lan.iter().any(|lan| lan.contains(destination)) || (link_scope && !allowed.lan.is_empty()))
    {
        counts.lan += 1;
    } else {
        *counts.leaks.entry(format!("protocol {protocol} to {destination} port {to}")).or_default() += 1;
    }
}

/// Programs of every sort, in a host's namespace, that keep trying to reach the internet and name servers by every
/// family until dropped.
pub struct Noise {
    stop: Arc<AtomicBool>,
    tries: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Noise {
    /// `lan_resolver`: a name server on the LAN, as DHCP would have named it.
    pub fn start(space: &Namespace, lan_resolver: IpAddr) -> Noise {
        let stop = Arc::new(AtomicBool::new(false));
        let tries = Arc::new(AtomicU64::new(0));
        let mut servers: Vec<IpAddr> = ELSEWHERE.iter().map(|s| s.parse().expect("an address")).collect();
        servers.push(lan_resolver);
        let udp: Vec<SocketAddr> = WEB
            .iter()
            .map(|web| SocketAddr::new(*web, 9999))
            .chain(servers.iter().flat_map(|server| [53, 853].map(|port| SocketAddr::new(*server, port))))
            .collect();
        let tcp: Vec<SocketAddr> = udp.iter().map(|to| SocketAddr::new(to.ip(), to.port().min(853))).collect();
        // a program that was there before: its sockets keep their source addresses
        let old = space.run(|| connected(&udp));
        let (space_udp, stopped, tried) = (space.clone(), stop.clone(), tries.clone());
        let datagrams = std::thread::spawn(move || {
            space_udp.run(|| {
                let mut steady = Vec::new();
                while !stopped.load(Ordering::Relaxed) {
                    let fresh = connected(&udp);
                    for socket in old.iter().chain(&fresh).chain(&steady) {
                        let _ = socket.send(&QUERY);
                        tried.fetch_add(1, Ordering::Relaxed);
                    }
                    // some live through several phases: made while connected, used when it is not
                    steady.extend(fresh);
                    if steady.len() > 64 {
                        steady.drain(..32);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        });
        let (space_tcp, stopped, tried) = (space.clone(), stop.clone(), tries.clone());
        let connections = std::thread::spawn(move || {
            space_tcp.run(|| {
                while !stopped.load(Ordering::Relaxed) {
                    for to in &tcp {
                        let _ = TcpStream::connect_timeout(to, Duration::from_millis(30));
                        tried.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        });
        Noise { stop, tries, threads: vec![datagrams, connections] }
    }

    /// Attempts since the last call.
    pub fn take(&self) -> u64 {
        self.tries.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A DNS query for `web.test`, type A; RFC 1035 §4.1.
pub const QUERY: [u8; 26] =
    [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, b'w', b'e', b'b', 4, b't', b'e', b's', b't', 0, 0, 1, 0, 1];

fn connected(to: &[SocketAddr]) -> Vec<UdpSocket> {
    to.iter()
        .filter_map(|to| {
            let own: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
            let socket = UdpSocket::bind(own).ok()?;
            socket.connect(to).ok()?;
            Some(socket)
        })
        .collect()
}
