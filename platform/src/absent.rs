//! What a system without back ends of its own offers so far: the same types and functions, of which those that would
//! touch the network answer [`Error::Unsupported`]. Types that nothing can make have no values, so what they would do
//! needs no answer. macOS and Windows include this file; each back end that comes takes its place there.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::firewall::Firewall;
use crate::types::*;
use crate::{Error, Host, Result, WireGuard, nft};

const INSTEAD: &str = "use a Linux machine, or a Linux virtual machine on this one";

fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(Error::Unsupported { what, instead: INSTEAD })
}

/// The network stack. Has no values: [`host`] never returns one.
#[derive(Debug)]
pub enum SystemHost {}

/// Opens the network stack.
pub fn host() -> Result<SystemHost> {
    unsupported("changing the network configuration")
}

/// The WireGuard of a back end.
pub fn wireguard(backend: &Backend) -> Result<Box<dyn WireGuard>> {
    match backend {
        Backend::Kernel => unsupported("the kernel back end"),
        Backend::Userspace => unsupported("the userspace back end"),
    }
}

/// Whether the system has WireGuard of its own that PeerVPN can drive.
pub fn kernel_wireguard() -> Result<bool> {
    Ok(false)
}

/// Whether PeerVPN can make a TUN device.
pub fn tun_available() -> bool {
    false
}

/// Gives up capabilities, which this system does not have.
pub fn confine(_keep: &[Capability]) -> Result<u32> {
    Ok(0)
}

/// Gives up capabilities, which this system does not have.
pub fn confine_thread() {}

/// How late this thread's timers may be: as the system likes.
pub fn timers_may_be_late(_slack: std::time::Duration) {}

/// Lets go of pages that only the start needed: as the system likes.
pub fn release_program_pages() {}

/// Whether directories are writable without capabilities, which this system does not have.
pub fn reachable(_directories: &[&std::path::Path], _keep: &[Capability]) -> Result<bool> {
    Ok(true)
}

/// Whether this process may write to a file or directory that is there.
pub fn writable(path: &std::path::Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| !found.permissions().readonly())
}

/// Tells the service manager; there is none that asks.
pub fn notify(_state: &str) {}

/// How often the service manager wants to hear from us: never.
pub fn watchdog() -> Option<std::time::Duration> {
    None
}

/// The process that holds a UDP port; nobody is asked here.
pub fn port_holder(_port: u16) -> Option<PortHolder> {
    None
}

/// UTC, since std knows no time zones: hours, minutes, seconds.
pub fn local_time() -> (u8, u8, u8) {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    ((since / 3600 % 24) as u8, (since / 60 % 60) as u8, (since % 60) as u8)
}

/// A timer that counts the time of a suspend, too. Has no values: opening one never succeeds.
#[derive(Debug)]
pub enum Timer {}

impl Timer {
    /// Opens one.
    pub fn open() -> Result<Self> {
        unsupported("a timer of the system's")
    }

    /// To expire after this long.
    pub fn set(&self, _after: std::time::Duration) -> std::io::Result<()> {
        match *self {}
    }

    /// Whether it has expired.
    pub fn expired(&self) -> bool {
        match *self {}
    }
}

/// Tables of Linux's legacy iptables.
pub fn legacy_tables(_names: &str) -> Vec<String> {
    Vec::new()
}

/// The TCP ports that the system listens on; nobody is asked here.
pub fn listening_ports() -> Vec<u16> {
    Vec::new()
}

impl Host for SystemHost {
    fn links(&mut self) -> Result<Vec<Link>> {
        match *self {}
    }
    fn link(&mut self, _name: &str) -> Result<Option<Link>> {
        match *self {}
    }
    fn create_wireguard_link(&mut self, _name: &str) -> Result<()> {
        match *self {}
    }
    fn delete_link(&mut self, _name: &str) -> Result<()> {
        match *self {}
    }
    fn mark_link(&mut self, _name: &str) -> Result<()> {
        match *self {}
    }
    fn bring_up(&mut self, _name: &str, _mtu: u32) -> Result<()> {
        match *self {}
    }
    fn addresses(&mut self) -> Result<Vec<Address>> {
        match *self {}
    }
    fn add_address(&mut self, _link: &str, _address: IpNetwork) -> Result<()> {
        match *self {}
    }
    fn routes(&mut self) -> Result<Vec<Route>> {
        match *self {}
    }
    fn add_route(&mut self, _route: &Route) -> Result<()> {
        match *self {}
    }
    fn add_routes(&mut self, _routes: &[Route]) -> Result<()> {
        match *self {}
    }
    fn delete_route(&mut self, _route: &Route) -> Result<()> {
        match *self {}
    }
    fn rules(&mut self) -> Result<Vec<Rule>> {
        match *self {}
    }
    fn add_rule(&mut self, _rule: &Rule) -> Result<()> {
        match *self {}
    }
    fn delete_rule(&mut self, _rule: &Rule) -> Result<()> {
        match *self {}
    }
    fn route_lookup(&mut self, _destination: IpAddr, _mark: u32) -> Result<Option<RouteLookup>> {
        match *self {}
    }
    fn sysctl(&mut self, _key: &str) -> Result<Option<String>> {
        match *self {}
    }
    fn set_sysctl(&mut self, _key: &str, _value: &str) -> Result<()> {
        match *self {}
    }
    fn ipv6(&mut self) -> Result<bool> {
        match *self {}
    }
    fn boot_id(&mut self) -> Result<String> {
        match *self {}
    }
    fn replace_firewall(&mut self, _firewall: &Firewall) -> Result<()> {
        match *self {}
    }
    fn firewall_stands(&mut self, _firewall: &Firewall) -> Result<bool> {
        match *self {}
    }
    fn delete_firewall(&mut self, _name: &str) -> Result<()> {
        match *self {}
    }
    fn seen_chains(&mut self) -> Result<Vec<nft::foreign::SeenChain>> {
        match *self {}
    }
    fn insert_rules(&mut self, _place: &nft::foreign::Place, _rules: &[nft::Rule]) -> Result<()> {
        match *self {}
    }
    fn delete_commented(&mut self, _place: &nft::foreign::Place, _comment: &str) -> Result<()> {
        match *self {}
    }
}

/// stdout and stderr.
pub mod output {
    /// Whether so many bytes can be written now; nobody knows.
    pub fn takes(_descriptor: i32, _bytes: usize) -> bool {
        false
    }
}

/// Copies of incoming packets.
pub mod packet {
    use std::io;
    use std::net::SocketAddr;

    use super::unsupported;
    use crate::Result;

    /// For [`InitiationTap::recv`]: IPv4 header with options, UDP header, initiation.
    pub const BUFFER_LEN: usize = 60 + 8 + 148;

    /// A tap on WireGuard messages. Has no values: opening one never succeeds.
    #[derive(Debug)]
    pub enum InitiationTap {}

    impl InitiationTap {
        /// Copies handshake initiations for `port`.
        pub fn open(_port: u16) -> Result<Self> {
            unsupported("learning peers from their handshake initiations")
        }

        /// Copies the beginnings of WireGuard messages for `port`.
        pub fn open_wakeup(_port: u16) -> Result<Self> {
            unsupported("watching for WireGuard messages")
        }

        /// The next copy.
        pub fn recv<'a>(&self, _buf: &'a mut [u8]) -> io::Result<Option<(SocketAddr, &'a [u8])>> {
            match *self {}
        }

        /// Whether copies make it readable.
        pub fn announce(&self, _copies: bool) -> io::Result<()> {
            match *self {}
        }

        /// How many copies were lost.
        pub fn dropped(&self) -> io::Result<u64> {
            match *self {}
        }
    }
}

/// STUN from a port that WireGuard owns.
pub mod raw {
    use std::io;
    use std::net::{IpAddr, SocketAddr};

    use super::unsupported;
    use crate::Result;

    /// For [`RawStun::recv`]: no copied packet is longer.
    pub const BUFFER_LEN: usize = 2048;

    /// Hands a datagram to a socket of this host, as if it came from `from`.
    pub fn hand_over(_from: SocketAddr, _to: SocketAddr, _payload: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// A way to send and receive STUN by WireGuard's port. Has no values: opening one never succeeds.
    #[derive(Debug)]
    pub enum RawStun {}

    impl RawStun {
        /// Opens it for `port`.
        pub fn open(_port: u16, _fwmark: u32) -> Result<Self> {
            unsupported("STUN from the port that WireGuard owns")
        }

        /// Leaves out answers that say nothing new.
        pub fn leave_out(&self, _expected: &[SocketAddr]) -> io::Result<()> {
            match *self {}
        }

        /// Sends a message.
        pub fn send(&self, _source: IpAddr, _to: SocketAddr, _message: &[u8]) -> io::Result<()> {
            match *self {}
        }

        /// The next message that came in.
        pub fn recv<'a>(&self, _buf: &'a mut [u8]) -> io::Result<Option<(SocketAddr, &'a [u8])>> {
            match *self {}
        }
    }
}

/// The userspace device's process. None is ever started here, so none runs.
pub mod process {
    use std::ffi::OsString;
    use std::fs::File;
    use std::path::Path;
    use std::time::Duration;

    use super::unsupported;
    use crate::Result;
    use crate::types::ProcessId;

    /// A started program that waits for our go. Never made: [`spawn_held`] never succeeds.
    #[derive(Debug)]
    pub struct HeldDevice {
        /// The process, for the journal.
        pub id: ProcessId,
        never: std::convert::Infallible,
    }

    impl HeldDevice {
        /// Lets the program go on.
        pub fn release(self) -> Result<()> {
            match self.never {}
        }
    }

    /// Which files other processes have open; nobody is asked here.
    pub fn open_elsewhere(_wanted: impl Fn(&Path) -> bool) -> Vec<std::path::PathBuf> {
        Vec::new()
    }

    /// Hides an argument from the list of processes: not here. Windows keeps what a process was started with where others
    /// read it, and documents it as not to be changed (GetCommandLineW).
    pub fn conceal_argument(_argument: &str) -> bool {
        false
    }

    /// Starts a program that waits for our go.
    pub fn spawn_held(
        _program: &Path,
        _args: &[OsString],
        _envs: &[(OsString, OsString)],
        _log: Option<File>,
    ) -> Result<HeldDevice> {
        unsupported("the userspace back end")
    }

    /// The identity of a running process, for one that we started; there is none.
    pub fn process_id(_pid: u32) -> Option<ProcessId> {
        None
    }

    /// Ends a process that we started. It may be one of another system's journal: then it is not ours to end.
    pub fn terminate(_id: &ProcessId, _grace: Duration) -> Result<()> {
        unsupported("ending a userspace device")
    }

    /// The process that listens on an interface's UAPI socket.
    pub fn uapi_owner(_interface: &str) -> Option<ProcessId> {
        None
    }

    /// Removes the UAPI socket that a dead device left behind.
    pub fn remove_uapi_socket(_interface: &str) -> Result<bool> {
        unsupported("the userspace back end")
    }

    /// Waits until an interface's userspace device answers.
    pub fn wait_uapi(_interface: &str, _timeout: Duration) -> Result<()> {
        unsupported("the userspace back end")
    }
}

/// The userspace device that is taken when none is named; `None` is the bundled one.
pub const USUAL_DEVICE: Option<&str> = None;

/// What a new userspace device is to be called, and what its program is told beside that.
pub fn for_device(_name: &str) -> Result<(String, Vec<(String, String)>)> {
    unsupported("the userspace back end")
}

/// Where a userspace device would be spoken to. Has no values: [`UapiListener::bind`] never succeeds.
#[derive(Debug)]
pub enum UapiListener {}

impl UapiListener {
    /// Listens for an interface.
    pub fn bind(_interface: &str, _device: &str) -> std::io::Result<Self> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    /// The next connection; whom it gives a persistent keepalive would be told to `called`.
    pub async fn accept<T>(&mut self, _called: &T) -> std::io::Result<std::net::TcpStream> {
        match *self {}
    }
}

/// Changes of the network.
pub mod watch {
    use std::path::Path;

    use super::unsupported;
    use crate::{Result, Watch};

    /// Tells when the network has changed. Has no values: opening one never succeeds.
    #[derive(Debug)]
    pub enum NetworkWatch {}

    impl NetworkWatch {
        /// Watches links, addresses and routes.
        pub fn open() -> Result<Self> {
            unsupported("watching the network's configuration")
        }

        /// The same for the firewall.
        pub fn open_firewall() -> Result<Self> {
            unsupported("watching the firewall")
        }
    }

    impl Watch for NetworkWatch {
        fn drain(&self) -> bool {
            match *self {}
        }
    }

    /// Tells when files may have changed. Has no values: opening one never succeeds.
    #[derive(Debug)]
    pub enum FileWatch {}

    impl FileWatch {
        /// Watches these files.
        pub fn open(_paths: &[&Path]) -> Result<Self> {
            unsupported("watching files")
        }
    }

    impl Watch for FileWatch {
        fn drain(&self) -> bool {
            match *self {}
        }
    }
}

/// Telling programs which DNS servers to ask; not here.
pub mod dns {
    use super::unsupported;
    use crate::Result;
    use crate::types::DnsProbes;

    /// Looks at what is there.
    pub fn probe() -> Result<DnsProbes> {
        unsupported("changing DNS")
    }

    /// A resolv.conf.
    pub mod file {
        use std::path::Path;

        use super::super::unsupported;
        use crate::Result;
        use crate::types::FileState;

        /// The file that the C library reads where there is one.
        pub const PATH: &str = "/etc/resolv.conf";
        /// The mode that a new one gets.
        pub const MODE: u32 = 0o644;

        /// The file as it is.
        pub fn state(_path: &Path) -> Result<FileState> {
            unsupported("changing DNS")
        }

        /// Puts a file into this state.
        pub fn put(_path: &Path, _state: &FileState, _in_place: bool) -> Result<()> {
            unsupported("changing DNS")
        }

        /// The text of a resolv.conf; none is read here.
        pub fn read(_path: &Path) -> Option<String> {
            None
        }
    }

    /// resolvconf(8).
    pub mod resolvconf {
        use super::super::unsupported;
        use crate::Result;
        use crate::types::Resolvconf;

        /// Gives it a record.
        pub fn add(_resolvconf: &Resolvconf, _record: &str, _text: &str) -> Result<()> {
            unsupported("resolvconf")
        }

        /// Takes a record back.
        pub fn remove(_resolvconf: &Resolvconf, _record: &str) -> Result<()> {
            unsupported("resolvconf")
        }
    }

    /// systemd-resolved.
    pub mod resolved {
        use std::net::IpAddr;

        use super::super::unsupported;
        use crate::Result;

        /// Sends every query to these servers by that link.
        pub fn set(_ifindex: u32, _servers: &[IpAddr], _plain: bool) -> Result<()> {
            unsupported("systemd-resolved")
        }

        /// The servers of a link.
        pub fn servers(_ifindex: u32) -> Result<Vec<IpAddr>> {
            unsupported("systemd-resolved")
        }

        /// Takes back what was said about a link.
        pub fn revert(_ifindex: u32) -> Result<()> {
            unsupported("systemd-resolved")
        }
    }
}

/// The started program's side of [`process::spawn_held`].
pub mod launch {
    use std::io::{self, Read as _};
    use std::path::Path;

    /// Waits for the starter's go, one byte on standard input; `false` if it died before.
    pub fn wait_release() -> bool {
        io::stdin().read(&mut [0]).is_ok_and(|n| n == 1)
    }

    /// Becomes another program; not here.
    pub fn exec(_program: &Path, _args: &[&str], _envs: &[(&str, &str)]) -> io::Error {
        io::ErrorKind::Unsupported.into()
    }
}
