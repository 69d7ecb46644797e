//! Network namespaces: making them, running threads and programs inside, deleting them with all that runs in them.
//!
//! Starting a program costs 0.1–0.2 s under User-Mode Linux, so configuration goes through `ip -batch` and `nft -f`,
//! one start each, and sockets and sysctls are reached from threads that enter the namespace.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

/// Where iproute2 keeps named namespaces; ip-netns(8).
const NAMED: &str = "/run/netns";

/// Start of every namespace name the lab makes; the owner's process ID follows.
const PREFIX: &str = "pvlab-";

/// A named network namespace.
#[derive(Clone)]
pub struct Namespace {
    pub name: String,
    file: Arc<File>,
    /// Private directory that programs in here see as `/run/wireguard`: device sockets of two hosts must not meet.
    pub sockets: PathBuf,
    /// What programs in here see as `/etc/resolv.conf`, unless they have [`Namespace::mounts`]: never the machine's own.
    pub resolv_conf: PathBuf,
    /// A mount namespace for programs in here, instead of one each.
    pub mounts: Option<Arc<Mounts>>,
}

/// A mount namespace that a process holds, and the root it has there: not the namespace's own below a chroot.
pub struct Mounts {
    namespace: File,
    root: File,
}

impl Mounts {
    /// Those of a process.
    #[allow(dead_code, reason = "the lab uses it, others that include this file do not")]
    pub fn of(process: u32) -> io::Result<Mounts> {
        let open = |what: &str| File::open(format!("/proc/{process}/{what}"));
        Ok(Mounts { namespace: open("ns/mnt")?, root: open("root")? })
    }
}

/// Every namespace of one test; dropping it kills what runs inside and deletes them.
pub struct Namespaces {
    prefix: String,
    names: Vec<String>,
    /// Private directory of the test, deleted with the namespaces.
    pub dir: PathBuf,
}

impl Namespaces {
    /// Makes namespaces with these short names, empty but for a loopback that is down.
    pub fn new(short: &[&str]) -> (Self, Vec<Namespace>) {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let prefix = format!("{PREFIX}{}-{count}-", std::process::id());
        let names: Vec<String> = short.iter().map(|s| format!("{prefix}{s}")).collect();
        sweep();
        let dir = std::env::temp_dir().join(prefix.trim_end_matches('-'));
        // one of a dead process with our number may be there
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("create {}: {e}", dir.display()));
        let set = Namespaces { prefix, names, dir };
        let batch: String = set.names.iter().map(|name| format!("netns add {name}\n")).collect();
        feed(Command::new("ip").args(["-batch", "-"]), &batch);
        fs::create_dir_all("/run/wireguard").expect("create /run/wireguard");
        let spaces = set.names.iter().map(|name| Namespace::open(name, &set.dir)).collect();
        (set, spaces)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let inside: Vec<u64> = self.names.iter().filter_map(|name| inode(&Path::new(NAMED).join(name))).collect();
        kill_inside(&inside);
        if !delete(&self.names) && !std::thread::panicking() {
            eprintln!("could not delete every namespace {}*", self.prefix);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Namespace {
    fn open(name: &str, dir: &Path) -> Self {
        let file = File::open(Path::new(NAMED).join(name)).unwrap_or_else(|e| panic!("namespace {name}: {e}"));
        let sockets = dir.join(format!("{name}.wireguard"));
        fs::create_dir(&sockets).expect("create a directory for device sockets");
        let resolv_conf = dir.join(format!("{name}.resolv.conf"));
        fs::write(&resolv_conf, "nameserver 192.0.2.53\n").expect("write a resolv.conf");
        Namespace { name: name.to_owned(), file: Arc::new(file), sockets, resolv_conf, mounts: None }
    }

    /// Runs `work` in a thread that has entered this namespace; sockets it opens stay here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let result = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    // SAFETY: setns on a namespace file that stays open; only this short-lived thread moves.
                    let moved = unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) };
                    assert_eq!(moved, 0, "enter {}: {}", self.name, io::Error::last_os_error());
                    work()
                })
                .join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A command that will run in here, with its own `/sys` and a private `/run/wireguard`, and dies with the test.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let netns: RawFd = self.file.as_raw_fd();
        let keep = self.file.clone();
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path");
        let (sockets, resolv_conf) = (text(&self.sockets), text(&self.resolv_conf));
        let mounts = self.mounts.clone();
        // SAFETY: only system calls on values made before the fork; nothing allocates or locks.
        unsafe {
            command.pre_exec(move || {
                let _held = &keep;
                enter(
                    netns,
                    mounts.as_deref().map(|mounts| (mounts.namespace.as_raw_fd(), mounts.root.as_raw_fd())),
                    &sockets,
                    &resolv_conf,
                )
            });
        }
        command
    }

    /// Writes kernel settings, given as `net/ipv4/ip_forward=1`.
    pub fn sysctl(&self, settings: &[&str]) {
        self.run(|| {
            for setting in settings {
                let (key, value) = setting.split_once('=').expect("KEY=VALUE");
                fs::write(format!("/proc/sys/{key}"), value).unwrap_or_else(|e| panic!("set {setting}: {e}"));
            }
        });
    }

    /// Runs `ip` once with these lines.
    pub fn ip(&self, lines: &str) {
        feed(self.command("ip").args(["-batch", "-"]), lines);
    }

    /// Loads an nft script.
    pub fn nft(&self, script: &str) {
        feed(self.command("nft").args(["-f", "-"]), script);
    }

    /// Runs a program to its end; panics unless it succeeds; its stdout.
    pub fn output(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program).args(args).stdin(Stdio::null()).output();
        let output = output.unwrap_or_else(|e| panic!("start {program}: {e}"));
        assert!(
            output.status.success(),
            "{program} {}: {}\n{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    }
}

/// In the child, between fork and exec: what `ip netns exec` does, plus the private socket directory.
fn enter(netns: RawFd, mounts: Option<(RawFd, RawFd)>, sockets: &CString, resolv_conf: &CString) -> io::Result<()> {
    let check = |result: i32| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    let none = c"none".as_ptr();
    // SAFETY: every pointer is a live C string or null where mount(2) allows it.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        check(libc::setns(netns, libc::CLONE_NEWNET))?;
        if let Some((mounts, root)) = mounts {
            check(libc::setns(mounts, libc::CLONE_NEWNS))?;
            check(libc::fchdir(root))?;
            return check(libc::chroot(c".".as_ptr()));
        }
        check(libc::unshare(libc::CLONE_NEWNS))?;
        check(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_SLAVE, std::ptr::null()))?;
        // sysfs shows the interfaces of the namespace it was mounted in; it may be absent in a container
        libc::umount2(c"/sys".as_ptr(), libc::MNT_DETACH);
        libc::mount(c"sysfs".as_ptr(), c"/sys".as_ptr(), c"sysfs".as_ptr(), 0, std::ptr::null());
        let bind = libc::MS_BIND | libc::MS_REC;
        check(libc::mount(resolv_conf.as_ptr(), c"/etc/resolv.conf".as_ptr(), none, bind, std::ptr::null()))?;
        check(libc::mount(
            sockets.as_ptr(),
            c"/run/wireguard".as_ptr(),
            none,
            libc::MS_BIND | libc::MS_REC,
            std::ptr::null(),
        ))
    }
}

/// Runs `command` with `input` on stdin; panics with its stderr unless it succeeds.
fn feed(command: &mut Command, input: &str) {
    let output = try_feed(command, input).unwrap_or_else(|e| panic!("start {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n--- input\n{input}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

fn try_feed(command: &mut Command, input: &str) -> io::Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().expect("piped").write_all(input.as_bytes())?;
    child.wait_with_output()
}

fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|m| m.ino())
}

fn delete(names: &[String]) -> bool {
    let batch: String = names.iter().map(|name| format!("netns del {name}\n")).collect();
    try_feed(Command::new("ip").args(["-force", "-batch", "-"]), &batch).is_ok_and(|output| output.status.success())
}

/// Removes what a lab process that is no more has left behind.
fn sweep() {
    let Ok(entries) = fs::read_dir(NAMED) else { return };
    let names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            owner.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
        })
        .collect();
    if !names.is_empty() {
        let inodes: Vec<u64> = names.iter().filter_map(|name| inode(&Path::new(NAMED).join(name))).collect();
        kill_inside(&inodes);
        // a lab that runs beside this one may be doing the same
        delete(&names);
    }
}

/// Kills every process whose namespace is one of these; the lab made them, so all in them is the lab's.
fn kill_inside(inodes: &[u64]) {
    let Ok(entries) = fs::read_dir("/proc") else { return };
    let own = std::process::id() as i32;
    for entry in entries.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if pid != own && inode(&entry.path().join("ns/net")).is_some_and(|ino| inodes.contains(&ino)) {
            // SAFETY: a signal to a process seen in a namespace of ours.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}
