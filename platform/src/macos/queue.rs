//! kqueue(2): one readable descriptor for several sources, a timer, the end of a process.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::watch::own;

/// Taken from a queue at once.
const BATCH: usize = 16;

/// `sys/event.h`, from macOS 10.13 on; missing from libc.
const NOTE_MACH_CONTINUOUS_TIME: u32 = 0x80;

/// A new one.
pub(super) fn new() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let queue = own(unsafe { libc::kqueue() })?;
    // SAFETY: a plain number for a descriptor of ours.
    unsafe { libc::fcntl(queue.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    Ok(queue)
}

fn event(ident: usize, filter: i16, flags: u16, fflags: u32, data: isize) -> libc::kevent {
    libc::kevent { ident, filter, flags, fflags, data, udata: std::ptr::null_mut() }
}

fn change(queue: &OwnedFd, change: libc::kevent) -> io::Result<()> {
    // SAFETY: one change in, none out; it lives through the call.
    let status =
        unsafe { libc::kevent(queue.as_raw_fd(), &raw const change, 1, std::ptr::null_mut(), 0, std::ptr::null()) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Adds a descriptor. It leaves the queue by itself when it is closed.
pub(super) fn readable(queue: &OwnedFd, fd: RawFd) -> io::Result<()> {
    change(queue, event(fd as usize, libc::EVFILT_READ, libc::EV_ADD, 0, 0))
}

/// Adds a timer that fires again and again.
pub(super) fn timer(queue: &OwnedFd, milliseconds: isize) -> io::Result<()> {
    change(queue, event(0, libc::EVFILT_TIMER, libc::EV_ADD, 0, milliseconds))
}

/// Sets a timer that fires once, counting the time of a suspend too.
pub(super) fn once(queue: &OwnedFd, after: Duration) -> io::Result<()> {
    // 0 would fire at once; nobody waits for milliseconds beyond what fits
    let milliseconds = after.as_millis().clamp(1, isize::MAX as u128 / 2_000_000) as isize;
    let flags = libc::EV_ADD | libc::EV_ONESHOT;
    change(queue, event(0, libc::EVFILT_TIMER, flags, NOTE_MACH_CONTINUOUS_TIME, milliseconds))
}

/// Adds the end of a process; `ESRCH` if there is none.
pub(super) fn exit(queue: &OwnedFd, pid: u32) -> io::Result<()> {
    change(queue, event(pid as usize, libc::EVFILT_PROC, libc::EV_ADD | libc::EV_ONESHOT, libc::NOTE_EXIT, 0))
}

fn wait_for(queue: &OwnedFd, timeout: Duration) -> io::Result<Vec<usize>> {
    let mut events = [event(0, 0, 0, 0, 0); BATCH];
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().min(i64::MAX as u64) as libc::time_t,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: the kernel writes at most as many events as there is room for.
    let count = unsafe {
        libc::kevent(
            queue.as_raw_fd(),
            std::ptr::null(),
            0,
            events.as_mut_ptr(),
            BATCH as libc::c_int,
            &raw const timeout,
        )
    };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(events[..count as usize].iter().map(|event| event.ident).collect())
}

/// What is ready now: descriptors, mostly. Asking takes what is no longer ready out of the queue, so that its own
/// descriptor is readable only while something is.
pub(super) fn ready(queue: &OwnedFd) -> io::Result<Vec<usize>> {
    wait_for(queue, Duration::ZERO)
}

/// Waits for one event; `false` if none came in time.
pub(super) fn wait(queue: &OwnedFd, timeout: Duration) -> io::Result<bool> {
    let deadline = std::time::Instant::now() + timeout;
    loop {
        match wait_for(queue, deadline.saturating_duration_since(std::time::Instant::now())) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(|ready| !ready.is_empty()),
        }
    }
}
