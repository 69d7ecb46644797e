//! What every lab test starts with: can it run here, on which back end, how patient must it be, and where its result is
//! written for the table of passes.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Programs that every lab test starts.
const PROGRAMS: [&str; 3] = ["ip", "nft", "turnserver"];

/// Stands among a test's programs where it makes sense on the kernel back end alone.
pub const KERNEL_ONLY: &str = "kernel back end";

/// The back end under test: `PEERVPN_TEST_BACKEND`, else the kernel's where it has one.
pub fn backend() -> &'static str {
    static BACKEND: OnceLock<String> = OnceLock::new();
    BACKEND.get_or_init(|| match std::env::var("PEERVPN_TEST_BACKEND") {
        Ok(backend) => backend,
        Err(_) if kernel_has_wireguard() => "kernel".to_owned(),
        Err(_) => "userspace".to_owned(),
    })
}

/// Asks the kernel by creating a link in a throw-away namespace: a built-in WireGuard shows nowhere else.
pub fn kernel_has_wireguard() -> bool {
    let args = ["--net", "ip", "link", "add", "name", "probe0", "type", "wireguard"];
    let output = std::process::Command::new("unshare").args(args).output();
    output.is_ok_and(|output| output.status.success())
}

/// `seconds`, longer where everything is slow: in a VM with an emulated processor, or beside other work.
pub fn patience(seconds: u64) -> Duration {
    let factor = match std::env::var("GUEST").as_deref() {
        Ok("qemu") => 6,
        Ok(_) => 3,
        Err(_) => 1,
    };
    Duration::from_secs(seconds * factor)
}

/// What this machine lacks for the lab, `None` if nothing.
pub fn missing(also: &[&str]) -> Option<String> {
    // SAFETY: no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Some("root".to_owned());
    }
    if also.contains(&KERNEL_ONLY) && backend() != "kernel" {
        return Some("the kernel back end (PEERVPN_TEST_BACKEND=kernel)".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let lacking = PROGRAMS.iter().chain(also).filter(|name| **name != KERNEL_ONLY).find(|program| {
        !std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).any(|dir| dir.join(program).exists())
    });
    if let Some(program) = lacking {
        return Some(format!("the program {program} (tests/install-deps.sh)"));
    }
    let tun = Path::new("/dev/net/tun").exists();
    match backend() {
        "kernel" if !kernel_has_wireguard() => {
            Some("WireGuard in the running kernel (tests/vm/lab brings one)".to_owned())
        }
        "userspace" if !tun => Some("/dev/net/tun".to_owned()),
        _ => None,
    }
}

/// Runs one lab test: skips it by name where something is missing, and writes down how it went.
pub fn lab_test(name: &str, also: &[&str], test: impl FnOnce()) {
    let record = Record { name, start: Instant::now(), skipped: missing(also) };
    match &record.skipped {
        Some(what) => println!("SKIP: {what}"),
        None => test(),
    }
}

struct Record<'a> {
    name: &'a str,
    start: Instant,
    skipped: Option<String>,
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let result = match &self.skipped {
            _ if std::thread::panicking() => "FAIL",
            Some(_) => "skip",
            None => "pass",
        };
        // one small file a test, so that tests in processes of their own (nextest) can all write: see tests/lab/table.sh
        let parent = std::env::var_os("PEERVPN_LAB_RESULTS")
            .unwrap_or_else(|| concat!(env!("CARGO_TARGET_TMPDIR"), "/lab").into());
        let dir = Path::new(&parent).join(backend());
        let line = format!("{result} {:.1}\n", self.start.elapsed().as_secs_f32());
        let _ = std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(dir.join(self.name), line));
    }
}

/// Declares lab tests: `lab_test!(fn name() { … })`, with the programs it needs beyond the common ones in brackets.
#[macro_export]
macro_rules! lab_tests {
    ($($(#[$doc:meta])* fn $name:ident($($program:expr),*) $body:block)*) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            $crate::record::lab_test(stringify!($name), &[$($program),*], || $body);
        }
    )*};
}
