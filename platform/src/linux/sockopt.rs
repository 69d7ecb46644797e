//! Socket options that socket2 does not know.

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd as _;

use socket2::Socket;

/// setsockopt(2). `T` is what that option takes: a C int, or a struct of C.
pub(super) fn set<T>(socket: &Socket, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads a `T`, as long as we say, which lives through the call.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
