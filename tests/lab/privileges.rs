//! What a running node and its userspace device may still do, and what they tell a service manager.

use std::fs;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::node::Node;
use crate::topology::{Lab, Nat, Site};
use crate::{assert_leaves_through_exit, join, lab_tests, open_exit, record};

/// CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW; capabilities(7).
const BIND: u64 = 1 << 10;
const ADMIN: u64 = 1 << 12;
const RAW: u64 = 1 << 13;

/// A field of a thread's `status`, in hex; proc_pid_status(5).
fn field(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    u64::from_str_radix(value.expect(name).trim(), 16).expect(name)
}

/// Sends a signal to every process of ours at a site.
pub fn signal(site: &Site, signal: i32) {
    for path in processes(site) {
        // SAFETY: a signal to a process seen in a namespace of the lab's.
        unsafe { libc::kill(pid(&path), signal) };
    }
}

/// Directories below `/proc` of the processes of ours at a site.
fn processes(site: &Site) -> Vec<PathBuf> {
    let net = site.host.run(|| fs::metadata("/proc/thread-self/ns/net").expect("ours").ino());
    let processes = fs::read_dir("/proc").expect("procfs").flatten().map(|entry| entry.path());
    let ours = |path: &PathBuf| {
        fs::metadata(path.join("ns/net")).is_ok_and(|found| found.ino() == net)
            && fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("peervpn"))
    };
    processes.filter(ours).collect()
}

/// The process whose directory it is.
fn pid(path: &Path) -> i32 {
    path.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a process ID")
}

/// The status of every thread of every process of ours at a site, with the command line of its process.
fn threads(site: &Site) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for path in processes(site) {
        let line = fs::read(path.join("cmdline")).expect("a process of ours");
        let line = String::from_utf8(line).expect("text").replace('\0', " ");
        for thread in fs::read_dir(path.join("task")).expect("its threads").flatten() {
            // one that ends meanwhile keeps nothing
            if let Ok(status) = fs::read_to_string(thread.path().join("status")) {
                found.push((line.clone(), status));
            }
        }
    }
    found
}

/// How many descriptors every process of ours at a site may open from now on; the answer is how many one could before.
fn descriptors(site: &Site, most: libc::rlim_t) -> libc::rlim_t {
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    for path in processes(site) {
        let pid = pid(&path);
        // SAFETY: a process seen in a namespace of the lab's; both structures live through the calls.
        let results = unsafe {
            let read = libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut before);
            let limit = libc::rlimit { rlim_cur: most, ..before };
            [read, libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut())]
        };
        assert_eq!(results, [0, 0], "{}", std::io::Error::last_os_error());
    }
    before.rlim_cur
}

/// Waits until a node says that it has given up what it needs no more, which follows its first event.
#[track_caller]
fn settled(node: &Node) -> String {
    let limit = Instant::now() + record::patience(5);
    loop {
        let log = node.log();
        if log.contains("gave up capabilities") {
            return log;
        }
        assert!(Instant::now() < limit, "{log}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asserts what the threads of a site's processes may do.
#[track_caller]
fn assert_confined(site: &Site) {
    let threads = threads(site);
    let (mut nodes, mut devices) = (0, 0);
    for (line, status) in &threads {
        let device = line.contains("__userspace-device");
        let most = if device { ADMIN | BIND } else { ADMIN | RAW };
        let permitted = field(status, "CapPrm");
        assert_eq!(permitted & !most, 0, "{line} has more than it needs:\n{status}");
        assert_eq!(field(status, "CapEff"), permitted, "{status}");
        assert_eq!(field(status, "CapBnd") & !most, 0, "{line} could get more:\n{status}");
        assert_eq!((field(status, "CapInh"), field(status, "CapAmb")), (0, 0), "{status}");
        assert_eq!(field(status, "NoNewPrivs"), 1, "{line}\n{status}");
        if permitted == most {
            *if device { &mut devices } else { &mut nodes } += 1;
        }
    }
    assert_eq!(nodes, 1, "one thread of the node works with privileges: {threads:#?}");
    assert_eq!(devices > 0, record::backend() == "userspace", "{threads:#?}");
}

/// What a service manager hears on this socket within a second or two, up to `enough` messages.
fn heard(socket: &UnixDatagram, enough: usize) -> Vec<String> {
    socket.set_read_timeout(Some(record::patience(3))).expect("a time-out");
    let mut buffer = [0; 256];
    (0..enough)
        .map_while(|_| socket.recv(&mut buffer).ok().map(|n| String::from_utf8_lossy(&buffer[..n]).into_owned()))
        .collect()
}

lab_tests! {
    /// Network configuration and raw sockets are all that is left, on every thread; everything works with it.
    fn a_running_node_keeps_two_capabilities() {
        let lab = Lab::new(Nat::FullCone, &[Nat::PortRestricted.into()]);
        let before = [lab.exit.host.snapshot(), lab.peer().host.snapshot()];
        let (mut exit, ready) = open_exit(&lab, &[]);
        let (mut peer, _) = join(lab.peer(), &ready, &[]);
        assert_leaves_through_exit(&lab, lab.peer());
        settled(&exit);
        assert_confined(&lab.exit);
        settled(&peer);
        assert_confined(lab.peer());
        // and putting the host back needs no more
        peer.stop(libc::SIGTERM);
        exit.stop(libc::SIGTERM);
        assert!(before[0] == lab.exit.host.snapshot() && before[1] == lab.peer().host.snapshot());
    }

    /// A connection that could not be taken is not the last one, and it is waited for without spinning.
    fn a_node_that_was_out_of_descriptors_answers_again() {
        let lab = Lab::without_stun(Nat::Open, &[]);
        let (mut exit, _) = open_exit(&lab, &["--no-stun", "-v"]);
        settled(&exit);
        let limits = descriptors(&lab.exit, 0);
        let failures = || exit.log().matches("accept a connection").count();
        let _waits = UnixStream::connect(lab.exit.dir.join("run/peervpn0.sock")).expect("the control socket");
        let since = Instant::now();
        while failures() < 3 {
            assert!(since.elapsed() < record::patience(10), "{}", exit.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        let most = since.elapsed().as_millis() / 100 + 1;
        assert!(failures() as u128 <= most, "{most} at most: {}", exit.log());
        descriptors(&lab.exit, limits);
        lab.exit.run_ok(&["status"]);
        exit.stop(libc::SIGTERM);
    }

    /// State below a directory that only another user may enter: the one capability that this takes stays.
    fn state_below_another_users_directory() {
        let lab = Lab::without_stun(Nat::Open, &[]);
        let home = &lab.exit.dir;
        fs::set_permissions(home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
        std::os::unix::fs::chown(home, Some(65534), None).expect("chown");
        let before = lab.exit.host.snapshot();
        let (mut exit, _) = open_exit(&lab, &["--no-stun"]);
        assert!(settled(&exit).contains("CAP_DAC_OVERRIDE"), "{}", exit.log());
        exit.stop(libc::SIGTERM);
        assert!(before == lab.exit.host.snapshot());
    }

    /// sd_notify(3): ready when it is, alive while it is, stopping when asked to; on both kinds of socket.
    fn the_service_manager_is_told() {
        let mut lab = Lab::without_stun(Nat::Open, &[]);
        let path = lab.exit.dir.join("notify");
        let name = format!("peervpn-{}", lab.exit.host.name);
        let abstract_name = SocketAddr::from_abstract_name(&name).expect("an address");
        // abstract names belong to a network namespace
        let sockets = lab.exit.host.run(|| {
            [
                (path.display().to_string(), UnixDatagram::bind(&path).expect("bind")),
                (format!("@{name}"), UnixDatagram::bind_addr(&abstract_name).expect("bind")),
            ]
        });
        for (address, socket) in sockets {
            lab.exit.under = vec!["env".into(), format!("NOTIFY_SOCKET={address}"), "WATCHDOG_USEC=200000".into()];
            let (mut exit, _) = open_exit(&lab, &["--no-stun"]);
            let said = heard(&socket, 6);
            assert_eq!(said.iter().filter(|state| *state == "READY=1").count(), 1, "{said:?}");
            assert!(said.iter().filter(|state| *state == "WATCHDOG=1").count() >= 4, "{said:?}");
            std::thread::sleep(Duration::from_millis(50));
            exit.stop(libc::SIGTERM);
            let said = heard(&socket, 20);
            assert!(said.iter().any(|state| state == "STOPPING=1"), "{said:?}");
        }
    }
}
