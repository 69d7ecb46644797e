//! Runs the binary in a place of its own and compares what it says with a golden file.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary under test.
pub const PEERVPN: &str = env!("CARGO_BIN_EXE_peervpn");

/// A private key for tests only, so that peer IDs and tunnel addresses are the same in every run.
pub const OWN_PRIVATE_KEY: &str = "QEVkHMkFFZ4sVJ8sLR8WgEfJNbY5DL+9vhK9OjQ5aWo=";
/// The public key of some exit.
pub const EXIT_KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// Directories of one test; removed at its end.
pub struct Place {
    pub dir: PathBuf,
}

impl Place {
    /// Fresh directories.
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("peervpn-cli-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        // the one who is not root must get at the directories
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        Place { dir }
    }

    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Puts the known key into the state directory.
    pub fn with_key(self) -> Self {
        self.write_key(&format!("{OWN_PRIVATE_KEY}\n"));
        self
    }

    /// Writes the key file.
    pub fn write_key(&self, text: &str) {
        fs::create_dir_all(self.state()).unwrap();
        fs::set_permissions(self.state(), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(self.key_file(), text).unwrap();
        fs::set_permissions(self.key_file(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn key_file(&self) -> PathBuf {
        self.state().join("identity.key")
    }

    /// Writes a configuration file and returns its path.
    pub fn config(&self, text: &str) -> PathBuf {
        let path = self.dir.join("config.toml");
        fs::write(&path, text).unwrap();
        path
    }

    /// The places as environment for a command.
    pub fn environment(&self, command: &mut Command) {
        command.env_remove("PEERVPN_CONFIG").env_remove("NO_COLOR").env_remove("WG_USERSPACE_IMPLEMENTATION");
        command.env("PEERVPN_STATE_DIR", self.state()).env("PEERVPN_RUN_DIR", self.run());
        // one short try of the resolver; resolv.conf(5)
        command.env("RES_OPTIONS", "timeout:1 attempts:1");
    }

    /// `peervpn ARGS`, outside of any namespace.
    pub fn peervpn(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PEERVPN);
        command.args(args);
        self.environment(&mut command);
        command
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A network namespace; deleted at the end of its test.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A namespace with nothing but loopback; `None` (after a word) where this cannot be.
    pub fn new(test: &str) -> Option<Self> {
        // SAFETY: geteuid(2) takes nothing and cannot fail
        if unsafe { libc::geteuid() } != 0 {
            println!("SKIP: {test}: not root, so no network namespace");
            return None;
        }
        if Command::new("ip").arg("-V").output().is_err() {
            println!("SKIP: {test}: no iproute2");
            return None;
        }
        let namespace = Namespace { name: format!("pvcli-{}-{test}", std::process::id()) };
        done(Command::new("ip").args(["netns", "add", &namespace.name]));
        namespace.ip("link set lo up");
        Some(namespace)
    }

    /// As [`Namespace::new`], with an address and a default route to a gateway that never answers.
    pub fn with_default_route(test: &str) -> Option<Self> {
        let namespace = Self::new(test)?;
        namespace.ip("link add up0 type veth peer name far0");
        for link in ["up0", "far0"] {
            namespace.sysctl(&format!("net/ipv6/conf/{link}/accept_dad"), "0");
            namespace.ip(&format!("link set {link} up"));
        }
        namespace.ip("addr add 192.0.2.2/24 dev up0");
        namespace.ip("route add default via 192.0.2.1 dev up0");
        // the address's own settling would look like a change
        std::thread::sleep(Duration::from_millis(300));
        Some(namespace)
    }

    /// `ip ARGS` inside.
    pub fn ip(&self, args: &str) {
        done(Command::new("ip").args(["-n", &self.name]).args(args.split(' ')));
    }

    /// Writes a kernel setting inside; one that the kernel lacks is left out.
    fn sysctl(&self, key: &str, value: &str) {
        let script = format!("test ! -e /proc/sys/{key} || echo {value} > /proc/sys/{key}");
        done(&mut self.command("sh", &["-c", &script]));
    }

    /// A command inside.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(args);
        command
    }

    /// `peervpn ARGS` inside.
    pub fn peervpn(&self, place: &Place, args: &[&str]) -> Command {
        // `ip netns exec` brings a mount namespace: userspace devices of tests side by side do not meet in it
        let apart = "mkdir -p /run/wireguard && mount -t tmpfs none /run/wireguard && exec \"$0\" \"$@\"";
        let mut command = self.command("sh", &[&["-c", apart, PEERVPN], args].concat());
        place.environment(&mut command);
        command
    }

    /// The host's network configuration by the standard tools: links, addresses, routes, rules, firewall, settings.
    pub fn snapshot(&self) -> String {
        let script = "
            ip -d link; ip addr | sed 's/valid_lft.*//'
            for f in -4 -6; do echo; ip $f route show table all; ip $f rule; done
            command -v nft >/dev/null && nft list ruleset
            cd /proc/sys/net && grep -s . ipv4/ip_forward ipv4/conf/*/*forwarding ipv4/conf/*/rp_filter \
                ipv4/conf/*/src_valid_mark ipv6/conf/*/forwarding ipv6/conf/*/accept_ra";
        let output = self.command("sh", &["-c", script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Ends every process inside.
    pub fn kill_all(&self) {
        let pids = Command::new("ip").args(["netns", "pids", &self.name]).output().unwrap();
        for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
            // SAFETY: kill(2) on a process of a namespace that is this test's own
            unsafe { libc::kill(pid.parse().unwrap(), libc::SIGKILL) };
        }
        while !Command::new("ip").args(["netns", "pids", &self.name]).output().unwrap().stdout.is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A UDP socket bound inside the namespace, held by this process.
    pub fn bind(&self, address: &str) -> std::net::UdpSocket {
        use std::os::fd::AsRawFd as _;
        let file = fs::File::open(Path::new("/run/netns").join(&self.name)).unwrap();
        let address = address.to_owned();
        // a thread of its own: it stays in the namespace until it ends
        std::thread::spawn(move || {
            // SAFETY: a descriptor that is open for the length of the call, and a constant
            assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            std::net::UdpSocket::bind(address).unwrap()
        })
        .join()
        .unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Runs a preparing command that must succeed.
pub fn done(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a command to its end; one that takes more than 30 s is killed and fails the test.
pub fn finish(command: &mut Command) -> Output {
    finish_child(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// Waits for a started command.
pub fn finish_child(mut child: Child) -> Output {
    let limit = Instant::now() + Duration::from_secs(30);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > limit {
            child.kill().unwrap();
            panic!("still running after 30 s: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// Runs a command in a namespace, compares what it says with the golden file, and asserts that the host is unchanged
/// and no journal or control socket is left.
pub fn golden_unchanged(name: &str, namespace: &Namespace, place: &Place, command: &mut Command) {
    let before = namespace.snapshot();
    let output = finish(command);
    let after = namespace.snapshot();
    golden(name, place, &output);
    assert_eq!(before, after, "{name}: the host is not as before");
    nothing_left(place);
}

/// No journal, no control socket.
pub fn nothing_left(place: &Place) {
    let files = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    for file in files(place.run()).chain(files(place.state())).chain(files(place.state().join("journal"))) {
        let file = file.to_string_lossy().into_owned();
        assert!(!file.ends_with(".sock") && !file.ends_with(".journal"), "{file} is left");
    }
}

/// Compares exit status, stdout and stderr with `tests/cli/NAME.txt`.
pub fn golden(name: &str, place: &Place, output: &Output) {
    let text = |bytes: &[u8]| masked(&String::from_utf8_lossy(bytes), place);
    let said = format!(
        "exit status {}\n--- stdout\n{}--- stderr\n{}",
        output.status.code().map_or_else(|| output.status.to_string(), |code| code.to_string()),
        text(&output.stdout),
        text(&output.stderr)
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(format!("{name}.txt"));
    if std::env::var("PEERVPN_GOLDEN").is_ok_and(|what| what == "update") {
        fs::write(&path, said).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        said == expected,
        "{name}: not as in {}\n=== expected\n{expected}\n=== got\n{said}\n(PEERVPN_GOLDEN=update accepts it)",
        path.display()
    );
}

/// Text without what differs from run to run: directories, process IDs, and our own name where it holds a port.
fn masked(text: &str, place: &Place) -> String {
    let own = fs::read_to_string("/proc/self/comm").unwrap();
    let text = text
        .replace(&place.dir.display().to_string(), "[DIR]")
        .replace(env!("CARGO_PKG_VERSION"), "[VERSION]")
        .replace(own.trim_end(), "[PROGRAM]")
        .replace(&format!("pvcli-{}", std::process::id()), "pvcli-[PID]");
    without_numbers(&without_numbers(&text, "(process ", "[PID]"), "net:[", "INODE")
}

/// Text with this in place of the number behind each `prefix`.
fn without_numbers(text: &str, prefix: &str, instead: &str) -> String {
    let mut parts = text.split(prefix);
    let mut masked = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        masked.push_str(&format!("{prefix}{instead}"));
        masked.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    masked
}
