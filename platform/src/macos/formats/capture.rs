//! Captured packets: the records that a read of `/dev/bpf` gives, bpf(4), the link-layer header of each, and the filters
//! that choose them. A filter lets through incoming UDP only, to one port, that looks like what we wait for.

use super::{half, word};
#[cfg(any(target_os = "macos", test))]
use crate::bpf::{self, H, Instruction, Payload, Program, W};
use crate::types::Family;

/// `struct bpf_hdr`: where its fields are. Its length is in it.
pub(crate) const AT_CAPLEN: usize = 8;
pub(crate) const AT_HDRLEN: usize = 16;
/// `BPF_ALIGNMENT` of macOS.
const ALIGNMENT: usize = 4;

/// `AF_INET` and `AF_INET6` of macOS.
const FAMILIES: [(Family, u32); 2] = [(Family::V4, 2), (Family::V6, 30)];
/// `net/ethernet.h`.
const ETHERTYPES: [(Family, u16); 2] = [(Family::V4, 0x0800), (Family::V6, 0x86dd)];

/// How packets of an interface begin, `net/bpf.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkType {
    /// Address family in the machine's byte order: loopback, utun.
    Null,
    /// Ethernet, and Wi-Fi as the kernel shows it.
    Ethernet,
    /// Nothing: the IP header comes first.
    Raw,
}

impl LinkType {
    /// By its `DLT_` number; `None` for one that no packets for us come by.
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(LinkType::Null),
            1 => Some(LinkType::Ethernet),
            12 => Some(LinkType::Raw),
            _ => None,
        }
    }

    /// Length of the link-layer header.
    fn header(self) -> usize {
        match self {
            LinkType::Null => 4,
            LinkType::Ethernet => 14,
            LinkType::Raw => 0,
        }
    }

    /// Family and IP packet of a frame.
    pub fn packet(self, frame: &[u8]) -> Option<(Family, &[u8])> {
        let packet = frame.get(self.header()..)?;
        let family = match self {
            LinkType::Null => FAMILIES.iter().find(|(_, number)| word(frame, 0) == Some(*number))?.0,
            LinkType::Ethernet => {
                let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
                ETHERTYPES.iter().find(|(_, number)| ethertype == *number)?.0
            }
            LinkType::Raw => match packet.first()? >> 4 {
                4 => Family::V4,
                6 => Family::V6,
                _ => return None,
            },
        };
        Some((family, packet))
    }

    /// The filter for UDP to `port` with such a payload.
    #[cfg(any(target_os = "macos", test))]
    pub(crate) fn filter(self, port: u16, wanted: &Payload) -> Vec<Instruction> {
        let at = self.header() as u32;
        let program = |family| {
            let mut program = Program::default();
            if self == LinkType::Ethernet {
                // to one host: a group address has the lowest bit of its first byte set
                program.load(bpf::B, 0);
                program.refuse_bits(1);
            }
            program.require_udp(family, at, port);
            program.finish_with(at, wanted)
        };
        match self {
            // a program reads in network order what the machine has written in its own
            LinkType::Null => bpf::switch(W, 0, FAMILIES.map(|(f, n)| (n.swap_bytes(), program(f))).into()),
            LinkType::Ethernet => bpf::switch(H, 12, ETHERTYPES.map(|(f, n)| (n.into(), program(f))).into()),
            // the byte at 0 has the version in its upper half: no value to switch on, but none of IPv4's ways through
            // is one of IPv6's, so the first byte decides in `packet`
            LinkType::Raw => bpf::switch(
                bpf::B,
                0,
                (0x45..=0x4f).map(|first| (first, program(Family::V4))).chain([(0x60, program(Family::V6))]).collect(),
            ),
        }
    }
}

/// The captured frames of a buffer as read(2) filled it; ends at the first record that does not fit.
pub fn frames(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let header = usize::from(half(bytes, AT_HDRLEN)?);
        let captured = word(bytes, AT_CAPLEN)? as usize;
        if header < AT_HDRLEN + 2 {
            return None;
        }
        let frame = bytes.get(header..header.checked_add(captured)?)?;
        let next = (header + captured).next_multiple_of(ALIGNMENT);
        bytes = bytes.get(next..).unwrap_or_default();
        Some(frame)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::tests::run;
    use crate::datagram;
    use crate::messages::{INITIATIONS, STUN, WAKEUPS};

    /// An IPv4 packet from 192.0.2.1:3478 to port 51820.
    fn v4(payload: &[u8]) -> Vec<u8> {
        let udp = datagram::encode("192.0.2.1".parse().unwrap(), 3478, "198.51.100.7:51820".parse().unwrap(), payload)
            .unwrap();
        let length = (20 + udp.len()) as u16;
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 7];
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet.extend(udp);
        packet
    }

    fn v6(payload: &[u8]) -> Vec<u8> {
        let udp = datagram::encode("fe80::2".parse().unwrap(), 3478, "[2001:db8::7]:51820".parse().unwrap(), payload)
            .unwrap();
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((udp.len() as u16).to_be_bytes());
        packet.extend([17, 64]);
        packet.extend("fe80::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet.extend("2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet.extend(udp);
        packet
    }

    fn frame(link: LinkType, family: Family, packet: &[u8]) -> Vec<u8> {
        let header: Vec<u8> = match (link, family) {
            (LinkType::Null, Family::V4) => vec![2, 0, 0, 0],
            (LinkType::Null, Family::V6) => vec![30, 0, 0, 0],
            (LinkType::Ethernet, Family::V4) => vec![2, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 8, 0],
            (LinkType::Ethernet, Family::V6) => vec![2, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0x86, 0xdd],
            (LinkType::Raw, _) => Vec::new(),
        };
        [header, packet.to_vec()].concat()
    }

    const LINKS: [LinkType; 3] = [LinkType::Null, LinkType::Ethernet, LinkType::Raw];

    fn initiation() -> Vec<u8> {
        let mut payload = vec![7; 148];
        payload[..4].copy_from_slice(&[1, 0, 0, 0]);
        payload
    }

    #[test]
    fn initiations_are_taken_from_every_link_and_read_again() {
        let payload = initiation();
        for link in LINKS {
            for (family, packet) in [(Family::V4, v4(&payload)), (Family::V6, v6(&payload))] {
                let frame = frame(link, family, &packet);
                assert_eq!(run(&link.filter(51820, &INITIATIONS), &frame) as usize, frame.len(), "{link:?} {family:?}");
                assert_eq!(run(&link.filter(51821, &INITIATIONS), &frame), 0);
                assert_eq!(link.packet(&frame), Some((family, &packet[..])));
                let (source, at) = datagram::parse(family, &packet, 4).unwrap();
                assert_eq!((source.port(), &packet[at]), (3478, &payload[..]));
            }
        }
    }

    #[test]
    fn what_is_none_is_left_out() {
        let mut stun = vec![0x01, 0x01, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        stun.extend([0; 12]);
        for link in LINKS {
            let taken = |wanted, packet: &[u8]| run(&link.filter(51820, wanted), &frame(link, Family::V4, packet));
            assert!(taken(&STUN, &v4(&stun)) > 0);
            assert_eq!(taken(&STUN, &v4(&initiation())), 0);
            assert_eq!(taken(&INITIATIONS, &v4(&stun)), 0);
            assert_eq!(taken(&INITIATIONS, &v4(&initiation()[..147])), 0);
            assert_eq!(taken(&WAKEUPS, &v4(&[4, 0, 0, 0, 9, 9])) as usize, link.header() + 28 + 4);
            assert_eq!(taken(&WAKEUPS, &v4(&[3, 0, 0, 0, 9, 9])), 0);
        }
        let mut group = frame(LinkType::Ethernet, Family::V4, &v4(&stun));
        group[0] |= 1;
        assert_eq!(run(&LinkType::Ethernet.filter(51820, &STUN), &group), 0);
        assert_eq!(LinkType::from_number(105), None);
    }

    /// A record as bpf(4) writes it: 18 bytes of header on 64-bit macOS, and padding behind the packet.
    fn record(frame: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 18];
        bytes[8..12].copy_from_slice(&(frame.len() as u32).to_le_bytes());
        bytes[12..16].copy_from_slice(&9000u32.to_le_bytes());
        bytes[16..18].copy_from_slice(&18u16.to_le_bytes());
        bytes.extend(frame);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_buffer_holds_many_records_and_a_cut_one_ends_it() {
        let buffer = [record(b"one"), record(b"four"), record(b""), record(b"seventeen bytes!!")].concat();
        assert_eq!(frames(&buffer).collect::<Vec<_>>(), [&b"one"[..], b"four", b"", b"seventeen bytes!!"]);
        for cut in 0..buffer.len() {
            assert!(frames(&buffer[..cut]).count() <= 4);
            let mut odd = buffer.clone();
            odd[cut] = 0xff;
            let _ = frames(&odd).count();
        }
        assert_eq!(frames(&[0; 40]).count(), 0, "a header of no length must not loop");
    }
}
