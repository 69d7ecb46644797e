//! DNS of a peer by every resolver there is, in a mount namespace of its own: the exit's answers while connected, the
//! LAN's before and after. Both name servers are dnsmasq on the site's router, at the same private address.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::net::{Mounts, Namespace};
use crate::node::Node;
use crate::record::patience;
use crate::topology::{Lab, Nat, Site};
use crate::{lab_tests, open_exit, text, texts};

/// What the exit's resolver answers to `web.test`, and what the peer's LAN does.
const EXITS: &str = "192.0.2.80";
const LANS: &str = "198.51.100.99";

/// A program that ends with the test.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// dnsmasq on a site's router, and the file it logs its queries to.
struct Resolver {
    _process: Helper,
    log: PathBuf,
}

impl Resolver {
    fn start(site: &Site, answer: &str) -> Resolver {
        Resolver::at(site.router.as_ref().expect("a router"), site.lan_router(), answer, site.dir.join("dnsmasq.log"))
    }

    fn at(space: &Namespace, address: Ipv4Addr, answer: &str, log: PathBuf) -> Resolver {
        let mut command = space.command("dnsmasq");
        command
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"])
            .args(["--user=root", "--pid-file=", "--log-queries"])
            .arg(format!("--listen-address={address}"))
            .arg(format!("--address=/test/{answer}"))
            .arg("--address=/exit.example/203.0.113.20")
            .arg(format!("--log-facility={}", log.display()))
            .stdin(Stdio::null());
        let process = Helper(command.spawn().expect("start dnsmasq"));
        let start = Instant::now();
        while !fs::read_to_string(&log).is_ok_and(|text| text.contains("started")) {
            assert!(start.elapsed() < patience(10), "dnsmasq does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Resolver { _process: process, log }
    }

    fn queries(&self) -> usize {
        fs::read_to_string(&self.log).expect("its log").matches(" query[").count()
    }
}

/// A peer and an exit, both behind routers with a resolver.
struct Scene {
    exit: Node,
    connect: String,
    exits: Resolver,
    lans: Resolver,
    _helpers: Vec<Helper>,
    lab: Lab,
}

impl Scene {
    fn new() -> Scene {
        let lab = Lab::new(Nat::FullCone, &[Nat::PortRestricted.into()]);
        let (exits, lans) = (Resolver::start(&lab.exit, EXITS), Resolver::start(lab.peer(), LANS));
        for site in [&lab.exit, lab.peer()] {
            let text = format!("nameserver {}\noptions timeout:1 attempts:2\n", site.lan_router());
            fs::write(&site.host.resolv_conf, text).expect("write a resolv.conf");
        }
        let (exit, ready) = open_exit(&lab, &[]);
        Scene { exit, connect: text(&ready, "connect").to_owned(), exits, lans, _helpers: Vec::new(), lab }
    }

    /// Programs on the peer get an `/etc` and a `/run` of their own, prepared by this script.
    fn with_own_etc(script: &str) -> Scene {
        let mut scene = Scene::new();
        let peer = &mut scene.lab.peers[0];
        let set_up = format!(
            "set -e\numount /etc/resolv.conf\nmkdir {dir}/etc\nmount -t tmpfs none {dir}/etc\ncp -a /etc/. {dir}/etc\n\
             rm -f {dir}/etc/resolv.conf\nmount --bind {dir}/etc /etc\nmount -t tmpfs none /run\n\
             mkdir -p /run/wireguard /run/dbus /run/systemd /run/lock\n{script}\necho ready\nexec sleep 1000\n",
            dir = peer.dir.display()
        );
        let mut command = peer.host.command("sh");
        command.args(["-c", &set_up]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut holder = Helper(command.spawn().expect("start sh"));
        let mut line = String::new();
        let _ = BufReader::new(holder.0.stdout.take().expect("piped")).read_line(&mut line);
        assert_eq!(line, "ready\n", "the peer's /etc is not prepared");
        let mounts = Mounts::of(holder.0.id()).expect("its mount namespace");
        peer.host.mounts = Some(Arc::new(mounts));
        scene._helpers.push(holder);
        scene
    }

    fn peer(&self) -> &Site {
        self.lab.peer()
    }

    /// What the C library's resolver says on the peer.
    fn look_up(&self, name: &str) -> String {
        let output = self.peer().host.command("getent").args(["ahostsv4", name]).output().expect("start getent");
        String::from_utf8_lossy(&output.stdout).split_whitespace().next().unwrap_or("nothing").to_owned()
    }

    fn resolv_conf(&self) -> String {
        self.peer().host.output("cat", &["/etc/resolv.conf"])
    }

    /// Kind, target and contents of `/etc/resolv.conf`.
    fn state(&self) -> String {
        let script = "stat -c '%F %a' /etc/resolv.conf; readlink /etc/resolv.conf; cat /etc/resolv.conf; true";
        self.peer().host.output("sh", &["-c", script])
    }

    fn connect(&self, args: &[&str]) -> Node {
        let mut peer = self.peer().connect(&self.connect, args);
        let connected = peer.event("connected");
        assert_eq!(texts(&connected, "dns").is_empty(), args.contains(&"none"), "{connected}");
        peer
    }

    /// Before, while and after.
    #[track_caller]
    fn round(&self, way: &str) {
        let before = self.state();
        assert_eq!(self.look_up("before.test"), LANS, "before\n{before}");
        let mut peer = self.connect(&[]);
        // the log may come after the event
        let start = Instant::now();
        while !peer.log().contains(way) {
            assert!(start.elapsed() < patience(5), "not chosen: {way}\n{}", peer.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        let (asked, leaked) = (self.exits.queries(), self.lans.queries());
        assert_eq!(self.look_up("while.test"), EXITS, "while connected\n{}\n{}", self.state(), peer.log());
        assert!(self.exits.queries() > asked, "the exit's resolver was not asked");
        assert_eq!(self.lans.queries(), leaked, "the LAN's resolver was asked");
        peer.stop(libc::SIGINT);
        assert_eq!(self.state(), before, "after");
        assert_eq!(self.look_up("after.test"), LANS, "after");
        // the same with a node that is killed
        let mut peer = self.connect(&[]);
        peer.kill();
        assert_eq!(self.look_up("killed.test"), EXITS, "the tunnel goes on\n{}", self.state());
        self.peer().run_ok(&["recover"]);
        assert_eq!(self.state(), before, "after recover");
        assert_eq!(self.look_up("recovered.test"), LANS, "after recover");
    }
}

lab_tests! {
    fn dns_by_a_mounted_resolv_conf("dnsmasq") {
        let scene = Scene::new();
        scene.round("is a mount point: written in place");
    }

    fn dns_by_a_resolv_conf_file("dnsmasq") {
        Scene::with_own_etc("echo nameserver 192.168.1.1 > /etc/resolv.conf").round("is a file: replaced");
    }

    fn dns_by_a_resolv_conf_link("dnsmasq") {
        let script = "mkdir /run/NetworkManager; echo nameserver 192.168.1.1 > /run/NetworkManager/resolv.conf\n\
                      ln -s ../run/NetworkManager/resolv.conf /etc/resolv.conf";
        Scene::with_own_etc(script).round("is a symbolic link: replaced by a file");
    }

    fn dns_by_openresolv("dnsmasq", "resolvconf") {
        let script = "resolvconf --version | grep -q openresolv\n\
                      echo nameserver 192.168.1.1 | resolvconf -a eth0\ngrep -q 192.168.1.1 /etc/resolv.conf";
        Scene::with_own_etc(script).round("was written by resolvconf");
    }

    /// Debian's own, which openresolv keeps from being installed beside it.
    fn dns_by_debians_resolvconf("dnsmasq", "resolvconf") {
        const UNPACKED: &str = "/usr/local/lib/peervpn-tests";
        if !Path::new(UNPACKED).join("sbin/resolvconf").exists() {
            println!("SKIP: Debian's resolvconf (tests/install-deps.sh)");
            return;
        }
        let script = format!(
            "mount --bind {UNPACKED}/sbin/resolvconf $(command -v resolvconf)\n\
             mount --bind {UNPACKED}/lib/resolvconf /lib/resolvconf\n\
             rm -rf /etc/resolvconf; cp -a {UNPACKED}/etc/resolvconf /etc/resolvconf\n\
             mkdir -p /run/resolvconf/interface; resolvconf --enable-updates\n\
             ln -s ../run/resolvconf/resolv.conf /etc/resolv.conf\n\
             echo nameserver 192.168.1.1 | resolvconf -a eth0.dhclient\ngrep -q 192.168.1.1 /etc/resolv.conf"
        );
        Scene::with_own_etc(&script).round("Debian's resolvconf is there; /etc/resolv.conf was written by resolvconf");
    }

    /// dnsmasq on the peer itself, which forwards to the LAN's.
    fn dns_by_a_local_dnsmasq("dnsmasq") {
        let script = "dnsmasq --conf-file=/dev/null --no-resolv --no-hosts --server=192.168.1.1 --cache-size=0 \
                      --listen-address=127.0.0.1 --bind-interfaces --user=root --pid-file= < /dev/null > /dev/null 2>&1\n\
                      echo nameserver 127.0.0.1 > /etc/resolv.conf\n\
                      i=0; until getent ahostsv4 up.test >/dev/null; do i=$((i+1)); [ $i -lt 50 ]; sleep 0.1; done";
        Scene::with_own_etc(script).round("is a file: replaced");
    }

    fn dns_by_systemd_resolved("dnsmasq", "dbus-daemon") {
        let Some(resolved) = systemd_resolved() else {
            println!("SKIP: systemd-resolved (tests/install-deps.sh)");
            return;
        };
        let script = format!(
            "getent group systemd-resolve >/dev/null || echo systemd-resolve:x:65533: >> /etc/group\n\
             getent passwd systemd-resolve >/dev/null || echo systemd-resolve:x:65533:65533::/:/bin/false >> /etc/passwd\n\
             mkdir -p /etc/systemd/resolved.conf.d\n\
             printf '[Resolve]\\nDNS=192.168.1.1\\nFallbackDNS=\\nLLMNR=no\\nDNSSEC=no\\n' > /etc/systemd/resolved.conf.d/t.conf\n\
             cat > /run/bus.conf <<E\n<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>\n\
             <auth>EXTERNAL</auth><policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/><allow send_type=\"method_call\"/>\n\
             <allow send_type=\"signal\"/><allow send_requested_reply=\"true\" send_type=\"method_return\"/>\n\
             <allow send_requested_reply=\"true\" send_type=\"error\"/><allow receive_type=\"method_call\"/><allow receive_type=\"signal\"/>\n\
             <allow receive_type=\"method_return\"/><allow receive_type=\"error\"/></policy></busconfig>\nE\n\
             dbus-daemon --config-file=/run/bus.conf --nofork --nopidfile >/run/bus.log 2>&1 &\n\
             i=0; while [ ! -S /run/dbus/system_bus_socket ]; do i=$((i+1)); [ $i -lt 200 ]; sleep 0.05; done\n\
             ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf\n\
             {} >/run/resolved.log 2>&1 &\n\
             i=0; while [ ! -e /run/systemd/resolve/stub-resolv.conf ]; do i=$((i+1)); [ $i -lt 200 ] || {{ cat /run/resolved.log /run/bus.log >&2; exit 1; }}; sleep 0.05; done\n\
             i=0; until getent ahostsv4 up.test >/dev/null; do i=$((i+1)); [ $i -lt 50 ] || {{ cat /run/resolved.log /run/bus.log >&2; exit 1; }}; sleep 0.1; done",
            resolved.display()
        );
        Scene::with_own_etc(&script).round("/etc/resolv.conf leads to it");
    }

    fn dns_that_cannot_be_changed_is_refused_with_the_remedy("dnsmasq", "chattr") {
        for (script, expected) in [
            ("echo nameserver 192.168.1.1 > /etc/resolv.conf; chattr +i /etc/resolv.conf", "chattr -i /etc/resolv.conf"),
            ("echo nameserver 192.168.1.1 > /etc/resolv.conf; mount -o remount,ro,bind /etc", "read-only file system"),
        ] {
            let scene = Scene::with_own_etc(script);
            let before = (scene.state(), scene.peer().host.snapshot());
            let mut peer = scene.peer().connect(&scene.connect, &[]);
            assert_eq!(peer.wait(), Some(1), "{}", peer.log());
            assert!(peer.log().contains(expected) && peer.log().contains("host: restored"), "{}", peer.log());
            assert_eq!(scene.state(), before.0);
            crate::snapshot::assert_unchanged("after a refusal", &before.1, &scene.peer().host.snapshot());
            // DNS as it is: the LAN's resolver
            let mut peer = scene.connect(&["--dns", "none"]);
            assert_eq!(scene.look_up("none.test"), LANS);
            peer.stop(libc::SIGINT);
        }
    }

    /// The kill switch of a node that was killed holds DNS back: the next one remembers what the exit's name stood for.
    fn an_exit_by_name_is_found_behind_a_dead_nodes_kill_switch("dnsmasq") {
        let scene = Scene::new();
        let key = scene.connect.split_once('@').expect("a connect string").0;
        let by_name = format!("{key}@exit.example:51820");
        for round in 0..3 {
            let mut peer = scene.peer().connect(&by_name, &[]);
            peer.event("connected");
            assert_eq!(scene.look_up(&format!("round{round}.test")), EXITS);
            peer.kill();
            scene.peer().host.ip("link del peervpn0\n");
            assert_eq!(scene.look_up(&format!("killed{round}.test")), "nothing");
        }
        scene.peer().run_ok(&["recover"]);
        assert_eq!(scene.look_up("recovered.test"), LANS);
    }

    /// A DHCP client writes the file while we are connected: what it wrote is what comes back.
    fn dns_that_someone_else_changed_is_theirs("dnsmasq") {
        let scene = Scene::with_own_etc("echo nameserver 192.168.1.1 > /etc/resolv.conf");
        let theirs = "nameserver 192.168.1.1\nsearch theirs.test\n";
        let write = || {
            scene.peer().host.output("sh", &["-c", &format!("printf '{}' > /etc/resolv.conf", theirs.replace('\n', "\\n"))]);
        };
        let mut peer = scene.connect(&[]);
        write();
        let start = Instant::now();
        while !scene.resolv_conf().contains("peervpn") {
            assert!(start.elapsed() < patience(10), "not taken back: {}\n{}", scene.resolv_conf(), peer.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(scene.look_up("taken-back.test"), EXITS);
        peer.stop(libc::SIGINT);
        assert_eq!(scene.resolv_conf(), theirs);
        let mut peer = scene.connect(&[]);
        peer.kill();
        write();
        scene.peer().run_ok(&["down"]);
        assert_eq!(scene.resolv_conf(), theirs, "recovery wrote over it");
        assert_eq!(scene.look_up("after.test"), LANS);
    }

    /// The exit's resolver changes, has none but a stub, or is named by hand.
    fn the_exit_follows_its_resolver("dnsmasq") {
        let mut scene = Scene::new();
        let router = scene.lab.exit.router.clone().expect("a router");
        router.ip("addr add 192.168.1.53/24 dev lan0\n");
        let second = Resolver::at(&router, "192.168.1.53".parse().unwrap(), "192.0.2.81", scene.lab.exit.dir.join("second.log"));
        let mut peer = scene.connect(&[]);
        assert_eq!(scene.look_up("one.test"), EXITS);
        fs::write(&scene.lab.exit.host.resolv_conf, "nameserver 192.168.1.53\n").unwrap();
        let start = Instant::now();
        let mut round = 0;
        while scene.look_up(&format!("two{round}.test")) != "192.0.2.81" {
            round += 1;
            assert!(start.elapsed() < patience(15), "the exit stays with the old resolver: {}", scene.exit.log());
        }
        assert!(second.queries() > 0);
        peer.stop(libc::SIGINT);
        scene.exit.stop(libc::SIGINT);

        fs::write(&scene.lab.exit.host.resolv_conf, "nameserver 127.0.0.1\n").unwrap();
        let mut stub = scene.lab.exit.exit(&["--accept", "any"]);
        stub.event("ready");
        assert!(stub.log().contains("only name server is a stub"), "{}", stub.log());
        stub.stop(libc::SIGINT);
        let mut named = scene.lab.exit.exit(&["--accept", "any", "--dns", "192.168.1.1"]);
        named.event("ready");
        let mut peer = scene.connect(&[]);
        assert_eq!(scene.look_up("named.test"), EXITS);
        // and a server that the peer names, asked through the tunnel
        peer.stop(libc::SIGINT);
        named.stop(libc::SIGINT);
    }
}

/// The Debian package's daemon, unpacked by `tests/install-deps.sh` where it is not installed; it needs the shared library
/// of the systemd that is.
fn systemd_resolved() -> Option<PathBuf> {
    [
        "/usr/lib/systemd/systemd-resolved",
        "/lib/systemd/systemd-resolved",
        "/usr/local/lib/peervpn-tests/lib/systemd/systemd-resolved",
    ]
    .iter()
    .map(Path::new)
    .find(|path| Command::new(path).arg("--version").output().is_ok_and(|output| output.status.success()))
    .map(Path::to_owned)
}
