//! "Something about links, addresses or routes has changed": a route socket, route(4), as a wake-up.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use socket2::{Domain, Protocol, Socket, Type};

use super::queue;
use crate::macos_formats::route;
use crate::{Error, Result, Watch};

/// pf tells nobody that its rules have changed: time to look, in milliseconds.
const LOOK_AT_FIREWALL: isize = 10_000;

/// Readable when the network has changed. Non-blocking.
#[derive(Debug)]
pub struct NetworkWatch(Source);

#[derive(Debug)]
enum Source {
    Routes(Socket),
    Timer(OwnedFd),
}

/// A non-blocking route socket.
pub(super) fn route_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::from(libc::PF_ROUTE), Type::RAW, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Takes every message that waits; whether one told of a change.
pub(super) fn drain(socket: &Socket) -> bool {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    let mut any = false;
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                // SAFETY: recv has written that many bytes.
                let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
                any |= route::tell_of_change(bytes);
            }
            // messages were lost: as good as one that came
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return any,
        }
    }
}

impl NetworkWatch {
    /// Watches links, addresses and routes. Needs no privilege.
    pub fn open() -> Result<Self> {
        route_socket()
            .map(|socket| NetworkWatch(Source::Routes(socket)))
            .map_err(|source| Error::system("watch the network's configuration", source))
    }

    /// The same for the firewall: from time to time, since pf tells nobody.
    pub fn open_firewall() -> Result<Self> {
        let open = || -> io::Result<OwnedFd> {
            let queue = queue::new()?;
            queue::timer(&queue, LOOK_AT_FIREWALL)?;
            Ok(queue)
        };
        open()
            .map(|queue| NetworkWatch(Source::Timer(queue)))
            .map_err(|source| Error::system("watch the firewall", source))
    }
}

impl Watch for NetworkWatch {
    fn drain(&self) -> bool {
        match &self.0 {
            Source::Routes(socket) => drain(socket),
            Source::Timer(queue) => queue::ready(queue).is_ok_and(|ready| !ready.is_empty()),
        }
    }
}

impl AsRawFd for NetworkWatch {
    fn as_raw_fd(&self) -> RawFd {
        match &self.0 {
            Source::Routes(socket) => socket.as_raw_fd(),
            Source::Timer(queue) => queue.as_raw_fd(),
        }
    }
}

/// Time to look whether a file has changed, in milliseconds: configd writes `/etc/resolv.conf` anew by its own rules.
const LOOK_AT_FILES: isize = 5_000;

/// Readable when files may have changed: from time to time.
#[derive(Debug)]
pub struct FileWatch(OwnedFd);

impl FileWatch {
    /// Watches these files, whether or not they are there.
    pub fn open(_paths: &[&Path]) -> Result<Self> {
        let open = || -> io::Result<OwnedFd> {
            let queue = queue::new()?;
            queue::timer(&queue, LOOK_AT_FILES)?;
            Ok(queue)
        };
        open().map(FileWatch).map_err(|source| Error::system("watch files for changes", source))
    }
}

impl Watch for FileWatch {
    fn drain(&self) -> bool {
        queue::ready(&self.0).is_ok_and(|ready| !ready.is_empty())
    }
}

impl AsRawFd for FileWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A descriptor that the kernel has just given us.
pub(super) fn own(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
