//! A site's host as a machine that has booted systemd, with PeerVPN installed by `make install`: `machine.sh` makes it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::net::Namespace;
use crate::node::binary;
use crate::topology::Site;

/// systemd, where Debian has it.
const SYSTEMD: &str = "/lib/systemd/systemd";

/// Why no machine can be booted here.
pub fn missing() -> Option<&'static str> {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let knows = |name: &str| text("/proc/filesystems").split_whitespace().any(|word| word == name);
    match () {
        // under User-Mode Linux it did not come up within minutes
        () if std::env::var_os("GUEST").is_some() => Some("a machine on which systemd comes up in time"),
        () if !Path::new(SYSTEMD).exists() => Some("systemd (tests/install-deps.sh)"),
        () if !knows("cgroup2") => Some("cgroup v2 in the kernel"),
        () if !knows("overlay") => Some("overlayfs in the kernel"),
        () => None,
    }
}

/// A machine; its disk and what runs on it end with this value, its network is the site's.
pub struct Machine {
    script: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    host: Namespace,
    pid: String,
    dir: std::path::PathBuf,
}

impl Machine {
    /// Installs and boots.
    pub fn new(site: &Site) -> Machine {
        let dir = site.dir.join("machine");
        std::fs::create_dir(&dir).expect("create the machine's directory");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/machine.sh");
        let mut command = site.host.command("bash");
        command.arg(script).arg(&dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = command.spawn().expect("start bash");
        let commands = script.stdin.take().expect("piped");
        let answers = BufReader::new(script.stdout.take().expect("piped"));
        let mut machine = Machine { script, commands, answers, host: site.host.clone(), pid: String::new(), dir };
        let install = format!("install {} {}", env!("CARGO_MANIFEST_DIR"), binary().display());
        assert_eq!(machine.ask(&install), "installed");
        machine.boot();
        machine
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").expect("machine.sh listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("machine.sh answers");
        line.trim().to_owned()
    }

    /// Switches it on, and waits until its start is over.
    pub fn boot(&mut self) {
        let answer = self.ask("boot");
        self.pid = answer.strip_prefix("pid ").unwrap_or_else(|| panic!("{answer}")).to_owned();
    }

    /// The power fails: everything that runs on it is gone at once.
    pub fn cut(&mut self) {
        assert_eq!(self.ask("cut"), "dark");
    }

    /// From the next boot on it is another boot than the one before (`/proc/sys/kernel/random/boot_id`).
    pub fn renew_boot(&self) {
        std::fs::write(self.dir.join("boot-id"), "00000000-0000-4000-8000-000000000001\n").expect("write a boot ID");
    }

    /// A command on it, in a shell.
    pub fn command(&self, script: &str) -> Command {
        let mut command = self.host.command("nsenter");
        command.args(["--target", &self.pid, "--all", "sh", "-c", script]).stdin(Stdio::null());
        command
    }

    /// Runs a command in a shell that must succeed; its stdout.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let output = self.command(script).output().expect("start nsenter");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{script}: {}\n{out}{err}\n{}", output.status, self.journal());
        out
    }

    /// Writes a file on it.
    pub fn write(&self, path: &str, text: &str) {
        self.run(&format!("umask 022; mkdir -p $(dirname {path}); printf '%s' '{text}' > {path}"));
    }

    /// One property of a unit, as systemctl(1) `show` prints it.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.run(&format!("systemctl show --value -p {name} {unit}")).trim().to_owned()
    }

    /// What its units said.
    pub fn journal(&self) -> String {
        let output = self.command("journalctl -b --no-pager -o short-monotonic | tail -n 60").output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the machine's journal\n{}", self.journal());
        }
        let _ = writeln!(self.commands, "cut");
        let _ = self.answers.read_line(&mut String::new());
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}
