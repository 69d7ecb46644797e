//! The host that crashes: a site of the lab with plenty of things on it that are not ours.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::node::Node;
use crate::record::patience;
use crate::snapshot::{Snapshot, assert_unchanged};
use crate::topology::{Lab, Nat, Plan, Site};

/// Which node crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Exit,
    Connect,
}

/// A lab whose exit or peer is killed again and again.
pub struct Victim {
    pub mode: Mode,
    lab: Lab,
    /// What the peer connects to, and the exit that answers; none where the exit is the victim.
    target: Option<(String, Node)>,
    before: Snapshot,
    net: u64,
}

/// How a node ended that was to be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Killed,
    /// It came up, was stopped and put the host back before the kill came.
    Survived,
}

/// Links, routes, rules, tables and settings of others, as like ours as they can be without carrying our marks.
fn furnish(site: &Site) {
    site.host.ip(
        "link add name peervpn1 type veth peer name peervpn-x\nlink set peervpn1 up\nlink set peervpn-x up\n\
         link set peervpn-x alias peervpn-test\naddr add 10.99.0.1/24 dev peervpn1\n\
         route add 10.98.0.0/24 dev peervpn1 table 51820\nroute add 10.97.0.0/24 dev peervpn1 proto 81\n\
         route add unreachable 10.96.0.0/24 proto static\n\
         rule add priority 5300 fwmark 0x20000000/0x20000000 lookup 51821\nrule add priority 5290 lookup main suppress_prefixlength 0\n",
    );
    site.host.nft(
        "table inet peervpn-old {
  chain passing { type filter hook forward priority 0; policy accept;
    counter accept
  }
}
table ip peervpn {
  chain outward { type nat hook postrouting priority 100;
    oifname \"peervpn1\" masquerade
  }
}
table inet peervpnx {
  set some { type ipv4_addr; }
}
",
    );
    // settings that the kernel overwrites along with the ones a node writes
    site.host.sysctl(&[
        "net/ipv6/conf/peervpn1/forwarding=1",
        "net/ipv6/conf/peervpn-x/accept_ra=1",
        "net/ipv4/conf/peervpn-x/rp_filter=1",
    ]);
}

impl Victim {
    /// Builds the lab.
    pub fn new(mode: Mode) -> Victim {
        let peers: &[Plan] =
            if mode == Mode::Exit { &[] } else { &[Plan { nat: Nat::Open, v6: crate::topology::V6::Routed }] };
        let lab = Lab::without_stun(Nat::Open, peers);
        let site = if mode == Mode::Exit { &lab.exit } else { lab.peer() };
        furnish(site);
        // link-local addresses and their routes come by themselves, a moment after their links
        let mut before = site.host.snapshot();
        loop {
            std::thread::sleep(Duration::from_millis(300));
            let now = site.host.snapshot();
            if now == before {
                break;
            }
            before = now;
        }
        let net = site.host.run(|| fs::metadata("/proc/thread-self/ns/net").expect("our namespace").ino());
        let target = (mode == Mode::Connect).then(|| {
            let mut exit = lab.exit.exit(&["--no-stun", "--accept", "any"]);
            let ready = exit.event("ready");
            (ready["connect"].as_str().expect("a connect string").to_owned(), exit)
        });
        Victim { mode, lab, target, before, net }
    }

    /// The host that crashes.
    pub fn site(&self) -> &Site {
        if self.mode == Mode::Exit { &self.lab.exit } else { self.lab.peer() }
    }

    fn site_mut(&mut self) -> &mut Site {
        if self.mode == Mode::Exit { &mut self.lab.exit } else { &mut self.lab.peers[0] }
    }

    /// Starts the node, with `args` more, under the program and arguments `under`.
    pub fn start(&mut self, under: &[String], args: &[&str]) -> Node {
        self.site_mut().under = under.to_vec();
        let node = match &self.target {
            None => self.lab.exit.exit(&[&["--no-stun", "--accept", "any"], args].concat()),
            Some((target, _)) => self.lab.peer().connect(target, &[&["--no-stun"], args].concat()),
        };
        self.site_mut().under.clear();
        node
    }

    /// The event that says that the node is up.
    pub fn up(&self) -> &'static str {
        if self.mode == Mode::Exit { "ready" } else { "connected" }
    }

    /// Starts the node, waits until it is up, stops it: somewhere on this way `under` may kill it.
    pub fn run_through(&mut self, under: &[String]) -> End {
        let mut node = self.start(under, &[]);
        if node.try_event(self.up(), crate::record::patience(20)).is_ok() {
            node.signal(libc::SIGTERM);
        }
        match node.wait() {
            None => End::Killed,
            Some(0) => End::Survived,
            Some(code) => panic!("exit status {code} of a node that should have died or succeeded\n{}", node.log()),
        }
    }

    /// Runs `recover` under `under`; whether it lived.
    pub fn recover(&mut self, under: &[String]) -> End {
        self.site_mut().under = under.to_vec();
        let finished = self.site().run(&["-v", "recover"]);
        self.site_mut().under.clear();
        match finished.code {
            None => End::Killed,
            Some(0) => End::Survived,
            Some(_) => panic!("recover failed\n{}", finished.all()),
        }
    }

    /// The host is as it was: configuration, journals, processes, sockets.
    #[track_caller]
    pub fn assert_restored(&self, when: &str) {
        assert_unchanged(&format!("({:?}, {when})", self.mode), &self.before, &self.site().host.snapshot());
        let journals = files(&self.site().dir.join("state/journal"));
        assert!(journals.is_empty(), "{:?}, {when}: left: {journals:?}", self.mode);
        let sockets = files(&self.site().host.sockets);
        assert!(sockets.is_empty(), "{:?}, {when}: left: {sockets:?}", self.mode);
        // a device that was held when its node died ends by itself
        let limit = Instant::now() + Duration::from_secs(3);
        while !self.processes().is_empty() {
            assert!(Instant::now() < limit, "{:?}, {when}: processes are left: {:?}", self.mode, self.processes());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The same but for journals and kernel settings.
    #[track_caller]
    pub fn assert_restored_by_marks(&self, when: &str) {
        let now = self.site().host.snapshot().without_settings();
        assert_unchanged(&format!("({:?}, {when})", self.mode), &self.before.without_settings(), &now);
    }

    /// The journal of the node.
    pub fn journal(&self) -> PathBuf {
        self.site().dir.join("state/journal/peervpn0.journal")
    }

    /// A node that is up, and then killed.
    pub fn killed(&mut self) {
        let mut node = self.start(&[], &[]);
        node.event(self.up());
        node.kill();
    }

    /// Process IDs of our program in the victim's namespace.
    fn processes(&self) -> Vec<String> {
        let list = fs::read_dir("/proc").expect("procfs").flatten();
        list.filter(|entry| {
            let here = fs::metadata(entry.path().join("ns/net")).is_ok_and(|found| found.ino() == self.net);
            // the exit that a peer connects to lives in another namespace
            here && fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.starts_with("peervpn"))
                && fs::read(entry.path().join("cmdline")).is_ok_and(|line| !line.is_empty())
        })
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
    }
}

fn files(dir: &std::path::Path) -> Vec<std::ffi::OsString> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
}

/// strace's arguments that kill the program as it enters its `n`th call of that name. Only the main thread counts, which
/// does all of a node's work; the userspace device is left alone. `-D`: our child is the program itself.
pub fn killer(call: &str, n: u32) -> Vec<String> {
    let inject = format!("inject={call}:signal=SIGKILL:when={n}");
    let trace = format!("trace={call}");
    ["strace", "-D", "-qq", "-o", "/dev/null", "-e", &trace, "-e", "signal=none", "-e", &inject]
        .map(str::to_owned)
        .to_vec()
}

/// strace on a running process, which it kills as it enters its `n`th call of that name from now on.
pub struct Tracer(Child);

impl Tracer {
    /// Returns once it is attached.
    pub fn attach(pid: u32, call: &str, n: u32) -> Tracer {
        let mut args = killer(call, n);
        args.retain(|arg| arg != "-D");
        let mut command = Command::new(&args[0]);
        command.args(&args[1..]).args(["-p", &pid.to_string()]).stdin(Stdio::null()).stderr(Stdio::null());
        let tracer = Tracer(command.spawn().expect("start strace"));
        let limit = Instant::now() + patience(10);
        let traced = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        };
        while !traced() {
            assert!(Instant::now() < limit, "strace does not attach to {pid}");
            std::thread::sleep(Duration::from_millis(5));
        }
        tracer
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
