//! "Something has changed", as a wake-up: links, addresses, routes, policy rules and the firewall by netlink multicast,
//! files by inotify(7). What it is now is for the woken to look at; a lost notification (ENOBUFS) is therefore as good as
//! one that came.

use std::ffi::CString;
use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{Error, Result, Watch};

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
}

impl Watch for NetworkWatch {
    fn drain(&self) -> bool {
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

/// What makes a file another one, or its contents: written and closed, made, removed, renamed; itself or its name.
const FILE_EVENTS: u32 = libc::IN_CLOSE_WRITE
    | libc::IN_CREATE
    | libc::IN_DELETE
    | libc::IN_DELETE_SELF
    | libc::IN_MOVE
    | libc::IN_MOVE_SELF;
/// Symbolic links followed one after the other; the kernel's own limit, path_resolution(7).
const LINKS: usize = 40;

/// Readable when one of a few files may have changed, whether or not they are there. Non-blocking. What happens beside
/// them in their directories wakes, too.
#[derive(Debug)]
pub struct FileWatch {
    inotify: OwnedFd,
    paths: Vec<PathBuf>,
}

impl FileWatch {
    /// Watches these files, through symbolic links.
    pub fn open(paths: &[&Path]) -> Result<Self> {
        let failed = |source| Error::system("watch files for changes", source);
        // SAFETY: no pointers.
        let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if fd < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just given us this descriptor.
        let inotify = unsafe { OwnedFd::from_raw_fd(fd) };
        let watch = FileWatch { inotify, paths: paths.iter().map(|path| path.to_path_buf()).collect() };
        watch.follow().map_err(failed)?;
        Ok(watch)
    }

    /// Watches each file, its directory, and those of every link on the way to it. Watching one again changes nothing.
    fn follow(&self) -> io::Result<()> {
        for path in &self.paths {
            let mut path = path.clone();
            for _ in 0..LINKS {
                // a file that is a mount point tells nothing to the directory it is seen in
                let _ = self.add(&path);
                let parents = path.ancestors().skip(1);
                // where there is no such directory, the one that it would be made in
                let added = parents
                    .map(|parent| self.add(parent))
                    .find(|added| !matches!(added, Err(error) if error.kind() == io::ErrorKind::NotFound));
                added.unwrap_or(Ok(()))?;
                let Ok(target) = std::fs::read_link(&path) else { break };
                path = path.parent().unwrap_or(Path::new("/")).join(target);
            }
        }
        Ok(())
    }

    fn add(&self, path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_encoded_bytes())?;
        // SAFETY: a valid C string.
        match unsafe { libc::inotify_add_watch(self.inotify.as_raw_fd(), path.as_ptr(), FILE_EVENTS) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

impl Watch for FileWatch {
    fn drain(&self) -> bool {
        let mut buffer = [0u8; 4096];
        let mut any = false;
        loop {
            // SAFETY: the kernel writes at most `buffer.len()` bytes.
            match unsafe { libc::read(self.inotify.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) } {
                1.. => any = true,
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        if any && let Err(error) = self.follow() {
            tracing::warn!(%error, "not every file can be watched any more");
        }
        any
    }
}

impl AsRawFd for FileWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_followed_through_links_and_directories_that_come_and_go() {
        use std::fs;
        let dir = std::env::temp_dir().join(format!("peervpn-watch-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let (path, run) = (dir.join("resolv.conf"), dir.join("run"));
        let watch = FileWatch::open(&[&path]).unwrap();
        let step = |what: &str, step: &dyn Fn() -> io::Result<()>| {
            assert!(!watch.drain(), "before: {what}");
            step().unwrap();
            assert!(watch.drain(), "not noticed: {what}");
        };
        step("made", &|| fs::write(&path, "a"));
        step("written", &|| fs::write(&path, "b"));
        step("replaced", &|| fs::write(dir.join("new"), "c").and_then(|()| fs::rename(dir.join("new"), &path)));
        step("removed", &|| fs::remove_file(&path));
        step("made a link to nowhere", &|| std::os::unix::fs::symlink("run/resolve/stub", &path));
        step("the target's directory's", &|| fs::create_dir(&run));
        step("the target's directory", &|| fs::create_dir(run.join("resolve")));
        step("the target", &|| fs::write(run.join("resolve/stub"), "d"));
        step("the target written", &|| fs::write(run.join("resolve/stub"), "e"));
        assert!(!watch.drain());
        // a hard link stands for a mount: only the file itself is watched where it is written from
        let elsewhere = std::env::temp_dir().join(format!("peervpn-watch-{}-elsewhere", std::process::id()));
        step("replaced by another name of a file", &|| {
            fs::write(&elsewhere, "f")?;
            fs::remove_file(&path)?;
            fs::hard_link(&elsewhere, &path)
        });
        step("written by the other name", &|| fs::write(&elsewhere, "g"));
        fs::remove_file(&elsewhere).unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }

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
