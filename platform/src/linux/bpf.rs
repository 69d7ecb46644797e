//! Classic BPF filters on sockets, and the epoll descriptor that makes one readable descriptor of several of them.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use socket2::{SockFilter, Socket};

use crate::bpf::Instruction;

/// A program as sockets take it.
pub(super) fn filter(program: &[Instruction]) -> Vec<SockFilter> {
    program.iter().map(|i| SockFilter::new(i.code, i.jt, i.jf, i.k)).collect()
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
        control(&epoll, libc::EPOLL_CTL_ADD, socket, true)?;
    }
    Ok(epoll)
}

/// Whether the descriptor becomes readable with that socket.
pub(super) fn listen(epoll: &OwnedFd, socket: &Socket, yes: bool) -> io::Result<()> {
    control(epoll, libc::EPOLL_CTL_MOD, socket, yes)
}

fn control(epoll: &OwnedFd, operation: i32, socket: &Socket, readable: bool) -> io::Result<()> {
    let mut event = libc::epoll_event { events: if readable { libc::EPOLLIN as u32 } else { 0 }, u64: 0 };
    // SAFETY: both descriptors are open and `event` lives through the call.
    match unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, socket.as_raw_fd(), &raw mut event) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
