//! A clock that wakes us.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::{Error, Result};

/// Readable once the time that was set is over; timerfd_create(2). Time that the host sleeps counts (`CLOCK_BOOTTIME`).
/// One wake-up for any length of time, where a timer wheel takes several on its way to a distant slot.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// Set to nothing yet. Non-blocking.
    pub fn open() -> Result<Timer> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        if fd < 0 {
            return Err(Error::system("make a timer", io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just given us this descriptor.
        Ok(Timer(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// To become readable after this long, instead of what was set before.
    pub fn set(&self, after: Duration) -> io::Result<()> {
        // zero would switch it off
        let after = after.max(Duration::from_nanos(1));
        // SAFETY: all zeros is a valid itimerspec: no repetition.
        let mut time: libc::itimerspec = unsafe { std::mem::zeroed() };
        time.it_value.tv_sec = after.as_secs().min(i32::MAX as u64) as _;
        time.it_value.tv_nsec = after.subsec_nanos() as _;
        // SAFETY: the kernel reads `time`, which lives through the call.
        match unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const time, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whether it has become readable since it was set, or since it was asked.
    pub fn expired(&self) -> bool {
        let mut times = [0u8; 8];
        // SAFETY: the kernel writes at most these eight bytes.
        unsafe { libc::read(self.0.as_raw_fd(), times.as_mut_ptr().cast(), times.len()) == 8 }
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// How late this thread's timers may be, so that the kernel lets several of them be one; zero: as little as usual.
/// PR_SET_TIMERSLACK(2const).
pub fn timers_may_be_late(slack: Duration) {
    thread_local! {
        static SET: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) };
    }
    if SET.replace(slack) != slack {
        let nanoseconds = libc::c_ulong::try_from(slack.as_nanos()).unwrap_or(libc::c_ulong::MAX);
        // SAFETY: no pointers. It does not fail.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, nanoseconds) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable_within(timer: &Timer, milliseconds: i32) -> bool {
        let mut poll = libc::pollfd { fd: timer.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, which lives through the call.
        unsafe { libc::poll(&raw mut poll, 1, milliseconds) == 1 }
    }

    #[test]
    fn a_timer_expires_once_each_time_it_is_set() {
        let timer = Timer::open().unwrap();
        assert!(!timer.expired());
        for after in [Duration::ZERO, Duration::from_millis(20)] {
            timer.set(after).unwrap();
            assert!(readable_within(&timer, 60_000));
            assert!(timer.expired());
            assert!(!timer.expired());
        }
        timer.set(Duration::MAX).unwrap();
        assert!(!readable_within(&timer, 0));
    }

    #[test]
    fn a_thread_says_how_late_its_timers_may_be() {
        // SAFETY: no pointers.
        let slack = || Duration::from_nanos(unsafe { libc::prctl(libc::PR_GET_TIMERSLACK) } as u64);
        let usual = slack();
        timers_may_be_late(Duration::from_millis(700));
        assert_eq!(slack(), Duration::from_millis(700));
        timers_may_be_late(Duration::ZERO);
        assert_eq!(slack(), usual);
    }
}
