//! Classic BPF socket filters, assembled by name instead of by jump distance, and the epoll descriptor that makes one
//! readable descriptor of several filtered sockets.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use socket2::{SockFilter, Socket};

/// A filter under construction; instructions of `linux/bpf_common.h`.
#[derive(Default)]
pub(super) struct Program {
    code: Vec<libc::sock_filter>,
    /// Jumps that leave the packet out: the instruction, and whether it does so where its condition is false.
    rejects: Vec<(usize, bool)>,
}

impl Program {
    pub(super) fn push(&mut self, code: u32, k: u32) {
        self.jump(code, k, 0);
    }

    fn jump(&mut self, code: u32, k: u32, skip_if_true: u8) {
        self.code.push(libc::sock_filter { code: code as u16, jt: skip_if_true, jf: 0, k });
    }

    /// A := what stands at `at`.
    pub(super) fn load(&mut self, size: u32, at: u32) {
        self.push(libc::BPF_LD | size | libc::BPF_ABS, at);
    }

    /// A := what stands at X + `at`.
    pub(super) fn load_behind_x(&mut self, size: u32, at: u32) {
        self.push(libc::BPF_LD | size | libc::BPF_IND, at);
    }

    /// Leaves the packet out unless A is one of `values`.
    pub(super) fn require(&mut self, values: &[u32]) {
        for (index, value) in values.iter().enumerate() {
            let left = values.len() - 1 - index;
            if left == 0 {
                self.rejects.push((self.code.len(), true));
            }
            self.jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, *value, left as u8);
        }
    }

    /// Leaves the packet out if A has one of these bits.
    pub(super) fn refuse_bits(&mut self, bits: u32) {
        self.rejects.push((self.code.len(), false));
        self.push(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, bits);
    }

    /// Ends with: copy X + `behind_x` bytes. Only now is it known where to leave the packet out.
    pub(super) fn finish(mut self, behind_x: u32) -> Vec<SockFilter> {
        self.push(libc::BPF_MISC | libc::BPF_TXA, 0);
        self.push(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K, behind_x);
        self.push(libc::BPF_RET | libc::BPF_A, 0);
        let reject = self.code.len();
        self.push(libc::BPF_RET | libc::BPF_K, 0);
        for (index, if_false) in self.rejects {
            let distance = u8::try_from(reject - index - 1).expect("a short program");
            let instruction = &mut self.code[index];
            *(if if_false { &mut instruction.jf } else { &mut instruction.jt }) = distance;
        }
        self.code.iter().map(|i| SockFilter::new(i.code, i.jt, i.jf, i.k)).collect()
    }
}

/// One readable descriptor for several sockets.
pub(super) fn epoll(sockets: &[&Socket]) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
    for socket in sockets {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: both descriptors are open and `event` lives through the call.
        if unsafe { libc::epoll_ctl(fd, libc::EPOLL_CTL_ADD, socket.as_raw_fd(), &raw mut event) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(epoll)
}
