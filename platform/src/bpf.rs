//! Classic BPF programs, assembled by name instead of by jump distance. Linux attaches them to sockets, macOS to
//! `/dev/bpf`; the instructions are the same (`net/bpf.h`, `linux/bpf_common.h`). Pure.

use std::net::{IpAddr, SocketAddr};

use crate::datagram::{IPV4_HEADER_MIN, IPV6_HEADER, UDP, UDP_HEADER};
use crate::messages::stun;
use crate::types::Family;

/// Sizes of a load: 4 bytes, 2, 1.
pub(crate) const W: u32 = 0x00;
pub(crate) const H: u32 = 0x08;
pub(crate) const B: u32 = 0x10;
/// Instruction classes.
const LD: u32 = 0x00;
const LDX: u32 = 0x01;
const ST: u32 = 0x02;
const STX: u32 = 0x03;
const ALU: u32 = 0x04;
const JMP: u32 = 0x05;
const RET: u32 = 0x06;
const MISC: u32 = 0x07;
/// Where a load reads.
const IMM: u32 = 0x00;
const ABS: u32 = 0x20;
const IND: u32 = 0x40;
const MEM: u32 = 0x60;
const LEN: u32 = 0x80;
const MSH: u32 = 0xa0;
/// Operations and operands.
const ADD: u32 = 0x00;
const SUB: u32 = 0x10;
const AND: u32 = 0x50;
const XOR: u32 = 0xa0;
const JEQ: u32 = 0x10;
const JGT: u32 = 0x20;
const JGE: u32 = 0x30;
const JSET: u32 = 0x40;
const K: u32 = 0x00;
const X: u32 = 0x08;
const A: u32 = 0x10;
const TAX: u32 = 0x00;
const TXA: u32 = 0x80;

/// One instruction, laid out as both kernels want it (`struct bpf_insn`, `struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

/// A place in a program to jump to, forwards.
#[derive(Clone, Copy)]
struct Label(usize);

/// Where packets are left out.
const REJECT: Label = Label(0);

/// A filter under construction.
pub(crate) struct Program {
    code: Vec<Instruction>,
    /// Where each label stands.
    places: Vec<usize>,
    /// The instruction, whether it jumps where its condition is false, and to where.
    jumps: Vec<(usize, bool, Label)>,
}

impl Default for Program {
    fn default() -> Self {
        Program { code: Vec::new(), places: vec![0], jumps: Vec::new() }
    }
}

impl Program {
    fn push(&mut self, code: u32, k: u32) {
        self.code.push(Instruction { code: code as u16, jt: 0, jf: 0, k });
    }

    /// Compares A with a number or X, and jumps where a label is given.
    fn branch(&mut self, test: u32, k: u32, if_true: Option<Label>, if_false: Option<Label>) {
        self.jumps.extend(if_true.map(|label| (self.code.len(), false, label)));
        self.jumps.extend(if_false.map(|label| (self.code.len(), true, label)));
        self.push(JMP | test, k);
    }

    /// To be placed later.
    fn label(&mut self) -> Label {
        self.places.push(0);
        Label(self.places.len() - 1)
    }

    /// `label` means the next instruction.
    fn place(&mut self, label: Label) {
        self.places[label.0] = self.code.len();
    }

    /// A := what stands at `at`. A load beyond the packet's end leaves the packet out.
    pub(crate) fn load(&mut self, size: u32, at: u32) {
        self.push(LD | size | ABS, at);
    }

    /// A := what stands at X + `at`.
    pub(crate) fn load_behind_x(&mut self, size: u32, at: u32) {
        self.push(LD | size | IND, at);
    }

    /// X := a number.
    pub(crate) fn set_x(&mut self, number: u32) {
        self.push(LDX | W | IMM, number);
    }

    /// X := the length of the IPv4 header at `at`, RFC 791 §3.1.
    pub(crate) fn set_x_to_ipv4_header(&mut self, at: u32) {
        self.push(LDX | B | MSH, at);
    }

    /// Leaves the packet out unless A is one of `values`.
    pub(crate) fn require(&mut self, values: &[u32]) {
        let Some((last, others)) = values.split_last() else { return };
        let found = self.label();
        for value in others {
            self.branch(JEQ | K, *value, Some(found), None);
        }
        self.branch(JEQ | K, *last, None, Some(REJECT));
        self.place(found);
    }

    /// Leaves the packet out if A has one of these bits.
    pub(crate) fn refuse_bits(&mut self, bits: u32) {
        self.branch(JSET | K, bits, Some(REJECT), None);
    }

    /// Leaves the packet out unless A is at least `least`.
    fn require_at_least(&mut self, least: u32) {
        self.branch(JGE | K, least, None, Some(REJECT));
    }

    /// Leaves out what is not a whole UDP datagram for `port` in an IP packet that begins at `at`. Then X is the length
    /// of its IP header. IPv6 packets with extension headers are left out. What is let through, but for a UDP length below
    /// that of its header, [`crate::datagram::parse`] takes.
    pub(crate) fn require_udp(&mut self, family: Family, at: u32, port: u16) {
        let version = |program: &mut Self, number: u32| {
            program.load(B, at);
            program.push(ALU | AND | K, 0xf0);
            program.require(&[number << 4]);
        };
        match family {
            Family::V4 => {
                version(self, 4);
                self.load(B, at + 9);
                self.require(&[u32::from(UDP)]);
                // RFC 791 §3.1: more-fragments flag and fragment offset
                self.load(H, at + 6);
                self.refuse_bits(0x3fff);
                self.set_x_to_ipv4_header(at);
                self.push(MISC | TXA, 0);
                self.require_at_least(IPV4_HEADER_MIN as u32);
                self.load(H, at + 2);
                self.branch(JGE | X, 0, None, Some(REJECT));
            }
            Family::V6 => {
                version(self, 6);
                self.load(B, at + 6);
                self.require(&[u32::from(UDP)]);
                self.set_x(IPV6_HEADER as u32);
            }
        }
        self.load_behind_x(H, at + 2);
        self.require(&[u32::from(port)]);
    }

    /// Leaves out a STUN success response whose first XOR-MAPPED-ADDRESS is `expected`; X + `at` is where the UDP header
    /// begins, which for IPv6 must be `fixed`. The attributes are gone through one by one, as a program without loops
    /// can: type, length, value padded to four bytes; RFC 8489 §14.
    pub(crate) fn refuse_expected(&mut self, at: u32, fixed: u32, expected: SocketAddr) {
        const SAVED: u32 = 0;
        let message = at + UDP_HEADER as u32;
        let attribute = message + stun::HEADER;
        let (accept, compare) = (self.label(), self.label());
        let equals = |program: &mut Program, k| program.branch(JEQ | K, k, None, Some(accept));
        self.push(STX, SAVED);
        self.load_behind_x(H, message);
        equals(self, stun::SUCCESS);
        let length = if expected.is_ipv4() { 12 } else { 24 };
        for _ in 0..stun::ATTRIBUTES {
            // a load beyond the end would leave the packet out
            self.push(LD | W | LEN, 0);
            self.branch(JGT | X, 0, None, Some(accept));
            self.push(ALU | SUB | X, 0);
            self.branch(JGE | K, attribute + length, None, Some(accept));
            self.load_behind_x(H, attribute);
            self.branch(JEQ | K, stun::XOR_MAPPED_ADDRESS, Some(compare), None);
            // X := X + 4 + the value's length, padded
            self.load_behind_x(H, attribute + 2);
            self.push(ALU | ADD | K, 4 + 3);
            self.push(ALU | AND | K, !3);
            self.push(ALU | ADD | X, 0);
            self.push(MISC | TAX, 0);
        }
        // not among the first few: both ways lead out
        self.branch(JEQ | K, 0, Some(accept), Some(accept));

        self.place(compare);
        self.load_behind_x(B, attribute + 5);
        equals(self, if expected.is_ipv4() { 1 } else { 2 });
        self.load_behind_x(H, attribute + 6);
        equals(self, u32::from(expected.port()) ^ (stun::MAGIC_COOKIE >> 16));
        match expected.ip() {
            IpAddr::V4(ip) => {
                self.load_behind_x(W, attribute + 8);
                equals(self, u32::from(ip) ^ stun::MAGIC_COOKIE);
            }
            IpAddr::V6(ip) => {
                let word = |n: u32| (u128::from(ip) >> (96 - 32 * n)) as u32;
                self.load_behind_x(W, attribute + 8);
                equals(self, word(0) ^ stun::MAGIC_COOKIE);
                // the other words are hidden by the transaction ID: both sides need X
                for n in 1..4 {
                    self.load_behind_x(W, attribute + 8 + 4 * n);
                    self.push(ST, n);
                }
                for n in 1..4 {
                    self.load(W, fixed + UDP_HEADER as u32 + 8 + 4 * (n - 1));
                    self.push(ALU | XOR | K, word(n));
                    self.push(MISC | TAX, 0);
                    self.push(LD | W | MEM, n);
                    self.branch(JEQ | X, 0, None, Some(accept));
                }
            }
        }
        self.push(RET | K, 0);
        self.place(accept);
        self.push(LDX | W | MEM, SAVED);
    }

    /// Leaves out what is not one of these [`Payload`]s behind the UDP header at X + `at`, and copies up to it.
    pub(crate) fn finish_with(mut self, at: u32, wanted: &Payload) -> Vec<Instruction> {
        let udp = UDP_HEADER as u32;
        if let Some(length) = wanted.length {
            self.load_behind_x(H, at + 4);
            self.require(&[u32::from(length) + udp]);
        }
        self.load_behind_x(W, at + udp + wanted.word_at);
        self.require(wanted.words);
        self.finish(at + udp + wanted.snap)
    }

    /// Ends with: copy X + `behind_x` bytes. Only now is it known where to leave the packet out.
    fn finish(mut self, behind_x: u32) -> Vec<Instruction> {
        self.push(MISC | TXA, 0);
        self.push(ALU | ADD | K, behind_x);
        self.push(RET | A, 0);
        self.place(REJECT);
        self.push(RET | K, 0);
        for (index, if_false, label) in self.jumps {
            let distance = u8::try_from(self.places[label.0] - index - 1).expect("a short program");
            let instruction = &mut self.code[index];
            *(if if_false { &mut instruction.jf } else { &mut instruction.jt }) = distance;
        }
        self.code
    }
}

/// Which UDP payloads to copy.
pub(crate) struct Payload {
    /// Exact length in bytes; `None` for any.
    pub(crate) length: Option<u16>,
    /// Where the word stands that must be one of `words` (network order).
    pub(crate) word_at: u32,
    pub(crate) words: &'static [u32],
    /// Bytes to copy.
    pub(crate) snap: u32,
}

/// `LD size ABS at`, then each program for its value, nothing for any other one. Programs must be finished ones.
#[cfg(any(target_os = "macos", test))]
pub(crate) fn switch(size: u32, at: u32, programs: Vec<(u32, Vec<Instruction>)>) -> Vec<Instruction> {
    let mut code = vec![Instruction { code: (LD | size | ABS) as u16, jt: 0, jf: 0, k: at }];
    for (value, program) in programs {
        // over it, to the next comparison; A is still the same
        let jf = u8::try_from(program.len()).expect("a short program");
        code.push(Instruction { code: (JMP | JEQ | K) as u16, jt: 0, jf, k: value });
        code.extend(program);
    }
    code.push(Instruction { code: (RET | K) as u16, jt: 0, jf: 0, k: 0 });
    code
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::datagram::parse;

    /// How many bytes a program copies of a packet; what the kernels' interpreters do.
    pub(crate) fn run(program: &[Instruction], packet: &[u8]) -> u32 {
        let (mut a, mut x, mut at, mut memory) = (0u32, 0u32, 0usize, [0u32; 16]);
        let load = |size: u32, at: u32| -> Option<u32> {
            let length = if size == W { 4 } else { 3 - size as usize / 8 };
            let bytes = packet.get(at as usize..at as usize + length)?;
            Some(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
        };
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            let code = u32::from(code);
            let size = code & 0x18;
            at += 1;
            let loaded = match code & !0x18 {
                c if c == LD | ABS => load(size, k),
                c if c == LD | IND => load(size, x + k),
                _ => Some(0),
            };
            let Some(loaded) = loaded else { return 0 };
            match code {
                c if c & !0x18 == LD | ABS || c & !0x18 == LD | IND => a = loaded,
                c if c == LDX | W | IMM => x = k,
                c if c == LDX | B | MSH => match packet.get(k as usize) {
                    Some(byte) => x = u32::from(byte & 0xf) * 4,
                    None => return 0,
                },
                c if c == JMP | JEQ | K => at += usize::from(if a == k { jt } else { jf }),
                c if c == JMP | JSET | K => at += usize::from(if a & k != 0 { jt } else { jf }),
                c if c == JMP | JEQ | X => at += usize::from(if a == x { jt } else { jf }),
                c if c == JMP | JGT | X => at += usize::from(if a > x { jt } else { jf }),
                c if c == JMP | JGE | K => at += usize::from(if a >= k { jt } else { jf }),
                c if c == JMP | JGE | X => at += usize::from(if a >= x { jt } else { jf }),
                c if c == ALU | ADD | K => a = a.wrapping_add(k),
                c if c == ALU | ADD | X => a = a.wrapping_add(x),
                c if c == ALU | SUB | X => a = a.wrapping_sub(x),
                c if c == ALU | AND | K => a &= k,
                c if c == ALU | XOR | K => a ^= k,
                c if c == LD | W | LEN => a = packet.len() as u32,
                c if c == LD | W | MEM => a = memory[k as usize],
                c if c == LDX | W | MEM => x = memory[k as usize],
                c if c == ST => memory[k as usize] = a,
                c if c == STX => memory[k as usize] = x,
                c if c == MISC | TXA => a = x,
                c if c == MISC | TAX => x = a,
                c if c == RET | A => return a,
                c if c == RET | K => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    const ANY: Payload = Payload { length: None, word_at: 0, words: &[0x0100_0000, 0x0200_0000], snap: 4 };

    /// An IPv4 packet with an IP option, to port 51820.
    fn v4() -> Vec<u8> {
        let mut packet = vec![0x46, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 7, 1, 1, 1, 1];
        packet.extend([0x0d, 0x96, 0xca, 0x6c, 0, 12, 0, 0, 2, 0, 0, 0]);
        packet
    }

    fn v6() -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 12, 17, 64];
        packet.extend([0; 32]);
        packet.extend([0x0d, 0x96, 0xca, 0x6c, 0, 12, 0, 0, 1, 0, 0, 0]);
        packet
    }

    #[test]
    fn a_program_takes_its_packets_and_leaves_all_others_out() {
        let mut program = Program::default();
        program.require_udp(Family::V4, 0, 51820);
        let program = program.finish_with(0, &ANY);
        assert_eq!(run(&program, &v4()), 36);
        for (at, value) in [(0, 0x44), (0, 0x66), (3, 23), (9, 6), (6, 0x20), (7, 1), (26, 0), (32, 4), (35, 1)] {
            let mut other = v4();
            other[at] = value;
            assert_eq!(run(&program, &other), 0, "byte {at}");
        }
        for cut in 0..v4().len() {
            assert_eq!(run(&program, &v4()[..cut]), 0, "cut at {cut}");
        }
    }

    /// Whoever is woken for a packet must be able to say what it was.
    #[test]
    fn what_a_program_takes_can_be_parsed() {
        for (family, packet) in [(Family::V4, v4()), (Family::V6, v6())] {
            let mut program = Program::default();
            program.require_udp(family, 0, 51820);
            let program = program.finish_with(0, &Payload { length: Some(4), ..ANY });
            let whole = packet.len();
            assert_eq!(run(&program, &packet), whole as u32);
            for (at, value) in (0..whole).flat_map(|at| (0..=u8::MAX).map(move |value| (at, value))) {
                let mut other = packet.clone();
                other[at] = value;
                let copied = run(&program, &other) as usize;
                let parsed = parse(family, &other[..copied.min(whole)], 0);
                assert!(copied == 0 || parsed.is_some(), "{family:?}, byte {at}: {value:#x}");
            }
        }
    }

    #[test]
    fn a_switch_runs_the_program_of_its_value() {
        let program = |family| {
            let mut program = Program::default();
            program.require_udp(family, 14, 51820);
            program.finish_with(14, &ANY)
        };
        let both = switch(H, 12, vec![(0x0800, program(Family::V4)), (0x86dd, program(Family::V6))]);
        let frame = |kind: [u8; 2], packet: &[u8]| [&[0; 12], &kind[..], packet].concat();
        assert_eq!(run(&both, &frame([8, 0], &v4())), 14 + 36);
        assert_eq!(run(&both, &frame([0x86, 0xdd], &v4())), 0);
        assert_eq!(run(&both, &frame([0x86, 0xdd], &v6())), 14 + 52);
        assert_eq!(run(&both, &frame([8, 0], &v6())), 0);
        assert_eq!(run(&both, &frame([8, 6], &v4())), 0);
    }

    /// A STUN message with its attributes (type and value), behind a UDP header, behind an IPv4 header with an option or
    /// nothing.
    fn message(v4: bool, kind: u32, id: [u8; 12], attributes: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut body = Vec::new();
        for (kind, value) in attributes {
            body.extend((*kind as u16).to_be_bytes());
            body.extend((value.len() as u16).to_be_bytes());
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut bytes = if v4 { [&[0x46][..], &[0; 23]].concat() } else { Vec::new() };
        let length = (UDP_HEADER + stun::HEADER as usize + body.len()) as u16;
        for word in [3478, 51820, length, 0, kind as u16, body.len() as u16, 0x2112, 0xa442] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(id);
        bytes.extend(body);
        bytes
    }

    /// RFC 8489 §14.2.
    fn xor_mapped(mapped: SocketAddr, id: [u8; 12]) -> (u32, Vec<u8>) {
        let mask = stun::MAGIC_COOKIE.to_be_bytes().into_iter().chain(id);
        let (family, address) = match mapped.ip() {
            IpAddr::V4(ip) => (1, ip.octets().to_vec()),
            IpAddr::V6(ip) => (2, ip.octets().to_vec()),
        };
        let mut value = vec![0, family];
        value.extend((mapped.port() ^ 0x2112).to_be_bytes());
        value.extend(address.iter().zip(mask).map(|(a, b)| a ^ b));
        (stun::XOR_MAPPED_ADDRESS, value)
    }

    #[test]
    fn only_answers_that_name_the_expected_address_are_left_out() {
        for [expected, other_port, other_ip] in [
            ["203.0.113.45:51820", "203.0.113.45:51821", "203.0.113.44:51820"],
            ["[2001:db8:1:2:3:4:5:6]:51820", "[2001:db8:1:2:3:4:5:6]:51821", "[2001:db8:1:2:3:4:5:7]:51820"],
        ]
        .map(|texts| texts.map(|text| text.parse::<SocketAddr>().unwrap()))
        {
            let v4 = expected.is_ipv4();
            let mut program = Program::default();
            if v4 {
                program.set_x_to_ipv4_header(0)
            } else {
                program.set_x(0)
            }
            program.refuse_expected(0, 0, expected);
            let program = program.finish_with(0, &crate::messages::STUN);
            let id = *b"Twelve bytes";
            let same = xor_mapped(expected, id);
            let software = (0x8022, b"Some server 1.2".to_vec());
            let plain = (0x0001, same.1.clone());
            let left_out = [
                vec![same.clone()],
                vec![same.clone(), software.clone()],
                vec![software.clone(), plain.clone(), same.clone()],
            ];
            for attributes in &left_out {
                assert_eq!(run(&program, &message(v4, stun::SUCCESS, id, attributes)), 0, "{attributes:x?}");
            }
            let let_through = [
                (stun::SUCCESS, vec![xor_mapped(other_port, id)]),
                (stun::SUCCESS, vec![software.clone(), xor_mapped(other_ip, id)]),
                // the first one counts
                (stun::SUCCESS, vec![xor_mapped(other_ip, id), same.clone()]),
                // the attribute of RFC 3489 alone, none at all, an error
                (stun::SUCCESS, vec![plain]),
                (stun::SUCCESS, vec![]),
                (0x0111, vec![same.clone()]),
                // behind more than is looked at
                (stun::SUCCESS, [vec![software; stun::ATTRIBUTES], vec![same.clone()]].concat()),
                // cut short
                (stun::SUCCESS, vec![(stun::XOR_MAPPED_ADDRESS, same.1[..4].to_vec())]),
            ];
            let whole = 1508 + if v4 { 24 } else { 0 };
            for (kind, attributes) in let_through {
                assert_eq!(run(&program, &message(v4, kind, id, &attributes)), whole, "{kind:x} {attributes:x?}");
            }
            // a length beyond the end
            let mut beyond = message(v4, stun::SUCCESS, id, &[(0x8022, vec![0; 32])]);
            let length = beyond.len() - 34;
            beyond[length..length + 2].fill(0xff);
            assert_eq!(run(&program, &beyond), whole);
            if !v4 {
                // masked with another transaction ID it is another address
                let masked = message(v4, stun::SUCCESS, *b"twelve bytes", &[same]);
                assert_eq!(run(&program, &masked), whole);
            }
        }
    }
}
