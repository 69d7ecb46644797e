//! Classic BPF programs, assembled by name instead of by jump distance. Linux attaches them to sockets, macOS to
//! `/dev/bpf`; the instructions are the same (`net/bpf.h`, `linux/bpf_common.h`). Pure.

use crate::datagram::{IPV6_HEADER, UDP, UDP_HEADER};
use crate::types::Family;

/// Sizes of a load: 4 bytes, 2, 1.
pub(crate) const W: u32 = 0x00;
pub(crate) const H: u32 = 0x08;
pub(crate) const B: u32 = 0x10;
/// Instruction classes.
const LD: u32 = 0x00;
const LDX: u32 = 0x01;
const ALU: u32 = 0x04;
const JMP: u32 = 0x05;
const RET: u32 = 0x06;
const MISC: u32 = 0x07;
/// Where a load reads.
const IMM: u32 = 0x00;
const ABS: u32 = 0x20;
const IND: u32 = 0x40;
const MSH: u32 = 0xa0;
/// Operations and operands.
const ADD: u32 = 0x00;
const JEQ: u32 = 0x10;
const JSET: u32 = 0x40;
const K: u32 = 0x00;
const A: u32 = 0x10;
const TXA: u32 = 0x80;

/// One instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

/// A filter under construction.
#[derive(Default)]
pub(crate) struct Program {
    code: Vec<Instruction>,
    /// Jumps that leave the packet out: the instruction, and whether it does so where its condition is false.
    rejects: Vec<(usize, bool)>,
}

impl Program {
    fn push(&mut self, code: u32, k: u32) {
        self.jump(code, k, 0);
    }

    fn jump(&mut self, code: u32, k: u32, skip_if_true: u8) {
        self.code.push(Instruction { code: code as u16, jt: skip_if_true, jf: 0, k });
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
        for (index, value) in values.iter().enumerate() {
            let left = values.len() - 1 - index;
            if left == 0 {
                self.rejects.push((self.code.len(), true));
            }
            self.jump(JMP | JEQ | K, *value, left as u8);
        }
    }

    /// Leaves the packet out if A has one of these bits.
    pub(crate) fn refuse_bits(&mut self, bits: u32) {
        self.rejects.push((self.code.len(), false));
        self.push(JMP | JSET | K, bits);
    }

    /// Leaves out what is not a whole UDP datagram for `port` in an IP packet that begins at `at`. Then X is the length
    /// of its IP header. IPv6 packets with extension headers are left out.
    pub(crate) fn require_udp(&mut self, family: Family, at: u32, port: u16) {
        match family {
            Family::V4 => {
                self.load(B, at + 9);
                self.require(&[u32::from(UDP)]);
                // RFC 791 §3.1: more-fragments flag and fragment offset
                self.load(H, at + 6);
                self.refuse_bits(0x3fff);
                self.set_x_to_ipv4_header(at);
            }
            Family::V6 => {
                self.load(B, at + 6);
                self.require(&[u32::from(UDP)]);
                self.set_x(IPV6_HEADER as u32);
            }
        }
        self.load_behind_x(H, at + 2);
        self.require(&[u32::from(port)]);
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
        let reject = self.code.len();
        self.push(RET | K, 0);
        for (index, if_false) in self.rejects {
            let distance = u8::try_from(reject - index - 1).expect("a short program");
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

    /// How many bytes a program copies of a packet; what the kernels' interpreters do.
    pub(crate) fn run(program: &[Instruction], packet: &[u8]) -> u32 {
        let (mut a, mut x, mut at) = (0u32, 0u32, 0usize);
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
                c if c == ALU | ADD | K => a += k,
                c if c == MISC | TXA => a = x,
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

    #[test]
    fn a_program_takes_its_packets_and_leaves_all_others_out() {
        let mut program = Program::default();
        program.require_udp(Family::V4, 0, 51820);
        let program = program.finish_with(0, &ANY);
        assert_eq!(run(&program, &v4()), 36);
        for (at, value) in [(9, 6), (6, 0x20), (7, 1), (26, 0), (32, 4), (35, 1)] {
            let mut other = v4();
            other[at] = value;
            assert_eq!(run(&program, &other), 0, "byte {at}");
        }
        for cut in 0..v4().len() {
            assert_eq!(run(&program, &v4()[..cut]), 0, "cut at {cut}");
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
        let mut v6 = vec![0x60, 0, 0, 0, 0, 12, 17, 64];
        v6.extend([0; 32]);
        v6.extend([0x0d, 0x96, 0xca, 0x6c, 0, 12, 0, 0, 1, 0, 0, 0]);
        assert_eq!(run(&both, &frame([0x86, 0xdd], &v6)), 14 + 52);
        assert_eq!(run(&both, &frame([8, 0], &v6)), 0);
        assert_eq!(run(&both, &frame([8, 6], &v4())), 0);
    }
}
