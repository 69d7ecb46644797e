//! Routing messages, route(4) and `net/route.h`: what is written to a route socket, what it says, and the table that
//! sysctl(3) `NET_RT_DUMP` gives; and the choice of a route in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::{half, word};
use crate::types::Family;

/// `struct rt_msghdr`: its length, and where its fields are.
pub(crate) const HEADER: usize = 92;
pub(crate) const AT_MSGLEN: usize = 0;
pub(crate) const AT_VERSION: usize = 2;
pub(crate) const AT_TYPE: usize = 3;
pub(crate) const AT_INDEX: usize = 4;
pub(crate) const AT_FLAGS: usize = 8;
pub(crate) const AT_ADDRS: usize = 12;
pub(crate) const AT_SEQ: usize = 20;
pub(crate) const AT_INITS: usize = 32;
pub(crate) const AT_MTU: usize = 40;

const VERSION: u8 = 5;
/// Add a route.
pub const ADD: u8 = 0x1;
/// Delete a route.
pub const DELETE: u8 = 0x2;
/// Other message types.
const CHANGE: u8 = 0x3;
const GET: u8 = 0x4;
const REDIRECT: u8 = 0x6;
const NEWADDR: u8 = 0xc;
const DELADDR: u8 = 0xd;
const IFINFO: u8 = 0xe;

/// Flags of a route.
const RTF_UP: u32 = 0x1;
const RTF_GATEWAY: u32 = 0x2;
const RTF_HOST: u32 = 0x4;
const RTF_REJECT: u32 = 0x8;
const RTF_LLINFO: u32 = 0x400;
const RTF_STATIC: u32 = 0x800;
const RTF_BLACKHOLE: u32 = 0x1000;
/// Ours have both of the flags that `net/route.h` leaves to routing daemons, of which none that we know sets both.
const RTF_OURS: u32 = 0x4000 | 0x8000;
const RTF_WASCLONED: u32 = 0x2_0000;
/// For sockets bound to its interface only.
const RTF_IFSCOPE: u32 = 0x100_0000;

/// Which addresses follow, as bits; their order is that of the bits.
const RTA_DST: u32 = 0x1;
const RTA_GATEWAY: u32 = 0x2;
const RTA_NETMASK: u32 = 0x4;
const ADDRESSES: u32 = 8;
/// `RTV_MTU`.
const INIT_MTU: u32 = 0x1;

/// `sys/socket.h` of macOS.
const AF_INET: u8 = 2;
const AF_LINK: u8 = 18;
const AF_INET6: u8 = 30;
const SOCKADDR_IN: usize = 16;
const SOCKADDR_IN6: usize = 28;
const SOCKADDR_DL: usize = 20;

/// A route as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Destination.
    pub destination: IpNetwork,
    /// Index of its interface.
    pub index: u32,
    /// Next hop, if not on the link.
    pub gateway: Option<IpAddr>,
    /// MTU in bytes, where the route has one.
    pub mtu: Option<u32>,
    flags: u32,
}

impl Entry {
    /// We made it.
    pub fn ours(&self) -> bool {
        self.flags & RTF_OURS == RTF_OURS
    }

    /// It refuses what it is for.
    pub fn rejects(&self) -> bool {
        self.flags & (RTF_REJECT | RTF_BLACKHOLE) != 0
    }
}

/// A request to add or delete one of our routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// [`ADD`] or [`DELETE`].
    pub kind: u8,
    /// Destination.
    pub destination: IpNetwork,
    /// Next hop; without one the destination is on the interface's link.
    pub gateway: Option<IpAddr>,
    /// Index of the interface.
    pub index: u32,
    /// Refuse what would take it.
    pub reject: bool,
    /// Number that the answer repeats.
    pub seq: u32,
}

impl Request {
    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let full = if self.destination.is_ipv4() { 32 } else { 128 };
        let host = self.destination.prefix() == full;
        let mut flags = RTF_UP | RTF_STATIC | RTF_OURS;
        let mut addresses = RTA_DST | RTA_GATEWAY;
        if host {
            flags |= RTF_HOST;
        } else {
            addresses |= RTA_NETMASK;
        }
        if self.gateway.is_some() {
            flags |= RTF_GATEWAY;
        }
        if self.reject {
            flags |= RTF_REJECT;
        }
        let mut message = vec![0; HEADER];
        message.extend(sockaddr(self.destination.network(), self.index));
        match self.gateway {
            Some(gateway) => message.extend(sockaddr(gateway, self.index)),
            None => message.extend(sockaddr_dl(self.index)),
        }
        if !host {
            message.extend(sockaddr(self.destination.mask(), 0));
        }
        let length = message.len() as u16;
        message[AT_MSGLEN..AT_MSGLEN + 2].copy_from_slice(&length.to_le_bytes());
        message[AT_VERSION] = VERSION;
        message[AT_TYPE] = self.kind;
        for (at, value) in [(AT_FLAGS, flags), (AT_ADDRS, addresses), (AT_SEQ, self.seq)] {
            message[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        message
    }
}

/// `struct sockaddr_in` or `sockaddr_in6`, a multiple of four bytes each. A link-local address carries its interface in
/// its second word, as the kernel keeps it (route(8) writes it so).
fn sockaddr(address: IpAddr, index: u32) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => {
            let mut bytes = vec![0; SOCKADDR_IN];
            (bytes[0], bytes[1]) = (SOCKADDR_IN as u8, AF_INET);
            bytes[4..8].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => {
            let mut bytes = vec![0; SOCKADDR_IN6];
            (bytes[0], bytes[1]) = (SOCKADDR_IN6 as u8, AF_INET6);
            bytes[8..24].copy_from_slice(&v6.octets());
            if v6.is_unicast_link_local() {
                bytes[10..12].copy_from_slice(&(index as u16).to_be_bytes());
            }
            bytes
        }
    }
}

/// `struct sockaddr_dl` that names an interface by its index.
fn sockaddr_dl(index: u32) -> Vec<u8> {
    let mut bytes = vec![0; SOCKADDR_DL];
    (bytes[0], bytes[1]) = (SOCKADDR_DL as u8, AF_LINK);
    bytes[2..4].copy_from_slice(&(index as u16).to_le_bytes());
    bytes
}

/// The messages of a buffer; ends at the first that does not fit.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes, AT_MSGLEN)?);
        // shorter than any header that has a type
        if length < 4 || length > bytes.len() {
            return None;
        }
        let (message, rest) = bytes.split_at(length);
        bytes = rest;
        Some(message)
    })
}

/// Whether these notifications tell of a change to links, addresses or routes. Entries of ARP and neighbour discovery,
/// routes cloned for one destination, and look-ups come by all the time and are none.
pub fn tell_of_change(bytes: &[u8]) -> bool {
    messages(bytes).any(|message| match message[AT_TYPE] {
        ADD | DELETE | CHANGE | REDIRECT => {
            word(message, AT_FLAGS).is_some_and(|flags| flags & (RTF_LLINFO | RTF_WASCLONED) == 0)
        }
        NEWADDR | DELADDR | IFINFO => true,
        _ => false,
    })
}

/// The routes of a dump. Left out: what cannot be read, cloned routes and neighbours, those for scoped sockets only.
pub fn entries(dump: &[u8]) -> Vec<Entry> {
    messages(dump).filter_map(entry).collect()
}

fn entry(message: &[u8]) -> Option<Entry> {
    let flags = word(message, AT_FLAGS)?;
    if message[AT_TYPE] != GET || flags & RTF_UP == 0 || flags & (RTF_LLINFO | RTF_WASCLONED | RTF_IFSCOPE) != 0 {
        return None;
    }
    let present = word(message, AT_ADDRS)?;
    let mut rest = message.get(HEADER..)?;
    let (mut destination, mut gateway, mut mask) = (None, None, None);
    for bit in (0..ADDRESSES).map(|n| 1 << n).filter(|bit| present & bit != 0) {
        let length = usize::from(*rest.first()?);
        let address = rest.get(..length)?;
        match bit {
            RTA_DST => destination = Some(address),
            RTA_GATEWAY => gateway = Some(address),
            RTA_NETMASK => mask = Some(address),
            _ => {}
        }
        // rtsock.c, ROUNDUP32: an empty one takes four bytes
        rest = rest.get(length.max(1).next_multiple_of(4)..).unwrap_or_default();
    }
    let destination = ip(destination?)?;
    let full = if destination.is_ipv4() { 32 } else { 128 };
    let prefix = match mask {
        _ if flags & RTF_HOST != 0 => full,
        Some(mask) => mask_length(mask, Family::of(&destination)),
        None if destination.is_unspecified() => 0,
        None => full,
    };
    let gateway = if flags & RTF_GATEWAY != 0 { gateway.and_then(ip) } else { None };
    let mtu = word(message, AT_MTU).filter(|mtu| *mtu != 0);
    Some(Entry {
        destination: IpNetwork::new(destination, prefix).ok()?,
        index: u32::from(half(message, AT_INDEX)?),
        gateway,
        mtu,
        flags,
    })
}

/// The address of a `sockaddr`, which may be cut after its last byte that is not 0. A scope inside it is taken out.
fn ip(sockaddr: &[u8]) -> Option<IpAddr> {
    let octets = |at: usize, n: usize| (at..at + n).map(|i| sockaddr.get(i).copied().unwrap_or(0));
    match *sockaddr.get(1)? {
        AF_INET => {
            let mut bytes = [0; 4];
            bytes.iter_mut().zip(octets(4, 4)).for_each(|(to, from)| *to = from);
            Some(Ipv4Addr::from(bytes).into())
        }
        AF_INET6 => {
            let mut bytes = [0; 16];
            bytes.iter_mut().zip(octets(8, 16)).for_each(|(to, from)| *to = from);
            // fe80::/10, and multicast of link scope
            if bytes[0] == 0xfe && bytes[1] & 0xc0 == 0x80 || bytes[0] == 0xff && bytes[1] & 0x0f <= 2 {
                (bytes[2], bytes[3]) = (0, 0);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// Prefix length of a mask, which is cut after its last byte that is not 0, whatever its family says.
fn mask_length(sockaddr: &[u8], family: Family) -> u8 {
    let (from, length) = if family == Family::V4 { (4, 4) } else { (8, 16) };
    let bytes = sockaddr.iter().skip(from).take(length);
    bytes
        .map(|byte| byte.leading_ones() as u8)
        .fold((0, true), |(sum, on), ones| if on { (sum + ones, ones == 8) } else { (sum, false) })
        .0
}

/// The route that a packet to `destination` takes among those that `usable` lets stand: the longest prefix.
pub fn best(entries: &[Entry], destination: IpAddr, usable: impl Fn(&Entry) -> bool) -> Option<&Entry> {
    let fits = |entry: &&Entry| entry.destination.contains(destination) && usable(entry);
    let mut best: Option<&Entry> = None;
    for entry in entries.iter().filter(fits) {
        // the first of two equals: the kernel lists the primary interface's first
        if best.is_none_or(|best| entry.destination.prefix() > best.destination.prefix()) {
            best = Some(entry);
        }
    }
    best.filter(|entry| !entry.rejects())
}

/// The MTU that a request to add a route would lock in.
pub fn with_mtu(mut message: Vec<u8>, mtu: u32) -> Vec<u8> {
    for (at, value) in [(AT_INITS, INIT_MTU), (AT_MTU, mtu)] {
        message[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as the kernel writes it: header, then addresses, each padded to four bytes.
    fn message(kind: u8, flags: u32, present: u32, index: u16, addresses: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        for address in addresses {
            bytes.extend(*address);
            bytes.resize(bytes.len() + (address.len().max(1).next_multiple_of(4) - address.len()), 0);
        }
        let length = bytes.len() as u16;
        bytes[0..2].copy_from_slice(&length.to_le_bytes());
        bytes[2] = 5;
        bytes[3] = kind;
        bytes[4..6].copy_from_slice(&index.to_le_bytes());
        bytes[8..12].copy_from_slice(&flags.to_le_bytes());
        bytes[12..16].copy_from_slice(&present.to_le_bytes());
        bytes
    }

    const GATEWAY: [u8; 16] = [16, 2, 0, 0, 192, 168, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    const LINK4: [u8; 20] = [20, 18, 4, 0, 6, 3, 6, 0, b'e', b'n', b'0', 1, 2, 3, 4, 5, 6, 0, 0, 0];

    /// What `netstat -rn` of a Mac on Wi-Fi shows, and a tunnel's halves beside it.
    fn dump() -> Vec<u8> {
        let any = [16, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let lan = [16, 2, 0, 0, 192, 168, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let half = [16, 2, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let exit = [16, 2, 0, 0, 198, 51, 100, 7, 0, 0, 0, 0, 0, 0, 0, 0];
        let v6: [u8; 28] = [28, 30, 0, 0, 0, 0, 0, 0, 0xfe, 0x80, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        let utun = [20, 18, 9, 0, 1, 5, 0, 0, b'u', b't', b'u', b'n', b'5', 0, 0, 0, 0, 0, 0, 0];
        [
            // default 192.168.1.1 UGSc en0: the mask is empty, and takes four bytes all the same
            message(GET, RTF_UP | RTF_GATEWAY | RTF_STATIC, 7, 4, &[&any, &GATEWAY, &[]]),
            // its double for scoped sockets
            message(GET, RTF_UP | RTF_GATEWAY | RTF_IFSCOPE, 7, 6, &[&any, &GATEWAY, &[]]),
            // 192.168.1 link#4 UC: the mask is cut after its third byte
            message(GET, RTF_UP, 7, 4, &[&lan, &LINK4, &[7, 2, 0, 0, 255, 255, 255]]),
            message(GET, RTF_UP | RTF_HOST | RTF_LLINFO, 3, 4, &[&GATEWAY, &LINK4]),
            message(GET, RTF_UP | RTF_STATIC | RTF_OURS, 7, 9, &[&any, &utun, &[5, 0, 0, 0, 128]]),
            message(GET, RTF_UP | RTF_STATIC | RTF_OURS, 7, 9, &[&half, &utun, &[5, 255, 255, 255, 128]]),
            message(GET, RTF_UP | RTF_HOST | RTF_GATEWAY | RTF_OURS, 3, 4, &[&exit, &GATEWAY]),
            // fe80::%en0/64, the interface in the second word
            message(
                GET,
                RTF_UP,
                7,
                4,
                &[&v6, &LINK4, &[16, 30, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]],
            ),
        ]
        .concat()
    }

    #[test]
    fn a_dump_is_read() {
        let shown: Vec<String> = entries(&dump())
            .iter()
            .map(|e| {
                let gateway = e.gateway.map_or(String::new(), |g| format!(" via {g}"));
                format!("{}{gateway} if {}{}", e.destination, e.index, if e.ours() { " ours" } else { "" })
            })
            .collect();
        assert_eq!(
            shown,
            [
                "0.0.0.0/0 via 192.168.1.1 if 4",
                "192.168.1.0/24 if 4",
                "0.0.0.0/1 if 9 ours",
                "128.0.0.0/1 if 9 ours",
                "198.51.100.7/32 via 192.168.1.1 if 4 ours",
                "fe80::1/64 if 4",
            ]
        );
    }

    #[test]
    fn a_cut_dump_gives_its_whole_messages_and_no_panic() {
        let whole = dump();
        for cut in 0..whole.len() {
            assert!(entries(&whole[..cut]).len() <= 6);
            let mut odd = whole.clone();
            odd[cut] ^= 0xff;
            let _ = (entries(&odd), tell_of_change(&odd));
        }
        assert_eq!(entries(&[0; 64]), []);
    }

    #[test]
    fn the_longest_prefix_wins_and_the_way_beside_the_tunnel_is_found() {
        let entries = entries(&dump());
        let best = |to: &str, beside: bool| {
            best(&entries, to.parse().unwrap(), |e| !beside || (!e.ours() && e.index != 9))
                .map(|e| (e.index, e.gateway.is_some()))
        };
        assert_eq!(best("203.0.113.1", false), Some((9, false)));
        assert_eq!(best("198.51.100.7", false), Some((4, true)), "our host route to the exit");
        assert_eq!(best("203.0.113.1", true), Some((4, true)));
        assert_eq!(best("192.168.1.9", false), Some((4, false)));
        assert_eq!(best("2001:db8::1", false), None);
    }

    #[test]
    fn a_request_is_what_route_8_would_write() {
        let request = Request {
            kind: ADD,
            destination: "128.0.0.0/1".parse().unwrap(),
            gateway: None,
            index: 9,
            reject: false,
            seq: 7,
        };
        let bytes = request.encode();
        assert_eq!(bytes.len(), HEADER + 16 + 20 + 16);
        assert_eq!(bytes[..16], [144, 0, 5, 1, 0, 0, 0, 0, 0x01, 0xc8, 0, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[20..24], [7, 0, 0, 0]);
        assert_eq!(bytes[HEADER..HEADER + 8], [16, 2, 0, 0, 128, 0, 0, 0]);
        assert_eq!(bytes[HEADER + 16..HEADER + 20], [20, 18, 9, 0]);
        assert_eq!(bytes[HEADER + 36..HEADER + 44], [16, 2, 0, 0, 128, 0, 0, 0]);

        let host = Request {
            kind: DELETE,
            destination: "2001:db8::7/128".parse().unwrap(),
            gateway: Some("fe80::1".parse().unwrap()),
            index: 4,
            reject: false,
            seq: 8,
        };
        let bytes = host.encode();
        assert_eq!(bytes.len(), HEADER + 28 + 28, "a host route has no mask");
        assert_eq!(bytes[AT_FLAGS..AT_FLAGS + 8], [0x07, 0xc8, 0, 0, 3, 0, 0, 0]);
        assert_eq!(bytes[HEADER + 28 + 8..HEADER + 28 + 12], [0xfe, 0x80, 0, 4], "the interface is inside");
        assert_eq!(with_mtu(host.encode(), 1400)[AT_MTU..AT_MTU + 4], [0x78, 5, 0, 0]);
    }

    #[test]
    fn notifications_of_neighbours_and_look_ups_are_no_change() {
        let any = [16, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(tell_of_change(&message(DELETE, RTF_UP | RTF_GATEWAY, 1, 4, &[&any])));
        assert!(tell_of_change(&message(IFINFO, 0, 0, 4, &[])));
        let neighbour = message(ADD, RTF_UP | RTF_HOST | RTF_LLINFO, 3, 4, &[&GATEWAY, &LINK4]);
        assert!(!tell_of_change(&neighbour));
        assert!(!tell_of_change(&message(GET, RTF_UP, 1, 4, &[&any])));
        assert!(!tell_of_change(&message(7, RTF_UP, 1, 4, &[&any])), "a miss");
        assert!(tell_of_change(&[neighbour, message(NEWADDR, 0, 0, 4, &[])].concat()));
        assert!(!tell_of_change(&[]));
    }
}
