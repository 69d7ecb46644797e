//! "Something about links, addresses, routes or policy rules has changed": rtnetlink(7) multicast, as a wake-up. What it
//! is now, [`crate::Host`] tells; a lost notification (ENOBUFS) is therefore as good as one that came.

use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::os::fd::{AsRawFd, RawFd};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{Error, Result};

/// Groups of `linux/rtnetlink.h`, as bits of `nl_groups` (group n is bit n-1).
const GROUPS: [u32; 7] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
];

/// linux/netfilter/nfnetlink.h.
const NFNLGRP_NFTABLES: u32 = 7;

/// Readable when the network has changed. Non-blocking.
#[derive(Debug)]
pub struct NetworkWatch(Socket);

impl NetworkWatch {
    /// Watches this thread's network namespace. Needs no privilege.
    pub fn open() -> Result<Self> {
        let groups = GROUPS.iter().fold(0, |bits, group| bits | 1 << (group - 1));
        Self::open_groups(libc::NETLINK_ROUTE, groups)
            .map_err(|source| Error::system("watch the network's configuration", source))
    }

    /// The same for the firewall (nftables). Needs CAP_NET_ADMIN.
    pub fn open_firewall() -> Result<Self> {
        Self::open_groups(libc::NETLINK_NETFILTER, 1 << (NFNLGRP_NFTABLES - 1))
            .map_err(|source| Error::system("watch the firewall", source))
    }

    fn open_groups(protocol: libc::c_int, groups: u32) -> io::Result<Self> {
        let open = || -> io::Result<Socket> {
            let socket =
                Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW.nonblocking(), Some(Protocol::from(protocol)))?;
            // SAFETY: all zeros is a valid sockaddr_nl: the kernel chooses our port number.
            let mut address: libc::sockaddr_nl = unsafe { zeroed() };
            address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
            address.nl_groups = groups;
            let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
            // SAFETY: `address` is a sockaddr_nl of the length given, and lives through the call.
            if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(socket)
        };
        open().map(NetworkWatch)
    }

    /// Takes every notification that waits; whether there was one.
    pub fn drain(&self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut any = false;
        loop {
            match self.0.recv(&mut buffer) {
                Ok(_) => any = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return any,
            }
        }
    }
}

impl AsRawFd for NetworkWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_link_is_a_change_and_quiet_is_none() {
        std::thread::spawn(|| {
            // SAFETY: unshare(2) takes an integer; this thread ends with the test.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                println!("SKIP: no permission to make a network namespace");
                return;
            }
            let watch = NetworkWatch::open().unwrap();
            assert!(!watch.drain());
            let mut host = crate::os::host().unwrap();
            crate::Host::bring_up(&mut host, "lo", 65536).unwrap();
            assert!(watch.drain());
            assert!(!watch.drain());
        })
        .join()
        .unwrap();
    }
}
