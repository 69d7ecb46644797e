//! The tap on incoming WireGuard messages, with real packets in a network namespace of each test's own.
#![cfg(target_os = "linux")]

use std::io::{self, Write};
use std::net::{SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::mpsc;

use peervpn_platform::os::packet::{BUFFER_LEN, InitiationTap};

const PORT: u16 = 51820;

/// Moves this test's thread into a network namespace of its own, loopback up; `false` where that isn't possible.
fn own_namespace() -> bool {
    // SAFETY: no pointers; affects this thread only.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        println!("SKIP: a network namespace ({})", io::Error::last_os_error());
        return false;
    }
    ip("link set lo up")
}

/// Runs ip(8), which inherits the calling thread's namespace.
fn ip(arguments: &str) -> bool {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    let done = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    if !done {
        println!("SKIP: ip {arguments}: {status:?}");
    }
    done
}

fn initiation(tag: u8) -> Vec<u8> {
    let mut payload = vec![tag; 148];
    payload[..4].copy_from_slice(&[1, 0, 0, 0]);
    payload
}

fn received(tap: &InitiationTap) -> Option<(SocketAddr, Vec<u8>)> {
    let mut buf = [0; BUFFER_LEN];
    tap.recv(&mut buf).unwrap().map(|(source, payload)| (source, payload.to_vec()))
}

/// Waits up to a second until the descriptor is readable.
fn readable(tap: &InitiationTap) -> bool {
    readable_within(tap, 1000)
}

/// In ms.
fn readable_within(tap: &InitiationTap, limit: i32) -> bool {
    let mut poll = libc::pollfd { fd: tap.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd that lives through the call.
    unsafe { libc::poll(&raw mut poll, 1, limit) == 1 }
}

#[test]
fn an_initiation_is_copied_once_with_its_source_and_payload() {
    if !own_namespace() {
        return;
    }
    let tap = InitiationTap::open(PORT).unwrap();
    assert_eq!(received(&tap), None, "nothing was sent yet");
    for (ours, theirs) in [("127.0.0.2:40000", "127.0.0.1:51820"), ("[::1]:40000", "[::1]:51820")] {
        let owner = UdpSocket::bind(theirs).unwrap();
        let sender = UdpSocket::bind(ours).unwrap();
        sender.send_to(&initiation(7), theirs).unwrap();
        assert!(readable(&tap));
        assert_eq!(received(&tap), Some((ours.parse().unwrap(), initiation(7))));
        assert_eq!(received(&tap), None, "loopback shows a packet twice, but once incoming");
        let mut buf = [0; 200];
        assert_eq!(owner.recv(&mut buf).unwrap(), 148, "the port's owner gets the packet all the same");
    }
    assert_eq!(tap.dropped().unwrap(), 0);
}

#[test]
fn a_port_that_nobody_owns_is_heard_too() {
    if !own_namespace() {
        return;
    }
    let tap = InitiationTap::open(PORT).unwrap();
    let sender = UdpSocket::bind("127.0.0.1:40000").unwrap();
    sender.send_to(&initiation(1), ("127.0.0.1", PORT)).unwrap();
    assert_eq!(received(&tap), Some(("127.0.0.1:40000".parse().unwrap(), initiation(1))));
}

#[test]
fn copies_that_are_not_announced_wake_nobody_and_are_there() {
    if !own_namespace() {
        return;
    }
    let tap = InitiationTap::open(PORT).unwrap();
    tap.announce(false).unwrap();
    for sender in ["127.0.0.1:0", "[::1]:0"].map(|ours| UdpSocket::bind(ours).unwrap()) {
        let to = SocketAddr::new(sender.local_addr().unwrap().ip(), PORT);
        let send =
            |marker| sender.send_to(&initiation(marker), to).or_else(|_| sender.send_to(&initiation(marker), to));
        send(1).unwrap();
        assert!(!readable_within(&tap, 0));
        assert_eq!(received(&tap).unwrap().1, initiation(1));
        send(2).unwrap();
        tap.announce(true).unwrap();
        assert!(readable_within(&tap, 0), "one came meanwhile");
        tap.announce(false).unwrap();
        assert!(!readable_within(&tap, 0));
        assert_eq!(received(&tap).unwrap().1, initiation(2));
        assert_eq!(received(&tap), None);
    }
}

#[test]
fn what_is_no_initiation_for_our_port_is_not_copied() {
    if !own_namespace() {
        return;
    }
    let tap = InitiationTap::open(PORT).unwrap();
    for (ours, host) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
        let sender = UdpSocket::bind(ours).unwrap();
        let send = |payload: &[u8], port: u16| {
            // an ICMP error of the packet before is no failure
            let _ = sender.send_to(payload, (host, port)).or_else(|_| sender.send_to(payload, (host, port))).unwrap();
        };
        send(&initiation(1), PORT + 1);
        send(&initiation(1)[..147], PORT);
        send(&[initiation(1), vec![0]].concat(), PORT);
        send(&[], PORT);
        send(&[1], PORT);
        for index in 0..4 {
            let mut payload = initiation(1);
            payload[index] ^= 2;
            send(&payload, PORT);
        }
        for kind in [2, 3, 4] {
            let mut payload = initiation(1);
            payload[0] = kind;
            send(&payload, PORT);
        }
        // from our port, towards another: outgoing packets are none of ours
        let owner = UdpSocket::bind((host, PORT)).unwrap();
        owner.send_to(&initiation(1), sender.local_addr().unwrap()).unwrap();
        // a broadcast or multicast is never an initiation
        if host == "127.0.0.1" {
            let broadcaster = UdpSocket::bind("0.0.0.0:0").unwrap();
            broadcaster.set_broadcast(true).unwrap();
            let _ = broadcaster.send_to(&initiation(1), ("255.255.255.255", PORT));
        }
    }
    assert_eq!(received(&tap), None);
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.send_to(&initiation(9), ("127.0.0.1", PORT)).unwrap();
    assert_eq!(received(&tap).map(|(_, payload)| payload), Some(initiation(9)), "the tap works");
}

#[test]
fn the_ipv4_header_length_is_read_not_assumed() {
    if !own_namespace() {
        return;
    }
    let tap = InitiationTap::open(PORT).unwrap();
    for options in [0, 4, 40] {
        send_ipv4(&ipv4_packet(options, 0, &initiation(3)));
        assert_eq!(received(&tap), Some(("127.0.0.9:1234".parse().unwrap(), initiation(3))), "{options} option bytes");
    }
    // the first fragment of a bigger packet, and one that begins in its middle: neither has the whole payload
    for fragment in [0x2000, 0x0001] {
        send_ipv4(&ipv4_packet(0, fragment, &initiation(3)));
        assert_eq!(received(&tap), None, "fragment field {fragment:#06x}");
    }
}

/// One that the filter takes for an initiation is handed over all the same: it has woken somebody, who is to count it.
#[test]
fn what_claims_to_be_longer_than_it_is_is_no_secret() {
    if !own_namespace() {
        return;
    }
    let tap = InitiationTap::open(PORT).unwrap();
    let mut packet = ipv4_packet(0, 0, &initiation(3)[..20]);
    // the UDP header's length
    packet[24..26].copy_from_slice(&156u16.to_be_bytes());
    for _ in 0..3 {
        send_ipv4(&packet);
        assert!(readable(&tap));
        assert_eq!(received(&tap), Some(("127.0.0.9:1234".parse().unwrap(), initiation(3)[..20].to_vec())));
        assert_eq!(received(&tap), None);
    }
}

/// An IPv4 packet with this many bytes of no-operation options (RFC 791 §3.1) around UDP to our port.
fn ipv4_packet(options: usize, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let header = 20 + options;
    let length = (header + 8 + payload.len()) as u16;
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, 17, 0, 0, 127, 0, 0, 9, 127, 0, 0, 1]);
    packet.extend(std::iter::repeat_n(1, options));
    packet.extend(1234u16.to_be_bytes());
    packet.extend(PORT.to_be_bytes());
    packet.extend((8 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

fn send_ipv4(packet: &[u8]) {
    let socket = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::RAW,
        // IPPROTO_RAW: the header is ours, raw(7); the kernel puts in its checksum
        Some(socket2::Protocol::from(libc::IPPROTO_RAW)),
    )
    .unwrap();
    let to: SocketAddr = "127.0.0.1:0".parse().unwrap();
    assert_eq!(socket.send_to(packet, &to.into()).unwrap(), packet.len());
}

#[test]
fn the_wakeup_hears_what_comes_back_and_copies_little() {
    if !own_namespace() {
        return;
    }
    let tap = InitiationTap::open_wakeup(PORT).unwrap();
    for (ours, host) in [("127.0.0.1:40000", "127.0.0.1"), ("[::1]:40000", "::1")] {
        let sender = UdpSocket::bind(ours).unwrap();
        let owner = UdpSocket::bind((host, PORT)).unwrap();
        for (kind, length) in [(1, 148), (2, 92), (4, 32), (4, 1300)] {
            let mut payload = vec![0xaa; length];
            payload[..4].copy_from_slice(&[kind, 0, 0, 0]);
            sender.send_to(&payload, owner.local_addr().unwrap()).unwrap();
            assert!(readable(&tap));
            assert_eq!(received(&tap), Some((ours.parse().unwrap(), vec![kind, 0, 0, 0])), "{length} bytes");
        }
        // a cookie reply, and something else altogether
        sender.send_to(&[3, 0, 0, 0, 9, 9, 9, 9], owner.local_addr().unwrap()).unwrap();
        sender.send_to(b"hello", owner.local_addr().unwrap()).unwrap();
        assert_eq!(received(&tap), None);
    }
}

#[test]
fn a_link_local_source_carries_its_interface() {
    if !own_namespace() {
        return;
    }
    let tap = InitiationTap::open(PORT).unwrap();
    let (tell, told) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let other = std::thread::spawn(move || {
        assert!(own_namespace());
        // SAFETY: no arguments, cannot fail.
        tell.send(unsafe { libc::gettid() }).unwrap();
        gone.recv().unwrap();
        assert!(ip("address add fe80::2/64 dev far nodad") && ip("link set far up"));
        // SAFETY: a nul-terminated name.
        let far = unsafe { libc::if_nametoindex(c"far".as_ptr()) };
        let sender = UdpSocket::bind("[::]:40000").unwrap();
        let to = SocketAddrV6::new("fe80::1".parse().unwrap(), PORT, 0, far);
        sender.send_to(&initiation(4), to).unwrap();
        gone.recv().unwrap();
    });
    let thread = told.recv().unwrap();
    assert!(ip(&format!("link add name near type veth peer name far netns {thread}")));
    assert!(ip("address add fe80::1/64 dev near nodad") && ip("link set near up"));
    // SAFETY: a nul-terminated name.
    let near = unsafe { libc::if_nametoindex(c"near".as_ptr()) };
    go.send(()).unwrap();
    assert!((0..5).any(|_| readable(&tap)));
    let scoped = SocketAddrV6::new("fe80::2".parse().unwrap(), 40000, 0, near);
    assert_eq!(received(&tap), Some((scoped.into(), initiation(4))));
    go.send(()).unwrap();
    other.join().unwrap();
}

#[test]
fn a_link_without_a_link_layer_header_works() {
    if !own_namespace() {
        return;
    }
    let Ok(mut tun) = std::fs::File::options().read(true).write(true).open("/dev/net/tun") else {
        println!("SKIP: /dev/net/tun");
        return;
    };
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"tube") {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: an open descriptor and an ifreq that lives through the call.
    assert_eq!(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }, 0);
    assert!(ip("link set tube up"));
    let tap = InitiationTap::open(PORT).unwrap();
    tun.write_all(&ipv4_packet(8, 0, &initiation(5))).unwrap();
    assert_eq!(received(&tap), Some(("127.0.0.9:1234".parse().unwrap(), initiation(5))));
}

#[test]
fn what_finds_no_room_is_counted() {
    if !own_namespace() {
        return;
    }
    let tap = InitiationTap::open(PORT).unwrap();
    let sender = UdpSocket::bind("127.0.0.1:40000").unwrap();
    let _owner = UdpSocket::bind(("127.0.0.1", PORT)).unwrap();
    let sent = 2000;
    for _ in 0..sent {
        sender.send_to(&initiation(1), ("127.0.0.1", PORT)).unwrap();
    }
    let dropped = tap.dropped().unwrap();
    let copied = std::iter::from_fn(|| received(&tap)).count() as u64;
    assert_eq!(copied + dropped, sent);
    assert!(copied >= 500 && dropped > 0, "{copied} copied, {dropped} dropped");
    assert_eq!(tap.dropped().unwrap(), dropped, "the count is a total");
    // one family's flood does not hide the other
    sender.send_to(&initiation(1), ("127.0.0.1", PORT)).unwrap();
    sender.send_to(&initiation(1), ("127.0.0.1", PORT)).unwrap();
    UdpSocket::bind("[::1]:0").unwrap().send_to(&initiation(2), ("::1", PORT)).unwrap();
    let first_two = [received(&tap), received(&tap)];
    assert!(first_two.iter().flatten().any(|(source, _)| source.is_ipv6()), "{first_two:?}");
}
